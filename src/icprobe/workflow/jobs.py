"""Wraps the work of every script of the workflow: log, W&B run, clear errors, clean ends.

from icprobe.workflow.jobs import job

with job(snakemake) as run:
    table = correlations(...)
    run.summary(examples=96, spearman=0.7)
    run.table("correlations", table)
"""

import errno
import logging
import os
import re
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from icprobe import cores, paths
from icprobe.errors import ArtifactError, IcprobeError, out_of_memory
from icprobe.masking import mask
from icprobe.tracking import environment, runs
from icprobe.tracking.lineage import named
from icprobe.workflow import gpus
from icprobe.workflow.gpus import GPUS_IF_ANY

logger = logging.getLogger(__name__)

# What libraries say that a user can do nothing about, silenced where it arises. A value that the user set stays.
QUIET_ENVIRONMENT = {
    # transformers warns of unused generation flags, of padding, of its own defaults; its errors still show.
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    # Bars of downloads and of loading weights: hundreds of lines in a log file. Our own progress says what runs.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # A call home for each file that is opened; offline it waits for nothing.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # tokenizers warns at each fork after use (data loaders fork) unless this is set; our texts are short.
    "TOKENIZERS_PARALLELISM": "false",
}
# Threads of every library that computes; set before any of them is imported.
THREAD_VARIABLES = [
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
]
# For how long a thread of OpenMP that waits for others spins before it sleeps: GCC's library in turns of a loop, LLVM's
# and Intel's in milliseconds. Their own defaults, milliseconds each time, cost more than half of the speed where
# another process wants the core (docs/performance.md, "Beside others' work"). What a user set stays.
SPINNING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
QUIET_LOGGERS = {
    # One INFO line for each request to the hub.
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx2": logging.WARNING,
    "openai": logging.WARNING,
    "urllib3": logging.WARNING,
    # "generated new fontManager" at the first figure on a machine.
    "matplotlib": logging.WARNING,
    # Subsetting of fonts in SVG and PDF files, table by table.
    "fontTools": logging.WARNING,
    "PIL": logging.WARNING,
    # WARNING lines on kernels that it would fetch, and on casts that its own products would make.
    "bitsandbytes": logging.ERROR,
    # One INFO line for each lock on a cached data set, and one for the version of torch that it found.
    "filelock": logging.WARNING,
    "datasets": logging.WARNING,
    # INFO lines on the number of threads that numexpr takes (pandas imports it where it is installed).
    "numexpr": logging.WARNING,
}
QUIET_WARNINGS = [
    # transformers 5.23 on itself, whenever a model with adapters is trained.
    ("`is_gradient_checkpointing` is deprecated", FutureWarning),
]
FULL = {errno.ENOSPC, errno.EDQUOT}
# By how much clocks of machines that share files may differ; a wait of this length is the price.
CLOCKS_DIFFER_SECONDS = 300.0


@contextmanager
def job(snakemake: Any) -> Iterator[runs.Run]:
    """Runs one job: yields its W&B run; turns what goes wrong into a log line, an exit code and a message.

    A mistake of the user (IcprobeError), a full disk and exhausted memory end in one sentence; anything else is a bug
    and shows its traceback, in the rule's log and on the terminal. SIGTERM ends the job as an exception does, so that
    writers clean up behind themselves.
    """
    started = time.monotonic()
    _set_environment(threads(snakemake))
    with _logging(snakemake.log), _terminable():
        logger.info("%s", _title(snakemake))
        run = runs.start(snakemake)
        exit_code = 1
        try:
            _refuse_future_inputs(snakemake.input)
            with gpus.turn(getattr(snakemake, "resources", {}).get(GPUS_IF_ANY, 0)):
                yield run
            _await_inputs(snakemake.input)
            _record(snakemake, run.whole)
            exit_code = 0
        except Exception as error:
            message = _sentence(error, snakemake)
            if message is None:
                logger.error("bug: %s", type(error).__name__, exc_info=True, extra={"file_only": True})
                raise
            logger.error("error: %s", message, extra={"file_only": True})
            # Not `sys.exit`, which wandb replaces; the interpreter prints the message and exits with 1.
            raise SystemExit(message) from None
        except KeyboardInterrupt:
            logger.info("interrupted")
            raise
        finally:
            seconds, memory = time.monotonic() - started, peak_memory_gb()
            # The run is closed first, so that the last line of the log is the last thing the job does.
            run.finish(exit_code, seconds=round(seconds, 3), peak_memory_gb=round(memory, 3))
            end = "done" if exit_code == 0 else "failed"
            logger.info("%s after %.1f s; peak memory %.2f GB", end, time.monotonic() - started, memory)


def threads(snakemake: Any) -> int:
    """Counts the threads to compute with: those that Snakemake gave, but no more than this process has cores."""
    return max(1, min(int(snakemake.threads), cores.usable()))


def peak_memory_gb() -> float:
    """Peak resident memory of this process so far, in GB (10^9 bytes)."""
    try:  # on Linux `getrusage` begins with what the process that started this one held
        return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))[1]) * 1024 / 1e9
    except (OSError, TypeError):
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _title(snakemake: Any) -> str:
    wildcards = " ".join(f"{name}={value}" for name, value in named(snakemake.wildcards).items())
    return f"{snakemake.rule}{': ' + wildcards if wildcards else ''} ({threads(snakemake)} threads)"


