"""Reads the eval prompts and checks every row."""

import logging

from icprobe import data
from icprobe.jobs import job

with job(snakemake) as run:
    prompts = data.read_table(snakemake.params.source, extra=["subset", "domain", "generator"], needs_output=False)
    data.write_parquet(prompts, snakemake.output[0])
    logging.info("%d eval prompts", len(prompts))
    run.summary(prompts=len(prompts))
