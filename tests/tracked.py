"""Jobs with a W&B run, as the tests of tracking and of uploading have them."""

import json
from pathlib import Path
from types import SimpleNamespace

from test_jobs import run_job

from icprobe.tracking import lineage, records

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
# Jobs one after the other in one process: (rule, its wildcard method, inputs, outputs, params).
JOBS = """
import pathlib, time
from types import SimpleNamespace
for rule, method, inputs, outputs, params in {jobs!r}:
    one = SimpleNamespace(**{{**vars(snakemake), "rule": rule, "input": inputs, "output": outputs, "params": params}})
    one.wildcards = {{"method": method}}
    with job(one):
        for path in outputs:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(path).write_text(f"{{path}} {{params}}")
    time.sleep({pause})
"""
FILE = "results/demo/m/scores/{}.parquet"


def run_jobs(directory: Path, *jobs: tuple, pause: float = 0) -> None:
    """Offline runs of jobs (rule, method, names of inputs, names of outputs, params)."""
    whole = [
        (rule, method, *([FILE.format(name) for name in names] for names in files), params)
        for rule, method, *files, params in jobs
    ]
    ended = run_tracked(directory, JOBS.format(jobs=whole, pause=pause))
    if ended.returncode:
        raise RuntimeError(ended.stderr)


def run_of(directory: Path, method: str, params: dict | None = None) -> Path:
    """Directory of the only run of a method, or of that with these params."""
    found = []
    for path in run_directories(directory):
        record = json.loads((path / records.RECORD).read_text())
        identity = lineage.run_id("demo", record["rule"], record["wildcards"], params or {})
        if record["wildcards"]["method"] == method and (params is None or path.name.endswith(identity)):
            found.append(path)
    (run,) = found
    return run


def settings(mode: str) -> str:
    return json.dumps({"mode": mode, "project": "icprobe", "entity": None, "experiment": "demo"})


def run_tracked(directory: Path, body: str, mode: str = "offline", **environment: str) -> SimpleNamespace:
    return run_job(directory, body, ICPROBE_TRACKING=settings(mode), **environment)


def run_directories(directory: Path) -> list[Path]:
    return sorted((directory / "results/demo/wandb").glob("*run-*"))


def run_name_of_work() -> str:
    return lineage.run_name("fine_tune", {"model": "m", "method": "icp", "bin": "gt-0.80", "seed": "0"})
