"""Puts the shards of an attribution matrix together, in the order of the examples."""

import logging

from icprobe.attribution.gathering import gather
from icprobe.errors import several
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    rows, columns = gather(list(snakemake.input.shards), snakemake.input.train, snakemake.output[0])
    shards = several(len(snakemake.input.shards), "shard")
    logging.info("%s, %s x %s", shards, several(rows, "example"), several(columns, "column"))
    run.summary(examples=rows, columns=columns)
