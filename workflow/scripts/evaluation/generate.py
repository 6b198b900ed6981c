"""Responses of one model, fine-tuned or base, to the eval prompts."""

import shutil

import pandas as pd

from icprobe import artifacts, jsonl
from icprobe.tables import checking
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    base, checkpoint = snakemake.input.base, snakemake.input.get("checkpoint")
    table = pd.read_parquet(snakemake.input.prompts)
    rows = checking.records(table)
    found, partial = [], None
    if not (checkpoint and artifacts.read_manifest(checkpoint).get("empty")):
        from icprobe.engine.capabilities import Capabilities
        from icprobe.engine.checkpoints import load_fine_tuned
        from icprobe.engine.models import load_model
        from icprobe.evaluation.generation import responses
        from icprobe.texts.tokenizing import load_tokenizer

        settings, templates = dict(snakemake.params.settings), snakemake.params.templates
        options = {"dtype": settings["dtype"], "device": settings["device"]}
        model = load_fine_tuned(checkpoint, base, **options) if checkpoint else load_model(base, **options)
        source = artifacts.content_digest(checkpoint or base)
        identity = [source, artifacts.content_digest(base), rows, settings, templates, snakemake.params.code]
        partial = artifacts.partial_directory(snakemake.params.results, "generate", *identity)
        if not Capabilities.of(base).pads_left:
            settings["batch_size"] = 1
        texts = prompts_of(templates)
        found = responses(model, load_tokenizer(base), texts, rows, snakemake.params.generator, settings, partial)
    jsonl.write(found, snakemake.output[0])
    words = sum(len(row["output"].split()) for row in found)
    run.summary(responses=len(found), mean_words=words / max(len(found), 1))
    if partial:
        shutil.rmtree(partial)
