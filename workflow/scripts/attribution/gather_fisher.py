"""What all parts of the examples give for their Fisher matrix: its basis, or its eigenvalues in it, layer by layer."""

import logging
import shutil
import time
from pathlib import Path

from icprobe import artifacts, paths
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.attribution import fisher

    parts, wildcards = [Path(part) for part in snakemake.input.parts], snakemake.wildcards
    manifests = [artifacts.verify(part) for part in parts]
    layers = manifests[0]["layers"]
    partial = artifacts.partial_directory(
        paths.EXPERIMENT.format(experiment=wildcards.experiment),
        snakemake.rule,
        dict(wildcards),
        dict(snakemake.params.items()),
        [artifacts.content_digest(part) for part in parts],
    )
    began = time.monotonic()
    if snakemake.params.makes == "bases":
        fisher.eigenvectors(parts, layers, partial)
    else:
        fisher.corrected(parts, layers, sum(manifest["examples"] for manifest in manifests), partial)
    with artifacts.atomic_path(snakemake.output.folder) as output:
        shutil.move(partial, output)
        widths = fisher.widths(output, len(layers)) if snakemake.params.makes == "bases" else []
        powers = {name: sum(width**power for width in widths) for name, power in (("squares", 2), ("cubes", 3))}
        artifacts.write_manifest(output, layers=layers, **(powers if widths else {}))
    artifacts.show_manifest(snakemake.output.folder, snakemake.output.manifest)
    logging.info("%s of %d layers; %.0f s", snakemake.params.makes, len(layers), time.monotonic() - began)
    run.summary(layers=len(layers))
