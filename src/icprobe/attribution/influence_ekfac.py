"""Influence with the Fisher matrix as Hessian: where would training on an example push the answers, near an optimum?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icprobe.attribution.fisher_basis import Rotation, layer_file, read, wide
from icprobe.attribution.gradient_cache import Gradients
from icprobe.attribution.influence import Influence
from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.attribution.objective import Objective
from icprobe.engine.gradients import Factors, Layer
from icprobe.engine.network import Network

BASES_SHARE = 0.25  # of the budget, for eigenvectors on a device that does not map them


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    fisher: Sequence[str | Path],
    batch_tokens: int = 1024,
    memory_budget_gb: float = 3.0,
    damping: float | Mapping[str, float] = 0.1,
    labels: str = "sampled",
    methods: Sequence[str] | None = None,
    **objective: Any,
) -> Pieces:
    """A[z, t] = ⟨g_z, (F + λ)⁻¹ g_t⟩, with EK-FAC's approximation of the Fisher matrix F (arXiv 2308.03296).

    fisher: the folders of `fisher.eigenvectors` and `fisher.corrected`, to which `labels` belongs. damping: λ over the
    mean of a layer's corrected eigenvalues; of several `methods`, which come out of one pass, that of each. objective:
    whose gradients (`Objective`).

    All gradients are taken in F's basis, where (F + λ)⁻¹ is a weight for each element; all else is what `influence`
    does, so that the budget changes no bit here either.
    """
    dampings = damping if isinstance(damping, Mapping) else {method: damping}
    methods = methods or [method]

    def curvature(network: Network, layers: Sequence[Layer]) -> Basis:
        room = BASES_SHARE * memory_budget_gb * 1e9
        return Basis(network, layers, *map(Path, fisher), {name: dampings[name] for name in methods}, room)

    left = memory_budget_gb if inputs.model.device.type == "cpu" else (1 - BASES_SHARE) * memory_budget_gb
    yield from Influence(inputs, batches, batch_tokens, left, methods, Objective(**objective), curvature).pieces()


class Basis:
    """The basis of F, in which ⟨g_z, (F + λ)⁻¹ g_t⟩ = Σ G̃_z ∘ G̃_t / (Λ + λ) with G̃ = Q_Sᵀ G Q_A. A `Curvature`.

    The factors of gradients are rotated, tasks' and examples': their tokens are fewer than layers are wide times tasks.
    In float32 (float64 of a model in float64). dampings: of each method. room: for eigenvectors [bytes].
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[Layer],
        bases: Path,
        eigenvalues: Path,
        dampings: Mapping[str, float],
        room: float,
    ) -> None:
        self._eigenvalues, self._dampings, self._device = eigenvalues, dampings, network.device
        self.dtype, self.rotated = wide(network.model.dtype), Rotation(layers, bases, network.device, room)
        self.layers = [
            replace(layer, d_in=layer.d_in + layer.bias, bias=False, shares_input=leader != index)
            for index, (layer, leader) in enumerate(zip(layers, self.rotated.leaders, strict=True))
        ]

    def gradients(self, index: int, factors: Factors, where: list[slice], out: Tensor | None) -> Gradients:
        """The gradients of some sequences in a layer, from their rotated factors.

        By PyTorch's own products, which write where they are told: oneDNN's are copied there, which takes as long.
        """
        layer = self.layers[index]
        if out is None:
            out = torch.empty(len(where), layer.size, dtype=self.dtype, device=self._device)
        for row, span in zip(out, where, strict=True):
            if span.start == span.stop:  # of an expert
                row.zero_()
            else:
                torch.mm(factors.delta[span].T, factors.a[span], out=row.view(layer.d_out, layer.d_in))
        return [out]

    def weights(self, index: int) -> dict[str, Tensor]:
        """1 / (Λ + λ) of a layer for each method [d_out · d_in (+ 1)]; 0 of an expert that no example goes to."""
        found = read(layer_file(self._eigenvalues, index), self._device)
        eigenvalues = found["eigenvalues"].flatten()
        if not found["tokens"]:
            return dict.fromkeys(self._dampings, torch.zeros_like(eigenvalues, dtype=torch.float32))
        mean = eigenvalues.mean()
        return {name: (eigenvalues + damping * mean).reciprocal_().float() for name, damping in self._dampings.items()}
