"""The retrain bank: what models that were trained on other examples say of the answers, each training done once.

No weights are kept, only each answer's log-likelihood, in a file a training, named after all that decides it. So a
killed job loses the one training that it was at, and another set of trainings does those that are new.
"""

import json
import logging
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from icprobe import artifacts
from icprobe.engine.checkpoints import merged
from icprobe.engine.models import set_precision
from icprobe.errors import DataError, several, some
from icprobe.evaluation.outcomes import Answer, log_likelihoods, network_of, table_of
from icprobe.progress import Progress
from icprobe.training.fine_tune import IGNORED, trainer_of
from icprobe.truth.sets import Training

logger = logging.getLogger(__name__)

Example = Mapping[str, list[int]]  # "input_ids" and "labels"


class Bank:
    """The trainings that are done, in a folder that belongs to one base model, its settings and its answers."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, examples: Sequence[Example], seed: int, answers: int) -> list[float] | None:
        """The log-likelihoods [answers] after the training on these examples, or None where it is not done."""
        path = self._path(examples, seed)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            found = None
        numbers = isinstance(found, list) and all(isinstance(one, float) and math.isfinite(one) for one in found)
        if not numbers or len(found) != answers:
            logger.warning("%s is damaged: its training is done again", path)
            return None
        return found

    def keep(self, examples: Sequence[Example], seed: int, values: Sequence[float]) -> None:
        """Keeps the log-likelihoods after a training. Jobs that run at once may do the same one, and keep the same."""
        path = self._path(examples, seed)
        aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")  # not `atomic_path`: it is for one writer
        aside.write_text(json.dumps([*map(float, values)]) + "\n", encoding="utf-8")
        artifacts.sync(aside)
        os.replace(aside, path)
        artifacts.sync(self.folder, inside=False)

    def _path(self, examples: Sequence[Example], seed: int) -> Path:
        identity = [[*map(dict, examples)], seed]
        return self.folder / f"{artifacts.digest(identity)[:32]}.json"


def retrain(
    base: str | Path,
    tokenizer: Any,
    trainings: Sequence[Training],
    examples: Mapping[str, Example],
    answers: Sequence[Answer],
    settings: dict[str, Any],
    bank: Bank,
) -> pd.DataFrame:
    """Trains the base model on each set of examples, and asks each result for the log-likelihoods of the answers.

    Every training begins at the base's weights and is the one that `fine_tune` would do with this seed. examples: id ->
    token ids and labels, of those that can be trained on; settings: `finetune` as plain values. Returns `subset`,
    `seed`, `set`, `id`, `log_likelihood` (nats, in float32, summed over tokens) and `n_tokens`. Raises DataError where
    an example of a set cannot be trained on: it would count in a method's sum, or as removed, and change no training.
    """
    if without := sorted({id for training in trainings for id in training.members} - {*examples}):
        raise DataError(
            f"truth: {several(len(without), 'example')} cannot be trained on: {some(without)}; the query alone fills "
            "finetune.max_length, or the model's context. Raise finetune.max_length or remove what is too long "
            "(data.train.sample: {max_tokens: …})."
        )
    chosen = [[_of(examples[id], id == training.masked) for id in training.members] for training in trainings]
    planned = list(zip(trainings, chosen, strict=True))
    found = [bank.get(members, training.seed, len(answers)) for training, members in planned]
    finished = sum(values is not None for values in found)
    if finished:
        logger.info("resumed: %d of %d trainings were finished before", finished, len(trainings))
    rows = []
    with Progress(total=len(trainings), desc="trainings", unit="training") as progress:
        progress.found(finished)
        for (training, members), values in zip(planned, found, strict=True):
            if values is None:
                values = _outcomes(base, tokenizer, members, answers, settings, training.seed)
                _check_finite(values, training)
                bank.keep(members, training.seed, values)
                progress.update()
            rows += [
                {"subset": training.subset, "seed": training.seed, "set": answer.set, "id": answer.id}
                | {"log_likelihood": value, "n_tokens": answer.encoded.n_target}
                for answer, value in zip(answers, values, strict=True)
            ]
    return table_of(rows, subset="object", seed="int64")


def _check_finite(values: Sequence[float], training: Training) -> None:
    if not all(map(math.isfinite, values)):
        raise DataError(
            f"truth: after training on {training.subset} with seed {training.seed} the model gives answers a "
            "likelihood of NaN or 0, so the training has diverged; lower finetune.learning_rate."
        )


def _of(example: Example, masked: bool) -> dict[str, list[int]]:
    """An example as it is trained on; masked: it keeps its place in its batch, and has no loss."""
    return {**example, "labels": [IGNORED] * len(example["labels"])} if masked else dict(example)


def _outcomes(
    base: str | Path,
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
    answers: Sequence[Answer],
    settings: dict[str, Any],
    seed: int,
) -> list[float]:
    """Trains once, and asks once."""
    with artifacts.temporary_directory() as folder:
        trainer = trainer_of(base, tokenizer, examples, settings, seed, folder)
        trainer.train()
        model = merged(trainer.model, base, settings["device"])
    del trainer
    set_precision(tf32=False)
    return log_likelihoods(network_of(base, model), answers)
