"""One table of all examples: texts, labels, lengths, each method's score and rank."""

import logging

from icprobe.analysis import score_table
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    scores = dict(zip(params.methods, files.scores, strict=True))
    table = score_table.write(files.train, files.lengths, scores, snakemake.output.parquet, snakemake.output.csv)
    logging.info("%d examples, scored by %s", len(table), ", ".join(scores))
    # Without the texts of the examples.
    run.table("scores", table)
    run.summary(examples=len(table))
