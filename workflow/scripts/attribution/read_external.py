"""Scores that somebody else computed, as an attribution matrix of the experiment's examples and tasks."""

import logging

from icprobe.attribution.external import attribution
from icprobe.tables import parquet
from icprobe.tables.checking import ROW_NUMBER
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    method, params = snakemake.wildcards.method, snakemake.params
    ids, numbers = {}, {}
    for table in ("train", "tasks"):
        path = snakemake.input[table]
        columns = [name for name in ("id", ROW_NUMBER) if name in parquet.column_names(path)]
        rows = parquet.read_parquet(path, columns=columns)
        ids[table] = rows["id"].tolist()
        if ROW_NUMBER in rows:
            numbers[table] = rows[ROW_NUMBER].tolist()
    matrix = attribution(method, params.settings, ids["train"], ids["tasks"], params.named_by, numbers)
    parquet.write_parquet(matrix, snakemake.output[0])
    columns = matrix.shape[1] - 1
    logging.info("%s: %d examples x %d columns from %s", method, len(matrix), columns, snakemake.input.scores)
    run.summary(examples=len(matrix), columns=columns)
