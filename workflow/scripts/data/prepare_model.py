"""Fetches a model, checks it and saves it as safetensors with its tokenizer."""

import logging
from pathlib import Path

from icprobe.artifacts import atomic_path, link, one_at_a_time, read_manifest, show_manifest
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.engine.admission import admit
    from icprobe.engine.models import prepare

    output = Path(snakemake.output.model)
    with one_at_a_time(output) as wanted:
        if wanted:
            with atomic_path(output) as aside:
                prepare(snakemake.params.source, aside, admit)
        manifest = read_manifest(output)
        show_manifest(output, snakemake.output.manifest)
        link(output.with_name(snakemake.wildcards.model), output)
    logging.info(
        "%s: %.1f M parameters, %.1f M of them attributed, %.4g%% of its blocks' weights; context %s tokens; %s",
        manifest["architecture"],
        manifest["parameters"] / 1e6,
        manifest["attributed_parameters"] / 1e6,
        100 * manifest["attributed_share"],
        manifest["max_positions"],
        "packed rows" if manifest["packs"] else "padded rows",
    )
    for name, share in manifest["left_out"].items():
        logging.warning("no part of θ, over which gradients are taken: %s, %.1f%% of the weights", name, 100 * share)
    run.summary(**{key: value for key, value in manifest.items() if isinstance(value, int | str)})
