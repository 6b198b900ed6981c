"""What is still to be done of an experiment, and what it takes: a row for each rule."""

import logging

from icprobe import artifacts
from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.workflow import estimating
from icprobe.workflow.jobs import job
from icprobe.workflow.measured import Measured

with job(snakemake) as run:
    config = load(snakemake.config, METHODS)
    jobs = estimating.planned(snakemake.params.targets)
    table = estimating.table(jobs, Measured.of(config), config.estimate.prices)
    artifacts.write_csv(snakemake.output[0], table)
    logging.info("%d jobs; %.3g hours", len(jobs), table["hours"].iloc[-1] if len(table) else 0.0)
    run.table("estimate", table)
    run.summary(jobs=len(jobs))
