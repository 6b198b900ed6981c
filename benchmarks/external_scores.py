"""How long external scores take from file to tables: a made-up file of Alpaca's size, 52,002 examples × 100 tasks.

    python benchmarks/external_scores.py [--examples 52002] [--tasks 100] [--format npz]

Writes the file into a temporary folder, runs `snakemake … correlations.csv overlaps.csv` there with two cores, prints
wall-clock seconds, CPU seconds and the largest job's peak resident memory.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).parents[1]
PARTS = ("Snakefile", "config.yaml", "configs", "envs", "profiles", "resources/demo", "rules", "src", "workflow")


def write(folder: Path, examples: int, tasks: int, kind: str) -> dict:
    """Scores like the published ones in `folder`; returns attribution.external."""
    rng = np.random.default_rng(0)
    icp = np.clip(np.rint(100 * rng.normal(0.75, 0.15, examples)) / 100, 0, 1).astype(np.float32)
    influence = (400 * icp[:, None] + 100 * rng.normal(size=(examples, tasks))).astype(np.float32)
    given = {"orientation": "examples_by_tasks"}
    if kind == "npz":
        np.savez_compressed(folder / "scores.npz", icp=icp, influence=influence)
        paths = {"icp": {"path": "scores.npz", "key": "icp"}, "influence": {"path": "scores.npz", "key": "influence"}}
    else:
        icp_table, table = pd.DataFrame({"icp": icp}), pd.DataFrame(influence).rename(columns=str)
        for name, frame in (("icp", icp_table), ("influence", table)):
            path = folder / f"{name}.{kind}"
            if kind == "csv":
                frame.to_csv(path, index=False)
            else:
                frame.to_parquet(path)
        paths = {name: {"path": f"{name}.{kind}", "key": None} for name in ("icp", "influence")}
    return {"icp": {**paths["icp"], "orientation": "scores"}, "influence": {**paths["influence"], **given}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=52_002)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--format", choices=["npz", "csv", "parquet"], default="npz")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        for part in PARTS:
            (project / part).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, project / part)
        external = write(project, arguments.examples, arguments.tasks, arguments.format)
        settings = {"attribution": {"external": external}, "wandb": {"mode": "disabled"}}
        (project / "mine.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        tables = [f"results/published/pythia-1b-deduped/tables/{name}.csv" for name in ("correlations", "overlaps")]
        command = [sys.executable, "-m", "snakemake", *tables, "--cores", "2", "--quiet", "all"]
        environment = {**os.environ, "PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        subprocess.run(
            [*command, "--configfile", "configs/published.yaml", "mine.yaml"],
            cwd=project,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wall = time.monotonic() - began
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = pd.read_csv(project / tables[0])
        print(
            f"{found['n'].iloc[0]:,} x {arguments.tasks} from {arguments.format}: {wall:.1f} s wall clock, "
            f"{usage.ru_utime + usage.ru_stime:.1f} s CPU, largest process {usage.ru_maxrss / 1e6:.2f} GB"
        )


if __name__ == "__main__":
    main()
