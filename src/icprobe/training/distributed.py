"""A fine-tuning in several processes, which accelerate starts: data-parallel, or sharded as a file of the user's says.

    python -m icprobe.training.distributed JOB.json

is what each of them runs.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from icprobe import errors, jsonl
from icprobe.errors import ConfigError, IcprobeError, ModelError, several
from icprobe.texts.chat import prompts_of

JOB, METRICS, RESULT, MISTAKE = "job.json", "metrics.jsonl", "result.json", "mistake.json"
POLL_SECONDS = 0.5


def fine_tune_in_processes(
    base: str | Path,
    rows: list[dict[str, Any]],
    templates: dict[str, str],
    output: str | Path,
    settings: dict[str, Any],
    seed: int,
    partial: str | Path,
    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
) -> dict[str, float]:
    """What `fine_tune.fine_tune` does, in `settings["processes"]` processes; arguments as that takes them.

    An optimiser step sees the same examples as in one process: each takes its share of every batch. The weights differ
    in last bits, for sums are taken in another order.
    """
    folder = Path(partial)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (METRICS, RESULT, MISTAKE):
        (folder / name).unlink(missing_ok=True)
    job = {"base": str(base), "rows": rows, "templates": templates, "output": str(output), "settings": settings}
    job |= {"seed": seed, "partial": str(folder), "parent": os.getpid()}
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    process = subprocess.Popen(_command(settings, folder / JOB))
    try:
        for step, metrics in _metrics(folder / METRICS, process):
            log(metrics, step)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if (folder / MISTAKE).exists():
        kind, said = json.loads((folder / MISTAKE).read_text(encoding="utf-8"))
        raise getattr(errors, kind)(said)
    if process.returncode:
        raise ModelError(
            f"finetune.processes: one of {settings['processes']} processes failed (exit status {process.returncode}); "
            "the lines above say why."
        )
    return json.loads((folder / RESULT).read_text(encoding="utf-8"))


def _command(settings: dict[str, Any], job: Path) -> list[str]:
    """The command line that starts all processes on this machine."""
    options = ["--num_processes", str(settings["processes"]), "--main_process_port", "0"]
    # `settings["dtype"]` says what is trained in, to the Trainer: not a file.
    options += ["--mixed_precision", "no"]
    if settings.get("accelerate"):
        options += ["--config_file", settings["accelerate"]]
    else:
        options += ["--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no"]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", __name__, str(job)]


def _metrics(path: Path, process: subprocess.Popen) -> Iterator[tuple[int, dict[str, float]]]:
    """The metrics of each step as they are written, until the process has ended."""
    told, running = 0, True
    while running:
        try:
            process.wait(POLL_SECONDS)
            running = False
        except subprocess.TimeoutExpired:
            pass
        lines = jsonl.whole_lines(path) if path.exists() else []
        yield from map(tuple, lines[told:])
        told = len(lines)


# --- in each process --------------------------------------------------------------------------------------------


def main(path: Path) -> None:
    from icprobe.training.fine_tune import fine_tune

    job = json.loads(path.read_text(encoding="utf-8"))
    first, folder = os.environ.get("RANK", "0") == "0", Path(job["partial"])
    threading.Thread(target=_end_with, args=(job["parent"],), daemon=True).start()
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(asctime)s %(message)s")

    def log(metrics: dict[str, float], step: int) -> None:
        with open(folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps([step, metrics]) + "\n")

    try:
        _check_started(job["settings"])
        arguments = (job["output"], job["settings"], job["seed"], folder, log)
        result = fine_tune(job["base"], job["rows"], prompts_of(job["templates"]), *arguments)
    except IcprobeError as error:
        if first:
            (folder / MISTAKE).write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")
        sys.exit(1)
    if first:
        (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _check_started(settings: dict[str, Any]) -> None:
    """Raises ConfigError where a file of the user's has accelerate start another number of processes: each would take
    its share of a batch as if the others were there.
    """
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) != settings["processes"]:
        raise ConfigError(
            f"config: finetune.accelerate: {settings['accelerate']} starts {several(started, 'process', 'processes')} "
            f"where finetune.processes is {settings['processes']}; write the distributed_type of several, such as "
            "MULTI_GPU (without GPUs, too) or FSDP"
        )


def _end_with(parent: int) -> None:
    """Ends this process when the job that started it is gone, even one that was killed and that nobody has reaped."""
    while True:
        time.sleep(1)
        try:
            alive = psutil.Process(parent).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
