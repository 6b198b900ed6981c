"""How threads wait for each other: ICP alone and beside one busy process, by the settings of OpenMP.

A thread that spins while it waits answers at once, and takes the core from whoever else wants it.
"""

import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.process import Contestant, machine, scratch, versions
from benchmarks.texts import Source, Work

COUNTS = (1_000, 3_000, 10_000, 30_000, 100_000)
# name → (environment, threads; None: those of the other rows). A row that names nothing is the library's own default.
SETTINGS: dict[str, tuple[dict[str, str], int | None]] = {
    "the library's default": ({}, None),
    "OMP_WAIT_POLICY=passive": ({"OMP_WAIT_POLICY": "passive"}, None),
    **{f"GOMP_SPINCOUNT={count}": ({"GOMP_SPINCOUNT": str(count)}, None) for count in COUNTS},
    "one thread": ({}, 1),
}
CONDITIONS = ("alone", "beside one busy process")
EXAMPLES, TASKS = 16, 12


@contextmanager
def busy(wanted: bool) -> Any:
    """A process that never rests, for as long as the block lasts."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def waiting(source: Source, options: Any, say: Any) -> dict[str, Any]:
    """Record of the comparison `waiting`: seconds of ICP under each setting, in turns, alone and beside a process."""
    n, m = min(EXAMPLES, options.examples), min(TASKS, options.tasks)
    texts = source.examples(n, options.max_tokens), source.tasks(m)
    seconds: dict[str, dict[str, list[float]]] = {name: {where: [] for where in CONDITIONS} for name in SETTINGS}
    with scratch() as path:
        folder, started = Path(path), {}
        try:
            for name, (environment, threads) in SETTINGS.items():
                work = Work(
                    *texts,
                    options.model,
                    dtype=options.dtype,
                    threads=threads or options.threads,
                    batch_tokens=options.batch_tokens,
                    folder=path,
                )
                started[name] = Contestant("icprobe-icp", work, folder, options.patience, environment)
                started[name].wait()
            for number in range(options.repeats):
                for where in CONDITIONS:
                    for name, contestant in started.items():
                        with busy(where != "alone"):
                            answer = contestant.round()
                        if answer:
                            seconds[name][where].append(answer["measured_seconds"])
                        shown = f"{answer['measured_seconds']:.1f} s" if answer else contestant.failed
                        say(f"waiting, round {number + 1}, {where}: {name}: {shown}")
        finally:
            for contestant in started.values():
                contestant.close()
    return {
        "comparison": "waiting",
        "title": "How threads wait",
        "machine": machine(options.threads, options.device),
        "versions": versions(),
        "settings": {"examples": n, "tasks": m, "dtype": options.dtype, "rounds": options.repeats},
        "rows": [
            {"name": name, "seconds": found, "median": {where: statistics.median(found[where]) for where in CONDITIONS}}
            for name, found in seconds.items()
            if all(found.values())
        ],
    }
