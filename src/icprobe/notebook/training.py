"""The training along which a method takes gradients, for calls from Python: done here, or given as directories."""

from pathlib import Path

from icprobe import artifacts
from icprobe.attribution.matrix import Inputs, Trajectory
from icprobe.config.types import slice_of
from icprobe.tables.checking import records
from icprobe.texts.chat import prompts_of
from icprobe.training.trajectory import train
from icprobe.workflow.plan import Plan


def trajectory(plan: Plan, inputs: Inputs, base: Path, folder: Path, dtype: str, device: str) -> Trajectory:
    """The checkpoints that a plan asks for, trained into `folder` as the DAG trains them, unless they are given or
    were trained there for another method.
    """
    said = plan.config.attribution.tracin
    if said.directories:
        return Trajectory([*zip(said.directories, said.learning_rates, strict=True)], True, str(base), dtype, device)
    finetune, output = plan.config.finetune, folder / "trajectory"
    settings = slice_of(finetune) | {"processes": 1, "checkpoint_minutes": finetune.checkpoint_minutes}
    prompts, seed = prompts_of(plan.text_settings("query", "target")), finetune.seeds[0]
    if not (output / artifacts.MANIFEST).is_file():
        train(base, records(inputs.train), prompts, output, settings, seed, folder / "partial", said.checkpoints)
    listed = artifacts.read_manifest(output)["checkpoints"]
    return Trajectory.of(listed, str(output), str(base), dtype, device)
