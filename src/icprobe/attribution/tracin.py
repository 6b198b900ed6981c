"""TracIn: influence along a training, summed over its checkpoints."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from icprobe.attribution import influence
from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.engine.checkpoints import load_fine_tuned, load_given
from icprobe.progress import Progress


def attribute(inputs: Inputs, method: str, batches: Sequence[np.ndarray], **settings: Any) -> Pieces:
    """A[z, t] = Σ_c η_c ⟨g_z(θ_c), g_t(θ_c)⟩ over the checkpoints c of `inputs.trajectory` (arXiv 2002.08484).

    settings: those of `influence.attribute`, one pass of which each checkpoint takes.
    """
    trajectory = inputs.trajectory
    load = load_given if trajectory.given else load_fine_tuned

    def at(of_one: Inputs, directory: str, waiting: Sequence[np.ndarray]) -> Pieces:
        model = load(directory, trajectory.base, trajectory.dtype, trajectory.device)
        of_one = replace(of_one, model=model)
        return influence.attribute(of_one, "influence", waiting, methods=["influence"], **settings)

    yield from along(inputs, method, batches, at)


def along(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    at: Callable[[Inputs, str, Sequence[np.ndarray]], Pieces],
) -> Pieces:
    """Σ_c η_c A_c over the checkpoints c of `inputs.trajectory`. at: gives A_c of some batches, from the inputs, whose
    model it loads, and the checkpoint's directory.

    What a batch has up to a checkpoint is put into `inputs.pieces`; sums are in float64.
    """
    checkpoints = inputs.trajectory.checkpoints
    count = len(checkpoints)

    def name(rows: np.ndarray, number: int) -> str:
        return f"{method}/{rows[0]}/{number}"

    for number, (directory, learning_rate) in enumerate(checkpoints):
        waiting = [rows for rows in batches if not any(name(rows, n) in inputs.pieces for n in range(number, count))]
        if not waiting:
            continue
        pieces, progress = _Part(inputs.pieces, f"checkpoint-{number}/"), _Passes(inputs.progress, count - number)
        # No name here holds the model, so that it is gone before the next one is loaded: two might not fit.
        for _, rows, products in at(replace(inputs, pieces=pieces, progress=progress), directory, waiting):
            before = inputs.pieces.pop(name(rows, number - 1), 0.0)
            inputs.pieces[name(rows, number)] = before + learning_rate * products.astype(np.float64)
    for rows in batches:
        yield method, rows, inputs.pieces.pop(name(rows, count - 1)).astype(np.float32)


class _Part(MutableMapping[str, np.ndarray]):
    """Those pieces whose names begin alike, by what follows."""

    def __init__(self, pieces: MutableMapping[str, np.ndarray], beginning: str) -> None:
        self._pieces, self._beginning = pieces, beginning

    def __getitem__(self, name: str) -> np.ndarray:
        return self._pieces[self._beginning + name]

    def __setitem__(self, name: str, piece: np.ndarray) -> None:
        self._pieces[self._beginning + name] = piece

    def __delitem__(self, name: str) -> None:
        del self._pieces[self._beginning + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._beginning) for name in self._pieces if name.startswith(self._beginning))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Passes:
    """The progress of one of several passes that take as long: what it expects, all that are left will."""

    def __init__(self, progress: Progress, left: int) -> None:
        self._progress, self._left = progress, left
        self.update = progress.update

    def expect(self, total: float, unit: str) -> None:
        if self._progress.n:
            self._progress.remains(self._left * total)
        else:
            self._progress.expect(self._left * total, unit)
