"""Rows that stand in the data more than once: counted and warned of, never dropped."""

import logging

from icprobe import artifacts
from icprobe.report.wording import listed
from icprobe.tables.repeated import remarks, repeated
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files = {name: snakemake.input[name] for name in ("train", "tasks", "eval") if snakemake.input[name]}
    table = repeated(files)
    artifacts.write_csv(snakemake.output[0], table)
    for remark in remarks(table):
        logging.warning("%s", remark)
    logging.info("rows of %s compared", listed([*files]))
    run.table("repeated", table)
