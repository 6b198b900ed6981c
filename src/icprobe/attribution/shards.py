"""One shard of a method's matrix: only its own batches, resumed from what an earlier try has finished."""

import importlib
import inspect
import logging
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icprobe.artifacts import atomic_path, digest
from icprobe.attribution.blocks import Blocks, contents
from icprobe.attribution.matrix import Inputs, check_finite, to_table
from icprobe.engine import batching
from icprobe.progress import Progress

logger = logging.getLogger(__name__)

SAVE_SECONDS = 20.0  # between two saves; a killed job loses about this much work


def compute(
    module: str,
    methods: Sequence[str],
    inputs: Inputs,
    settings: dict[str, Any],
    shard: int,
    shards: int,
    batch_tokens: int,
    partial: Path,
    per_task: bool = True,
    blocks: Mapping[str, Blocks] | None = None,
) -> dict[str, pd.DataFrame]:
    """Computes one shard: {method: rows of its attribution matrix}, in (length, id) order.

    module: where the method's `attribute` is; settings: its keyword arguments. shard: from 1 to shards. partial: a
    folder for finished pieces, which belongs to exactly these inputs and settings. per_task: the matrix has a column
    for each task, not `score` (and, of budgeted methods, `n_tasks`). blocks: method -> where entries that are known
    from other data are taken from, and this shard's are kept. Raises ScoreError for NaN.
    """
    batches = batching.batches(inputs.lengths, batch_tokens)
    mine = {index: batches[index] for index in batching.shard_of(batches, inputs.lengths, shard, shards)}

    def attribute(of: Inputs, some: Mapping[int, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
        return _computed(module, methods, settings, of, some, folder)

    if blocks is None:
        values = attribute(inputs, mine, partial)
    else:
        values = _completed(attribute, inputs, mine, partial, per_task, blocks)
    ids = inputs.lengths["id"].iloc[_rows(mine)]
    tasks = list(inputs.tasks["id"]) if per_task else None
    return {method: _table(method, found, ids, tasks) for method, found in values.items()}


def own_settings(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The settings of a pass that one of its methods depends on: of several dampings its own."""
    damping = settings.get("damping")
    return {**settings, "damping": damping[method]} if isinstance(damping, Mapping) else settings


def _rows(batches: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.concatenate([*batches.values()]) if batches else np.array([], dtype=int)


def _completed(
    attribute: Callable[..., dict[str, np.ndarray]],
    inputs: Inputs,
    batches: Mapping[int, np.ndarray],
    partial: Path,
    per_task: bool,
    blocks: Mapping[str, Blocks],
) -> dict[str, np.ndarray]:
    """The matrices of these batches, of which only those entries are computed that no block holds.

    Examples that lack the same tasks are computed together, in what is left of their batches: packed otherwise than
    beside the others, an entry may differ by rounding.
    """
    rows = _rows(batches)
    examples, tasks = contents(inputs.train.iloc[rows]), contents(inputs.tasks) if per_task else np.array([b"score"])
    found = {method: block.find(examples, tasks) for method, block in blocks.items()}
    missing = np.any([np.isnan(values) for values in found.values()], axis=0)
    if not missing.all():
        logger.info("%s of %s entries are known from other data", f"{(~missing).sum():,}", f"{missing.size:,}")
    for pattern in np.unique(missing[missing.any(axis=1)], axis=0):
        chosen, columns = (missing == pattern).all(axis=1), np.flatnonzero(pattern)
        some = {index: batch[np.isin(batch, rows[chosen])] for index, batch in batches.items()}
        some = {index: batch for index, batch in some.items() if len(batch)}
        folder = partial if missing.all() else partial / digest([rows[chosen].tolist(), columns.tolist()])[:32]
        of_some = replace(inputs, tasks=inputs.tasks.iloc[columns].reset_index(drop=True)) if per_task else inputs
        for method, values in attribute(of_some, some, folder).items():
            found[method][np.ix_(chosen, columns)] = values
    for method, block in blocks.items():
        check_finite(method, list(inputs.lengths["id"].iloc[rows]), found[method])
        block.keep(examples, tasks, found[method])
    return found


def _computed(
    module: str,
    methods: Sequence[str],
    settings: dict[str, Any],
    inputs: Inputs,
    batches: Mapping[int, np.ndarray],
    partial: Path,
) -> dict[str, np.ndarray]:
    """The matrices of these batches, one below the other; what an earlier try has finished is not repeated."""
    partial.mkdir(parents=True, exist_ok=True)
    saved = Saved(partial)
    waiting = [index for index in batches if not all(f"{method}/{index}" in saved for method in methods)]
    if saved:
        total, left = (sum(len(batches[index]) for index in indices) for indices in (batches, waiting))
        finished = {str(batches[index][0]) for index in {*batches}.difference(waiting)}
        names = [key.split("/") for key in saved]
        parts = sum(len(name) > 2 and name[0] == methods[0] and name[1] not in finished for name in names)
        also = f", and parts of others ({parts})" if parts else ""
        logger.info("resumed: %d of %d examples were finished before%s", total - left, total, also)
    # A method sets out with work of its own (zero-shot, the tasks' gradients), for nothing where nothing waits.
    if waiting:
        _attribute(module, methods, inputs, settings, {index: batches[index] for index in waiting}, saved)
    saved.write()
    return {
        method: np.concatenate([saved[f"{method}/{index}"] for index in batches])
        if batches
        else np.empty((0, 0), dtype=np.float32)
        for method in methods
    }


def _attribute(
    module: str,
    methods: Sequence[str],
    inputs: Inputs,
    settings: dict[str, Any],
    batches: Mapping[int, np.ndarray],
    saved: "Saved",
) -> None:
    """Computes the matrix of some batches, by their indices, and saves it as "method/index"."""
    index_of = {tuple(rows): index for index, rows in batches.items()}
    attribute = importlib.import_module(module).attribute
    with Progress(desc="+".join(methods)) as progress:
        inputs = replace(inputs, pieces=saved, progress=progress)
        several = {"methods": methods} if "methods" in inspect.signature(attribute).parameters else {}
        for method, rows, values in attribute(inputs, methods[0], list(batches.values()), **several, **settings):
            saved[f"{method}/{index_of[tuple(rows)]}"] = values


def _table(method: str, values: np.ndarray, ids: pd.Series, tasks: list[str] | None) -> pd.DataFrame:
    """Puts a matrix into a table of these examples; tasks: None where it has none."""
    columns = ["score", "n_tasks"][: max(1, values.shape[1])] if tasks is None else tasks
    values = values if len(values) else np.empty((0, len(columns)), dtype=np.float32)
    check_finite(method, list(ids), values)
    return to_table(ids, columns, values)


class Saved(MutableMapping[str, np.ndarray]):
    """The pieces of a matrix that are finished, on disk in files of SAVE_SECONDS of work each.

    Keys: "method/batch" for what all tasks give in a batch, and a method's own names for smaller pieces.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pieces: dict[str, np.ndarray] = {}
        self._unsaved: dict[str, np.ndarray] = {}
        self._last_save = time.monotonic()
        self._next_file = 0
        for path in sorted(folder.glob("pieces-*.npz")):
            self._next_file = int(path.stem.removeprefix("pieces-")) + 1
            try:
                with np.load(path) as file:
                    self._pieces |= {key: file[key] for key in file.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                logger.info("%s is damaged (%s); what it held is computed again", path, error)
                path.unlink()

    def __getitem__(self, key: str) -> np.ndarray:
        return self._pieces[key]

    def __setitem__(self, key: str, piece: np.ndarray) -> None:
        self._pieces[key] = self._unsaved[key] = piece
        if time.monotonic() - self._last_save > SAVE_SECONDS:
            self.write()

    def __delitem__(self, key: str) -> None:
        """Forgets a piece here, not on disk: what has gone into a larger one is not written again."""
        del self._pieces[key]
        self._unsaved.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def write(self) -> None:
        if self._unsaved:
            with atomic_path(self.folder / f"pieces-{self._next_file:06d}.npz") as aside:
                np.savez(aside, **self._unsaved)
            self._next_file += 1
            self._unsaved = {}
        self._last_save = time.monotonic()
