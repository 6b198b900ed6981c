"""The AUC with which each method tells examples of the good label from the others."""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.domains import by_domain, score_sets
from icprobe.analysis.statistics import label_aucs
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    sets = dict(score_sets(params.methods, files.scores, files.matrices, files.tasks, **params.domains))
    train = pd.read_parquet(files.train)
    table = by_domain(snakemake.wildcards.model, sets.items(), lambda found: label_aucs(found, train, params.good))
    artifacts.write_csv(snakemake.output[0], table)
    for row in headline.good_against_others(table).itertuples():
        logging.info("%s: AUC of %s = %.3f [%.3f, %.3f]", row.label, row.method, row.auc, row.low, row.high)
    for label in params.good.keys() & set(train) - set(table["label"]):
        logging.warning("%s: no example, or every one, has a good value (%s): no AUC", label, params.good[label])
    run.table("label_aucs", table)
    run.table("examples", pd.DataFrame(sets[headline.ALL]).rename_axis("id").reset_index().merge(train, on="id"))
    run.summary(**headline.of_label_aucs(table))
