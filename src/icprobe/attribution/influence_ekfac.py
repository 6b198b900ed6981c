"""Influence with the Fisher matrix as Hessian: where would training on an example push the answers, near an optimum?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icprobe.attribution.fisher import bases_of, layer_file, leaders, read, wide, with_one
from icprobe.attribution.gradient_cache import Gradients
from icprobe.attribution.influence import Influence
from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.attribution.objective import Objective
from icprobe.engine.gradients import Factors, Layer
from icprobe.engine.matmul import matmul
from icprobe.engine.network import Network


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    fisher: Sequence[str | Path],
    batch_tokens: int = 1024,
    memory_budget_gb: float = 3.0,
    damping: float = 0.1,
    labels: str = "sampled",
    **objective: Any,
) -> Pieces:
    """A[z, t] = ⟨g_z, (F + λ)⁻¹ g_t⟩, with EK-FAC's approximation of the Fisher matrix F (arXiv 2308.03296).

    fisher: the folders of `fisher.eigenvectors` and `fisher.corrected`, to which `labels` belongs. damping: λ over the
    mean of a layer's corrected eigenvalues. objective: whose gradients (`Objective`).

    The tasks' gradients are multiplied with the inverse as they are formed, whichever side is held; all else is what
    `influence` does, so that the budget changes no bit here either.
    """

    def preconditioner(network: Network, layers: Sequence[Layer]) -> Preconditioner:
        return Preconditioner(network, layers, *map(Path, fisher), damping)

    yield from Influence(
        inputs, batches, batch_tokens, memory_budget_gb, [method], Objective(**objective), preconditioner
    ).pieces()


class Preconditioner:
    """(F + λ)⁻¹ g of sequences, layer by layer: Q_S [(Q_Sᵀ G Q_A) / (Λ + λ)] Q_Aᵀ. An `influence.TaskFormer`.

    In float32 (float64 of a model in float64), rounded once to the model's dtype.
    """

    def __init__(
        self, network: Network, layers: Sequence[Layer], bases: Path, eigenvalues: Path, damping: float
    ) -> None:
        self._network, self._layers, self._leaders = network, layers, leaders(layers)
        self._bases, self._eigenvalues, self._damping = bases, eigenvalues, damping
        weights = sum(layer.weight_size for layer in layers)
        # Rotating a gradient back takes d_in + d_out multiplications for each weight, a training step three a token.
        self.tokens = sum(layer.weight_size * (layer.d_in + layer.d_out) for layer in layers) / weights / 3

    def __call__(self, index: int, factors: Factors, where: list[slice], out: Tensor | None) -> Gradients:
        layer, device = self._layers[index], factors.a.device
        if out is None:
            out = torch.empty(len(where), layer.size, dtype=self._network.model.dtype, device=device)
        parts = layer.parts(out[: len(where)])
        found = read(layer_file(self._eigenvalues, index), device)
        if not found["tokens"]:  # of an expert that no example goes to
            out.zero_()
            return parts
        damped = found["eigenvalues"] + self._damping * found["eigenvalues"].mean()
        of_input, of_output = bases_of(self._bases, self._leaders, index, device)
        # The factors are rotated, not the gradients: tasks are shorter than layers are wide.
        a = matmul(with_one(layer, factors.a), of_input.T)
        delta = matmul(factors.delta.to(wide(factors.delta.dtype)), of_output.T)
        for number, span in enumerate(where):
            if span.start == span.stop:  # of an expert
                for part in parts:
                    part[number].zero_()
                continue
            scaled = matmul(delta[span].T, a[span].T).div_(damped)  # [d_out, d_in (+ 1)]
            gradient = matmul(of_output, matmul(scaled, of_input).T)
            parts[0][number].view(layer.d_out, layer.d_in).copy_(gradient[:, : layer.d_in])
            if layer.bias:
                parts[1][number].copy_(gradient[:, layer.d_in])
        return parts
