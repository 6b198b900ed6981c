"""The attribution matrix of one method, or of those that share a pass, over one shard of the examples."""

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
    from icprobe.attribution.blocks import Blocks, contents
    from icprobe.attribution.matrix import Inputs, Trajectory
    from icprobe.attribution.objective import said
    from icprobe.attribution.shards import compute, own_settings
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
    asked = dict(params.items())
    behind = [*([files.manifest] if files.model else []), *([files.trajectory] if files.get("trajectory") else [])]
    of_model = [artifacts.content_digest(path) for path in [*behind, *fisher]]
    of_data = [artifacts.content_digest(path) for path in (files.train, files.tasks, files.lengths)]
    partial = artifacts.partial_directory(
        paths.EXPERIMENT.format(experiment=wildcards.experiment),
        snakemake.rule,
        dict(wildcards),
        asked,
        [*of_data, *of_model],
    )
    blocks = None
    if params.by_itself is not None:
        of_all_tasks = "tasks" in params.by_itself and not params.per_task
        own = ("methods", "by_itself", "settings")
        shared = [
            {name: value for name, value in asked.items() if name not in own},
            of_model,
            [name.decode() for name in contents(inputs.tasks)] if of_all_tasks else None,
        ]
        folder = Path(paths.BLOCKS.format(experiment=wildcards.experiment))
        others = {name: value for name, value in wildcards.items() if name != "scatteritem"}
        whole = artifacts.digest([snakemake.rule, others, asked, of_data])
        of_methods = {method: [method, own_settings(settings, method), shared] for method in params.methods}
        blocks = {
            method: Blocks(folder / artifacts.digest(what)[:32], partial.name, whole)
            for method, what in of_methods.items()
        }
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
    began, resumed = time.monotonic(), any(partial.rglob("pieces-*.npz"))
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
        blocks,
    )
    run.whole = not resumed and not any(block.used for block in (blocks or {}).values())
    for method, table in tables.items():
        parquet.write_parquet(table, snakemake.output[params.methods.index(method)])
        values = table.drop(columns=["id", "n_tasks"], errors="ignore").to_numpy()
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
