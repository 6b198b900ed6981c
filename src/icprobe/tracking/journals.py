"""Runs of light jobs, kept as journals until one process writes them all: starting wandb costs more than such a job.

A journal is a file of JSON lines, in a directory named as the run's will be: first what the run is (`Subject`), then
its entries (`wandb_runs.Entry`), each written as soon as it was logged. Who talks to W&B anyway makes runs of them: the
process of the workflow's own run, and `make sync`. What is killed meanwhile, a job or a writer, loses nothing.
"""

import errno
import fcntl
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from icprobe import paths
from icprobe.errors import reason
from icprobe.masking import masked
from icprobe.tracking import wandb_runs
from icprobe.tracking.lineage import Subject, plain

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"  # in a directory of its own below results/{experiment}/wandb/journals, beside its record
WRITTEN = "written"  # beside a journal that stays: of how many bytes of it the whole run was written
ROOM = 4_000_000  # bytes that must be free beside four times a journal before its run is written
BEGINNING_SECONDS = 60  # a job that has just opened its journal has not yet locked it
STAMP = "%Y%m%d_%H%M%S"  # as wandb names directories of runs


def log_of(journal: Path) -> Path:
    """The log of W&B that a journal becomes."""
    name = journal.parent.name
    return journal.parents[2] / name / f"run-{name.split('-', 3)[3]}.wandb"


class Journal:
    """An offline run that is written later; takes what `wandb_runs.WandbRun` takes. Raises OSError."""

    online = False
    complete = True

    def __init__(self, root: Path, subject: Subject, chosen: Mapping[str, Any]) -> None:
        began = time.time()
        name = f"offline-run-{datetime.fromtimestamp(began):{STAMP}}-{subject.identity}"
        self.directory = root / paths.WANDB / wandb_runs.JOURNALS / name
        self.directory.mkdir(parents=True)
        self._file: IO[str] = open(self.directory / JOURNAL, "w", encoding="utf-8")  # noqa: SIM115 (`take` closes it)
        # Held as long as the job's process lives: a journal that is free is of a job that has ended, or was killed.
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Masked here, too: who writes the run later does not know this job's secrets.
        header = {"subject": asdict(subject), "chosen": dict(chosen), "began": began, "machine": platform.node()}
        self._write(masked(plain(header)))

    def take(self, entry: wandb_runs.Entry) -> None:
        """Keep an entry."""
        self._write({**entry, "time": time.time()})
        if "end" in entry:
            self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, default=_plain) + "\n")
        self._file.flush()


def _plain(value: Any) -> Any:
    """Numpy's numbers and arrays, in cells of tables, as JSON knows them; whatever else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


# --- from journals to runs --------------------------------------------------------------------------------------


def waiting(directory: Path) -> list[Path]:
    """Journals below results/{experiment}/wandb, the oldest first."""
    return sorted(directory.glob(f"{wandb_runs.JOURNALS}/offline-run-*/{JOURNAL}"))


def write_all(directory: Path, alone: bool = True) -> dict[Path, str]:
    """Write the runs of all jobs that have ended; returns {log: why} of those that could not be written.

    directory: results/{experiment}/wandb. alone: this process has no run of its own that goes on.
    What another process holds, its job or another writer, is left to it.
    """
    failed = {}
    journals = waiting(directory)
    for journal in journals:
        try:
            with _held(journal) as held:
                if held is not None and _write(journal, *held):
                    # First what says that there is a journal: a kill in between leaves a record that nobody reads.
                    journal.unlink()
                    shutil.rmtree(journal.parent)
        except Exception as error:
            failed[log_of(journal)] = f"its run could not be written ({reason(error)})"
            logger.warning("W&B: %s: %s", journal.parent.name, failed[log_of(journal)])
            if isinstance(error, TimeoutError):  # as the others would; they are written another time
                break
    if journals and alone:
        wandb_runs.end_service()
    return failed


@contextmanager
def _held(journal: Path) -> Iterator[tuple[int, list[dict[str, Any]]] | None]:
    """The size and the lines of a journal that no other process holds; None where one does, or has written it.

    Where another machine's lock is not seen, there may be more lines than the size says, never fewer.
    Raises OSError where it cannot be told.
    """
    try:
        # To be written, too: NFS gives an exclusive lock to nothing less.
        file = open(journal, "r+", encoding="utf-8", errors="replace")  # noqa: SIM115
    except FileNotFoundError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise
            yield None
            return
        lines, size = [], os.fstat(file.fileno()).st_size
        for line in file:
            with suppress(ValueError):  # of a job that was killed in the middle of it
                lines.append(json.loads(line))
        if lines and "subject" not in lines[0]:
            lines = []  # its first line was cut off
        facts = os.fstat(file.fileno())
        if not lines and facts.st_nlink and time.time() - facts.st_mtime > BEGINNING_SECONDS:
            # Its job was killed before it had logged anything, or its disk was full: there is no run.
            logger.warning("W&B: %s: its journal is empty, and is removed", journal.parent.name)
            journal.unlink()
            shutil.rmtree(journal.parent, ignore_errors=True)
        yield (size, lines) if lines and os.fstat(file.fileno()).st_nlink else None


def _write(journal: Path, size: int, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Write the run of one journal of this size; False where its job may still go on."""
    header, *entries = lines
    directory, began = log_of(journal).parent, header["began"]
    ended, here = any("end" in entry for entry in entries), header["machine"] == platform.node()
    written = journal.with_name(WRITTEN)
    if not ended and log_of(journal).exists() and written.exists() and written.read_text(encoding="utf-8") == str(size):
        return False  # it was written as far as it goes
    stamp = directory.name.split("-")[2]
    if f"{datetime.fromtimestamp(began):{STAMP}}" != stamp:  # its job saw another time zone
        began = datetime.strptime(stamp, STAMP).timestamp()
    shutil.rmtree(directory, ignore_errors=True)  # of a writer that was killed
    # wandb's process says nothing of a disk that fills up while it writes.
    if shutil.disk_usage(journal).free < ROOM + 4 * journal.stat().st_size:
        raise OSError("the disk has no room for it")
    run = wandb_runs.begin(directory.parents[1], Subject(**header["subject"]), header["chosen"], False, began)
    if not journal.exists():  # its job has begun again, and this attempt is no run
        shutil.rmtree(directory, ignore_errors=True)
        return False
    for record in journal.parent.glob("*.json"):
        shutil.copy(record, run.directory)
    # One that was killed has failed.
    for entry in entries if ended else [*entries, {"end": 1}]:
        try:
            wandb_runs.within(wandb_runs.OFFLINE_SECONDS, lambda one=entry: run.take(one))
        except Exception as error:
            if "end" in entry:
                raise
            logger.warning("W&B: %s: a part could not be logged (%s)", directory.name, reason(error))
    if not (ended or here):  # not every file system tells another machine's locks
        written.write_text(str(size), encoding="utf-8")
    return ended or here
