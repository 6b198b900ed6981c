"""The parent's side: contestants in processes of their own, their rounds alternating; the machine they run on."""

import json
import os
import platform
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import texts
from benchmarks.texts import ROOT, Work
from icprobe import cores

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
PACKAGES = (
    "icprobe",
    "torch",
    "transformers",
    "numpy",
    "lm_eval",
    "kronfluence",
    "bergson",
    "dattri",
)


class Contestant:
    """A worker process. `failed` says in one sentence why it gives no figures, once it does not.

    patience: seconds that it has to get ready, and for each round; then it is stopped. environment: variables of its
    own.
    """

    def __init__(
        self, name: str, work: Work, folder: Path, patience: float, environment: Mapping[str, str] | None = None
    ) -> None:
        self.failed: str | None = None
        self.patience = patience
        path = folder / f"{len(list(folder.glob('work-*.json')))}"
        self.work_file = path.with_name(f"work-{path.name}.json")
        texts.write(work, self.work_file)
        self.log = path.with_name(f"log-{path.name}.txt")
        threads = str(work.threads)
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", name, str(self.work_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={
                    **os.environ,
                    **QUIET,
                    "OMP_NUM_THREADS": threads,
                    "MKL_NUM_THREADS": threads,
                    **(environment or {}),
                },
            )

    def wait(self) -> None:
        """Until it is ready, so that no contestant's loading falls into another's round."""
        self._answer()

    def round(self) -> dict[str, Any]:
        """One timed round; {} once it has failed."""
        if self.failed is None:
            try:
                self.process.stdin.write("\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended: the answer says how
            return self._answer()
        return {}

    def _answer(self) -> dict[str, Any]:
        # A line for each question: nothing is left in the buffer when the next is waited for.
        if not select.select([self.process.stdout], [], [], self.patience)[0]:
            self.process.kill()
            self.failed = f"stopped after {self.patience:g} s in which it did not come to an end"
            return {}
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.failed = self._reason(code)
            return {}
        answer = json.loads(line)
        if "cannot" in answer:
            self.failed = answer["cannot"]
            return {}
        return answer

    def _reason(self, code: int) -> str:
        if code == -9:
            return "ended by the system, most likely for want of memory"
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"failed: {lines[-1].strip()[:300]}" if lines else f"ended with code {code}"

    def close(self) -> None:
        """Lets the process end, and waits for it."""
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def scratch() -> tempfile.TemporaryDirectory:
    """A folder for works, logs and matrices of one comparison."""
    return tempfile.TemporaryDirectory(prefix="icprobe-bench-")


def machine(threads: int, device: str) -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, system, versions; nothing that names the machine."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": cores.usable(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """Its name, and what a virtual machine's name hides: whether an x86 has instructions for bfloat16."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} (multiplies bfloat16)" if cores.multiply_bfloat16() else name


def versions() -> dict[str, str]:
    """Of icprobe, PyTorch and the peers that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
