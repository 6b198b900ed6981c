"""Import cost: how long a job takes from its start until it can begin, heavy ones with the model in memory."""

import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.process import QUIET, machine, versions
from benchmarks.texts import ROOT

HEAVY = """
from icprobe.workflow.jobs import job
from icprobe.attribution import icp, influence
from icprobe.attribution.shards import compute
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.models import load_model
from icprobe.engine.network import Network
from icprobe.texts.tokenizing import load_tokenizer
load_tokenizer({model!r})
Network(load_model({model!r}, device="cpu"), Capabilities.of({model!r}))
"""
# Each job imports what its script in workflow/scripts does.
JOBS = {
    "heavy: attribute, model loaded": HEAVY,
    "light: score": "from icprobe.workflow.jobs import job; from icprobe.tables import parquet; "
    "from icprobe.analysis.statistics import aggregate",
    "light: correlate": "from icprobe.workflow.jobs import job; "
    "import icprobe.analysis.correlations, icprobe.analysis.domains",
    "torch and transformers alone": "import torch; from transformers import AutoModelForCausalLM",
}


def startup(options: Any, say: Any) -> dict[str, Any]:
    """Record of the comparison `import`: wall-clock seconds from spawning the interpreter until the job is ready."""
    import os

    rows: dict[str, list[float]] = {name: [] for name in JOBS}
    failed: dict[str, str] = {}
    env = {**os.environ, **QUIET, "OMP_NUM_THREADS": str(options.threads)}
    for number in range(max(3, options.repeats) + 1):
        for name, code in JOBS.items():
            program = code.format(model=str(options.model)) + "\nprint('ready', flush=True)"
            began = time.perf_counter()
            with subprocess.Popen(
                [sys.executable, "-c", program],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=env,
            ) as process:
                line = process.stdout.readline()
                seconds = time.perf_counter() - began
                errors = process.stderr.read()
            if line.strip() != "ready":
                failed[name] = (errors.strip().splitlines() or ["it ended"])[-1][:300]
            elif number:  # the first fills the file system's cache
                rows[name].append(seconds)
    for name, seconds in rows.items():
        say(f"import: {name}: " + (failed.get(name) or f"{statistics.median(seconds):.2f} s"))
    return {
        "comparison": "import",
        "title": "Start of a job",
        "machine": machine(options.threads, options.device),
        "versions": versions(),
        "rows": [
            {"name": name, "cannot": failed[name]}
            if name in failed
            else {"name": name, "seconds": seconds, "median": statistics.median(seconds)}
            for name, seconds in rows.items()
        ],
    }
