"""Where the results and W&B runs of an experiment go: one line at the start of a run, so that nothing leaves unsaid."""

import os
import threading
from collections.abc import Mapping
from typing import Any

from icprobe import paths
from icprobe.masking import mask
from icprobe.tracking import modes
from icprobe.tracking.runs import CONNECT_SECONDS
from icprobe.tracking.syncing import SERVER, TrackingError, check_server, server_address

_settling = threading.Lock()
_settled: set[tuple[int, str]] = set()  # (process, server) that were asked


def settle() -> None:
    """Keeps all runs of this invocation here where there is no key or no way to the server at its start.

    So what is said then holds: no job goes online because the server has come back. Jobs on other machines hear of it
    where they get this process's environment, as on Slurm. Asked once by a process, whichever of its threads comes
    first: Snakemake's log and its hooks are two.
    """
    with _settling:
        asked = (os.getpid(), server_address())
        if asked in _settled or modes.settings()["mode"] not in ("auto", "online"):
            return
        _settled.add(asked)
        try:
            check_server(CONNECT_SECONDS)
        except TrackingError as error:
            os.environ[modes.KEPT] = str(error).removeprefix("W&B: ").partition(". ")[0]


def sentence(experiment: str, ask: bool = True) -> str:
    """Says where results and runs of this invocation go. ask: the server, too, where runs are to be online."""
    if ask:
        settle()
    folder = paths.EXPERIMENT.format(experiment=experiment)
    return f"Results: {folder}; W&B: {_of_runs(modes.settings(), f'{folder}/{paths.WANDB}', ask)}"


def _of_runs(chosen: Mapping[str, Any], folder: str, ask: bool) -> str:
    if chosen["mode"] == "disabled":
        return "disabled, no runs are made, nothing is sent"
    held = "numbers, figures and texts" if chosen["texts"] else "numbers, figures, ids and labels"
    kept = f"offline, {held}, kept in {folder}, nothing is sent"
    if chosen["mode"] == "offline":
        unused = "; the key in WANDB_API_KEY is not used" if os.environ.get("WANDB_API_KEY") else ""
        return f"{kept} ({chosen['why']}{unused})"
    if not ask:
        return f"online, {held}, where there is a key and the server answers; else kept in {folder}"
    server = mask(server_address())
    elsewhere = "" if server == SERVER else f" on {server}"
    project = f"{chosen['entity']}/{chosen['project']}" if chosen["entity"] else f"your project {chosen['project']}"
    said = "" if chosen["why"] == "wandb.mode" else f" ({chosen['why']} says so)"
    return f"online, to {project}{elsewhere}, {held}{said}"
