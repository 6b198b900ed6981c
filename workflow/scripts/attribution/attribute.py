"""The attribution matrix of one method, or of those that share a pass, over one shard of the examples."""

import logging
import shutil
import time

import pandas as pd

from icprobe import artifacts, execution, paths
from icprobe.tables import parquet
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.attribution.matrix import Inputs, Trajectory
    from icprobe.attribution.objective import said
    from icprobe.attribution.shards import compute
    from icprobe.engine.batching import parse_shard

    params, files, wildcards = snakemake.params, snakemake.input, snakemake.wildcards
    settings, fisher = dict(params.settings), files.get("fisher", [])
    for sentence in said(settings, params.templates.get("format") == "chat"):
        logging.info(sentence)
    number, of = parse_shard(wildcards.scatteritem)
    inputs = Inputs(
        train=pd.read_parquet(files.train),
        tasks=pd.read_parquet(files.tasks),
        # Unknown lengths are ones: batches must form even where no example has a text.
        lengths=pd.read_parquet(files.lengths).fillna({"n_query": 1, "n_target": 1}),
        prompts=prompts_of(params.templates) if params.templates else None,
        seed=params.seed,
    )
    partial = artifacts.partial_directory(
        paths.EXPERIMENT.format(experiment=wildcards.experiment),
        snakemake.rule,
        dict(wildcards),
        dict(params.items()),
        [
            artifacts.content_digest(path)
            for path in [
                *(files.train, files.tasks, files.lengths),
                *([files.manifest] if files.model else []),
                *([files.trajectory] if files.get("trajectory") else []),
                *fisher,
            ]
        ],
    )
    if files.model:
        from icprobe.engine.capabilities import Capabilities
        from icprobe.engine.models import load_model, set_precision
        from icprobe.texts.tokenizing import load_tokenizer

        inputs.capabilities = Capabilities.of(files.model)
        set_precision(settings.pop("tf32"))
        arithmetic = settings.pop("dtype"), settings.pop("device")
        if files.get("trajectory"):
            listed = artifacts.read_json(files.trajectory)["checkpoints"]
            inputs.trajectory = Trajectory.of(listed, files.checkpoints, files.model, *arithmetic)
        else:
            inputs.model = load_model(files.model, *arithmetic)
        inputs.tokenizer = load_tokenizer(files.model)
    # How it computes: after the folder of what is partial was found, for no bit depends on it.
    settings |= {key: execution.settings("attribution")[key] for key in params.execution}
    settings |= {"fisher": list(fisher)} if fisher else {}
    began = time.monotonic()
    tables = compute(
        params.module,
        params.methods,
        inputs,
        settings,
        number,
        of,
        settings.get("batch_tokens", 1024),
        partial,
        params.per_task,
    )
    for method, table in tables.items():
        parquet.write_parquet(table, snakemake.output[params.methods.index(method)])
        values = table.drop(columns="id").to_numpy()
        positive = 100 * float((values > 0).mean()) if values.size else 0.0
        logging.info(
            "%s: %d examples x %d tasks; %.0f%% of effects positive; %.0f s",
            method,
            *values.shape,
            positive,
            time.monotonic() - began,
        )
        run.summary(**{f"{method}/percent_positive": positive, f"{method}/examples": len(table)})
    shutil.rmtree(partial)
