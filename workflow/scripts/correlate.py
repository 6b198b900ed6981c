"""Correlations of every pair of methods, with intervals, plain and given response length."""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.correlations import correlations
from icprobe.data import read_scores
from icprobe.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    scores = read_scores(params.methods, snakemake.input.scores)
    n_target = pd.read_parquet(snakemake.input.lengths).set_index("id")["n_target"]
    known = None if n_target.isna().all() else n_target
    table = correlations(scores, known, seed=params.seed, **params.settings)
    table.insert(0, "model", snakemake.wildcards.model)
    artifacts.write_csv(snakemake.output[0], table)
    spearman = table[table["statistic"] == "spearman"].set_index(["method_a", "method_b"])["value"]
    for (a, b), value in spearman.items():
        logging.info("Spearman(%s, %s) = %.3f", a, b, value)
    run.table("correlations", table)
    run.summary(**{f"spearman/{a}~{b}": value for (a, b), value in spearman.items()})
