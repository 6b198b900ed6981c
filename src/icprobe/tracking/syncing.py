"""Upload of offline runs, and a saved view of the project on W&B.

python -m icprobe.tracking.syncing sync results/demo                                   upload offline runs (`make sync`)
python -m icprobe.tracking.syncing workspace --project icprobe --experiment demo       a saved view of the project
"""

import argparse
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
from urllib.parse import urlsplit

from icprobe import paths
from icprobe.errors import DataError, IcprobeError, several
from icprobe.tracking import journals, modes, records, wandb_runs
from icprobe.tracking.records import Record

logger = logging.getLogger(__name__)

SERVER = "https://api.wandb.ai"
# `wandb sync` of a log that breaks off within a record. No later attempt sends such a run, so that none waits for it.
CUT = "incomplete record"
REMEDY = "If a log or a file is lost, run the job again or remove the run's directory; otherwise try again."


class TrackingError(IcprobeError):
    """W&B cannot be used: no key, no network, or a package that is missing."""


def sync(experiment_directory: str | Path, timeout: float = 60, dry_run: bool = False) -> dict[str, str]:
    """Upload what an experiment's runs logged while there was no server; returns {run that could not be: why}.

    experiment_directory: such as results/demo. timeout: seconds without a newly uploaded run after which it gives up.
    dry_run: say what would be uploaded, and send nothing.
    Idempotent: a run that is on the server is not touched again, unless it has grown since. What is superseded stays
    where it is. Around `wandb sync`, which reports success whatever happens: what counts here is the marker that it
    leaves beside a run, less those runs of which its own log says that the server refused a part.
    """
    if not Path(experiment_directory).is_dir():
        raise DataError(
            f"{experiment_directory}: no such directory. Name an experiment's results, such as results/demo."
        )
    if (word := modes.asked(os.environ)) and word[1] == "disabled":
        raise TrackingError(f"W&B is disabled by {word[0]}, so nothing is uploaded; remove that setting first.")
    directory = Path(experiment_directory, paths.WANDB).absolute()
    unwritten = journals.write_all(directory)
    for log in () if dry_run else _refused(directory):  # of a `sync` that was killed before it could take the mark away
        _mark(log).unlink(missing_ok=True)
    known = records.read_all(directory)
    # What has no log still: its job runs.
    runs = [run for run in known if run.log.exists() or run.log in unwritten]
    if left := len(known) - len(runs):
        logger.info("%s: %s still at work: upload them later", experiment_directory, several(left, "job"))
    sent = records.versions(run for run in runs if _is_synced(run.log))
    old = records.superseded(directory, runs)
    waiting = {run.log: run for run in runs if not _is_synced(run.log)}
    for log in sorted(old.keys() & waiting.keys()):
        logger.info("%s is superseded and stays here: %s", log.parent.name, old[log])
        del waiting[log]
    if not waiting:
        said = "every run is uploaded" if runs else "there are no runs, so there is nothing to upload"
        if runs or not left:
            logger.info("%s: %s", experiment_directory, f"every other {said[6:]}" if left else said)
        return {}
    failed = {
        log: why
        for log, run in waiting.items()
        if (why := unwritten.get(log) or _damage(log) or records.lost(run, sent))
    }
    ready = [run for log, run in waiting.items() if log not in failed]
    with_texts = sum(run.texts for run in ready)
    held = f"{several(len(ready), 'run')} to {urlsplit(server_address()).netloc.rpartition('@')[2]}, "
    held += f"{with_texts} of them with texts of rows" if with_texts else "none of them with texts of rows"
    held += "; all with ids, labels and names of files"
    if dry_run:
        for run in ready:
            print(f"{run.log.parent.name}: {records.what_is_sent(run, sent)}")
        print(f"{experiment_directory}: would upload {held}")
        return {log.parent.name: why for log, why in failed.items()}
    try:
        check_server(min(timeout, 10))
    except TrackingError as error:
        return {log.parent.name: failed.get(log, str(error)) for log in waiting}
    logger.info("%s: uploading %s", experiment_directory, held)
    failed |= _upload_all(directory, ready, timeout)
    logger.info("%d of %d runs uploaded", len(waiting) - len(failed), len(waiting))
    return {log.parent.name: why for log, why in failed.items()}


