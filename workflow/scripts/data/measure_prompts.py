"""Counts the tokens of each eval prompt, and checks that a response fits behind it."""

import logging

from icprobe.tables import parquet
from icprobe.tables.fitting import prompt_lengths
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.texts.tokenizing import reader

    params = snakemake.params
    texts = prompts_of(params.templates)
    prompts = parquet.read_parquet(snakemake.input.prompts)
    table = prompt_lengths(prompts, texts, reader(snakemake.input.model), params.max_new_tokens)
    parquet.write_parquet(table, snakemake.output[0])
    logging.info("%d eval prompts, the longest of %d tokens", len(table), table["n_query"].max())
    run.summary(prompts=len(table), longest=int(table["n_query"].max()))
