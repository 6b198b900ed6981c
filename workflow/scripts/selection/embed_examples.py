"""The examples' embeddings, by which a selection is made diverse."""

import logging
import shutil

import pandas as pd

from icprobe import artifacts
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.attribution.matrix import Inputs
    from icprobe.attribution.vectors import write_vectors
    from icprobe.engine.capabilities import Capabilities
    from icprobe.engine.models import load_model, set_precision
    from icprobe.progress import Progress
    from icprobe.texts.tokenizing import load_tokenizer

    params, files = snakemake.params, snakemake.input
    settings = dict(params.settings)
    identity = [artifacts.content_digest(path) for path in (files.train, files.lengths, files.manifest)]
    partial = artifacts.partial_directory(params.results, "embed_examples", *identity, dict(params.items()))
    set_precision(settings.pop("tf32"))
    train, lengths = pd.read_parquet(files.train), pd.read_parquet(files.lengths)
    with Progress(desc="embeddings") as progress:
        inputs = Inputs(train, train[:0], lengths, prompts_of(params.templates), progress=progress)
        inputs.capabilities = Capabilities.of(files.model)
        inputs.model = load_model(files.model, settings.pop("dtype"), settings.pop("device"))
        inputs.tokenizer = load_tokenizer(files.model)
        with artifacts.atomic_path(snakemake.output[0]) as aside:
            n, d = write_vectors(inputs, aside, partial, settings["batch_tokens"])
    logging.info("%d examples, %d numbers each", n, d)
    run.summary(examples=n, dimensions=d)
    shutil.rmtree(partial)
