"""Upload of offline runs, and a saved view of the project on W&B.

python -m icprobe.syncing sync results/demo                                   upload offline runs (`make sync`)
python -m icprobe.syncing workspace --project icprobe --experiment demo       a saved view of the project
"""

import argparse
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from icprobe.errors import DataError, IcprobeError
from icprobe.lineage import CLOCK, EDGES, STEP

logger = logging.getLogger(__name__)

SERVER = "https://api.wandb.ai"


class TrackingError(IcprobeError):
    """W&B cannot be used: no key, no network, or a package that is missing."""


def sync(experiment_directory: str | Path, timeout: float = 60) -> list[str]:
    """Upload what an experiment's runs logged while there was no server, and name the runs that could not be uploaded.

    experiment_directory: such as results/demo. timeout: seconds without a newly uploaded run after which it gives up.
    Idempotent: a run that is on the server is not touched again, unless it has grown since. Around `wandb sync`, which
    reports success whatever happens: what counts here is the marker that it leaves beside a run, less those runs of
    which its own log says that the server refused a part.
    """
    if not Path(experiment_directory).is_dir():
        raise DataError(
            f"{experiment_directory}: no such directory. Name an experiment's results, such as results/demo."
        )
    directory = Path(experiment_directory, "wandb").absolute()
    waiting = pending(directory)
    if not waiting:
        logger.info("%s: every run is uploaded", experiment_directory)
        return []
    try:
        check_server(min(timeout, 10))
    except TrackingError as error:
        logger.error("%s", error)
        return [file.parent.name for file in waiting]
    logger.info("%s: uploading %d runs", experiment_directory, len(waiting))
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        for wave in waves(waiting):
            _upload(directory, wave, timeout, output)
            _unmark_refused(directory)
            if not all(map(_is_synced, wave)):
                # Readers of what was not uploaded would appear as its makers: they wait for the next attempt.
                break
        output.seek(0)
        said = [line.strip() for line in output if line.strip()]
    failed = [file.parent.name for file in waiting if not _is_synced(file)]
    if failed:
        logger.info("%s", "\n".join(said[-10:]))
    logger.info("%d of %d runs uploaded", len(waiting) - len(failed), len(waiting))
    return failed


def check_server(timeout: float) -> None:
    """Raise TrackingError where there is no key or no way to the server: at once, not after wandb's many attempts."""
    from wandb.sdk.lib import wbauth

    server = os.environ.get("WANDB_BASE_URL", SERVER)
    try:
        found = wbauth.authenticate_session(host=server, source="sync", prompt=False, update_session=False)
    except Exception as error:
        raise TrackingError(f"W&B: {error}") from None
    if found is None:
        raise TrackingError(f"W&B: no key for {server} was found. Run `wandb login`, or set WANDB_API_KEY.")
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")):
        return
    address = urlsplit(server)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout).close()
    except OSError as error:
        raise TrackingError(f"W&B: {server} cannot be reached ({error}). Try again later.") from None


def pending(directory: Path) -> list[Path]:
    """Logs of runs below results/{experiment}/wandb that are not on the server, or have grown since they were."""
    return [file for file in sorted(directory.glob("*run-*/run-*.wandb")) if not _is_synced(file)]


def waves(files: Sequence[Path]) -> list[list[Path]]:
    """Runs in groups, makers of a file before its readers: W&B takes the first run that names a file for its maker."""
    edges = {file: _edges(file) for file in files}
    left, groups = list(files), []
    while left:
        made = {path for file in left for path in edges[file]["outputs"]}
        ready = [file for file in left if not made & set(edges[file]["inputs"])] or left
        groups.append(ready)
        left = [file for file in left if file not in ready]
    return groups


