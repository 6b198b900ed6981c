"""Seconds and memory of choosing among a million examples, rule by rule, each in a process of its own.

    python benchmarks/selections.py [--examples 1000000] [--tasks 5] [--width 576]

Each process reads the scores (with mean effects, many of them tied), and of lengths, labels and the attribution matrix
what its rule needs, from parquet files, and chooses 10%. Writing the files for trainers is not counted: that is as it
is for bins.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

RULES = {
    "top": {"top": "10%"},
    "tokens": {"tokens": 10_000_000},
    "per_task": {"top": "10%", "per_task": "round_robin"},
    "match": {"top": "10%", "match": "length"},
    "diverse": {"top": "10%", "diverse": {"by": "embedding"}},
    "quota": {"top": "10%", "quota": {"column": "domain", "shares": {"code": 0.3}}},
}


def write(folder: Path, n: int, tasks: int, width: int) -> None:
    """Writes the tables of n examples that rules read."""
    from icprobe.tables.parquet import write_parquet

    draw = np.random.default_rng(0)
    ids = [f"x{number:012x}" for number in draw.permutation(n)]
    effects = draw.normal(size=(n, tasks)).astype(np.float32)
    matrix = pd.DataFrame(effects, columns=[f"task-{i}" for i in range(tasks)])
    matrix.insert(0, "id", ids)
    write_parquet(matrix, folder / "matrix.parquet")
    score = pd.DataFrame({"id": ids, "score": (effects > 0).mean(axis=1), "mean_effect": effects.mean(axis=1)})
    write_parquet(score, folder / "scores.parquet")
    lengths = np.ceil(draw.lognormal(4, 1, size=n)).astype(np.int64)
    write_parquet(pd.DataFrame({"id": ids, "n_learnt": lengths}), folder / "learnt.parquet")
    domain = draw.choice(["code", "maths", "prose"], size=n, p=[0.05, 0.25, 0.7])
    write_parquet(pd.DataFrame({"id": ids, "domain": domain}), folder / "train.parquet")
    # As those of language models: all in one direction, clusters within, and fewer dimensions than there are numbers.
    vectors = np.lib.format.open_memmap(folder / "embeddings.npy", mode="w+", dtype=np.float32, shape=(n, width))
    scale = np.arange(1, width + 1, dtype=np.float32) ** -0.5
    centres = draw.normal(size=(200, width)).astype(np.float32) * scale + 2 * scale
    for start in range(0, n, 20_000):
        part = vectors[start : start + 20_000]
        part[:] = centres[draw.integers(0, 200, len(part))]
        part += draw.normal(size=part.shape).astype(np.float32) * scale
        part /= np.linalg.norm(part, axis=1, keepdims=True)


def choose(folder: Path, name: str) -> dict[str, float]:
    """Chooses by one rule: its wall seconds from the first read on, and the process's peak memory in MB."""
    from icprobe.analysis import selecting
    from icprobe.config.selections import Selection
    from icprobe.tables.parquet import read_parquet

    begun, busy = time.perf_counter(), time.process_time()
    rule = Selection(method="icp", **RULES[name]).model_dump(mode="json", exclude={"method", "baselines"})
    scores = read_parquet(folder / "scores.parquet")
    ids = scores["id"]
    lengths = selecting.lengths_of(folder / "learnt.parquet" if name in ("tokens", "match") else None, ids)
    values = selecting.values_of(folder / "train.parquet", rule, ids)
    effects = selecting.effects_of(folder / "matrix.parquet", ids) if rule["per_task"] else ()
    vectors = selecting.vectors_of(folder / "embeddings.npy", np.arange(len(ids)))
    chosen = selecting.select(name, rule, scores, lengths, values, effects, vectors)
    seconds = time.perf_counter() - begun
    # Not ru_maxrss, which begins with that of the process that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "chosen": len(chosen),
        "seconds": seconds,
        "cpu": time.process_time() - busy,
        "peak_mb": int(peak.split()[1]) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--width", type=int, default=576, help="of the embeddings")
    parser.add_argument("--choose", nargs=2, metavar=("FOLDER", "RULE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.choose:
        print(json.dumps(choose(Path(asked.choose[0]), asked.choose[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), asked.examples, asked.tasks, asked.width)
        print("| rule | chosen | seconds | CPU seconds | peak memory, MB |\n|---|---:|---:|---:|---:|")
        for name in RULES:
            command = [sys.executable, __file__, "--choose", folder, name]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            told = (f"{found['chosen']:,}", f"{found['seconds']:.1f}", f"{found['cpu']:.1f}", f"{found['peak_mb']:.0f}")
            print(f"| {name} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