# --- clocks and records -----------------------------------------------------------------------------------------


def _newest(files: Iterable[Any]) -> tuple[float, str]:
    """Finds the newest file: (modification time, path). A directory that Snakemake made is as new as its stamp."""
    times = [(0.0, "")]
    for path in map(str, files):
        stamp = os.path.join(path, ".snakemake_timestamp")
        with suppress(OSError):
            path = stamp if os.path.exists(stamp) else path
            times.append((os.stat(path).st_mtime, path))
    return max(times)


def _refuse_future_inputs(inputs: Iterable[Any]) -> None:
    """Raises ArtifactError for inputs from the future: Snakemake would refuse the results, once all work is done."""
    modified, path = _newest(inputs)
    ahead = modified - time.time()
    if ahead > CLOCKS_DIFFER_SECONDS:
        raise ArtifactError(
            f"{path}: its modification time is {ahead:.0f} s in the future. Set the clock of this machine, or of the "
            f"one that wrote it, and `touch {path}`."
        )


def _await_inputs(inputs: Iterable[Any]) -> None:
    """Waits until this machine's clock is past the inputs' times, so that results are newer than what they read."""
    modified, path = _newest(inputs)
    ahead = modified - time.time()
    if ahead > 0:
        logger.info("%s was written %.0f s ahead of this machine's clock; waiting as long", path, ahead)
    # The file system's clock may lag by some milliseconds.
    time.sleep(max(0.0, ahead + 0.05) if ahead > -0.05 else 0.0)


def _record(snakemake: Any, whole: bool) -> None:
    if not len(snakemake.log):
        return
    settings = named(snakemake.params).get("settings")
    try:
        environment.record(
            Path(snakemake.log[0]).with_suffix(paths.ENVIRONMENT),
            snakemake.rule,
            map(str, snakemake.input),
            map(str, snakemake.output),
            threads(snakemake),
            settings.get("dtype") if isinstance(settings, dict) else None,
            whole,
            peak_memory_gb() * 1e9 / 2**20,
        )
    except OSError as error:
        # The result is complete; no month of work is thrown away for a line about it.
        logger.warning("the environment could not be recorded (%s)", error)


# --- what goes wrong --------------------------------------------------------------------------------------------


def _sentence(error: Exception, snakemake: Any) -> str | None:
    """Puts an error into one sentence for the user; None for a bug."""
    if isinstance(error, IcprobeError):
        from icprobe.tables.places import with_places  # pandas, which a job without an error may not need

        return with_places(str(error), map(str, snakemake.input))
    # safetensors, torch and pyarrow report a full disk in exceptions of their own.
    if getattr(error, "errno", None) in FULL or "No space left on device" in str(error):
        where = getattr(error, "filename", None) or next(iter(snakemake.output), os.getcwd())
        return f"{where}: the disk is full. Free some space and run again; finished work is kept and not repeated."
    if out_of_memory(error):
        what = str(error).splitlines()[0] if str(error) else "allocation refused"
        return (
            f"{snakemake.rule}: out of memory at {peak_memory_gb():.1f} GB ({what}). Lower the batch sizes or "
            "attribution.memory_budget_gb in the configuration, or use a machine with more memory."
        )
    return None


@contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM (Slurm's time limit, `scancel`, a cancelled Snakemake) into SystemExit, as long as it is open."""

    def end(_signal: int, _frame: Any) -> None:
        logger.info("terminated by SIGTERM")
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- logging and environment ------------------------------------------------------------------------------------


class _Terminal(logging.StreamHandler):
    """Writes lines on the terminal, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(sys.stderr):
            super().emit(record)


class _Masking(logging.Formatter):
    """Writes lines without secrets, those of tracebacks and libraries too."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


@contextmanager
def _logging(log: Any) -> Iterator[None]:
    """Sends all log lines from INFO on to the rule's log and to the terminal, as long as it is open."""
    formatter = _Masking("%(asctime)s %(message)s", datefmt="%H:%M:%S")
    terminal = _Terminal(sys.stderr)
    # Errors reach the terminal as the job's last words; the log has no other way to know them.
    terminal.addFilter(lambda record: not getattr(record, "file_only", False))
    handlers: list[logging.Handler] = [terminal]
    if len(log):
        Path(log[0]).parent.mkdir(parents=True, exist_ok=True)
        formatter = _Masking("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
        handlers.append(logging.FileHandler(log[0], mode="w", encoding="utf-8"))
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    for message, category in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _set_environment(threads: int) -> None:
    """Sets the environment variables that libraries read when they are imported, which is later than this."""
    os.environ |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else SPINNING
    for name, value in {**QUIET_ENVIRONMENT, **waiting}.items():
        os.environ.setdefault(name, value)
    home = Path(os.path.expanduser("~"))
    if os.access(home, os.W_OK):
        return
    caches = Path(".snakemake", "icprobe-caches").absolute()
    # Models in a read-only home can still be read: the hub's cache moves only where there is none.
    hub = home / ".cache" / "huggingface"
    for name, path in {
        "MPLCONFIGDIR": caches / "matplotlib",
        "WANDB_CONFIG_DIR": caches / "wandb",
        "HF_HOME": hub if hub.exists() else caches / "huggingface",
        "XDG_CACHE_HOME": caches,
    }.items():
        if name not in os.environ:
            os.environ[name] = str(path)
            path.mkdir(parents=True, exist_ok=True)
