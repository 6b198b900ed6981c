"""W&B: one run for each job, with what it took, what it made and what it measured.

Settings come from the environment (`icprobe.tracking.modes`), and not from a param: no result depends on them. Without
them nothing is tracked. No failure of W&B fails a job or holds it for more than half a minute.
"""

import functools
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from icprobe import paths
from icprobe.artifacts import MANIFEST
from icprobe.errors import ConfigError, reason
from icprobe.masking import masked
from icprobe.tracking import modes, records
from icprobe.tracking.lineage import (
    CLOCK,
    STEP,
    UPLOAD_BYTES,
    Subject,
    artifact_name,
    artifact_type,
    describe,
    holds_texts,
    of_job,
    plain,
    scalar,
)
from icprobe.tracking.syncing import TrackingError, check_server

logger = logging.getLogger(__name__)

# Seconds that a job waits for W&B at most: to reach it, to begin, for lineage, for its last uploads; under 30 in all.
CONNECT_SECONDS, INIT_SECONDS, LINEAGE_SECONDS, FINISH_SECONDS = 2, 7, 4, 11
TABLE_ROWS = 1000
FIGURE_HTML = "<html><head><style>body{margin:0;background:#fff}svg{width:100%;height:auto}</style></head><body>"


# --- the run ----------------------------------------------------------------------------------------------------


