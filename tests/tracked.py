"""Jobs with a W&B run, as the tests of tracking and of uploading have them."""

import json
from pathlib import Path
from types import SimpleNamespace

from test_jobs import run_job

from icprobe import lineage

KEY = "a" * 40
WORK = """
import pathlib
import pandas
for path in [*snakemake.input, *snakemake.output]:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
pathlib.Path(snakemake.input[0]).write_text("scores")
pathlib.Path("figure.svg").write_text('<?xml version="1.0"?>\\n<svg xmlns="http://www.w3.org/2000/svg"></svg>')
with job(snakemake) as run:
    run.summary(examples=96, spearman=0.7)
    run.log({"train/loss": 1.5}, step=1)
    run.log({"train/loss": 0.5}, step=2)
    run.table("correlations", pandas.DataFrame({"method": ["icp", None], "value": [0.5, float("nan")]}))
    run.figure("scatter", "figure.svg")
    pathlib.Path(snakemake.output[0]).write_text("model,value\\n")
"""
LIGHT = "with job(snakemake) as run:\n    run.summary(examples=96)\n"


def settings(mode: str) -> str:
    return json.dumps({"mode": mode, "project": "icprobe", "entity": None, "experiment": "demo"})


def run_tracked(directory: Path, body: str, mode: str = "offline", **environment: str) -> SimpleNamespace:
    return run_job(directory, body, ICPROBE_TRACKING=settings(mode), **environment)


def run_directories(directory: Path) -> list[Path]:
    return sorted((directory / "results/demo/wandb").glob("*run-*"))


def run_name_of_work() -> str:
    return lineage.run_name("fine_tune", {"model": "m", "method": "icp", "bin": "gt-0.80", "seed": "0"})
