"""Counts the tokens of each example's query and response."""

import logging

from icprobe import data
from icprobe.fitting import lengths
from icprobe.jobs import job
from icprobe.prompts import Prompts

with job(snakemake) as run:
    from icprobe.tokenizing import reader

    train = data.read_parquet(snakemake.input.train)
    table = lengths(train, Prompts(snakemake.params.templates), reader(snakemake.input.model))
    data.write_parquet(table, snakemake.output[0])
    total = int(table["n_query"].sum() + table["n_target"].sum())
    logging.info("%d examples, %d tokens, longest response %d", len(table), total, table["n_target"].max())
    run.summary(examples=len(table), tokens=total)