def _upload_all(directory: Path, runs: Sequence[Record], timeout: float) -> dict[Path, str]:
    """Upload runs, makers before readers; returns {log of one that is not on the server as it should be: why}."""
    failed: dict[Path, str] = {}
    makers: dict[str, str] = {}  # file whose maker the server refused, or that waits itself: the maker
    gave_up = ""
    for wave in waves(runs):
        ready = []
        for run in wave:
            maker = next((makers[made["name"]] for made in run.inputs if made["name"] in makers), None)
            if gave_up or maker:
                # It would appear as the maker of what it reads.
                failed[run.log] = gave_up or f"it reads what {maker} made, which must be uploaded first"
            else:
                ready.append(run)
        if ready:
            gave_up, output = _upload(directory, [run.log for run in ready], timeout)
            refused = _refused(directory)
            for run in ready:
                if run.log in refused:
                    _mark(run.log).unlink(missing_ok=True)
                if not _is_synced(run.log):
                    failed[run.log] = refused.get(run.log) or _said_of(run.log, output) or gave_up or "not uploaded"
        waiting = [run for run in wave if run.log in failed and CUT not in failed[run.log]]
        makers |= {made["name"]: run.log.parent.name for run in waiting for made in run.outputs}
    return failed


def server_address() -> str:
    """W&B's server, or the one that the environment or wandb's settings files name."""
    return os.environ.get("WANDB_BASE_URL") or modes.in_files(os.environ, "base_url") or SERVER


def check_server(timeout: float) -> None:
    """Raise TrackingError where there is no key or no way to the server: at once, not after wandb's many attempts."""
    server = server_address()
    try:
        found = None
        if _may_have_key(server):
            from wandb.sdk.lib import wbauth

            found = wbauth.authenticate_session(host=server, source="sync", prompt=False, update_session=False)
    except ImportError as error:
        raise TrackingError(f"W&B: {error}. Install the package wandb.") from None
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
    except (OSError, ValueError) as error:  # an address that is none is a ValueError
        raise TrackingError(f"W&B: {server} cannot be reached ({error}). Try again later.") from None


