"""A small transformer, trained to do linear regression in context."""

import shutil

from icprobe import artifacts
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.synthetic.regressor import train

    settings, seed = snakemake.params.settings, snakemake.params.seed
    partial = artifacts.partial_directory(
        snakemake.params.results, "train_regressor", settings, seed, snakemake.params.code
    )
    with artifacts.atomic_path(snakemake.output[0]) as output:
        run.summary(**train(settings, seed, output, partial, run.log))
    shutil.rmtree(partial)
