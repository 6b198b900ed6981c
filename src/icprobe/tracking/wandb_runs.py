"""One run in wandb's hands: begun, filled with entries, closed. wandb is imported here alone, and only once it is used.

An entry is a plain mapping of one key, as `runs.Run` makes it: what it is, and what it holds. So a run is the same
whether its job's process writes it, or another one later, from the job's journal (`journals`).
"""

import functools
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icprobe import paths
from icprobe.masking import masked
from icprobe.tracking.lineage import CLOCK, STEP, Subject

# Seconds that a job waits for W&B at most: to reach it, to begin, for lineage, for its last uploads; under 30 in all.
CONNECT_SECONDS, INIT_SECONDS, LINEAGE_SECONDS, FINISH_SECONDS = 2, 7, 4, 11
OFFLINE_SECONDS = 30  # for what needs no server
JOURNALS = "journals"  # beside the runs: those that are to be written

Entry = Mapping[str, Any]


@dataclass
class WandbRun:
    """A begun run. `take` raises whatever wandb does."""

    wandb: Any
    run: Any
    online: bool
    last: bool  # whether wandb's service ends with this run
    complete: bool = field(default=True)  # whether all entries were taken

    @property
    def directory(self) -> Path:
        return Path(self.run.settings.sync_dir)

    def take(self, entry: Entry) -> None:
        """Log an entry: summary, point, table, bars, html, image, edges, artifacts, or end."""
        ((kind, held),) = ((key, value) for key, value in entry.items() if key != "time")
        stamp = {"_timestamp": entry["time"]} if "time" in entry else {}
        match kind:
            case "summary":
                self.run.summary.update(held)
            case "point":
                self.run.log({**held, **stamp})
            case "table":
                # Columns of numbers with gaps, or of several types, are fine to look at.
                table = self.wandb.Table(columns=held["columns"], data=held["data"], allow_mixed_types=True)
                self.run.log({held["name"]: table, **stamp})
            case "bars":
                table = self.wandb.Table(columns=held["columns"], data=held["data"])
                bars = self.wandb.plot.bar(table, *held["columns"], title=held["title"])
                self.run.log({held["name"]: bars, **stamp})
            case "html":
                self.run.log({held["name"]: self.wandb.Html(held["html"], inject=False), **stamp})
            case "image":
                self.run.log({held["name"]: self.wandb.Image(held["path"]), **stamp})
            case "edges":
                self.run.config.update(held, allow_val_change=True)
            case "artifacts":
                for facts in held["outputs"]:
                    self.run.log_artifact(self._artifact(facts))
                for facts in held["inputs"]:
                    # Not `use_artifact`: offline that is refused, and online it waits for the server. This is what it
                    # does beneath; an offline run's edges are drawn when it is uploaded.
                    artifact = self._artifact(facts)
                    self.run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
            case "end":
                self._close(held)
            case _:
                raise ValueError(f"{kind}: no such entry")

    def _artifact(self, described: Mapping[str, Any]) -> Any:
        """The artifact of a file, as `runs.Run` describes it: the file where it lies, or a card."""
        from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

        artifact = self.wandb.Artifact(described["name"], type=described["type"], metadata=described["facts"])
        if file := described["file"]:
            # As `add_file(policy="immutable", skip_cache=True)` does: read where it lies when it is uploaded, for
            # Snakemake owns it; no copy is staged. The digest is the job's, whatever became of the file since.
            artifact.manifest.add_entry(ArtifactManifestEntry(**file, skip_cache=True))
        else:
            with artifact.new_file("digest.json") as card:
                json.dump(described["facts"], card, indent=2, sort_keys=True)
        return artifact

    def _close(self, exit_code: int) -> None:
        log = Path(self.run.settings.sync_file)
        self.run.finish(exit_code=exit_code)
        if self.last:
            self.wandb.teardown()
        if self.online and self.complete and (why := _refused(Path(self.run.settings.log_internal))):
            self.complete = False
            raise RuntimeError(f"the server refused a part of it: {why}; `make sync` sends it again")
        if self.online and self.complete:
            # The mark that `wandb sync` leaves; what has none is uploaded by our `sync`.
            log.with_name(log.name + ".synced").touch()


def _refused(log: Path) -> str:
    """What wandb's own log, alone, says of a part that the server did not take; that inputs are not linked is none."""
    for entry in errors_in(log) if log.exists() else ():
        said = " ".join(f"{entry.get('msg', '')} {entry.get('error') or ''}".split())
        of_history = said.startswith("filestream:") and ("fatal" in said or "failed to upload" in said)
        if of_history or ("artifact" in said.lower() and "UseArtifact" not in said):
            return said
    return ""


