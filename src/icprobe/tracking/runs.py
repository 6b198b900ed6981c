"""W&B: one run for each job, with what it took, what it made and what it measured.

Settings come from the environment (`icprobe.tracking.modes`), and not from a param: no result depends on them. Without
them nothing is tracked. No failure of W&B fails a job or holds it for more than half a minute.

What a job logs becomes entries, which go to wandb itself (`wandb_runs`), or, of a light job whose run stays offline, to
a journal (`journals`) that another process makes a run of.
"""

import base64
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from icprobe import paths
from icprobe.artifacts import MANIFEST
from icprobe.errors import ConfigError, reason
from icprobe.masking import masked
from icprobe.tracking import journals, modes, records, wandb_runs
from icprobe.tracking.lineage import (
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
from icprobe.tracking.wandb_runs import CONNECT_SECONDS, FINISH_SECONDS, LINEAGE_SECONDS, Entry

logger = logging.getLogger(__name__)

TABLE_ROWS = 1000
FIGURE_HTML = "<html><head><style>body{margin:0;background:#fff}svg{width:100%;height:auto}</style></head><body>"


class Run:
    """A job's W&B run. Every method does nothing where W&B is disabled or out of order, and none raises."""

    def __init__(self, subject: Subject | None = None, texts: bool = False) -> None:
        # Whether the job did all of its work; else, resumed or with what was known, its seconds are not its price.
        self.whole = True
        self._subject = subject
        self._texts = texts
        self._to: wandb_runs.WandbRun | journals.Journal | None = None
        # The manifest beside a directory is no artifact of its own: the directory's is that manifest.
        self._inputs, self._outputs = (
            [path for path in files if not path.endswith(paths.manifest(""))]
            for files in ((subject.inputs, subject.outputs) if subject else ((), ()))
        )

    def begin(self, to: wandb_runs.WandbRun | journals.Journal) -> None:
        """Log to a begun run of wandb, or to a journal."""
        self._to = to
        # Beside the log, for `sync`; what makes nothing, such as the workflow's own run, has none.
        if self._outputs:
            inputs, outputs = ([{"name": path} for path in files] for files in (self._inputs, self._outputs))
            self._record(inputs, outputs)

    @property
    def directory(self) -> Path:
        """Where it is kept; of a run that was begun."""
        return self._to.directory

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
        self._log("the summary", lambda: {"summary": masked(single)})

    def log(self, metrics: Mapping[str, Any], step: float, axis: str = STEP) -> None:
        """A point of each curve, such as {"train/loss": 1.2}; step: its place on the axis, by default in steps."""
        self._log("a point of the curves", lambda: {"point": {**plain(metrics), axis: step}})

    def bars(self, name: str, table: Any, label: str, value: str, title: str) -> None:
        """A bar chart of one column of a DataFrame, named by another; none where it has no values."""

        def entry() -> Entry | None:
            rows = table[[label, value]].dropna().astype(object).values.tolist()
            return {"bars": {"name": name, "columns": [label, value], "data": rows, "title": title}} if rows else None

        self._log(f"the chart {name}", entry)

    def table(self, name: str, table: Any, rows: int = TABLE_ROWS) -> None:
        """The first `rows` rows of a DataFrame, as a table to sort and filter; texts only with `wandb.texts`."""

        def entry() -> Entry:
            # With pandas, which light jobs do without.
            from icprobe.tables.checking import TEXTS
            from icprobe.tables.conversations import HELD

            head = table.head(rows).astype(object)
            head = head if self._texts else head.drop(columns=[*TEXTS, *HELD], errors="ignore")
            head = head.where(head.notna(), None)
            if len(table) > rows:
                logger.info("W&B: the table %s shows the first %d of %d rows", name, rows, len(table))
            columns = [str(column) for column in head.columns]
            return {"table": {"name": name, "columns": columns, "data": head.values.tolist()}}

        self._log(f"the table {name}", entry)

    def figure(self, name: str, path: str | Path) -> None:
        """A figure (SVG or PNG). An SVG is shown as HTML, sharp at every size: W&B's images are bitmaps only."""

        def entry() -> Entry:
            if Path(path).suffix != ".svg":
                return {"image": {"name": name, "path": os.path.abspath(path)}}
            svg = Path(path).read_text(encoding="utf-8")
            # An XML declaration and a DOCTYPE have no place within HTML.
            return {"html": {"name": name, "html": FIGURE_HTML + svg[max(svg.find("<svg"), 0) :] + "</body></html>"}}

        self._log(f"the figure {name}", entry)

    def finish(self, exit_code: int = 0, **values: Any) -> None:
        """Log inputs, outputs and last values, then close the run. exit_code: 0 where the job did its work."""
        self._log("inputs and outputs", lambda: self._edges(self._outputs if exit_code == 0 else []))
        self.summary(**values)
        if exit_code == 0:
            self._log("the artifacts", self._artifacts, LINEAGE_SECONDS)
        self._log("the end of the run", lambda: {"end": exit_code}, FINISH_SECONDS + 3)
        to, self._to = self._to, None
        if to and not to.complete:
            wandb_runs.kill_service()

    def _edges(self, outputs: list[str]) -> Entry:
        edges = {"inputs": [*map(describe, self._inputs)], "outputs": [*map(describe, outputs)]}
        if outputs:
            self._record(**edges)
        return {"edges": edges}

    def _record(self, inputs: Sequence[records.Facts], outputs: Sequence[records.Facts]) -> None:
        job = self._subject
        records.write(self._to.directory, job.kind, job.wildcards, self._texts, inputs, outputs)

    def _artifacts(self) -> Entry:
        found = {"outputs": self._outputs, "inputs": self._inputs}
        return {"artifacts": {side: [*filter(None, map(self._artifact, files))] for side, files in found.items()}}

    def _artifact(self, path: str) -> dict[str, Any] | None:
        """The artifact that a path is. Equal content is the same version, whoever logs it, so that edges meet."""
        kind = artifact_type(path)
        if kind is None or not Path(path).exists():
            return None
        # Of a directory the manifest, which holds the digests of all its files.
        contents = Path(path, MANIFEST) if Path(path).is_dir() else Path(path)
        allowed = self._texts or not holds_texts(path)
        sent = allowed and contents.is_file() and contents.stat().st_size <= UPLOAD_BYTES
        file = _named_by_content(contents) if sent else None
        return {"name": artifact_name(path), "type": kind, "facts": describe(path), "file": file}

    def _log(self, what: str, entry: Callable[[], Entry | None], seconds: float | None = None) -> None:
        """Whatever W&B raises becomes a warning; no step is waited for longer than `seconds`."""
        to = self._to
        if to is None:
            return

        def take() -> None:
            if (made := entry()) is not None:
                to.take(made)

        try:
            if seconds is None:
                take()
            else:
                wandb_runs.within(seconds, take)
        except TimeoutError:
            to.complete = False
            where = os.path.relpath(to.directory)
            logger.warning("W&B: no answer in time for %s; what was logged is kept in %s for `make sync`", what, where)
        except Exception as error:
            to.complete = False
            logger.warning("W&B: %s could not be logged (%s)", what, reason(error))


def _named_by_content(file: Path) -> dict[str, Any]:
    """An entry of an artifact's manifest, as W&B knows files: by MD5 in base 64."""
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False))
    content = base64.b64encode(digest.digest()).decode()
    return {"path": file.name, "digest": content, "size": file.stat().st_size, "local_path": str(file.absolute())}