def _may_have_key(server: str) -> bool:
    """False where wandb finds no key, in the variables and files that it reads: asking wandb itself takes a light job
    longer than its work.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    words = ("wandb", "default", urlsplit(server).netloc)
    netrc = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    home = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    settings = [
        f"{directory}/settings" for directory in (home, "wandb", ".wandb", f"{os.environ.get('WANDB_DIR', '.')}/wandb")
    ]
    return any(_mentions(path, words) for path in netrc) or any(_mentions(path, ["api_key"]) for path in settings)


def _mentions(path: str, words: Sequence[str]) -> bool:
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return any(word in text for word in words)


def pending(directory: Path) -> list[Path]:
    """Logs of runs below results/{experiment}/wandb that are to be uploaded: not superseded, and not on the server, or
    grown since they were; of a run that is a journal still, the log that it becomes.
    """
    runs = records.read_all(directory)
    old = records.superseded(directory, runs)
    return [run.log for run in runs if run.log not in old and not _is_synced(run.log)]


def waves(runs: Sequence[Record]) -> list[list[Record]]:
    """Runs in groups, makers of a file before its readers: W&B takes the first run that names a file for its maker."""
    left, groups = list(runs), []
    while left:
        made = {facts["name"] for run in left for facts in run.outputs}
        ready = [run for run in left if not made & {facts["name"] for facts in run.inputs}] or left
        groups.append(ready)
        taken = {run.log for run in ready}
        left = [run for run in left if run.log not in taken]
    return groups


def _damage(log: Path) -> str | None:
    """What is wrong with a run's log, as W&B's own reader says; None where nothing is."""
    from wandb.util import get_core_path

    # `wandb leet inspect`, without the second that it takes to find its reader.
    command = [get_core_path(), "leet", "inspect", "--json", "--no-observability", "--run-file", str(log)]
    read = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = " ".join(read.stderr.split())
    if read.returncode or not read.stdout:
        return f"its log cannot be read ({said or 'it is empty'})"
    return f"its log is damaged ({said})" if "corrupt" in said else None


def _mark(file: Path) -> Path:
    return file.with_name(file.name + ".synced")


def _is_synced(file: Path) -> bool:
    mark = _mark(file)
    return mark.exists() and mark.stat().st_mtime_ns >= file.stat().st_mtime_ns


def _upload(directory: Path, files: Sequence[Path], timeout: float) -> tuple[str, str]:
    """Run `wandb sync` on the files; end it when no further run is done within `timeout` seconds.

    Returns why it was ended (empty where it was not), and what it said.
    """
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
    # What it says tells why a run was not sent, and what a job waits for the server is no measure here.
    for name in ("WANDB_SERVICE", "WANDB_SILENT", "WANDB_HTTP_TIMEOUT"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-online", *map(str, files)]
    gave_up, done, since = "", 0, time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() - since < timeout:
                time.sleep(0.2)
                now_done = sum(map(_is_synced, files))
                if now_done > done:
                    done, since = now_done, time.monotonic()
                    logger.info("%d/%d runs", done, len(files))
        finally:
            if process.poll() is None:
                gave_up = f"no further run was uploaded within {timeout:.0f} s"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return gave_up, output.read()


def _said_of(log: Path, output: str) -> str | None:
    """What `wandb sync` says of a run that it could not send whole."""
    lines = [line for line in output.splitlines() if "ERROR" in line and log.parent.name in line]
    return lines[-1].partition(": ")[2].removeprefix("ERROR ") if lines else None


def _refused(directory: Path) -> dict[Path, str]:
    """{log: why} of runs of which the server refused a part: wandb says so in its log alone, and marks them."""
    found: dict[Path, str] = {}
    for log in (directory / "logs").glob("debug-sync.*.log"):
        for entry in wandb_runs.errors_in(log):
            if "sync_path" not in entry:
                continue
            file, what = Path(entry["sync_path"]), str(entry.get("error") or entry["msg"]).strip()
            if "gql.UseArtifact" in what:
                # All content arrived and the config holds the edges; another attempt would be refused as well.
                logger.warning("%s: its inputs are not linked (%s); set wandb.entity", file.parent.name, what)
            else:
                found[file] = f"{found[file]}; {what}" if file in found else what
        # Read once: a later attempt may succeed.
        log.unlink()
    return found


def main(arguments: list[str] | None = None) -> None:
    """Command line: `sync DIRECTORY` and `workspace`."""
    parser = argparse.ArgumentParser(
        prog="python -m icprobe.tracking.syncing", description="Offline runs and the saved view."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    upload = commands.add_parser("sync", help="upload the offline runs of an experiment")
    upload.add_argument("directory", help="the experiment's directory, such as results/demo")
    upload.add_argument("--timeout", type=float, default=60, help="give up after so many seconds without progress")
    upload.add_argument("-n", "--dry-run", action="store_true", help="say what would be uploaded, and send nothing")
    view = commands.add_parser("workspace", help="save a view with correlations, overlaps and win rates")
    view.add_argument(
        "--configfile", nargs="+", default=[], help="whose project, entity and experiment are the defaults"
    )
    view.add_argument("--project")
    view.add_argument("--entity")
    view.add_argument("--experiment", help="show the runs of one experiment")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in (signal.SIGTERM, signal.SIGHUP):  # `wandb sync` ends with this process
        if signal.getsignal(name) != signal.SIG_IGN:  # as under nohup
            signal.signal(name, lambda number, _frame: sys.exit(128 + number))
    try:
        if chosen.command == "sync":
            failed = sync(chosen.directory, chosen.timeout, chosen.dry_run)
            said = "".join(f"\n  {run}: {why}" for run, why in failed.items())
            sys.exit(f"{len(failed)} runs were not uploaded:{said}\n{REMEDY}" if failed else None)
        from icprobe.tracking import saved_view  # it imports this module

        project, entity, experiment = saved_view.configured(chosen.configfile)
        chosen.project = chosen.project or os.environ.get("WANDB_PROJECT") or project
        chosen.entity = chosen.entity or os.environ.get("WANDB_ENTITY") or entity
        print(saved_view.save_workspace(chosen.project, chosen.entity, chosen.experiment or experiment))
    except IcprobeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