def errors_in(log: Path) -> Iterator[dict[str, Any]]:
    """The errors in a log of wandb's own, of JSON lines, the last of which may have been cut off."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("level") == "ERROR":
                yield entry


def begin(
    root: Path, subject: Subject, chosen: Mapping[str, Any], online: bool, began: float | None = None
) -> WandbRun:
    """The subject's run below `root`/wandb, begun; raises TimeoutError and whatever wandb does.

    began: when its job did (seconds since the epoch), where this process writes runs of other jobs, one after another.
    """
    set_variables(root / paths.WANDB, subject.identity)
    wandb = _wandb()

    def init() -> Any:
        return wandb.init(
            dir=str(root.absolute()),
            id=subject.identity,
            name=subject.name,
            project=chosen["project"],
            entity=chosen.get("entity"),
            group=chosen["experiment"],
            job_type=subject.kind,
            tags=list(subject.tags),
            config=masked(dict(subject.config)),
            settings=_settings(wandb, online, began),
        )

    run = WandbRun(wandb, within(INIT_SECONDS + 2 if online else OFFLINE_SECONDS, init), online, last=began is None)
    for step in (STEP, CLOCK):
        run.run.define_metric(step, hidden=True)
        run.run.define_metric(f"{step.split('/')[0]}/*", step_metric=step)
    return run


@functools.cache
def _wandb() -> Any:
    """wandb without what would cost time or do harm in jobs. None of these methods is public."""
    import wandb
    from wandb.sdk.wandb_init import _WandbInit
    from wandb.sdk.wandb_run import Run

    # It would report each library that the job imports to its service, from within the import: a service that has died
    # would fail the import, and with it the job.
    Run._register_telemetry_import_hooks = lambda _run: None
    # Inputs that W&B Launch stages for jobs of its own: looking for them imports its public API, 0.3 s in each job.
    Run._detect_and_apply_job_inputs = lambda _run: None

    # wandb takes the time of `init` for a run's beginning; a run that is written later began with its job.
    make_settings, build = _WandbInit.make_run_settings, Run.__init__

    def made(self: Any, given: Any) -> Any:
        settings, warnings = make_settings(self, given)
        settings.x_start_time = given.x_start_time or settings.x_start_time
        return settings, warnings

    def built(self: Any, settings: Any, *arguments: Any, **options: Any) -> None:
        build(self, settings, *arguments, **options)
        self._start_time = settings.x_start_time or self._start_time

    _WandbInit.make_run_settings, Run.__init__ = made, built
    return wandb


def _settings(wandb: Any, online: bool, began: float | None) -> Any:
    return wandb.Settings(
        mode="online" if online else "offline",
        # A killed job keeps all but its last second; the default is 15.
        x_transaction_log_flush_interval=1,
        # What costs time or says things about the machine that no one asked for.
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        disable_git=True,
        disable_code=True,
        console="off",
        quiet=True,
        silent=True,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        # Beside the workflow's own run, which goes on.
        **({} if began is None else {"x_start_time": began, "reinit": "create_new"}),
    )


def remove_old(directory: Path, identity: str) -> None:
    """Remove what an earlier attempt at this job left: offline, `resume` does nothing, and one artifact is one run."""
    for old in (*directory.glob(f"*run-*-{identity}"), *directory.glob(f"{JOURNALS}/*-{identity}")):
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(directory / "staged" / identity, ignore_errors=True)


def place(directory: Path) -> tuple[Path, str]:
    """Where W&B's directory goes, and why it is not the experiment's directory where it is not."""
    try:
        (directory / paths.WANDB).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory / paths.WANDB):
            return directory, ""
    except OSError as error:
        why = f"{directory / paths.WANDB} cannot be written ({error.strerror})"
        return Path(tempfile.mkdtemp(prefix="icprobe-wandb-")), why


def set_variables(directory: Path, identity: str) -> None:
    """What wandb reads from the environment when it is imported."""
    os.environ |= {
        "WANDB_DIR": str(directory.parent.absolute()),
        "WANDB_DATA_DIR": str(directory.absolute() / "staged" / identity),
        "WANDB_CACHE_DIR": str(directory.absolute() / "staged" / identity / "cache"),
        # Its own banners and its reports of crashes; what matters of them is in our log lines.
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        # Requests to the server outside the run (lineage) give up soon as well.
        "WANDB_HTTP_TIMEOUT": str(LINEAGE_SECONDS),
    }
    # The service of a parent process may end before this job does.
    os.environ.pop("WANDB_SERVICE", None)


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """function(), or TimeoutError after so many seconds; the call goes on in a thread that ends with the process."""
    outcome: list[tuple[Any, BaseException | None]] = []

    def call() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, name="wandb", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"{seconds} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def end_service() -> None:
    """End wandb's own process in peace, or else by force."""
    if "wandb" in sys.modules:
        try:
            within(FINISH_SECONDS, sys.modules["wandb"].teardown)
        except Exception:
            kill_service()


def kill_service() -> None:
    """End wandb's own process, which holds up the end of ours where it waits for a network."""
    if "wandb" not in sys.modules:
        return
    with suppress(Exception):
        from wandb.sdk import wandb_setup

        # Not public; without it the interpreter would wait at exit for as long as the server is silent.
        connection = wandb_setup._singleton._connection
        connection._cleanup()
        connection._proc._process.kill()
