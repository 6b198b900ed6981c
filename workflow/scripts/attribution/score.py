"""Reduces an attribution matrix over tasks to one score for each example."""

import logging

from icprobe.analysis import extremes
from icprobe.analysis.statistics import aggregate, warning_of_one_task, warning_of_ties
from icprobe.formatting import number
from icprobe.tables import parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    scores = aggregate(
        parquet.read_pieces(snakemake.input.matrix),
        snakemake.params.aggregator,
        allow_missing=snakemake.params.allow_missing,
    )
    parquet.write_parquet(scores, snakemake.output[0])
    values = scores["score"]
    ends = map(number, (values.min(), values.max(), values.median()))
    logging.info("%d scores from %s to %s, median %s", len(values), *ends)
    method = snakemake.wildcards.method
    if shown := extremes.lines(scores, snakemake.input.train):
        logging.info("the best and the worst by %s:\n%s", method, "\n".join(shown))
    decided = warning_of_one_task(method, parquet.read_pieces(snakemake.input.matrix), scores)
    for said in filter(None, (warning_of_ties(method, scores), decided)):
        logging.warning("%s", said)
    run.summary(examples=len(values), minimum=values.min(), median=values.median(), maximum=values.max())
    run.table("scores", scores.head(1000))
