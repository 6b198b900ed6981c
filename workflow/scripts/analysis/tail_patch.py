"""What one step of training on each method's best, worst and random examples does for the tasks."""

import logging

from icprobe import artifacts
from icprobe.analysis.tail_patch import tail_patch
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    scores = {method: read_parquet(path) for method, path in zip(params.methods, files.scores, strict=True)}
    table = tail_patch(scores, read_parquet(files.one_step), params.bins, unit=params.unit)
    table.insert(0, "model", snakemake.wildcards.model)
    table.insert(1, "domain", "all")
    artifacts.write_csv(snakemake.output[0], table)
    for row in table[(table["k"] == "10") & (table["which"] == "best")].itertuples():
        said = "%s: one step on one of its %d best gives a task %+.3g %s"
        logging.info(said, row.method, row.n, row.effect, row.unit)
    run.table("tail_patch", table)
    run.summary(rows=len(table))
