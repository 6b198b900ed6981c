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
    numbers = headline.of_lds(table)
    logging.info("%s", "; ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
    run.table("lds", table)
    run.table("lds_differences", differences)
    run.summary(**numbers)
