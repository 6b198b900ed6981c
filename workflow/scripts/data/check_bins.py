"""Checks that there are as many examples as bins such as `top 1000` ask for, before anything is measured."""

import logging

import pandas as pd

from icprobe.analysis.binning import size_of
from icprobe.artifacts import write_json
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    n = len(pd.read_parquet(snakemake.input[0], columns=["id"]))
    sizes = {bin: size_of(bin, n) for bin in snakemake.params.bins}
    write_json(snakemake.output[0], sizes)
    logging.info("bins of %d examples: %s", n, sizes)
    run.summary(examples=n)
