"""Lets the jobs of one machine take turns on its GPUs: each sees only those that it holds.

A job holds a GPU by locking a file that stands for it, in a folder of the user's, whichever experiment the job is of.
The system itself opens the lock when the job ends, however it ends.
"""

import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from icprobe.errors import ConfigError, several

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
GPUS_IF_ANY = "gpus_if_any"  # the resource that says how many a job computes on, where there are any
POLL_SECONDS = 0.5


def listed() -> dict[str, str]:
    """The GPUs that CUDA may see here, each with what is its own whatever it is called: its UUID where that is known.

    Those of CUDA_VISIBLE_DEVICES where it is set, or else all of the machine, or of its MIG parts.
    """
    said = os.environ.get(VISIBLE)
    names = _chosen(said) if said is not None else []
    if (said is not None and not names) or (said is None and version("torch").endswith("+cpu")):
        return {}
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        found = ""
    # CUDA may count in another order, but all jobs of a machine count alike.
    numbered = dict(re.findall(r"^GPU (\d+):.*\(UUID: ([^)]+)\)", found, re.MULTILINE))
    parts = re.findall(r"^\s+MIG .*\(UUID: ([^)]+)\)", found, re.MULTILINE)
    return {name: numbered.get(name, name) for name in names or parts or numbered}


def _chosen(said: str) -> list[str]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names; to CUDA the first that is none hides all behind it."""
    names = [name.strip() for name in said.split(",")]
    hidden = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
    return list(dict.fromkeys(names[:hidden]))


@contextmanager
def turn(wanted: int) -> Iterator[list[str]]:
    """Within the block CUDA sees `wanted` GPUs that no other job holds; gives their names, once so many are free.

    Before CUDA is initialised. Where there are no GPUs, or none is wanted, nothing changes. Raises ConfigError where
    more are wanted than there are.
    """
    names = listed() if wanted else {}
    if not names:
        yield []
        return
    if wanted > len(names):
        raise ConfigError(
            f"config: finetune.processes: {wanted} processes need a GPU each, and CUDA sees "
            f"{several(len(names), 'GPU')} here; lower it, or choose more by {VISIBLE}"
        )
    before = os.environ.get(VISIBLE)
    with _held(names, wanted) as held:
        logger.info("GPU %s of %s", ", ".join(held), ", ".join(names))
        try:
            os.environ[VISIBLE] = ",".join(held)
            yield held
        finally:
            os.environ.pop(VISIBLE)
            if before is not None:
                os.environ[VISIBLE] = before


@contextmanager
def _held(names: Mapping[str, str], wanted: int) -> Iterator[list[str]]:
    """Within the block so many of these GPUs are locked; waits until they are free."""
    folder = _folder()
    if not (held := _locked(folder, names, wanted)):
        logger.info("waiting for %s: other jobs hold those of %s", several(wanted, "free GPU"), ", ".join(names))
    while not held:
        time.sleep(POLL_SECONDS)
        held = _locked(folder, names, wanted)
    try:
        yield list(held)
    finally:
        for lock in held.values():
            lock.release()


def _locked(folder: Path, names: Mapping[str, str], wanted: int) -> dict[str, BaseFileLock]:
    """So many of these GPUs with their locks, or none: two jobs never wait for what each other holds."""
    held: dict[str, BaseFileLock] = {}
    with FileLock(folder / "choosing.lock"):
        for name, own in names.items():
            lock = FileLock(folder / f"{own.replace('/', '_')}.lock")
            with suppress(Timeout):
                lock.acquire(blocking=False)
                held[name] = lock
            if len(held) == wanted:
                return held
        for lock in held.values():
            lock.release()
    return {}


def _folder() -> Path:
    """Where this user's locks are."""
    folder = Path(tempfile.gettempdir(), f"icprobe-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder}: belongs to another user; set TMPDIR to a folder of your own")
    return folder
