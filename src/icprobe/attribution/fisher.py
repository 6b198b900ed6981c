"""The Fisher matrix of the training examples, layer by layer, in EK-FAC's form (arXiv 1806.03884): how it is fitted.

Of a layer y = W a + b, with output gradients δ, it is (Q_A ⊗ Q_S) diag(Λ) (Q_A ⊗ Q_S)ᵀ: Q_A are the eigenvectors of
A = Σ a aᵀ (1 is appended to `a` where there is a bias), Q_S those of S = Σ δ δᵀ, over the tokens of all examples, and
Λ [d_out, d_in (+ 1)] is the mean over examples of (Q_Sᵀ G_z Q_A)², G_z being an example's gradient.

Two passes over the examples make it, for Q_A and Q_S have to be known before Λ. Both add up in parts, so that several
jobs share them: `Pass.covariances` of each part, `eigenvectors`, `Pass.eigenvalues` of each part, `corrected`. All that
they make are folders with a file for each layer.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from icprobe.artifacts import atomic_path
from icprobe.attribution.chance import generator
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.fisher_basis import Rotation, Tensors, layer_file, leaders, read, wide, with_one
from icprobe.attribution.matrix import Inputs
from icprobe.attribution.memory_plan import ACTIVATIONS_PER_FACTORS
from icprobe.attribution.objective import Objective
from icprobe.engine.batching import spans, split_by_size
from icprobe.engine.gradients import Factors, Label, collect_gradients, layers_of, loss_backward
from icprobe.engine.likelihood import drawn_targets
from icprobe.engine.network import Network
from icprobe.errors import ArtifactError, ScoreError

logger = logging.getLogger(__name__)

# Columns of a matrix x whose products with those before them are formed at a time: of xᵀ x, which is symmetric, half.
BLOCK = 256
SAVE_SECONDS = 120.0  # between two saves of sums, which are as large as a few models; a killed job loses as much work

# The shapes of a layer's tensors, by name.
Shapes = dict[str, tuple[int, ...]]
# (layer index, its sums, factors of a batch, where the batch's sequences lie in its row) → None
Add = Callable[[int, Tensors, Factors, list[slice]], None]


def add_products(total: Tensor, x: Tensor) -> None:
    """Adds xᵀ x to a total [d, d], of whose upper triangle only some is right: x [n, d]."""
    for start in range(0, x.shape[1], BLOCK):
        until = start + BLOCK
        total[start:until, :until].addmm_(x[:, start:until].T, x[:, :until])


class Pass:
    """What a pass over some examples needs: their tokens, their labels, and the layers.

    labels: sampled, each target drawn from the model's own distribution given the text before it, the same in whichever
    batch or part its example is; or empirical, the texts' own. The loss is the sum over the tokens that `train_loss`
    says, whatever `reduction` says of the gradients that the matrix is used on. Sums are in float32 (`wide`), batch by
    batch; how the examples are parted changes their last bits, the budget none: where the sums of all layers do not
    fit, groups of layers each have a pass over the examples.
    """

    def __init__(
        self,
        inputs: Inputs,
        batches: Sequence[np.ndarray],
        labels: str = "sampled",
        memory_budget_gb: float = 3.0,
        **objective: Any,
    ) -> None:
        self.inputs, self.batches, self.budget_gb = inputs, batches, memory_budget_gb
        self.network = Network(inputs.model, inputs.capabilities)
        whose = Objective(**objective)
        self.layers, self.passed = layers_of(self.network, whose.parameters), layers_of(self.network)
        self.leaders = leaders(self.layers)
        self.dtype = wide(self.network.model.dtype)
        self.documents = encode_documents(inputs, batches, whose) if batches else {}
        self.uniforms = {row: self._uniforms(row) for row in self.documents} if labels == "sampled" else None

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return len(self.documents)

    def covariances(self, folder: Path) -> None:
        """Writes of each layer the sums "a" [d_in (+ 1)]², of leaders alone, and "s" [d_out]²: their lower triangles.

        folder: it may hold some.
        """

        def shapes(index: int) -> Shapes:
            layer, own = self.layers[index], self.leaders[index] == index
            sides = {"a": layer.d_in + layer.bias} if own else {}
            return {name: (n, n) for name, n in {**sides, "s": layer.d_out}.items()}

        def add(index: int, sums: Tensors, factors: Factors, _where: list[slice]) -> None:
            if "a" in sums:
                add_products(sums["a"], with_one(self.layers[index], factors.a))
            add_products(sums["s"], factors.delta.to(self.dtype))

        self._sum(folder, shapes, lambda: add)

    def eigenvalues(self, bases: Path, folder: Path) -> None:
        """Writes of each layer the sum "eigenvalues" of (Q_Sᵀ G_z Q_A)² [d_out, d_in (+ 1)], and its "tokens", a count
        (of an expert those that have a gradient).

        bases: of `eigenvectors`. Layers that share their input rotate it once.
        """

        def shapes(index: int) -> Shapes:
            layer = self.layers[index]
            return {"eigenvalues": (layer.d_out, layer.d_in + layer.bias), "tokens": ()}

        def adding() -> Add:
            rotation = Rotation(self.layers, bases, self.network.device, math.inf)

            def add(index: int, sums: Tensors, factors: Factors, where: list[slice]) -> None:
                (rotated,) = rotation(index, [factors])
                gradient = torch.empty_like(sums["eigenvalues"])  # of one example after the other, in the same memory
                for span in factors.spans(where):
                    if span.stop > span.start:
                        torch.mm(rotated.delta[span].T, rotated.a[span], out=gradient)
                        sums["eigenvalues"].addcmul_(gradient, gradient)
                # Through an expert that only a query's tokens go to in the last block, no loss flows back.
                moved = factors.delta.any(1).sum() if self.layers[index].experts else len(factors.a)
                sums["tokens"] += moved

            return add

        def beside(index: int) -> int:
            layer = self.layers[index]
            return 0 if self.network.device.type == "cpu" else (layer.d_in + layer.bias) ** 2 + layer.d_out**2

        self._sum(folder, shapes, adding, beside)

    def _sum(
        self,
        folder: Path,
        shapes: Callable[[int], Shapes],
        adding: Callable[[], Add],
        beside: Callable[[int], int] = lambda index: 0,
    ) -> None:
        """Sums over all examples, group by group of layers; a layer whose file is there is finished.

        shapes: of a layer's sums. adding: makes what adds a batch's terms to them, for a group. beside: elements in
        memory besides the sums.
        """
        folder.mkdir(parents=True, exist_ok=True)
        waiting = [index for index in range(len(self.layers)) if not layer_file(folder, index).exists()]
        sizes = [beside(index) + sum(map(math.prod, shapes(index).values())) for index in waiting]
        groups = split_by_size(sizes, self._free_bytes() / self.dtype.itemsize)
        if len(groups) > 1:
            logger.info(
                "%d passes over the examples: the sums of all layers do not fit into %g GB", len(groups), self.budget_gb
            )
        self.inputs.progress.expect(len(groups) * sum(len(d.ids) for d in self.documents.values()), "token")
        for group in groups:
            numbers = [waiting[place] for place in group]
            zeros = {i: {name: self._zeros(shape) for name, shape in shapes(i).items()} for i in numbers}
            self._sum_group(zeros, folder, adding())
        for unfinished in folder.glob("*.unfinished"):  # under another budget, too
            unfinished.unlink()

    def _sum_group(self, sums: dict[int, Tensors], folder: Path, add: Add) -> None:
        """Sums over all examples for some layers. sums: of each, zero."""
        group = [*sums]
        layers, unfinished = [self.layers[index] for index in group], folder / f"{group[0]}-{group[-1]}.unfinished"
        sums, begun = self._resumed(unfinished, sums)
        saved = time.monotonic()
        for number, rows in enumerate(self.batches):
            sequences = [self.documents[row] for row in rows]
            if number >= begun:
                where = spans(sequences)

                def add_layer(place: int, factors: Factors, where=where) -> None:
                    add(group[place], sums[group[place]], factors, where)

                with collect_gradients(layers, add_layer):
                    loss_backward(self.network, sequences, self._label(rows))
            self.inputs.progress.update(sum(len(sequence.ids) for sequence in sequences))
            if number >= begun and time.monotonic() - saved > SAVE_SECONDS:
                named = {f"{index}.{name}": tensor for index in group for name, tensor in sums[index].items()}
                _write(unfinished, {**named, "batches": torch.tensor(number + 1)})
                saved = time.monotonic()
        for index in group:
            _write(layer_file(folder, index), sums.pop(index))

    def _resumed(self, unfinished: Path, sums: dict[int, Tensors]) -> tuple[dict[int, Tensors], int]:
        """The sums of a group as a killed job has saved them, and over how many batches they are; else as they are."""
        if not unfinished.exists():
            return sums, 0
        try:
            found = read(unfinished, self.network.device)
        except ArtifactError as error:
            logger.info("%s; what it held is computed again", error)
            return sums, 0
        begun = int(found["batches"])
        logger.info("resumed: %d of %d batches were finished before", begun, len(self.batches))
        for index, of_layer in sums.items():
            for name, zero in of_layer.items():
                zero.copy_(found[f"{index}.{name}"])  # not the file's own memory, which is to be removed
        return sums, begun

    def _label(self, rows: np.ndarray) -> Label | None:
        """What draws the targets of a batch; None where the texts' own are taken."""
        if self.uniforms is None:
            return None
        uniforms = torch.from_numpy(np.concatenate([self.uniforms[row] for row in rows]))
        return lambda states: drawn_targets(self.network, states, uniforms)

    def _uniforms(self, row: int) -> np.ndarray:
        """A number for each of an example's targets, by the seed and its id alone."""
        example = self.inputs.train["id"].iloc[row]
        return generator(self.inputs.seed, example).random(self.documents[row].n_target)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        dtype = self.dtype if shape else torch.int64  # a count
        return torch.zeros(shape, dtype=dtype, device=self.network.device)

    def _free_bytes(self) -> float:
        """What the backward pass of one batch leaves of the budget."""
        tokens = [sum(len(self.documents[row].ids) for row in rows) for rows in self.batches]
        width = sum(layer.width for layer in self.passed)
        itemsize = self.network.model.dtype.itemsize
        return self.budget_gb * 1e9 - ACTIVATIONS_PER_FACTORS * max(tokens, default=0) * width * itemsize


