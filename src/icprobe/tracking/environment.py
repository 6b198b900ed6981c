"""With what a result was computed: versions, device, dtype, threads, commit, of every job; its seconds and memory.

Each job leaves a record beside its log: no result holds it, for results are the same bytes wherever they are computed.
"""

import csv
import json
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from icprobe import cores, paths
from icprobe.artifacts import write_json

PACKAGES = [
    *("icprobe", "torch", "transformers", "tokenizers", "peft", "trl", "numpy", "scipy", "pandas", "pyarrow"),
    "snakemake",
]
# Of these each rule has its own; the others ought to be the same in all jobs.
OF_RULES = ("device", "dtype", "threads")


def describe() -> dict[str, Any]:
    """Names and values that a result of this process may depend upon, as a flat mapping."""
    facts: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    return {**facts, "processor": processor(), "cores": cores.usable(), "commit": commit()}


def processor() -> str:
    """The model of the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The git commit of the working directory, with "+" where tracked files differ; "unknown" outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


# --- one job ----------------------------------------------------------------------------------------------------


def record(
    path: str | Path,
    rule: str,
    inputs: Iterable[str],
    outputs: Iterable[str],
    threads: int,
    dtype: str | None,
    whole: bool = True,
    peak_mb: float | None = None,
) -> None:
    """Writes what a finished job read and made, and with what, to `path`, which ends with `paths.ENVIRONMENT`.

    threads: those that were given to the job; where it computed with torch, torch's own number stands in the record.
    dtype: of the arithmetic, where the job has one. whole: whether it did all of its work in this try.
    peak_mb: of memory, in 2^20 bytes.
    """
    facts = {**describe(), "threads": threads, **({"dtype": dtype} if dtype else {}), **_of_torch()}
    made = {"rule": rule, "inputs": list(inputs), "outputs": list(outputs), "whole": whole, "peak_mb": peak_mb}
    write_json(path, {**made, "environment": facts})


def _of_torch() -> dict[str, Any]:
    """Device and threads that torch has really computed with in this process; nothing where it was not loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    facts: dict[str, Any] = {"device": "cpu", "threads": torch.get_num_threads()}
    if torch.cuda.is_initialized():
        facts |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts


# --- all jobs ---------------------------------------------------------------------------------------------------


def of_results(results: Iterable[str | Path], logs: Iterable[str | Path]) -> dict[str, Any]:
    """With what these results, and all that they were made from, were computed.

    logs: those of the jobs that make them, one for each job, with the records beside them: of a file that other jobs
    made before, by another rule, the maker is among these. A name has one value where all jobs agree, else each value
    with the rules that it belongs to; device, dtype and threads stand for each rule. Results that no record speaks of
    are counted.
    """
    beside = [Path(log).with_suffix(paths.ENVIRONMENT) for log in logs]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in beside if path.is_file()]
    makers = {output: number for number, made in enumerate(records) for output in made["outputs"]}
    waiting, seen = [str(path) for path in results], set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += records[makers[path]]["inputs"] if path in makers else []
    used = [records[number] for number in sorted({makers[path] for path in seen & makers.keys()})]
    facts = _agreed(used)
    unknown = sum(path.startswith(f"{paths.RESULTS}/") for path in seen - makers.keys())
    return {"jobs": len(used), **({"results without a record": unknown} if unknown else {}), **facts}


def _agreed(records: list[dict[str, Any]]) -> dict[str, Any]:
    """{name: its one value, or its values with their rules}; names of `OF_RULES` as {rule: value}."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # name → value → rules
    for made in records:
        for name, value in made["environment"].items():
            found[name][str(value)].add(made["rule"])
    facts: dict[str, Any] = {}
    for name, values in found.items():
        if name in OF_RULES:
            rules = sorted(set().union(*values.values()))
            facts[name] = {rule: ", ".join(v for v, its in values.items() if rule in its) for rule in rules}
        elif len(values) == 1:
            facts[name] = next(iter(values))
        else:
            facts[name] = "; ".join(f"{value} ({', '.join(sorted(rules))})" for value, rules in values.items())
    return facts


def measured(log: str | Path) -> tuple[float, float]:
    """(seconds, peak MB) of a job, from the files beside its log; NaN seconds where it did a part of its work.

    A job that goes on where another was killed, or takes entries that are known, took less than its result costs. The
    peak is the job's own word where there is one: Snakemake looks now and then, and misses what is short.
    """
    seconds, memory = benchmark(Path(log).with_suffix(paths.BENCHMARK))
    beside = Path(log).with_suffix(paths.ENVIRONMENT)
    record = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    return (seconds if record.get("whole", True) else float("nan")), record.get("peak_mb") or memory


def benchmark(path: Path) -> tuple[float, float]:
    """(seconds, peak MB) from a job's benchmark file; NaN for what is absent or, in a very short job, not measured."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            row = next(csv.DictReader(file, delimiter="\t"))
    except (OSError, ValueError, StopIteration):
        row = {}
    return _number(row.get("s")), _number(row.get("max_rss"))


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
