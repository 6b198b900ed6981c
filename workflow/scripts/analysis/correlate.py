"""Correlations of every pair of methods, with intervals, plain and given response length."""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.correlations import correlations
from icprobe.analysis.domains import by_domain, score_sets
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    sets = score_sets(params.methods, files.scores, files.matrices, files.tasks, **params.domains)
    n_target = pd.read_parquet(files.lengths).set_index("id")["n_target"]
    known = None if n_target.isna().all() else n_target
    table = by_domain(
        snakemake.wildcards.model, sets, lambda found: correlations(found, known, seed=params.seed, **params.settings)
    )
    artifacts.write_csv(snakemake.output[0], table)
    found = headline.of_correlations(table)
    for name, value in found.items():
        logging.info("%s = %.3f", name, value)
    run.table("correlations", table)
    run.summary(**found)
