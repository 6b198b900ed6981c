"""Takes longer than a minute gives; with two it is done at once."""

import time
from pathlib import Path

from icprobe.workflow.jobs import job

with job(snakemake):
    if snakemake.resources.runtime < 2:
        time.sleep(600)
    Path(snakemake.output[0]).write_text(str(snakemake.resources.runtime))
