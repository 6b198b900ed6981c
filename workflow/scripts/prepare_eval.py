"""Reads the eval prompts, checks every row, and samples."""

import logging

from icprobe import data
from icprobe.fitting import draw
from icprobe.jobs import job
from icprobe.prompts import Prompts

with job(snakemake) as run:
    params = snakemake.params
    table = data.read_table(params.source, extra=["subset", "domain", "generator"], needs_output=False)
    from icprobe.tokenizing import reader

    readers = [reader(path) for path in snakemake.input.models]
    query = Prompts.of_queries(params.templates).query if readers else None
    prompts = draw(table, params.source["sample"], query, readers, "data.eval.sample")
    data.write_parquet(prompts, snakemake.output[0])
    logging.info("%d prompts read, %d kept", len(table), len(prompts))
    run.summary(read=len(table), prompts=len(prompts))
