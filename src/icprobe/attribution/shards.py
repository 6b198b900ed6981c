"""One shard of a method's matrix: only its own batches, resumed from what an earlier try has finished."""

import importlib
import logging
import time
import zipfile
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icprobe.artifacts import atomic_path
from icprobe.attribution.matrix import Inputs, batches, check_finite, shard_of, to_table
from icprobe.progress import Progress

logger = logging.getLogger(__name__)

SAVE_SECONDS = 20.0  # a killed job loses about this much work


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
) -> dict[str, pd.DataFrame]:
    """{method: rows of its attribution matrix} of one shard, in (length, id) order.

    module: where the method's `attribute` is; settings: its keyword arguments. shard: from 1 to shards. partial: a
    folder for finished batches, which belongs to exactly these inputs and settings. per_task: the matrix has a column
    for each task, not `score` (and, of budgeted methods, `n_tasks`). Raises ScoreError for NaN.
    """
    runs = batches(inputs.lengths, batch_tokens)
    mine = shard_of(runs, inputs.lengths, shard, shards)
    saved = Saved(partial)
    position = {tuple(runs[index]): index for index in mine}
    waiting = [index for index in mine if not all(f"{method}/{index}" in saved for method in methods)]
    total = sum(len(runs[index]) for index in mine)
    done = total - sum(len(runs[index]) for index in waiting)
    if saved:
        finished = {str(runs[index][0]) for index in {*mine}.difference(waiting)}
        names = [key.split("/") for key in saved]
        parts = sum(len(name) > 2 and name[0] == methods[0] and name[1] not in finished for name in names)
        also = f", and parts of others ({parts})" if parts else ""
        logger.info("resumed: %d of %d examples were finished before%s", done, total, also)
    attribute = importlib.import_module(module).attribute
    with Progress(desc="+".join(methods)) as progress:
        inputs = replace(inputs, pieces=saved, progress=progress)
        # A method sets out with work of its own (zero-shot, the tasks' gradients), for nothing where nothing waits.
        computed = attribute(inputs, methods[0], [runs[i] for i in waiting], **settings) if waiting else ()
        for method, rows, block in computed:
            saved[f"{method}/{position[tuple(rows)]}"] = block
    saved.write()
    rows = np.concatenate([runs[index] for index in mine]) if mine else np.array([], dtype=int)
    tables = {}
    for method in methods:
        blocks = [saved[f"{method}/{index}"] for index in mine]
        columns = list(inputs.tasks["id"]) if per_task else ["score", "n_tasks"][: blocks[0].shape[1] if blocks else 1]
        values = np.concatenate(blocks) if blocks else np.empty((0, len(columns)), dtype=np.float32)
        ids = inputs.lengths["id"].iloc[rows]
        check_finite(method, list(ids), values)
        tables[method] = to_table(ids, columns, values)
    return tables


class Saved(MutableMapping[str, np.ndarray]):
    """Finished blocks ("method/batch") and a method's own pieces of some, on disk in files of seconds of work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, np.ndarray] = {}
        self._fresh: dict[str, np.ndarray] = {}
        self._written = time.monotonic()
        self._number = 0  # of the next file
        for path in sorted(folder.glob("blocks-*.npz")):
            self._number = int(path.stem.removeprefix("blocks-")) + 1
            try:
                with np.load(path) as file:
                    self._arrays |= {key: file[key] for key in file.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                logger.info("%s is damaged (%s); what it held is computed again", path, error)
                path.unlink()

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def __setitem__(self, key: str, array: np.ndarray) -> None:
        self._arrays[key] = self._fresh[key] = array
        if time.monotonic() - self._written > SAVE_SECONDS:
            self.write()

    def __delitem__(self, key: str) -> None:
        """Forgotten here, not on disk: what is taken apart is not written again."""
        del self._arrays[key]
        self._fresh.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def write(self) -> None:
        if self._fresh:
            with atomic_path(self.folder / f"blocks-{self._number:06d}.npz") as aside:
                np.savez(aside, **self._fresh)
            self._number += 1
            self._fresh = {}
        self._written = time.monotonic()
