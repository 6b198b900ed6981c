"""One contestant in a process of its own: prepares, says ready, then runs a timed round for each line that it reads.

python -m benchmarks.worker CONTESTANT WORK.json; answers with one JSON object a line. Peak memory is this process's.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

# name → module and function; imported in the worker alone, so that one peer's absence harms no other
CONTESTANTS = {
    "icprobe-icp": "benchmarks.engines:icp_round",
    "icprobe-icp-reverse": "benchmarks.engines:icp_reverse_round",
    "icprobe-influence": "benchmarks.engines:influence_round",
    "icprobe-influence-mean": "benchmarks.engines:influence_mean_round",
    "icprobe-one-step": "benchmarks.engines:one_step_round",
    "matmul": "benchmarks.floors:matmul",
    "training-step": "benchmarks.floors:training_step",
    "step-and-forwards": "benchmarks.floors:step_and_forwards",
    "naive-icp": "benchmarks.naive:icp",
    "naive-influence": "benchmarks.naive:influence",
    "paper": "benchmarks.naive:paper",
    "lm-eval": "benchmarks.peers:lm_eval",
    "kronfluence": "benchmarks.peers:kronfluence",
    "bergson": "benchmarks.peers:bergson",
    "dattri": "benchmarks.peers:dattri",
}


def peak_mb() -> float:
    """Most memory that this process has held resident, in MB; its model's loading is included."""
    # Not ru_maxrss first: it also remembers the size of the process that this one was forked from.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6  # the kernel's kB are KiB
    unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def release() -> None:
    """Gives freed memory back to the system, so that contestants that wait do not hold what they do not use."""
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def main() -> None:
    # What contestants print goes to the log; answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")

    import torch

    from benchmarks import texts
    from benchmarks.contestant import CannotError

    work = texts.read(Path(sys.argv[2]))
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    module, name = CONTESTANTS[sys.argv[1]].split(":")
    try:
        run = getattr(importlib.import_module(module), name)(work)
    except (CannotError, ImportError) as error:
        answer(cannot=str(error))
        return
    release()
    answer(ready=True)
    on_gpu = work.device == "cuda"
    for number, _ in enumerate(sys.stdin):
        if on_gpu:
            torch.cuda.synchronize()
        clock, cpu = time.perf_counter(), time.process_time()
        try:
            outcome = run()
        except CannotError as error:
            answer(cannot=str(error))
            return
        if on_gpu:
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
        path = None
        if outcome.matrix is not None:
            import numpy as np

            path = str(Path(work.folder, f"matrix-{os.getpid()}-{number}.npy"))
            np.save(path, outcome.matrix)
        answer(
            seconds=seconds if outcome.seconds is None else outcome.seconds,
            measured_seconds=seconds,
            cpu_seconds=cpu,
            peak_mb=peak_mb(),
            peak_gpu_mb=torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None,
            facts=outcome.facts,
            matrix=path,
            rows=outcome.rows,
            columns=outcome.columns,
        )
        del outcome
        release()


if __name__ == "__main__":
    main()
