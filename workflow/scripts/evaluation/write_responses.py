"""Responses of one model, fine-tuned or base, to the eval prompts, by another engine than transformers."""

import shutil

import pandas as pd

from icprobe import artifacts, jsonl
from icprobe.tables import checking
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    base, checkpoint = snakemake.input.base, snakemake.input.get("checkpoint")
    rows = checking.records(pd.read_parquet(snakemake.input.prompts))
    found, partial = [], None
    if not (checkpoint and artifacts.read_manifest(checkpoint).get("empty")):
        from icprobe.evaluation.engines.model import Model
        from icprobe.evaluation.engines.responses import completed, responses

        settings, templates = snakemake.params.settings, snakemake.params.templates
        source = artifacts.content_digest(checkpoint or base)
        identity = [source, artifacts.content_digest(base), rows, settings, templates, snakemake.params.code]
        partial = artifacts.partial_directory(snakemake.params.results, "generate", *identity)
        prompts = prompts_of(templates)
        model = Model.of(base, checkpoint, prompts)
        found = responses(model, prompts, rows, snakemake.params.generator, completed(settings), partial)
    jsonl.write(found, snakemake.output[0])
    words = sum(len(row["output"].split()) for row in found)
    run.summary(responses=len(found), mean_words=words / max(len(found), 1))
    if partial:
        shutil.rmtree(partial)