def _edges(file: Path) -> dict[str, list[str]]:
    try:
        return json.loads(file.with_name(EDGES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A killed job wrote none.
        return {"inputs": [], "outputs": []}


def _mark(file: Path) -> Path:
    return file.with_name(file.name + ".synced")


def _is_synced(file: Path) -> bool:
    mark = _mark(file)
    return mark.exists() and mark.stat().st_mtime_ns >= file.stat().st_mtime_ns


def _upload(directory: Path, files: Sequence[Path], timeout: float, output: Any) -> None:
    """Run `wandb sync` on the files; end it when no further run is done within `timeout` seconds."""
    for file in files:
        # A marker older than its run: wandb would skip the run.
        _mark(file).unlink(missing_ok=True)
    environment = {
        **os.environ,
        "WANDB_DIR": str(directory.parent),
        "WANDB_DATA_DIR": str(directory / "staged" / "sync"),
        "WANDB_CACHE_DIR": str(directory / "staged" / "sync" / "cache"),
        "WANDB_ERROR_REPORTING": "false",
    }
    environment.pop("WANDB_SERVICE", None)
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-online", *map(str, files)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    done, since = 0, time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - since < timeout:
            time.sleep(0.2)
            now_done = sum(map(_is_synced, files))
            if now_done > done:
                done, since = now_done, time.monotonic()
                logger.info("%d/%d runs", done, len(files))
    finally:
        if process.poll() is None:
            logger.info("no further run was uploaded within %.0f s", timeout)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _unmark_refused(directory: Path) -> None:
    """Take the marker from runs of which the server refused a part: wandb marks them, and says so in its log alone."""
    for log in directory.glob("logs/debug-sync.*.log"):
        for line in log.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("level") != "ERROR" or "sync_path" not in entry:
                continue
            file, what = Path(entry["sync_path"]), str(entry.get("error") or entry["msg"]).strip()
            if "gql.UseArtifact" in what:
                # All content arrived and the config holds the edges; another attempt would be refused as well.
                logger.warning("%s: its inputs are not linked (%s); set wandb.entity", file.parent.name, what)
            else:
                logger.warning("%s: %s", file.parent.name, what)
                _mark(file).unlink(missing_ok=True)
        # Read once: a later attempt may succeed.
        log.unlink()


# --- the saved view ---------------------------------------------------------------------------------------------


def workspace(project: str, entity: str, experiment: str | None = None) -> Any:
    """A wandb-workspaces Workspace: correlations, overlaps, win rates, training curves, the workflow. No network.

    The panels read what jobs log: the summaries `spearman`, `overlap` and `win_rate`, the tables `correlations`,
    `overlaps` and `win_rates`, the curves train/*, and those of the workflow's own runs. That the specification is
    built, and which keys it names, is tested; how W&B draws it, and saving it, need the service and were not.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise TrackingError("A saved view needs the package wandb-workspaces: pip install wandb-workspaces.") from None

    def section(name: str, *shown: Any) -> Any:
        return workspaces.Section(name=name, panels=list(shown), is_open=True)

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"icprobe {experiment or 'overview'}",
        sections=[
            section(
                "Correlations",
                panels.BarPlot(
                    title="Spearman of icp and influence", metrics=["spearman"], groupby=panels.Config("model")
                ),
                panels.WeavePanelSummaryTable(table_name="correlations"),
            ),
            section(
                "Overlaps",
                panels.BarPlot(
                    title="Share of a bin that is in the icp bin", metrics=["overlap"], groupby=panels.Config("method")
                ),
                panels.WeavePanelSummaryTable(table_name="overlaps"),
            ),
            section(
                "Win rates",
                panels.BarPlot(
                    title="Win rate against the base model, %", metrics=["win_rate"], groupby=panels.Config("bin")
                ),
                panels.WeavePanelSummaryTable(table_name="win_rates"),
            ),
            section(
                "Training",
                panels.LinePlot(
                    title="Training loss by bin", x=STEP, y=["train/loss"], groupby=panels.Config("bin"), title_x="step"
                ),
            ),
            section(
                "Workflow",
                panels.LinePlot(
                    title="Jobs", x=CLOCK, y=[f"workflow/{state}" for state in ("done", "failed", "total")], title_x="s"
                ),
                panels.WeavePanelSummaryTable(table_name="rules"),
                panels.WeavePanelSummaryTable(table_name="stale"),
            ),
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=workspaces.And(workspaces.Metric("Group") == experiment) if experiment else "",
            groupby=[workspaces.Metric("Group"), workspaces.Metric("JobType")],
        ),
    )


def save_workspace(project: str, entity: str | None, experiment: str | None = None) -> str:
    """Save the view on W&B; returns its address. Not tested against the service."""
    check_server(10)
    import wandb

    view = workspace(project, entity or wandb.Api(timeout=20).default_entity, experiment)
    view.save()
    return view.url


def _configured(files: Sequence[str]) -> tuple[str, str | None, str | None]:
    """Project, entity and experiment of configuration files, each laid over those before it; of none, the defaults."""
    if not files:
        return "icprobe", None, None
    import yaml
    from snakemake.utils import update_config

    from icprobe.attribution import METHODS
    from icprobe.config import load

    raw: dict[str, Any] = {}
    for file in files:
        if not Path(file).is_file():
            raise DataError(f"{file}: no such file; name configuration files, config.yaml first.")
        update_config(raw, yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    config = load(raw, METHODS)
    return config.wandb.project, config.wandb.entity, config.experiment


def main(arguments: list[str] | None = None) -> None:
    """Command line: `sync DIRECTORY` and `workspace`."""
    parser = argparse.ArgumentParser(prog="python -m icprobe.syncing", description="Offline runs and the saved view.")
    commands = parser.add_subparsers(dest="command", required=True)
    upload = commands.add_parser("sync", help="upload the offline runs of an experiment")
    upload.add_argument("directory", help="the experiment's directory, such as results/demo")
    upload.add_argument("--timeout", type=float, default=60, help="give up after so many seconds without progress")
    view = commands.add_parser("workspace", help="save a view with correlations, overlaps and win rates")
    view.add_argument(
        "--configfile", nargs="+", default=[], help="whose project, entity and experiment are the defaults"
    )
    view.add_argument("--project")
    view.add_argument("--entity")
    view.add_argument("--experiment", help="show the runs of one experiment")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if chosen.command == "sync":
            failed = sync(chosen.directory, chosen.timeout)
            sys.exit(f"{len(failed)} runs were not uploaded: {', '.join(failed)}" if failed else None)
        project, entity, experiment = _configured(chosen.configfile)
        print(save_workspace(chosen.project or project, chosen.entity or entity, chosen.experiment or experiment))
    except IcprobeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
