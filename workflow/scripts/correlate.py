"""Correlations of every pair of methods, with intervals, plain and given response length."""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.correlations import correlations
from icprobe.domains import ALL, by_domain, score_sets
from icprobe.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    sets = score_sets(params.methods, files.scores, files.matrices, files.tasks, **params.domains)
    n_target = pd.read_parquet(files.lengths).set_index("id")["n_target"]
    known = None if n_target.isna().all() else n_target
    table = by_domain(
        snakemake.wildcards.model, sets, lambda found: correlations(found, known, seed=params.seed, **params.settings)
    )
    artifacts.write_csv(snakemake.output[0], table)
    overall = table[(table["domain"] == ALL) & (table["statistic"] == "spearman")]
    spearman = overall.set_index(["method_a", "method_b"])["value"]
    for (a, b), value in spearman.items():
        logging.info("Spearman(%s, %s) = %.3f", a, b, value)
    run.table("correlations", table)
    run.summary(**{f"spearman/{a}~{b}": value for (a, b), value in spearman.items()})
    # The headline, under names that the saved view of the project knows.
    pair = table[(table["method_a"] == "icp") & (table["method_b"] == "influence")].set_index("statistic")
    names = {"spearman": "spearman", "spearman_partial_length": "spearman_given_length"}
    run.summary(**{names[row.Index]: row.value for row in pair.itertuples() if row.Index in names})
    if "spearman" in pair.index:
        run.summary(spearman_low=pair.loc["spearman", "low"], spearman_high=pair.loc["spearman", "high"])
