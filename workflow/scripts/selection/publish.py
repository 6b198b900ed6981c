"""Uploads the exported selections to the hub: the one job that sends rows anywhere."""

import logging
from pathlib import Path

from icprobe.artifacts import write_json
from icprobe.training.publishing import push
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    folder = Path(snakemake.input[0]).parent
    files = [str(Path(file).relative_to(folder)) for file in snakemake.input]
    done = push(folder, files, snakemake.params.hub, snakemake.params.private)
    write_json(snakemake.output[0], done)
    logging.info("%s, %s", done["url"], "private" if done["private"] else "public")
