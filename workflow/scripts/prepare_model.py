"""Fetches a model, checks it and saves it as safetensors with its tokenizer."""

import logging

from icprobe.artifacts import atomic_path, show_manifest
from icprobe.jobs import job

with job(snakemake) as run:
    from icprobe.models import prepare

    with atomic_path(snakemake.output.model) as aside:
        manifest = prepare(snakemake.params.source, aside)
    show_manifest(snakemake.output.model, snakemake.output.manifest)
    logging.info(
        "%s: %.1f M parameters, %.1f M of them attributed; context %s tokens",
        manifest["architecture"],
        manifest["parameters"] / 1e6,
        manifest["attributed_parameters"] / 1e6,
        manifest["max_positions"],
    )
    run.summary(**{key: value for key, value in manifest.items() if isinstance(value, int | str)})
