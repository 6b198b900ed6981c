"""A training on all examples that keeps checkpoints on its way, for methods whose gradients are taken along it."""

import shutil

from icprobe import artifacts, execution
from icprobe.tables import parquet
from icprobe.tables.checking import records
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    # Torch reads the environment that the job sets when it is imported.
    from icprobe.training.trajectory import train

    files, params = snakemake.input, snakemake.params
    base = files.base
    identity = [params.settings, params.templates, params.seed, params.checkpoints, params.code]
    identity += [artifacts.content_digest(path) for path in (base, files.train)]
    partial = artifacts.partial_directory(params.results, snakemake.rule, *identity)
    rows, prompts = records(parquet.read_parquet(files.train)), prompts_of(params.templates)
    settings = params.settings | execution.settings("finetune")
    with artifacts.atomic_path(snakemake.output.trajectory) as output:
        numbers = train(base, rows, prompts, output, settings, params.seed, partial, params.checkpoints, run.log)
    run.summary(**numbers)
    artifacts.show_manifest(snakemake.output.trajectory, snakemake.output.manifest)
    shutil.rmtree(partial)
