"""One of the two passes over a part of the examples that their Fisher matrix needs: sums of products by layer."""

import logging
import shutil
import time
from pathlib import Path

import pandas as pd

from icprobe import artifacts, execution, paths
from icprobe.tables import parquet
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.attribution import fisher
    from icprobe.attribution.matrix import Inputs
    from icprobe.engine.batching import batches, parse_shard, shard_of
    from icprobe.engine.capabilities import Capabilities
    from icprobe.engine.models import load_model, set_precision
    from icprobe.progress import Progress
    from icprobe.texts.tokenizing import load_tokenizer

    params, files, wildcards = snakemake.params, snakemake.input, snakemake.wildcards
    settings, bases = dict(params.settings), files.get("bases")
    train, lengths = parquet.read_parquet(files.train), parquet.read_parquet(files.lengths)
    read = [files.train, files.lengths, files.manifest, *([files.bases_manifest] if bases else [])]
    partial = artifacts.partial_directory(
        paths.EXPERIMENT.format(experiment=wildcards.experiment),
        snakemake.rule,
        dict(wildcards),
        dict(params.items()),
        [artifacts.content_digest(path) for path in read],
    )
    set_precision(settings.pop("tf32"))
    cut = batches(lengths, settings.pop("batch_tokens"))
    mine = [cut[index] for index in shard_of(cut, lengths, *parse_shard(wildcards.part))]
    settings |= {key: execution.settings("attribution")[key] for key in params.execution}
    began = time.monotonic()
    with Progress(desc=snakemake.rule) as progress:
        inputs = Inputs(
            train=train,
            tasks=pd.DataFrame(),
            lengths=lengths,
            prompts=prompts_of(params.templates),
            model=load_model(files.model, settings.pop("dtype"), settings.pop("device")),
            tokenizer=load_tokenizer(files.model),
            capabilities=Capabilities.of(files.model),
            seed=params.seed,
            progress=progress,
        )
        over = fisher.Pass(inputs, mine, **settings)
        if bases:
            over.eigenvalues(Path(bases), partial)
        else:
            over.covariances(partial)
    with artifacts.atomic_path(snakemake.output[0]) as output:
        shutil.move(partial, output)
        artifacts.write_manifest(output, layers=[layer.name for layer in over.layers], examples=over.examples)
    logging.info("%d examples, %d layers; %.0f s", over.examples, len(over.layers), time.monotonic() - began)
    run.summary(examples=over.examples, layers=len(over.layers))
