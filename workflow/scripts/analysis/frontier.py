"""How well each method agrees with each truth, the seconds its jobs took, and the operations counted for it."""

import logging
import math
from pathlib import Path

from icprobe import artifacts
from icprobe.analysis.frontier import agreements, frontier, operations, tokens
from icprobe.analysis.headline import RIVALS
from icprobe.formatting import duration
from icprobe.tables.parquet import read_parquet
from icprobe.tracking.environment import measured
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    train, tasks, lengths = map(read_parquet, (files.train, files.tasks, files.lengths))
    parameters = artifacts.read_json(files.manifest)["parameters"]
    chosen = [artifacts.read_json(path)["of_theta"] for path in files.chosen]
    tried = [read_parquet(path)["n_tasks"].mean() / len(tasks) for path in files.budget]
    example_tokens, task_tokens = tokens(lengths, train, tasks)
    sizes = (parameters, len(train), example_tokens, len(tasks), task_tokens, float(lengths["n_target"].sum()))
    # "contexts.icp_reverse.checked.json" is icp_reverse's.
    read = {Path(path).name.split(".")[1]: artifacts.read_json(path)["tokens"] for path in files.contexts}
    along = [artifacts.read_json(path) for path in files.trajectory]
    bases = [artifacts.read_json(path) for path in files.fisher]
    known = (
        ("tried", tried),
        ("share", chosen),
        ("checkpoints", [len(one["checkpoints"]) for one in along]),
        ("adapters", [one["parameters"] for one in along if "parameters" in one]),
        ("dimension", [params.dimension]),
        *((name, [basis[name] for basis in bases]) for name in ("squares", "cubes")),
    )
    shares = {name: found[0] for name, found in known if found}
    counted = {
        method: operations(params.counted_as.get(method, method), *sizes, **shares, read=read)
        for method in [*params.logs, *RIVALS]
    }
    # One that has a built-in method's name is not that method.
    counted |= dict.fromkeys(params.external, math.nan)
    # What is computed from the matrices of others costs what these do.
    counted |= {method: sum(counted[part] for part in parts) for method, parts in params.paid_for.items()}
    seconds = {method: sum(measured(log)[0] for log in logs) for method, logs in params.logs.items() if logs}
    agreed = agreements({name: artifacts.read_csv(getattr(files, name)) for name in params.tables})
    table = frontier(agreed, seconds, counted)
    table.insert(0, "model", snakemake.wildcards.model)
    artifacts.write_csv(snakemake.output[0], table)
    for method, took in seconds.items():
        logging.info("%s: %s measured, %.3g operations counted", method, duration(took), counted[method])
    run.table("frontier", table)
    run.summary(rows=len(table))
