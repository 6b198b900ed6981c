"""Counts the tokens of each eval prompt, and checks that a response fits behind it."""

import logging

from icprobe.tables import parquet
from icprobe.tables.fitting import prompt_lengths
from icprobe.tables.unread import tell_of_inputs
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.evaluation.stopping import Stops
    from icprobe.texts.tokenizing import reader

    params = snakemake.params
    texts, read = prompts_of(params.templates), reader(snakemake.input.model)
    Stops.of(texts, read.tokenizer)  # before anything is trained that could not be asked
    prompts = parquet.read_parquet(snakemake.input.prompts)
    tell_of_inputs(prompts, params.templates, "eval prompts")
    table = prompt_lengths(prompts, texts, read, params.max_new_tokens)
    parquet.write_parquet(table, snakemake.output[0])
    logging.info("%d eval prompts, the longest of %d tokens", len(table), table["n_query"].max())
    run.summary(prompts=len(table), longest=int(table["n_query"].max()))
