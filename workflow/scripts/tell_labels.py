"""The AUC with which each method tells examples of the good label from the others."""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.data import read_scores
from icprobe.jobs import job
from icprobe.statistics import label_aucs

with job(snakemake) as run:
    scores = read_scores(snakemake.params.methods, snakemake.input.scores)
    train = pd.read_parquet(snakemake.input.train)
    table = label_aucs(scores, train, snakemake.params.good)
    table.insert(0, "model", snakemake.wildcards.model)
    artifacts.write_csv(snakemake.output[0], table)
    headline = table.drop_duplicates(["label", "method"])
    for row in headline.itertuples():
        logging.info("%s: AUC of %s = %.3f", row.label, row.method, row.auc)
    run.table("label_aucs", table)
    run.table("examples", pd.DataFrame(scores).rename_axis("id").reset_index().merge(train, on="id"))
    run.summary(**{f"auc/{row.label}/{row.method}": row.auc for row in headline.itertuples()})
