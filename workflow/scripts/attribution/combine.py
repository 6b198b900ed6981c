"""The matrix of a method that is computed from those of others: their mean ranks, or the ranks of one given length."""

import logging

from icprobe.attribution.combined import combine
from icprobe.tables import parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    # One after the other: what is in memory is one of them, and the sum.
    read = ((method, parquet.read_parquet(path)) for method, path in zip(params.members, files.matrices, strict=True))
    n_target = parquet.read_parquet(files.lengths).set_index("id")["n_target"] if files.lengths else None
    matrix = combine(params.how, read, n_target)
    parquet.write_parquet(matrix, snakemake.output[0])
    columns = matrix.shape[1] - 1
    logging.info("%d examples x %d columns from %s", len(matrix), columns, ", ".join(params.members))
    run.summary(examples=len(matrix), columns=columns)
