"""Reads the eval prompts, checks every row, and samples."""

import logging

from icprobe.tables import checking, parquet
from icprobe.tables.fitting import draw
from icprobe.texts.prompts import Prompts
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    table = checking.read_table(params.source, extra=["subset", "domain", "generator"], needs_output=False)
    from icprobe.texts.tokenizing import reader

    readers = [reader(path) for path in snakemake.input.models]
    query = Prompts.of_queries(params.templates).query if readers else None
    prompts = draw(table, params.source["sample"], query, readers, "data.eval.sample")
    parquet.write_parquet(prompts, snakemake.output[0])
    logging.info("%d prompts read, %d kept", len(table), len(prompts))
    run.summary(read=len(table), prompts=len(prompts))