class Run:
    """A job's W&B run. Every method does nothing where W&B is disabled or out of order, and none raises."""

    def __init__(self) -> None:
        self._wandb: Any = None
        self._run: Any = None
        self._online = False
        self._complete = True
        self._texts = False
        self._inputs: list[str] = []
        self._outputs: list[str] = []
        self._record: Callable[..., None] = lambda **_: None

    def summary(self, **values: Any) -> None:
        """Numbers (or words) that say what came out, shown in the table of runs.

        What is no single value is left out with a warning, tracked or not: it is a mistake of the script, and would
        take the other numbers with it.
        """
        single = {}
        for name, value in values.items():
            try:
                single[name] = scalar(value)
            except TypeError as error:
                logger.warning("W&B: the number %s is left out of the summary: %s", name, error)
        self._attempt("the summary", lambda: self._run.summary.update(masked(single)))

    def log(self, metrics: Mapping[str, Any], step: float, axis: str = STEP) -> None:
        """A point of each curve, such as {"train/loss": 1.2}; step: its place on the axis, by default in steps."""
        self._attempt("a point of the curves", lambda: self._run.log({**plain(metrics), axis: step}))

    def bars(self, name: str, table: Any, label: str, value: str, title: str) -> None:
        """A bar chart of one column of a DataFrame, named by another."""

        def log() -> None:
            rows = table[[label, value]].dropna().astype(object).values.tolist()
            bars = self._wandb.Table(columns=[label, value], data=rows)
            self._run.log({name: self._wandb.plot.bar(bars, label, value, title=title)})

        self._attempt(f"the chart {name}", log)

    def table(self, name: str, table: Any, rows: int = TABLE_ROWS) -> None:
        """The first `rows` rows of a DataFrame, as a table to sort and filter; texts only with `wandb.texts`."""

        def log() -> None:
            from icprobe.tables.checking import TEXTS  # with pandas, which light jobs do without

            head = table.head(rows).astype(object)
            head = head if self._texts else head.drop(columns=TEXTS, errors="ignore")
            head = head.where(head.notna(), None)
            # Columns of numbers with gaps, or of several types, are fine to look at.
            columns, data = [str(column) for column in head.columns], head.values.tolist()
            self._run.log({name: self._wandb.Table(columns=columns, data=data, allow_mixed_types=True)})
            if len(table) > rows:
                logger.info("W&B: the table %s shows the first %d of %d rows", name, rows, len(table))

        self._attempt(f"the table {name}", log)

    def figure(self, name: str, path: str | Path) -> None:
        """A figure (SVG or PNG). An SVG is shown as HTML, sharp at every size: W&B's images are bitmaps only."""

        def log() -> None:
            if Path(path).suffix != ".svg":
                self._run.log({name: self._wandb.Image(str(path))})
                return
            svg = Path(path).read_text(encoding="utf-8")
            # An XML declaration and a DOCTYPE have no place within HTML.
            html = FIGURE_HTML + svg[max(svg.find("<svg"), 0) :] + "</body></html>"
            self._run.log({name: self._wandb.Html(html, inject=False)})

        self._attempt(f"the figure {name}", log)

    def finish(self, exit_code: int = 0, **values: Any) -> None:
        """Log inputs, outputs and last values, then close the run. exit_code: 0 where the job did its work."""
        self._attempt("inputs and outputs", lambda: self._log_edges(self._outputs if exit_code == 0 else []))
        self.summary(**values)
        if exit_code == 0:
            self._attempt("the artifacts", self._log_artifacts, LINEAGE_SECONDS)
        self._attempt("the end of the run", lambda: self._close(exit_code), FINISH_SECONDS + 3)
        self._run = None
        if not self._complete:
            _kill_service()

    def _log_edges(self, outputs: list[str]) -> None:
        edges = {"inputs": [*map(describe, self._inputs)], "outputs": [*map(describe, outputs)]}
        self._run.config.update(edges, allow_val_change=True)
        if outputs:
            self._record(**edges)

    def _log_artifacts(self) -> None:
        for path in self._outputs:
            if artifact := self._artifact(path):
                self._run.log_artifact(artifact)
        for path in self._inputs:
            if artifact := self._artifact(path):
                # Not `use_artifact`: offline that is refused, and online it waits for the server. This is what it does
                # beneath; an offline run's edges are drawn when it is uploaded.
                self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def _artifact(self, path: str) -> Any:
        """The artifact that a path is. Equal content is the same version, whoever logs it, so that edges meet."""
        kind = artifact_type(path)
        if kind is None or not Path(path).exists():
            return None
        facts = describe(path)
        artifact = self._wandb.Artifact(artifact_name(path), type=kind, metadata=facts)
        # Of a directory the manifest, which holds the digests of all its files.
        contents = Path(path, MANIFEST) if Path(path).is_dir() else Path(path)
        allowed = self._texts or not holds_texts(path)
        if allowed and contents.is_file() and contents.stat().st_size <= UPLOAD_BYTES:
            # Immutable: read where it lies when it is uploaded, for Snakemake owns it; no copy is staged.
            artifact.add_file(str(contents.absolute()), name=contents.name, policy="immutable", skip_cache=True)
        else:
            with artifact.new_file("digest.json") as file:
                json.dump(facts, file, indent=2, sort_keys=True)
        return artifact

    def _close(self, exit_code: int) -> None:
        log = Path(self._run.settings.sync_file)
        self._run.finish(exit_code=exit_code)
        self._wandb.teardown()
        if self._online and self._complete:
            # The mark that `wandb sync` leaves; what has none is uploaded by our `sync`.
            log.with_name(log.name + ".synced").touch()

    def _attempt(self, what: str, action: Callable[[], Any], seconds: float | None = None) -> None:
        """Whatever W&B raises becomes a warning; no step is waited for longer than `seconds`."""
        if self._run is None:
            return
        try:
            action() if seconds is None else _within(seconds, action)
        except TimeoutError:
            self._complete = False
            where = os.path.relpath(self._run.settings.sync_dir)
            logger.warning("W&B: no answer in time for %s; what was logged is kept in %s for `make sync`", what, where)
        except Exception as error:
            self._complete = False
            logger.warning("W&B: %s could not be logged (%s)", what, reason(error))


def settings() -> dict[str, Any]:
    """What `modes.settings` says; disabled where the environment's word is no mode, which no job fails for."""
    try:
        return modes.settings()
    except ConfigError as error:
        logger.warning("W&B: no run (%s)", error)
        return {"mode": "disabled"}


def start(snakemake: Any) -> Run:
    """The W&B run of a job, begun; one that does nothing where W&B is disabled or cannot start.

    snakemake: the object that a script has (input, output, params, wildcards, rule).
    """
    chosen = settings()
    if chosen["mode"] == "disabled":
        return Run()
    return begin(of_job(chosen["experiment"], snakemake), chosen)


def begin(subject: Subject, chosen: Mapping[str, Any]) -> Run:
    """The subject's run, begun; one that does nothing where it cannot start. chosen: as `settings` gives them."""
    run = Run()
    run._texts = chosen["texts"]
    # The manifest beside a directory is no artifact of its own: the directory's is that manifest.
    run._inputs, run._outputs = (
        [path for path in files if not path.endswith(paths.manifest(""))] for files in (subject.inputs, subject.outputs)
    )
    try:
        _begin(run, chosen, subject)
    except Exception as error:
        logger.warning("W&B: no run (%s: %s); the job continues without one", type(error).__name__, error)
        _kill_service()
    return run


