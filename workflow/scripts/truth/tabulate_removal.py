"""What the tasks lose where each method's best examples are removed before training."""

import logging

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.domains import task_domains
from icprobe.analysis.removal import removal
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files = snakemake.input
    domains = task_domains(read_parquet(files.tasks))
    table = removal(read_parquet(files.sets), read_parquet(files.outcomes), domains)
    table.insert(0, "model", snakemake.wildcards.model)
    artifacts.write_csv(snakemake.output[0], table)
    numbers = headline.of_removal(table)
    logging.info("%s", "; ".join(f"{name} {value:+.3g} nats a task" for name, value in numbers.items()))
    run.table("removal", table)
    run.summary(**numbers)
