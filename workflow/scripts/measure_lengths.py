"""Counts the tokens of each example's query and response."""

import logging

from icprobe import data
from icprobe.fitting import lengths, unknown_lengths
from icprobe.jobs import job
from icprobe.prompts import Prompts

with job(snakemake) as run:
    train = data.read_parquet(snakemake.input.train)
    if snakemake.input.model:
        from icprobe.tokenizing import reader

        table = lengths(train, Prompts(snakemake.params.templates), reader(snakemake.input.model))
        total = int(table["n_query"].sum() + table["n_target"].sum())
        logging.info("%d examples, %d tokens, longest response %d", len(table), total, table["n_target"].max())
        run.summary(examples=len(table), tokens=total)
    else:
        table = unknown_lengths(train)
        logging.info("%d examples without texts or without a model: their lengths are unknown", len(table))
    data.write_parquet(table, snakemake.output[0])