def _begin(run: Run, chosen: Mapping[str, Any], subject: Subject) -> None:
    root, why = _root(Path(paths.EXPERIMENT.format(experiment=chosen["experiment"])))
    if why:
        logger.warning("W&B: %s; this run is in %s, where `make sync` does not find it", why, root)
    _remove_old(root / paths.WANDB, subject.identity)
    _set_variables(root / paths.WANDB, subject.identity)

    import wandb
    from wandb.sdk.wandb_run import Run as WandbRun

    # It would report each library that the job imports to its service, from within the import: a service that has died
    # would fail the import, and with it the job.
    WandbRun._register_telemetry_import_hooks = lambda _run: None
    # Inputs that W&B Launch stages for jobs of its own: looking for them imports its public API, 0.3 s in each job.
    WandbRun._detect_and_apply_job_inputs = lambda _run: None
    run._wandb = wandb
    run._online = _goes_online(chosen)

    def begin() -> Any:
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
            settings=_wandb_settings(wandb, run._online),
        )

    try:
        run._run = _within(INIT_SECONDS + 2 if run._online else 30, begin)
    except Exception as error:
        if not run._online:
            raise
        logger.warning("W&B: no run on the server (%s). The run is kept offline for `make sync`.", reason(error))
        run._online = False
        # Its service still holds the run's id.
        with suppress(Exception):
            _within(5, wandb.teardown)
        _remove_old(root / paths.WANDB, subject.identity)
        run._run = _within(30, begin)
    # wandb falls back to /tmp by itself, without a word.
    if root.absolute() not in Path(run._run.dir).absolute().parents:
        logger.warning("W&B: %s is not used; this run is in %s", root, run._run.dir)
    # Beside the log, for `sync`; what makes nothing, such as the workflow's own run, has none.
    if run._outputs:
        directory = Path(run._run.settings.sync_dir)
        run._record = functools.partial(records.write, directory, subject.kind, subject.wildcards, run._texts)
        inputs, outputs = ([{"name": path} for path in files] for files in (run._inputs, run._outputs))
        run._record(inputs=inputs, outputs=outputs)
    for step in (STEP, CLOCK):
        run._run.define_metric(step, hidden=True)
        run._run.define_metric(f"{step.split('/')[0]}/*", step_metric=step)


def _goes_online(chosen: Mapping[str, Any]) -> bool:
    """Whether to talk to the server: where it is wanted, a key is found and there is a way to it."""
    if chosen["mode"] == "offline":
        logger.info("W&B: offline, as %s says", chosen["why"], extra={"file_only": True})
        return False
    try:
        check_server(CONNECT_SECONDS)
    except TrackingError as error:
        # In mode auto a machine without a key is nothing to warn of: each job's log says it, the terminal does once,
        # at the end of the workflow.
        level, where = (logging.INFO, {"file_only": True}) if chosen["mode"] == "auto" else (logging.WARNING, None)
        logger.log(level, "%s The run is kept offline for `make sync`.", error, extra=where)
        return False
    return True


def _wandb_settings(wandb: Any, online: bool) -> Any:
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
    )


def _root(directory: Path) -> tuple[Path, str]:
    """Where W&B's directory goes, and why it is not the experiment's directory where it is not."""
    try:
        (directory / paths.WANDB).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory / paths.WANDB):
            return directory, ""
    except OSError as error:
        why = f"{directory / paths.WANDB} cannot be written ({error.strerror})"
        return Path(tempfile.mkdtemp(prefix="icprobe-wandb-")), why


def _remove_old(directory: Path, identity: str) -> None:
    """Remove what an earlier attempt at this job left: offline, `resume` does nothing, and one artifact is one run."""
    for old in directory.glob(f"*run-*-{identity}"):
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(directory / "staged" / identity, ignore_errors=True)


def _set_variables(directory: Path, identity: str) -> None:
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


def _within(seconds: float, function: Callable[[], Any]) -> Any:
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


def _kill_service() -> None:
    """End wandb's own process, which holds up the end of ours where it waits for a network."""
    with suppress(Exception):
        from wandb.sdk import wandb_setup

        # Not public; without it the interpreter would wait at exit for as long as the server is silent.
        connection = wandb_setup._singleton._connection
        connection._cleanup()
        connection._proc._process.kill()