# --- its start --------------------------------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    """What `modes.settings` says; disabled where the environment's word is no mode, which no job fails for."""
    try:
        return modes.settings()
    except ConfigError as error:
        logger.warning("W&B: no run (%s)", error)
        return {"mode": "disabled"}


def start(snakemake: Any) -> Run:
    """The W&B run of a job, begun; one that does nothing where W&B is disabled or cannot start.

    snakemake: the object that a script has (input, output, params, wildcards, rule, resources).
    """
    chosen = settings()
    if chosen["mode"] == "disabled":
        return Run()
    # A heavy job's curves are there while it runs, and what wandb costs is nothing to it.
    resources = getattr(snakemake, "resources", None)
    light = resources is not None and not resources.get("heavy")
    return begin(of_job(chosen["experiment"], snakemake), chosen, light)


def begin(subject: Subject, chosen: Mapping[str, Any], light: bool = False) -> Run:
    """The subject's run, begun; one that does nothing where it cannot start. chosen: as `settings` gives them.

    light: one that stays offline is a journal, which another process makes a run of.
    """
    run = Run(subject, chosen["texts"])
    try:
        _begin(run, chosen, subject, light)
    except Exception as error:
        logger.warning("W&B: no run (%s: %s); the job continues without one", type(error).__name__, error)
        wandb_runs.kill_service()
    return run


def _begin(run: Run, chosen: Mapping[str, Any], subject: Subject, light: bool) -> None:
    root, why = wandb_runs.place(Path(paths.EXPERIMENT.format(experiment=chosen["experiment"])))
    if why:
        logger.warning("W&B: %s; this run is in %s, where `make sync` does not find it", why, root)
    wandb_runs.remove_old(root / paths.WANDB, subject.identity)
    wandb_runs.set_variables(root / paths.WANDB, subject.identity)
    online = _goes_online(chosen)
    if light and not online and not why:
        # Without locks, as on some network's file systems, nobody could tell when its job has ended.
        with suppress(OSError):
            run.begin(journals.Journal(root, subject, chosen))
            return
        wandb_runs.remove_old(root / paths.WANDB, subject.identity)
    try:
        run.begin(wandb_runs.begin(root, subject, chosen, online))
    except Exception as error:
        if not online:
            raise
        logger.warning("W&B: no run on the server (%s). The run is kept offline for `make sync`.", reason(error))
        # Its service still holds the run's id.
        with suppress(Exception):
            import wandb

            wandb_runs.within(5, wandb.teardown)
        wandb_runs.remove_old(root / paths.WANDB, subject.identity)
        run.begin(wandb_runs.begin(root, subject, chosen, online=False))
    # wandb falls back to /tmp by itself, without a word.
    if root.absolute() not in run.directory.absolute().parents:
        logger.warning("W&B: %s is not used; this run is in %s", root, run.directory)


def _goes_online(chosen: Mapping[str, Any]) -> bool:
    """Whether to talk to the server: where it is wanted, a key is found and there is a way to it."""
    if chosen["mode"] == "offline":
        logger.info("W&B: offline (%s)", chosen["why"], extra={"file_only": True})
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
