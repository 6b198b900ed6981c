"""What a million examples cost where no model is asked: planning, gathering, scoring, correlating, binning.

python -m benchmarks.scaling [--examples 1000000] [--tasks 1000] [--shards 2000] [--only gather,score] [--page …]

A stub takes the model's place: its attributions are random numbers, written in shards as the real job writes them. Each
step runs in a process of its own, whose peak memory is its own; the limits are goals, and a step that misses one fails.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import tables
from benchmarks.process import machine, versions

ROOT = Path(__file__).parents[1]
PARTS = ("Snakefile", "config.yaml", "configs", "envs", "profiles", "rules", "src", "workflow", "resources/demo")
METHODS = ("icp", "influence", "influence_log", "one_step", "length", "random")
BINS = ("<=0.5", ">0.5", ">0.8", ">0.85", ">0.9")
WORDS = 80  # of an example's texts


@dataclass(frozen=True)
class Size:
    """examples × tasks in `shards`, all files below `folder`."""

    examples: int
    tasks: int
    shards: int
    folder: str

    @property
    def ids(self) -> list[str]:
        return [f"{row:0{len(str(self.examples))}d}" for row in range(self.examples)]

    def path(self, name: str) -> Path:
        return Path(self.folder, name)

    def shard(self, number: int) -> Path:
        return self.path(f"shards/{number}-of-{self.shards}.parquet")


# --- steps: each returns what it was about, in words ------------------------------------------------------------


def plan(size: Size) -> str:
    """`snakemake -n all` of the tiny experiment with so many shards of each method."""
    with tempfile.TemporaryDirectory(dir=size.folder) as folder:
        for part in PARTS:
            Path(folder, part).parent.mkdir(exist_ok=True)
            Path(folder, part).symlink_to(ROOT / part)
        Path(folder, "many.yaml").write_text(
            f"experiment: many\nattribution: {{shards: {size.shards}, methods: [{', '.join(METHODS)}]}}\n"
        )
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "snakemake", "-n", "all", "--nocolor"),
                *("--configfile", "configs/tiny.yaml", "many.yaml"),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
    jobs = re.search(r"^total +(\d+)", ended.stdout + ended.stderr, re.MULTILINE)
    if ended.returncode or not jobs:
        raise RuntimeError((ended.stdout + ended.stderr)[-3000:])
    return f"{int(jobs[1]):,} jobs"


def batch(size: Size) -> str:
    """What every job of a shard begins with: batches of all examples, and which of them are its own."""
    from icprobe.engine.batching import batches, shard_of

    generator = np.random.default_rng(0)
    counts = generator.lognormal(4, 0.7, size=(size.examples, 2)).astype(int) + 1
    lengths = pd.DataFrame({"id": size.ids, "n_query": counts[:, 0], "n_target": counts[:, 1]})
    runs = batches(lengths, 16_384)
    mine = shard_of(runs, lengths, size.shards // 2, size.shards)
    return f"{len(runs):,} batches, {len(mine)} of them in one shard"


def write_shards(size: Size) -> str:
    """Random attributions in the shards of one method, the examples in another order than the table of examples."""
    from icprobe.attribution.matrix import to_table
    from icprobe.tables import parquet

    generator = np.random.default_rng(1)
    ids = np.array(size.ids)
    pd.DataFrame({"id": ids}).to_parquet(size.path("train.parquet"), index=False)
    tasks = [f"t{number}" for number in range(size.tasks)]
    for number, rows in enumerate(np.array_split(generator.permutation(size.examples), size.shards), start=1):
        values = generator.standard_normal((len(rows), size.tasks), dtype=np.float32)
        parquet.write_parquet(to_table(ids[rows], tasks, values), size.shard(number))
    return f"{sum(path.stat().st_size for path in size.path('shards').iterdir()) / 1e9:.2f} GB"


def gather(size: Size) -> str:
    """The shards put together in the order of the examples."""
    from icprobe.attribution import gathering

    shards = [size.shard(number) for number in range(1, size.shards + 1)]
    gathering.gather(shards, size.path("train.parquet"), size.path("matrix.parquet"))
    return f"{size.path('matrix.parquet').stat().st_size / 1e9:.2f} GB"


def score(size: Size) -> str:
    """The matrix reduced over tasks, by both aggregators."""
    from icprobe.analysis.statistics import AGGREGATORS, aggregate
    from icprobe.tables import parquet

    for how in AGGREGATORS:
        parquet.write_parquet(
            aggregate(parquet.read_pieces(size.path("matrix.parquet")), how), size.path(f"{how}.parquet")
        )
    return f"{', '.join(AGGREGATORS)}"


def write_scores(size: Size) -> str:
    """Scores of every method: shares of tasks for icp, the others related to it; and lengths."""
    from icprobe.tables import parquet

    generator = np.random.default_rng(2)
    common = generator.standard_normal(size.examples)
    for method in METHODS:
        values = common + generator.standard_normal(size.examples)
        if method in ("icp", "one_step"):
            values = np.round(1 / (1 + np.exp(-values)) * size.tasks) / size.tasks
        elif method == "length":
            values = np.floor(np.exp(4 + 0.7 * values))
        parquet.write_parquet(pd.DataFrame({"id": size.ids, "score": values}), size.path(f"scores/{method}.parquet"))
    return f"{len(METHODS)} methods"


def correlate(size: Size) -> str:
    """Four statistics of every pair of methods, with intervals."""
    from icprobe.analysis.correlations import correlations
    from icprobe.tables.parquet import read_scores

    scores = read_scores(METHODS, [size.path(f"scores/{method}.parquet") for method in METHODS])
    table = correlations(scores, scores["length"], analytic_above=20_000)
    return f"{len(table)} statistics, intervals {', '.join(table['interval'].unique())}"


def bin_examples(size: Size) -> str:
    """The table of overlaps, and the members of each bin of each method."""
    from icprobe.analysis.binning import bins, overlaps
    from icprobe.tables.parquet import read_scores

    paths = {method: size.path(f"scores/{method}.parquet") for method in METHODS}
    table = overlaps(read_scores(METHODS, paths.values()), BINS)
    reference = pd.read_parquet(paths["icp"])
    for path in paths.values():
        bins(reference, pd.read_parquet(path), BINS)
    return f"{len(table)} overlaps, {len(BINS) * len(METHODS)} bins"


def write_texts(size: Size) -> str:
    """A table of examples with texts."""
    from icprobe.tables import parquet

    words = np.array([f"word{number}" for number in range(2000)])
    drawn = words[np.random.default_rng(3).integers(0, len(words), (size.examples, WORDS))]
    texts = pd.DataFrame({"id": size.ids, "instruction": [" ".join(row[:20]) for row in drawn], "input": ""})
    parquet.write_parquet(texts.assign(output=[" ".join(row[20:]) for row in drawn]), size.path("texts.parquet"))
    return f"{size.path('texts.parquet').stat().st_size / 1e9:.2f} GB"


def subset(size: Size) -> str:
    """A bin of half the examples written as JSONL in both forms, best first."""
    from icprobe.analysis.binning import members
    from icprobe.config.templates import Templates
    from icprobe.texts.chat import prompts_of
    from icprobe.training import subsets

    scores, reference = (pd.read_parquet(size.path(f"scores/{m}.parquet")) for m in ("influence", "icp"))
    chosen = members(scores, ">0.5", reference)
    examples = pd.read_parquet(size.path("texts.parquet")).set_index("id", drop=False)
    score, prompts = scores.set_index("id")["score"].to_dict(), prompts_of(Templates().model_dump())
    files = [size.path(name) for name in ("subset.jsonl", "subset.messages.jsonl")]
    subsets.write_subset(examples, chosen, score, prompts, *files)
    return f"{len(chosen):,} rows, {size.path('subset.jsonl').stat().st_size / 1e9:.2f} GB"


@dataclass(frozen=True)
class Step:
    """What is measured. seconds, peak_gb: the goal; a step without one only makes what later ones read."""

    run: Callable[[Size], str]
    words: str
    seconds: float | None = None
    peak_gb: float | None = None


STEPS: dict[str, Step] = {
    "plan": Step(plan, "plan the DAG (`snakemake -n`)", seconds=60),
    "batch": Step(batch, "batches and shards"),
    "write_shards": Step(write_shards, "write the shards of one method"),
    "gather": Step(gather, "gather them", peak_gb=2),
    "score": Step(score, "score the matrix, twice", peak_gb=2),
    "write_scores": Step(write_scores, "write scores"),
    "correlate": Step(correlate, "correlations", seconds=60),
    "bin": Step(bin_examples, "overlaps and bins", seconds=60),
    "write_texts": Step(write_texts, "write texts"),
    "subset": Step(subset, "write one subset"),
}
NEEDS = {"gather": ["write_shards"], "score": ["write_shards", "gather"], "correlate": ["write_scores"]}
NEEDS |= {"bin": ["write_scores"], "subset": ["write_scores", "write_texts"]}


# --- measuring --------------------------------------------------------------------------------------------------


def measured(name: str, size: Size) -> dict[str, Any]:
    """Runs one step in this process; wall-clock and CPU seconds (of its children too) and peak memory."""
    began, usage = time.perf_counter(), _cpu_seconds()
    words = STEPS[name].run(size)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(_cpu_seconds() - usage, 1),
        "peak_gb": round(peak * (1 if sys.platform == "darwin" else 1024) / 1e9, 2),
        "words": words,
    }


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run(size: Size, names: list[str]) -> dict[str, dict[str, Any]]:
    """{step: its figures}, each in a fresh process. CPU seconds count: a shared machine's clock tells of others."""
    for folder in ("shards", "scores"):
        size.path(folder).mkdir(exist_ok=True)
    rows = {}
    for name in names:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows[name] = pool.submit(measured, name, size).result()
        row, step = rows[name], STEPS[name]
        row["met"] = all(
            limit is None or row[what] <= limit
            for what, limit in (("cpu_seconds", step.seconds), ("peak_gb", step.peak_gb))
        )
        print(
            f"{name}: {row['seconds']} s ({row['cpu_seconds']} s of CPU), {row['peak_gb']} GB; {row['words']}",
            flush=True,
        )
    return rows


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    size, known = record["size"], record["machine"]
    lines = []
    for name, row in record["rows"].items():
        step = STEPS[name]
        goal = [f"{step.seconds} s"] * (step.seconds is not None) + [f"{step.peak_gb} GB"] * (step.peak_gb is not None)
        met = f"{', '.join(goal)}: {'met' if row['met'] else 'missed'}" if goal else ""
        lines.append(
            [step.words, f"{row['seconds']:g}", f"{row['cpu_seconds']:g}", f"{row['peak_gb']:g}", row["words"], met]
        )
    header = ["", "seconds", "of CPU", "peak memory, GB", "what", "goal"]
    return (
        f"{size['examples']:,} examples × {size['tasks']:,} tasks, {size['shards']:,} shards; {known['processor']}, "
        f"{known['cores']} cores, {known['memory_gb']} GB, Python {known['python']}, {record['date']}.\n\n"
        f"{tables.markdown(header, lines)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=2_000)
    parser.add_argument(
        "--only", default=",".join(STEPS), help=f"some of {', '.join(STEPS)}; what they read is made too"
    )
    parser.add_argument("--folder", help="where files go, and are removed at the end; default: TMPDIR")
    parser.add_argument("--results", default="benchmarks/results/scaling.json")
    parser.add_argument("--page", default="docs/scaling.md", help="page whose table is filled")
    options = parser.parse_args()
    wanted = {needed for name in options.only.split(",") for needed in [name, *NEEDS.get(name, [])]}
    if unknown := wanted - STEPS.keys():
        sys.exit(f"--only: there is no step {sorted(unknown)[0]!r}; there are {', '.join(STEPS)}.")
    with tempfile.TemporaryDirectory(prefix="icprobe-scaling-", dir=options.folder) as folder:
        # Shards (half as much again for their footers), the rows put in order, and the matrix; then scores and texts.
        needed, free = options.examples * (3.5 * 4 * options.tasks + 3000), shutil.disk_usage(folder).free
        if "gather" in wanted and free < needed:
            sys.exit(
                f"{Path(folder).parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; see --folder."
            )
        tempfile.tempdir = folder
        os.environ["TMPDIR"] = folder
        size = Size(options.examples, options.tasks, options.shards, folder)
        rows = run(size, [name for name in STEPS if name in wanted])
    record = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "size": {name: value for name, value in asdict(size).items() if name != "folder"},
        "machine": machine(1, "cpu"),
        "versions": versions(),
        "rows": rows,
    }
    results, page = Path(options.results), Path(options.page)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if page.exists():
        page.write_text(tables.filled(page.read_text(encoding="utf-8"), {"measured": table(record)}), encoding="utf-8")
    if missed := [name for name, row in rows.items() if not row["met"]]:
        sys.exit(f"The goal of {', '.join(missed)} was missed.")


if __name__ == "__main__":
    main()
