"""Holds 1,400 MB for longer than Slurm looks away: more than the first attempt is given, less than the second."""

import os
import time
from pathlib import Path

from icprobe.workflow.jobs import job

with job(snakemake):
    held = bytearray(1_400_000_000)
    held[::4096] = b"x" * len(held[::4096])  # memory counts once it is written to
    time.sleep(12)
    Path(snakemake.output[0]).write_text(f"{snakemake.resources.mem_mb}, GPU {os.environ['CUDA_VISIBLE_DEVICES']}")
