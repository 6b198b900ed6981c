"""A training that keeps checkpoints on its way, for methods whose gradients are taken along it."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from icprobe import artifacts
from icprobe.engine.adapters import STATE, save_state
from icprobe.errors import ConfigError, several
from icprobe.texts.prompts import Prompts
from icprobe.training.fine_tune import fine_tune, save_checkpoint

END = "end"


def steps_kept(steps: int, checkpoints: int) -> list[int]:
    """After which steps so many checkpoints are kept: evenly spaced, the last one after the last step.

    Raises ConfigError where there are more checkpoints than steps.
    """
    if checkpoints > steps:
        raise ConfigError(
            f"config: attribution.tracin.checkpoints: {checkpoints} checkpoints of a training of "
            f"{several(steps, 'step')}; take at most {steps}"
        )
    return [math.ceil(steps * number / checkpoints) for number in range(1, checkpoints + 1)]


def train(
    base: str | Path,
    rows: list[dict[str, Any]],
    prompts: Prompts,
    output: str | Path,
    settings: dict[str, Any],
    seed: int,
    partial: str | Path,
    checkpoints: int,
    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
) -> dict[str, float]:
    """Does the training of `fine_tune`, whose arguments these are, and writes so many checkpoints into `output`.

    output: a new directory. Each checkpoint is a directory there, such as `step-000012`, and loads as a fine-tuned
    model does; the weights of the last one are what `fine_tune` makes, to the bit. Beside an adapter lies the state of
    its optimiser after the step (`adapters.save_state`). manifest.json lists them under `checkpoints`, with
    `directory`, `step`, and `learning_rate`, that of the step which led there; `parameters`: how many were trained.
    Raises as `steps_kept` does.
    """
    output, kept = Path(output), _Kept(base, Path(partial, "kept"), checkpoints, seed, settings.get("lora") is not None)
    numbers = fine_tune(base, rows, prompts, output / END, settings, seed, partial, log, along=[kept])
    shutil.rmtree(output / END)  # what was kept of the last step, too
    listed = []
    for step in steps_kept(numbers["steps"], checkpoints):
        name = _name(step)
        shutil.copytree(kept.folder / name, output / name)
        rate = artifacts.read_manifest(output / name)["learning_rate"]
        listed.append({"directory": name, "step": step, "learning_rate": rate})
    facts = {"examples": numbers["examples"], "parameters": numbers["trainable_parameters"]}
    artifacts.write_manifest(output, checkpoints=listed, seed=seed, **facts)
    return numbers


def _name(step: int) -> str:
    return f"step-{step:06d}"


class _Kept(TrainerCallback):
    """Keeps checkpoints in `folder`, so that a killed training that goes on has the earlier ones."""

    def __init__(self, base: str | Path, folder: Path, checkpoints: int, seed: int, adapter: bool) -> None:
        self.folder, self._learning_rate = folder, 0.0
        self._base, self._checkpoints, self._seed, self._adapter = base, checkpoints, seed, adapter
        self._steps: list[int] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._steps = steps_kept(state.max_steps, self._checkpoints)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._learning_rate = float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, model=None, processing_class=None, optimizer=None, **kwargs):
        if state.global_step in self._steps:
            # Whole, and on disk, before the trainer saves what it goes on from.
            with artifacts.atomic_path(self.folder / _name(state.global_step)) as aside:
                aside.mkdir()
                if self._adapter:
                    save_state(aside / STATE, model, optimizer)
                save_checkpoint(
                    model,
                    processing_class,
                    aside,
                    self._base,
                    self._adapter,
                    seed=self._seed,
                    examples=len(kwargs["train_dataloader"].dataset),
                    learning_rate=self._learning_rate,
                )
