"""The AUC with which each method tells examples of the good label from the others."""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.domains import ALL, by_domain, score_sets
from icprobe.jobs import job
from icprobe.statistics import label_aucs

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    sets = dict(score_sets(params.methods, files.scores, files.matrices, files.tasks, **params.domains))
    train = pd.read_parquet(files.train)
    table = by_domain(snakemake.wildcards.model, sets.items(), lambda found: label_aucs(found, train, params.good))
    artifacts.write_csv(snakemake.output[0], table)
    headline = table[table["domain"] == ALL].drop_duplicates(["label", "method"])
    for row in headline.itertuples():
        logging.info("%s: AUC of %s = %.3f", row.label, row.method, row.auc)
    run.table("label_aucs", table)
    run.table("examples", pd.DataFrame(sets[ALL]).rename_axis("id").reset_index().merge(train, on="id"))
    run.summary(**{f"auc/{row.label}/{row.method}": row.auc for row in headline.itertuples()})
