"""Correlations of every pair of methods, with intervals, plain and given response length."""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.correlations import correlations
from icprobe.analysis.domains import by_domain, score_sets
from icprobe.formatting import estimate
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
    for row in headline.over_all_tasks(table).query("statistic == 'spearman'").dropna(subset="value").itertuples():
        found = estimate(row.value, row.low, row.high)
        logging.info("Spearman of %s and %s: %s", row.method_a, row.method_b, found)
    run.table("correlations", table)
    run.summary(**headline.of_correlations(table))
