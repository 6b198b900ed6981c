"""How many cores there are to compute with."""

import os
import re


def usable() -> int:
    """Cores that this process may use: those that it is confined to, where the system tells (macOS does not)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def wanted() -> int:
    """Threads for a heavy job on this machine: one for each usable core, but no more than OMP_NUM_THREADS says."""
    # "4,2" means 4, and 2 within each of them.
    limit = re.match(r"\s*(\d+)", os.environ.get("OMP_NUM_THREADS", ""))
    return max(1, min(usable(), int(limit[1]) if limit else usable()))
