"""How many cores there are to compute with."""

import functools
import os
import platform
import re
from pathlib import Path


def usable() -> int:
    """Cores that this process may use: those that it is confined to, where the system tells (macOS does not)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def wanted(at_once: int = 1, given: int | None = None) -> int:
    """Threads for a heavy job on this machine: one for each usable core, but no more than OMP_NUM_THREADS says.

    at_once: so many jobs share the cores, of which there are `given` where Snakemake has been told.
    """
    # "4,2" means 4, and 2 within each of them.
    limit = re.match(r"\s*(\d+)", os.environ.get("OMP_NUM_THREADS", ""))
    alone = max(1, min(usable(), int(limit[1]) if limit else usable()))
    return alone if at_once == 1 else max(1, min(alone, (given or usable()) // at_once))


def emulate_bfloat16() -> bool:
    """Whether this processor computes in bfloat16 more slowly than in float32: x86 without instructions for it."""
    return _is_x86() and multiply_bfloat16() is False


@functools.cache
def multiply_bfloat16() -> bool | None:
    """Whether this x86 processor has instructions that multiply bfloat16 and sum in float32; None: nobody tells."""
    if not _is_x86():
        return None
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # macOS, whose Intel processors have none
        return False
    return None if flags is None else not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[1].split())


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")
