"""Where each method's bins end, and how many examples are tied there; a warning where ties decide."""

import logging

from icprobe import artifacts
from icprobe.analysis.binning import borders, coarse
from icprobe.tables.parquet import read_scores
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    table = borders(read_scores(snakemake.params.methods, snakemake.input.scores), snakemake.params.bins)
    table.insert(0, "model", snakemake.wildcards.model)
    artifacts.write_csv(snakemake.output[0], table)
    for row in table.itertuples():
        logging.info("%s, bin %s: %d examples; it ends at a score of %.4g", row.method, row.bin, row.n, row.border)
    warnings = coarse(table)
    for warning in warnings:
        logging.warning("%s", warning)
    run.table("bins", table)
    run.summary(rows=len(table), coarse_bins=len(warnings))
