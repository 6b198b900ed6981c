"""Counts the tokens of each eval prompt, and checks that a response fits behind it."""

import logging

from icprobe import data
from icprobe.fitting import prompt_lengths
from icprobe.jobs import job
from icprobe.prompts import Prompts

with job(snakemake) as run:
    from icprobe.tokenizing import reader

    params = snakemake.params
    texts = Prompts.of_queries(params.templates)
    prompts = data.read_parquet(snakemake.input.prompts)
    table = prompt_lengths(prompts, texts, reader(snakemake.input.model), params.max_new_tokens)
    data.write_parquet(table, snakemake.output[0])
    logging.info("%d eval prompts, the longest of %d tokens", len(table), table["n_query"].max())
    run.summary(prompts=len(table), longest=int(table["n_query"].max()))
