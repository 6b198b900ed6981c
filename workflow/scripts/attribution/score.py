"""Reduces an attribution matrix over tasks to one score for each example."""

import logging

from icprobe.analysis import extremes
from icprobe.analysis.statistics import aggregate, warning_of_one_task, warning_of_ties
from icprobe.errors import several
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
    values = scores["score"].dropna()
    ends = map(number, (values.min(), values.max(), values.median()))
    without = f"; {several(len(scores) - len(values), 'example')} without a score" if len(values) < len(scores) else ""
    logging.info("%s from %s to %s, median %s%s", several(len(values), "score"), *ends, without)
    method = snakemake.wildcards.method
    if shown := extremes.lines(scores, snakemake.input.train):
        logging.info("the best and the worst by %s:\n%s", method, "\n".join(shown))
    decided = warning_of_one_task(method, parquet.read_pieces(snakemake.input.matrix), scores)
    for said in filter(None, (warning_of_ties(method, scores), decided)):
        logging.warning("%s", said)
    run.summary(examples=len(scores), minimum=values.min(), median=values.median(), maximum=values.max())
    run.table("scores", scores.head(1000))
