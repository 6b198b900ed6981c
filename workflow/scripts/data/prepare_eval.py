"""Reads the eval prompts, checks every row, and samples."""

import logging

from icprobe.tables import checking, parquet
from icprobe.tables.fitting import draw
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    table = checking.read_table(params.source, extra=["subset", "domain", "generator"], needs_output=False)
    from icprobe.texts.tokenizing import reader

    readers = [reader(path) for path in snakemake.input.models]
    texts = prompts_of(params.templates) if readers else None
    how = texts, readers, "data.eval.sample", lambda texts, row: texts.query(row)
    prompts = draw(table, params.source["sample"], *how)
    parquet.write_parquet(prompts, snakemake.output[0])
    logging.info("%d prompts read, %d kept", len(table), len(prompts))
    run.summary(read=len(table), prompts=len(prompts))
