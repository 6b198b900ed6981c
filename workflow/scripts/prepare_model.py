"""Fetches a model, checks it and saves it as safetensors with its tokenizer."""

import logging

from icprobe.artifacts import atomic_path, show_manifest
from icprobe.jobs import job

with job(snakemake) as run:
    from icprobe.admission import admit
    from icprobe.models import prepare, set_threads

    set_threads()
    with atomic_path(snakemake.output.model) as aside:
        manifest = prepare(snakemake.params.source, aside, admit)
    show_manifest(snakemake.output.model, snakemake.output.manifest)
    logging.info(
        "%s: %.1f M parameters, %.1f M of them attributed, %.4g%% of its blocks' weights; context %s tokens; %s",
        manifest["architecture"],
        manifest["parameters"] / 1e6,
        manifest["attributed_parameters"] / 1e6,
        100 * manifest["attributed_share"],
        manifest["max_positions"],
        "packed rows" if manifest["packs"] else "padded rows",
    )
    run.summary(**{key: value for key, value in manifest.items() if isinstance(value, int | str)})
