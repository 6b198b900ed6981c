"""Random sets of examples to train on: the subsets of the LDS, or all but one of a sample."""

from icprobe.tables import parquet
from icprobe.truth import sets
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    ids = parquet.read_parquet(snakemake.input.train, columns=["id"])["id"].tolist()
    if snakemake.wildcards.part == "subsets":
        table = sets.random_subsets(ids, params.number, params.share, params.seed)
    else:
        table = sets.left_out(ids, params.number, params.seed)
    parquet.write_parquet(table, snakemake.output[0])
    run.summary(sets=table["subset"].nunique(), examples=len(ids))
