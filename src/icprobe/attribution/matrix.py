"""What all methods share: their inputs, how examples form batches and shards, and the matrix as a table."""

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from icprobe.errors import ScoreError
from icprobe.progress import Progress
from icprobe.texts.control_tokens import token_ids
from icprobe.texts.prompts import Encoded, Prompts, encode


@dataclass
class Inputs:
    """What a method is given.

    train, tasks: tables with id, instruction, input, output. lengths: table id, n_query, n_target of the examples in
    the model's tokens. model, tokenizer: of transformers, None for methods that need none. capabilities: what the
    engines can do with the model (`engine.capabilities.Capabilities`); of a model in memory
    `engine.admission.capabilities_of` finds them out. pieces: where a method whose blocks take minutes puts parts of
    them, by names of its own, and finds them again after it was killed. progress: is told what is to be done of
    `batches`, in pairs or tokens, and then what is done of it.
    """

    train: pd.DataFrame
    tasks: pd.DataFrame
    lengths: pd.DataFrame
    prompts: Prompts
    model: Any = None
    tokenizer: Any = None
    capabilities: Any = None
    seed: int = 0
    pieces: MutableMapping[str, np.ndarray] = field(default_factory=dict)
    progress: Progress = field(default_factory=lambda: Progress(disable=True))

    def examples(self, rows: Sequence[int] | slice) -> list[dict[str, Any]]:
        """Some rows of train, as mappings; never all, for one shard's share of a million is small."""
        return self.train.iloc[rows].to_dict("records")


T = TypeVar("T")
# (method, row indices of a batch, block [rows, tasks] float32)
Block = tuple[str, np.ndarray, np.ndarray]
Blocks = Iterator[Block]


def batches(lengths: pd.DataFrame, batch_tokens: int) -> list[np.ndarray]:
    """Row indices of all examples in runs of (length, id) order; a run's longest times its number ≤ batch_tokens.

    They depend on all examples and on nothing else, so that no number depends on how the work is cut into shards.
    """
    total = (lengths["n_query"] + lengths["n_target"]).to_numpy()
    by_id = np.argsort(lengths["id"].to_numpy(dtype=object), kind="stable")
    order = by_id[np.argsort(total[by_id], kind="stable")]
    edges = [0]
    for place, longest in enumerate(total[order].tolist()):
        # Lengths ascend: this row is the longest so far.
        if place > edges[-1] and (place - edges[-1] + 1) * longest > batch_tokens:
            edges.append(place)
    return np.split(order, edges[1:]) if len(order) else []


def shard_of(runs: Sequence[np.ndarray], lengths: pd.DataFrame, number: int, of: int) -> list[int]:
    """Indices of the batches in shard `number` (from 1) of `of`: consecutive batches, balanced by tokens."""
    total = (lengths["n_query"] + lengths["n_target"]).to_numpy()
    tokens = np.array([total[run].sum() for run in runs], dtype=float)
    middle = (np.cumsum(tokens) - tokens / 2) / tokens.sum()
    return np.flatnonzero(np.minimum((middle * of).astype(int), of - 1) == number - 1).tolist()


def packs(lengths: Sequence[int], batch_tokens: int) -> list[slice]:
    """Consecutive sequences whose tokens together are at most batch_tokens, at least one each."""
    return [slice(p[0], p[-1] + 1) for p in packed(range(len(lengths)), lengths.__getitem__, batch_tokens)]


def packed(sequences: Iterable[T], tokens: Callable[[T], int], batch_tokens: int) -> Iterator[list[T]]:
    """`packs` of sequences as they come: no more of them are taken than a pack holds, and the next one."""
    pack: list[T] = []
    size = 0
    for sequence in sequences:
        if pack and size + tokens(sequence) > batch_tokens:
            yield pack
            pack, size = [], 0
        pack.append(sequence)
        size += tokens(sequence)
    if pack:
        yield pack


def encode_documents(inputs: Inputs, runs: Sequence[Sequence[int]]) -> dict[int, Encoded]:
    """Documents of the rows in these batches, by row, with their loss over all tokens after the first."""
    rows = np.concatenate(runs).tolist()
    documents = [inputs.prompts.document(example) for example in inputs.examples(rows)]
    encoded = token_ids(inputs.tokenizer, documents)
    return {row: Encoded(tuple(ids), 1) for row, ids in zip(rows, encoded, strict=True)}


def encode_tasks(inputs: Inputs) -> list[Encoded]:
    """Tasks zero-shot: their loss is over the target alone."""
    rows = inputs.tasks.to_dict("records")
    return [encode(inputs.tokenizer, inputs.prompts.query(row), inputs.prompts.target(row)) for row in rows]


def to_table(ids: Sequence[str], columns: Sequence[str], values: np.ndarray) -> pd.DataFrame:
    """Attribution matrix [N, M] as a table: id, then one float32 column for each task."""
    return pd.concat(
        [pd.DataFrame({"id": list(ids)}), pd.DataFrame(values.astype(np.float32, copy=False), columns=list(columns))],
        axis=1,
    )


def check_finite(method: str, ids: Sequence[str], values: np.ndarray) -> None:
    """Raises ScoreError naming the examples whose attributions are NaN or infinite."""
    bad = [example for example, finite in zip(ids, np.isfinite(values).all(axis=1), strict=True) if not finite]
    if bad:
        raise ScoreError(
            f"{method}: the attributions of {len(bad)} examples are NaN or infinite, first of {', '.join(bad[:5])}; "
            "look at their texts, or compute with attribution.dtype: float32."
        )