def fit(inputs: Inputs, batches: Sequence[np.ndarray], folder: Path, **settings: Any) -> list[Path]:
    """Fits the matrix of all examples in one part; returns the folders that `influence_ekfac` takes as `fisher`.

    settings: of `Pass`.
    """
    over, names = Pass(inputs, batches, **settings), ("covariances", "bases", "sums", "eigenvalues")
    covariances, bases, sums, eigenvalues = (folder / name for name in names)
    layers = [layer.name for layer in over.layers]
    over.covariances(covariances)
    eigenvectors([covariances], layers, bases)
    over.eigenvalues(bases, sums)
    corrected([sums], layers, over.examples, eigenvalues)
    return [bases, eigenvalues]


def eigenvectors(parts: Sequence[Path], names: Sequence[str], folder: Path) -> None:
    """Writes of each layer the eigenvectors "a" and "s", in columns, of the sums of all parts. folder: may hold some.

    names: of the layers. Of the sums the lower triangles count. In float64, on the CPU, and rounded once: activations
    of some coordinates are a thousand times those of others, beside whose squares float32 would lose the eigenvectors
    of all the small ones; the sums have not lost them, for there each element is rounded by itself. Raises ScoreError
    for sums that are NaN or infinite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        if layer_file(folder, index).exists():
            continue
        found = {}
        for side, matrix in _summed(parts, index).items():
            if not matrix.isfinite().all():
                raise ScoreError(
                    f"influence_ekfac: {'inputs' if side == 'a' else 'gradients'} in {name} that are NaN or infinite; "
                    "look at the texts, or compute with attribution.dtype: float32."
                )
            found[side] = torch.linalg.eigh(matrix).eigenvectors.to(_dtype(parts[0], index))
        _write(layer_file(folder, index), found)


def widths(folder: Path, layers: int) -> list[int]:
    """The widths of all matrices of eigenvectors, of so many layers."""
    found = []
    for index in range(layers):
        with safe_open(layer_file(folder, index), framework="pt") as file:
            found += [file.get_slice(name).get_shape()[0] for name in file.keys()]  # noqa: SIM118 - no mapping
    return found


def corrected(parts: Sequence[Path], names: Sequence[str], examples: int, folder: Path) -> None:
    """Writes of each layer Λ, "eigenvalues", and its "tokens", from the sums of all parts over so many examples.

    Raises ScoreError naming a layer that sees tokens and has no eigenvalue above 0. One that sees none is of an expert
    to which no token with a gradient goes, so that it adds exactly nothing to any product.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        sums = _summed(parts, index)
        eigenvalues = (sums["eigenvalues"] / max(examples, 1)).to(_dtype(parts[0], index))
        if not eigenvalues.isfinite().all():
            raise ScoreError(
                f"influence_ekfac: eigenvalues of {name} that are NaN or infinite; compute with attribution.dtype: "
                "float32."
            )
        if sums["tokens"] and not eigenvalues.any():
            raise ScoreError(
                f"influence_ekfac: no example has a gradient in {name}, so that its Fisher matrix is 0 and has no "
                "inverse; leave the layer out by attribution.parameters."
            )
        _write(layer_file(folder, index), {"eigenvalues": eigenvalues, "tokens": sums["tokens"].long()})


def _write(path: Path, tensors: Tensors) -> None:
    with atomic_path(path) as aside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)


def _summed(parts: Sequence[Path], index: int) -> Tensors:
    """A layer's sums over all parts, added in float64 in their order."""
    found: Tensors = {}
    for part in parts:
        for name, tensor in read(layer_file(part, index)).items():
            found[name] = found[name] + tensor if name in found else tensor.double()
    return found


def _dtype(part: Path, index: int) -> torch.dtype:
    """In which a part's sums of a layer are."""
    tensors = read(layer_file(part, index))
    return tensors.get("s", tensors.get("eigenvalues")).dtype
