"""With what a result was computed: versions, machine, commit, seconds and memory."""

import glob
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

PACKAGES = ["icprobe", "torch", "transformers", "tokenizers", "peft", "trl", "numpy", "scipy", "pandas", "snakemake"]


def describe() -> dict[str, Any]:
    """Names and values that a result may depend upon, as a flat mapping."""
    facts: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    return {**facts, "cores": len(os.sched_getaffinity(0)), "commit": commit()}


def commit() -> str:
    """The git commit of the working directory, with "+" where tracked files differ; "unknown" outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def measured(pattern: str, experiment: str, models: Sequence[str]) -> list[tuple[float, float]]:
    """(seconds, peak MB) of each job of a rule whose benchmark files are there, in the order of their names.

    pattern: the rule's `benchmark`, such as logs/{experiment}/score/{model}/{method}.benchmark.tsv; empty: no job.
    """
    fixed = {"experiment": re.escape(experiment), "model": "|".join(map(re.escape, models))}
    parts = re.split(r"\{(\w+)\}", pattern)
    regex = "".join(f"({fixed.get(part, '[^/]+')})" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    # Wildcards fill whole names or parts of one; never several.
    found = Path().glob("".join("*" if i % 2 else glob.escape(part) for i, part in enumerate(parts))) if pattern else []
    return [benchmark(path) for path in sorted(found) if re.fullmatch(regex, path.as_posix())]


def benchmark(path: Path) -> tuple[float, float]:
    """(seconds, peak MB) from a job's benchmark file; NaN for what is absent or, in a very short job, not measured."""
    try:
        rows = pd.read_csv(path, sep="\t", na_values=["-", "NA"])
        return float(rows["s"].iloc[0]), float(rows["max_rss"].iloc[0])
    except (OSError, ValueError, KeyError, IndexError):
        return float("nan"), float("nan")
