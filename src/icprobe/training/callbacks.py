"""What goes along with a training: checkpoints by time, from which a killed one goes on, and its progress."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import TrainerCallback

from icprobe import artifacts
from icprobe.errors import ArtifactError
from icprobe.progress import Progress

logger = logging.getLogger(__name__)


def newest_complete(partial: str | Path) -> Path | None:
    """Finds the newest checkpoint whose files are all there and unchanged; removes every other one.

    A kill in the middle of a save leaves a folder without manifest: it is passed over for the one before it.
    """
    found = sorted(Path(partial).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    newest = None
    for path in found:
        if newest is None:
            try:
                artifacts.verify(path)
                newest = path
                continue
            except ArtifactError as error:
                logger.warning("Ignoring an unfinished checkpoint: %s", error)
        shutil.rmtree(path)
    return newest


class Checkpoints(TrainerCallback):
    """Saves by time. A checkpoint counts once its manifest is there, and only then the older ones are removed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._saved = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        due = [time.monotonic() - self._saved >= self._seconds and state.global_step < state.max_steps]
        if args.world_size > 1:  # all of them save, or none
            torch.distributed.broadcast_object_list(due)
        control.should_save = control.should_save or due[0]

    def on_save(self, args, state, control, **kwargs):
        self._saved = time.monotonic()
        if args.world_size > 1:
            torch.distributed.barrier()  # until each has written its part
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        artifacts.sync(checkpoint)
        artifacts.write_manifest(checkpoint)
        for other in Path(args.output_dir).glob("checkpoint-*"):
            if other != checkpoint:
                shutil.rmtree(other)


class Watch(TrainerCallback):
    """Shows the progress, and hands the metrics of each step to `log`."""

    def __init__(self, log: Callable[[dict[str, float], int], None]) -> None:
        self._log = log
        self._progress: Progress | None = None
        self._passes = 0  # of the step that is being computed

    def on_train_begin(self, args, state, control, **kwargs):
        self._progress = Progress(total=state.max_steps, initial=state.global_step, desc="fine-tuning", unit="step")
        for told in state.log_history:  # of a try before this one, whose run this one's stands in the place of
            self._hand_on(told, told["step"])

    def on_substep_end(self, args, state, control, **kwargs):
        self._passes += 1
        self._progress.within(self._passes / args.gradient_accumulation_steps)

    def on_step_end(self, args, state, control, **kwargs):
        self._passes = 0
        self._progress.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._hand_on(logs or {}, state.global_step)

    def _hand_on(self, told: Mapping[str, float], step: int) -> None:
        if "loss" in told:
            self._log({"train/loss": told["loss"], "train/learning_rate": told["learning_rate"]}, step)

    def on_train_end(self, args, state, control, **kwargs):
        self._progress.close()
