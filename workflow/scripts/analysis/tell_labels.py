"""How each method's scores fit labels: AUC of good values against others, rank correlations with numbers.

The number of tokens of the response stands beside the methods, so that what length alone does is seen.
"""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.correlations import label_correlations
from icprobe.analysis.domains import by_domain, score_sets
from icprobe.analysis.labels import auc_differences, beside_length, label_aucs
from icprobe.tables.labels import numbered_labels
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    sets = dict(score_sets(params.methods, files.scores, files.matrices, files.tasks, **params.domains))
    train = pd.read_parquet(files.train)
    n_target = pd.read_parquet(files.lengths).set_index("id")["n_target"]
    lengths = None if n_target.isna().all() else n_target
    rated = [(domain, beside_length(found, lengths, params.baselines)) for domain, found in sets.items()]
    table = by_domain(snakemake.wildcards.model, rated, lambda found: label_aucs(found, train, params.good))
    artifacts.write_csv(snakemake.output.aucs, table)
    differences = by_domain(snakemake.wildcards.model, rated, lambda found: auc_differences(found, train, params.good))
    artifacts.write_csv(snakemake.output.differences, differences)
    numbered = numbered_labels(train, params.labels)
    correlated = by_domain(
        snakemake.wildcards.model,
        sets.items(),
        lambda found: label_correlations(found, numbered, lengths, seed=params.seed, **params.settings),
    )
    artifacts.write_csv(snakemake.output.correlations, correlated)
    for row in headline.good_against_others(table).itertuples():
        logging.info("%s: AUC of %s = %.3f [%.3f, %.3f]", row.label, row.method, row.auc, row.low, row.high)
    for row in headline.over_all_tasks(correlated).itertuples():
        logging.info(
            "%s, %s: %s = %.3f [%.3f, %.3f]", row.label, row.method, row.statistic, row.value, row.low, row.high
        )
    for label in params.good.keys() & set(train) - set(table["label"]):
        logging.warning("%s: no example, or every one, has a good value (%s): no AUC", label, params.good[label])
    run.table("label_aucs", table)
    run.table("label_auc_differences", differences)
    run.table("label_correlations", correlated)
    run.table("examples", pd.DataFrame(sets[headline.ALL]).rename_axis("id").reset_index().merge(train, on="id"))
    run.summary(**headline.of_label_aucs(table))
