"""A model's GGUF file as it is, for a server that reads such files."""

import logging
import shutil

from icprobe import artifacts
from icprobe.jobs import job

with job(snakemake) as run:
    from icprobe.models import fetch_gguf

    with artifacts.temporary_directory() as folder, artifacts.atomic_path(snakemake.output[0]) as aside:
        gguf = fetch_gguf(snakemake.params.source, folder)
        shutil.move(gguf, aside)
        megabytes = aside.stat().st_size / 1e6
    logging.info("%s: %.0f MB", gguf.name, megabytes)
    run.summary(megabytes=megabytes)
