"""Puts the shards of an attribution matrix together, in the order of the examples."""

import logging

from icprobe.attribution.gathering import gather
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    rows, columns = gather(list(snakemake.input.shards), snakemake.input.train, snakemake.output[0])
    logging.info("%d shards, %d examples x %d columns", len(snakemake.input.shards), rows, columns)
    run.summary(examples=rows, columns=columns)
