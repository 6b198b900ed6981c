"""Which examples are removed: each method's best, and as many at random."""

from icprobe.tables import parquet
from icprobe.truth import sets
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files, params = snakemake.input, snakemake.params
    ids = parquet.read_parquet(files.train, columns=["id"])["id"].tolist()
    methods = {
        method: (parquet.read_parquet(scores), parquet.read_parquet(matrix) if by_task else None)
        for method, scores, matrix, by_task in zip(
            params.methods, files.scores, files.matrices, params.by_task, strict=True
        )
    }
    table = sets.removals(ids, methods, params.drop, params.controls, params.seed)
    parquet.write_parquet(table, snakemake.output[0])
    run.summary(sets=table["subset"].nunique(), examples=len(ids))
