"""How well each method predicts what models say that were trained on random subsets."""

import logging

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.domains import task_domains
from icprobe.analysis.lds import tabulate
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files, params = snakemake.input, snakemake.params
    table, differences = tabulate(
        read_parquet(files.sets),
        read_parquet(files.outcomes),
        dict(zip(params.methods, files.attributions, strict=True)),
        params.per_task,
        read_parquet(files.lengths),
        task_domains(read_parquet(files.tasks)),
        seed=params.seed,
    )
    for path, found in ((snakemake.output.table, table), (snakemake.output.differences, differences)):
        found.insert(0, "model", snakemake.wildcards.model)
        artifacts.write_csv(path, found)
    for row in headline.of_set(table).itertuples():
        logging.info("%s: %.3f (%.3f to %.3f); ceiling %.3f", row.method, row.lds, row.low, row.high, row.ceiling)
    run.table("lds", table)
    run.table("lds_differences", differences)
    run.summary(**headline.of_lds(table))
