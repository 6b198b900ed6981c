"""Contracts gradients of examples and tasks to terms of a matrix, parameter tensor by parameter tensor."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from icprobe.engine.matmul import compiled_on_cuda, matmul_float32

# Of a gradient, prepared and multiplied at a time for all pairs of batches: they stay in a CPU's cache.
CHUNK_ELEMENTS = 1 << 16
# Shorter vectors that ⟨x, y⟩ of a chunk is split into, where its length allows.
VECTORS_PER_CHUNK = 16
# The same on CUDA, of a whole gradient; and the least that they are to hold.
VECTORS_ON_CUDA, SHORTEST_ON_CUDA = 128, 512


@dataclass(frozen=True)
class Contraction:
    """finish(⟨prepare(x), prepare(y)⟩), both element by element, of the gradients of one parameter tensor."""

    prepare: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]


@compiled_on_cuda  # in one pass over the gradient, where PyTorch's four operations make four
def clamp(gradient: Tensor) -> Tensor:
    """sign(g)·min(max(|g|, 1e-4), 1), element by element; 0 stays 0."""
    return gradient.abs().clamp_(1e-4, 1).mul_(gradient.sign())


def signed_log(d: Tensor) -> Tensor:
    """sign(d)·ln|d|, 0 where d = 0."""
    return torch.where(d == 0, 0.0, d.sign() * d.abs().log())


PRODUCT = Contraction(lambda gradient: gradient, lambda product: product)
CONTRACTIONS = {
    "influence": PRODUCT,
    "less": PRODUCT,  # of the optimiser's steps
    "influence_log": Contraction(clamp, signed_log),
}


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Computes ⟨x_i, y_j⟩: [n, p], [m, p] → [n, m] float32.

    As a batch of products of shorter vectors, which read a CPU's memory faster than one product does, and round less;
    on CUDA one product of few long vectors would occupy a few of the processors alone.
    """
    on_cpu = x.device.type == "cpu"
    vectors = math.gcd(x.shape[1], VECTORS_PER_CHUNK if on_cpu else VECTORS_ON_CUDA)
    if vectors == 1 or (not on_cpu and x.shape[1] < vectors * SHORTEST_ON_CUDA):
        return matmul_float32(x, y)
    left, right = (v.unflatten(1, (vectors, -1)).transpose(0, 1) for v in (x, y))
    widened = {} if on_cpu or x.dtype == torch.float32 else {"out_dtype": torch.float32}
    return torch.bmm(left, right.transpose(1, 2), **widened).sum(0, dtype=torch.float32)


def contract(
    contractions: Mapping[str, Contraction],
    first: Mapping[int, Tensor],
    second: Mapping[int, Tensor],
    pairs: Iterable[tuple[int, int]],
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[tuple[int, int], Tensor]]:
    """Computes each contraction's term [n, m] float32 for each pair (i, j) of first[i] [n, p] and second[j] [m, p].

    A pair's bits depend on no other pair's: only the order in which chunks and pairs take turns does. On a CPU chunks
    of 16-bit gradients are widened before anything is done with them; CUDA's products widen what they sum.

    weights: by which the elements of second[j] are multiplied first, for each contraction [p].
    """
    (some, *_) = first.values()
    size = some.shape[1]
    on_cpu = some.device.type == "cpu"
    chunk = CHUNK_ELEMENTS if on_cpu else size
    sums: dict[str, dict[tuple[int, int], Tensor]] = {name: {} for name in contractions}
    for start in range(0, size, chunk):
        sides = [{key: g[:, start : start + chunk] for key, g in side.items()} for side in (first, second)]
        if on_cpu:
            sides = [{key: g.float() for key, g in side.items()} for side in sides]
        for name, contraction in contractions.items():
            x, y = ({key: contraction.prepare(g) for key, g in side.items()} for side in sides)
            if weights is not None:
                y = {key: g * weights[name][start : start + chunk] for key, g in y.items()}
            for i, j in pairs:
                term = dot(x[i], y[j])
                sums[name][i, j] = term if start == 0 else sums[name][i, j].add_(term)
    return {name: {pair: contractions[name].finish(d) for pair, d in of.items()} for name, of in sums.items()}
