"""What all methods share: their inputs, the pieces of the matrix that they give, and the matrix as a table."""

import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icprobe.errors import ScoreError, several, some
from icprobe.progress import Progress
from icprobe.texts.chat import Chat
from icprobe.texts.control_tokens import token_ids
from icprobe.texts.prompts import Encoded, Prompts, encode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trajectory:
    """The checkpoints of a training, for methods whose gradients are taken along it.

    checkpoints: (directory, learning rate in effect there). given: somebody else trained them, so that they have no
    manifest. base: directory of the prepared model that they began at. dtype, device: how they are to be loaded.
    """

    checkpoints: Sequence[tuple[str, float]]
    given: bool
    base: str
    dtype: str
    device: str

    @classmethod
    def of(cls, listed: Sequence[Mapping[str, Any]], folder: str, base: str, dtype: str, device: str) -> "Trajectory":
        """As its manifest lists them under `checkpoints`; folder: in which they lie, "" where they were given."""
        found = [(str(Path(folder or "", one["directory"])), float(one["learning_rate"])) for one in listed]
        return cls(found, not folder, base, dtype, device)


@dataclass
class Inputs:
    """What a method is given.

    train, tasks: tables with id, instruction, input, output. lengths: table id, n_query, n_target of the examples in
    the model's tokens. model, tokenizer: of transformers, None for methods that need none. capabilities: what the
    engines can do with the model (`engine.capabilities.Capabilities`); of a model in memory
    `engine.admission.capabilities_of` finds them out. trajectory: in the place of the model, where a method asks
    several. pieces: where a method whose batches take minutes puts smaller
    pieces of the matrix, by names of its own, and finds them again after it was killed. progress: hears how much work
    there is, in pairs or tokens, and then what is done of it.
    """

    train: pd.DataFrame
    tasks: pd.DataFrame
    lengths: pd.DataFrame
    prompts: Prompts | Chat
    model: Any = None
    tokenizer: Any = None
    capabilities: Any = None
    trajectory: Trajectory | None = None
    seed: int = 0
    pieces: MutableMapping[str, np.ndarray] = field(default_factory=dict)
    progress: Progress = field(default_factory=lambda: Progress(disable=True))

    def examples(self, rows: Sequence[int] | slice) -> list[dict[str, Any]]:
        """Some rows of train, as mappings. Never all: one shard's share of a million is small."""
        return self.train.iloc[rows].to_dict("records")


# A piece of a method's matrix: (method, row indices of a batch, values [rows, tasks] float32)
Piece = tuple[str, np.ndarray, np.ndarray]
Pieces = Iterator[Piece]


def encode_tasks(inputs: Inputs, likelihood: str = "sum") -> list[Encoded]:
    """Tokenises all tasks zero-shot; their loss is over the target alone, the sum or the mean of its tokens'."""
    rows, prompts = inputs.tasks.to_dict("records"), inputs.prompts.of(inputs.tokenizer)
    encoded = [encode(inputs.tokenizer, prompts.query(row), prompts.target(row)) for row in rows]
    queries = token_ids(inputs.tokenizer, [prompts.query(row) for row in rows])
    merged = sum(one.n_context < len(query) for one, query in zip(encoded, queries, strict=True))
    if merged:
        logger.info(
            "%d of %d tasks: the answer counts from a token that has the query's last letters, too", merged, len(rows)
        )
    return [replace(task, mean=likelihood == "mean") for task in encoded]


def to_table(ids: Sequence[str], columns: Sequence[str], values: np.ndarray) -> pd.DataFrame:
    """Makes a table of an attribution matrix [N, M]: id, then one float32 column for each task."""
    return pd.concat(
        [pd.DataFrame({"id": list(ids)}), pd.DataFrame(values.astype(np.float32, copy=False), columns=list(columns))],
        axis=1,
    )


def check_finite(method: str, ids: Sequence[str], values: np.ndarray) -> None:
    """Raises ScoreError naming the examples whose attributions are NaN or infinite."""
    bad = [example for example, finite in zip(ids, np.isfinite(values).all(axis=1), strict=True) if not finite]
    if bad:
        way_out = "compute with attribution.dtype: float32"
        if method == "one_step":  # which always does
            way_out = "take a smaller attribution.one_step.learning_rate"
        raise ScoreError(
            f"{method}: {several(len(bad), 'example')} with attributions that are NaN or infinite: {some(bad)}; "
            f"look at the texts, or {way_out}."
        )
