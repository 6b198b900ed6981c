"""Scores that somebody else computed, as an attribution matrix of the experiment's examples and tasks."""

import logging

from icprobe.attribution.external import attribution
from icprobe.tables import parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    method, params = snakemake.wildcards.method, snakemake.params
    ids, tasks = (
        parquet.read_parquet(snakemake.input[table], columns=["id"])["id"].tolist() for table in ("train", "tasks")
    )
    matrix = attribution(method, params.settings, ids, tasks, params.named_by)
    parquet.write_parquet(matrix, snakemake.output[0])
    columns = matrix.shape[1] - 1
    logging.info("%s: %d examples x %d columns from %s", method, len(matrix), columns, snakemake.input.scores)
    run.summary(examples=len(matrix), columns=columns)
