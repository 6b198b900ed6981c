"""Influence with the identity as Hessian: does an example's gradient point where a task's does?"""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from icprobe.attribution.holding import Contractions, Held, Plan, Side
from icprobe.attribution.matrix import Blocks, Inputs, encode_documents, encode_tasks, packs
from icprobe.gradients import layers_of
from icprobe.packing import Network

logger = logging.getLogger(__name__)

# Elements of a layer that are clamped and multiplied at a time: small enough for a CPU's cache.
TILE = 1 << 16
# Vectors that ⟨x, y⟩ is summed from, where their length allows.
PARTS = 64


def attribute(
    inputs: Inputs,
    method: str,
    runs: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    memory_budget_gb: float = 3.0,
    methods: Sequence[str] = ("influence", "influence_log"),
) -> Blocks:
    """A[z, t] = ⟨g_z, g_t⟩, and with signed logarithms per parameter tensor, from one pass over examples and tasks.

    influence: TracIn (arXiv 2002.08484) with one checkpoint, first order. influence_log: Σ_p sign(d_p)·ln|d_p| with
    d_p = ⟨clamp(g_z,p), clamp(g_t,p)⟩, 0 where d_p = 0: what the code released with arXiv 2407.12259 computes.

    One side's gradients are held within the budget, the other's stream past; `Plan` chooses. Whatever it chooses, the
    same pairs of batches are multiplied layer by layer in the same order: the budget changes no bit of the result.
    """
    network = Network(inputs.model)
    layers = layers_of(network)
    documents, tasks = encode_documents(inputs, runs), encode_tasks(inputs)
    examples = Side([[documents[row] for row in run] for run in runs])
    targets = Side([tasks[pack] for pack in packs([len(task.ids) for task in tasks], batch_tokens)])
    alone = len(tasks) if set(methods) == {"influence"} else None
    itemsize = network.model.dtype.itemsize
    plan = Plan.cheapest(examples, targets, layers, memory_budget_gb * 1e9, itemsize, alone is not None)
    logger.info("%s", plan.sentence(memory_budget_gb))
    edges = np.cumsum([0, *(len(batch) for batch in targets.batches)])
    blocks: dict[int, dict[str, np.ndarray]] = {}

    def put(run: int, pack: int, products: dict[str, Tensor]) -> None:
        shape = (len(runs[run]), len(tasks))
        for name, product in products.items():
            block = blocks.setdefault(run, {m: np.empty(shape, np.float32) for m in methods})[name]
            block[:, edges[pack] : edges[pack + 1]] = product.cpu().numpy()

    def finished(run: int) -> Blocks:
        yield from ((name, runs[run], block) for name, block in blocks.pop(run).items())

    contract = contractions(methods)
    for number, tile in enumerate(plan.tiles):
        if plan.hold == "tasks":
            held = Held(network, layers, [targets.batches[pack] for pack in tile], plan.dense, alone)
            for run, batch in enumerate(examples.batches):
                for pack, products in zip(tile, held.stream(batch, contract, held_first=False), strict=True):
                    put(run, pack, products)
                if number == len(plan.tiles) - 1:
                    yield from finished(run)
        else:
            held = Held(network, layers, [examples.batches[run] for run in tile], plan.dense, alone)
            for pack, batch in enumerate(targets.batches):
                for run, products in zip(tile, held.stream(batch, contract, held_first=True), strict=True):
                    put(run, pack, products)
            for run in tile:
                yield from finished(run)


def contractions(methods: Sequence[str]) -> Contractions:
    """How two batches' gradients of one parameter tensor become a term of each method's matrix."""
    known = {"influence": dot, "influence_log": lambda x, y: signed_log(clamped_products(x, y))}
    return {method: known[method] for method in methods}


def dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x_i, y_j⟩: [n, p], [m, p] → [n, m] float32.

    On a CPU a batch of products of shorter vectors: they read memory faster than one product does, and round less.
    """
    parts = math.gcd(x.shape[1], PARTS)
    if x.device.type != "cpu" or parts == 1:
        return (x @ y.T).float()
    left, right = (v.view(len(v), parts, -1).transpose(0, 1) for v in (x, y))
    return torch.bmm(left, right.transpose(1, 2)).sum(0, dtype=torch.float32)


def clamp(gradient: Tensor) -> Tensor:
    """sign(g)·min(max(|g|, 1e-4), 1), element by element; 0 stays 0."""
    return gradient.abs().clamp_(1e-4, 1).mul_(gradient.sign())


def clamped_products(x: Tensor, y: Tensor) -> Tensor:
    """⟨clamp(x_i), clamp(y_j)⟩: [n, p], [m, p] → [n, m] float32, clamped and multiplied tile by tile."""
    total = torch.zeros(len(x), len(y), dtype=torch.float32, device=x.device)
    tile = TILE if x.device.type == "cpu" else x.shape[1]
    for a, b in zip(x.split(tile, dim=1), y.split(tile, dim=1), strict=True):
        total += (clamp(a) @ clamp(b).T).float()
    return total


def signed_log(d: Tensor) -> Tensor:
    """sign(d)·ln|d|, 0 where d = 0."""
    return torch.where(d == 0, 0.0, d.sign() * d.abs().log())
