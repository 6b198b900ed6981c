"""One fine-tuned model: all weights or an adapter, trained on one subset with one seed."""

import shutil

from icprobe import artifacts, execution
from icprobe.texts.chat import prompts_of
from icprobe.training.subsets import read_subset
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    base, seed = snakemake.input.base, int(snakemake.wildcards.seed)
    rows = read_subset(snakemake.input.subset)
    with artifacts.atomic_path(snakemake.output.checkpoint) as output:
        if rows:
            from icprobe.training.distributed import fine_tune_in_processes
            from icprobe.training.fine_tune import fine_tune

            settings, templates = snakemake.params.settings, snakemake.params.templates
            identity = [artifacts.content_digest(base), rows, settings, templates, seed, snakemake.params.code]
            identity += [artifacts.file_digest(file) for file in [settings["accelerate"]] if file]
            partial = artifacts.partial_directory(snakemake.params.results, "fine_tune", *identity)
            settings = settings | execution.settings("finetune")
            if settings["processes"] > 1:
                numbers = fine_tune_in_processes(base, rows, templates, output, settings, seed, partial, run.log)
            else:
                numbers = fine_tune(base, rows, prompts_of(templates), output, settings, seed, partial, run.log)
            run.summary(**numbers)
        else:
            partial = None
            output.mkdir(parents=True)
            artifacts.write_manifest(output, empty=True, seed=seed, examples=0)
            run.summary(examples=0)
    artifacts.show_manifest(snakemake.output.checkpoint, snakemake.output.manifest)
    if partial:
        shutil.rmtree(partial)
