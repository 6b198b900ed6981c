"""What each rule of an experiment asks of a machine, as a table; nothing is run.

python -m icprobe.workflow.asks --configfile mine.yaml                    of all jobs of the experiment
python -m icprobe.workflow.asks analysis --profile slurm                  of a target, with a cluster's profile

Arguments are Snakemake's, after which all jobs are planned, those that are finished too.
"""

import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from tabulate import tabulate

COLUMNS = {"jobs": "jobs", "mem_mb": "memory, MB", "runtime": "minutes", "gpu": "GPUs", "threads": "CPUs"}


def table(jobs: Iterable[tuple[str, int, Mapping[str, Any]]]) -> str:
    """A row for each rule: how many jobs, and the most that one of them asks for at its first attempt.

    jobs: (rule, threads, resources), as Snakemake has them.
    """
    rows = [
        (rule, 1, *(resources.get(name, 0) for name in ("mem_mb", "runtime", "gpu")), threads)
        for rule, threads, resources in jobs
    ]
    frame = pd.DataFrame(rows, columns=["rule", *COLUMNS])
    asked = frame.groupby("rule", sort=False).agg({name: "sum" if name == "jobs" else "max" for name in COLUMNS})
    return tabulate(asked.rename(columns=COLUMNS), headers="keys", tablefmt="simple", intfmt=",")


class _Jobs(logging.Filter):
    """Takes the jobs out of Snakemake's log; warnings and errors pass, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int, Mapping[str, Any]]] = []

    def filter(self, record: logging.LogRecord) -> bool:
        # Rules that make nothing are targets.
        if getattr(record, "event", None) == "job_info" and record.output:
            self.found.append((record.rule_name, record.threads, dict(record.resources.items())))
        return record.levelno >= logging.WARNING


def main(arguments: list[str] | None = None) -> None:
    """Command line: Snakemake's arguments."""
    from snakemake.cli import main as snakemake
    from snakemake.logging import logger

    jobs = _Jobs()
    logger.addFilter(jobs)
    try:
        snakemake(["--dry-run", "--forceall", *(sys.argv[1:] if arguments is None else arguments)])
    except SystemExit as ended:
        if ended.code:
            raise
    print(table(jobs.found))


if __name__ == "__main__":
    main()
