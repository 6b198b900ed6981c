"""One fine-tuned model: all weights or an adapter, trained on one subset with one seed."""

import shutil

from icprobe import artifacts, execution, jsonl
from icprobe.training.subsets import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    base, seed = snakemake.input.base, int(snakemake.wildcards.seed)
    rows = jsonl.read(snakemake.input.subset)
    with artifacts.atomic_path(snakemake.output.checkpoint) as output:
        if rows:
            from icprobe.training.fine_tune import fine_tune

            settings, templates = snakemake.params.settings, snakemake.params.templates
            identity = [artifacts.content_digest(base), rows, settings, templates, seed, snakemake.params.code]
            partial = artifacts.partial_directory(snakemake.params.results, "fine_tune", *identity)
            texts, how = prompts_of(templates), execution.settings("finetune")
            run.summary(**fine_tune(base, rows, texts, output, settings | how, seed, partial, run.log))
        else:
            partial = None
            output.mkdir(parents=True)
            artifacts.write_manifest(output, empty=True, seed=seed, examples=0)
            run.summary(examples=0)
    artifacts.show_manifest(snakemake.output.checkpoint, snakemake.output.manifest)
    if partial:
        shutil.rmtree(partial)
