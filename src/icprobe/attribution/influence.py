"""Influence with the identity as Hessian: does an example's gradient point where a task's does?"""

import logging
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from icprobe.attribution.matrix import Blocks, Inputs
from icprobe.gradients import Layer, form, layers_of, loss_backward, parameters, spans, tapped
from icprobe.packing import Network
from icprobe.prompts import Encoded, encode

logger = logging.getLogger(__name__)

# Elements of a layer that are clamped and multiplied at a time: small enough for a CPU's cache.
TILE = 1 << 16


def attribute(
    inputs: Inputs,
    method: str,
    runs: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    memory_budget_gb: float = 3.0,
    methods: Sequence[str] = ("influence", "influence_log"),
) -> Blocks:
    """A[z, t] = ⟨g_z, g_t⟩, and with signed logarithms per parameter tensor, from one pass over the examples.

    influence: TracIn (arXiv 2002.08484) with one checkpoint, first order. influence_log: Σ_p sign(d_p)·ln|d_p| with
    d_p = ⟨clamp(g_z,p), clamp(g_t,p)⟩, 0 where d_p = 0: what the code released with arXiv 2407.12259 computes.
    """
    network = Network(inputs.model)
    layers = layers_of(network)
    tasks = [
        encode(inputs.tokenizer, inputs.prompts.query(t), inputs.prompts.target(t))
        for t in inputs.tasks.to_dict("records")
    ]
    documents = encode_documents(inputs)
    tiles = task_tiles(len(tasks), layers, memory_budget_gb * 1e9, network.model.dtype)
    logger.info(
        "%d tasks in %d pass(es) over the examples: %s of task gradients within a budget of %g GB",
        len(tasks),
        len(tiles),
        _gigabytes(len(tiles[0]) * sum(layer.size for layer in layers) * network.model.dtype.itemsize),
        memory_budget_gb,
    )
    parts: dict[tuple[str, int], list[np.ndarray]] = {}
    for tile in tiles:
        gradients = TaskGradients(network, layers, [tasks[t] for t in tile], batch_tokens, methods)
        for number, rows in enumerate(runs):
            for name, block in gradients.products([documents[row] for row in rows]).items():
                parts.setdefault((name, number), []).append(block.numpy())
                if len(parts[name, number]) == len(tiles):
                    yield name, rows, np.concatenate(parts.pop((name, number)), axis=1)
        del gradients


def encode_documents(inputs: Inputs) -> list[Encoded]:
    """Documents with their loss over all tokens after the first."""
    texts = [inputs.prompts.document(row) for row in inputs.examples]
    return [Encoded(tuple(ids), 1) for ids in inputs.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def task_tiles(n_tasks: int, layers: Sequence[Layer], budget: float, dtype: torch.dtype) -> list[range]:
    """Runs of tasks whose gradients fit the budget [bytes] together; each run costs one pass over the examples."""
    one = sum(layer.size for layer in layers) * dtype.itemsize
    most = max(1, int(budget // one))
    passes = -(-n_tasks // most)
    edges = [round(n_tasks * p / passes) for p in range(passes + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


class TaskGradients:
    """The gradients of some tasks, held dense layer by layer, and their products with those of examples."""

    def __init__(
        self,
        network: Network,
        layers: Sequence[Layer],
        tasks: Sequence[Encoded],
        batch_tokens: int,
        methods: Sequence[str],
    ) -> None:
        self.network, self.layers, self.methods = network, layers, methods
        self.dtype, self.device = network.model.dtype, network.device
        self._scratch = torch.empty(0, dtype=self.dtype, device=self.device)
        self.dense = [torch.empty(len(tasks), layer.size, dtype=self.dtype, device=self.device) for layer in layers]
        for some in _packs(tasks, batch_tokens):
            where = spans([tasks[t] for t in some])

            def keep(index: int, a: Tensor, delta: Tensor, some: range = some, where: list = where) -> None:
                form(self.layers[index], a, delta, where, self.dense[index][some.start : some.stop])

            with tapped(network, layers, keep):
                loss_backward(network, [tasks[t] for t in some])

    def products(self, documents: Sequence[Encoded]) -> dict[str, Tensor]:
        """{method: [documents, tasks] float32} for documents that fit one packed row."""
        n, m = len(documents), len(self.dense[0])
        where = spans(documents)
        sums = {name: torch.zeros(n, m, dtype=torch.float32, device=self.device) for name in self.methods}
        widest = max(layer.size for layer in self.layers)
        if self._scratch.numel() < n * widest:
            self._scratch = torch.empty(n * widest, dtype=self.dtype, device=self.device)

        def multiply(index: int, a: Tensor, delta: Tensor) -> None:
            layer = self.layers[index]
            buffer = self._scratch[: n * layer.size].view(n, layer.size)
            formed, tasks = form(layer, a, delta, where, buffer), self.dense[index]
            if "influence" in sums:
                sums["influence"] += (formed @ tasks.T).float()
            if "influence_log" in sums:
                for part in parameters(layer):
                    sums["influence_log"] += signed_log(clamped_products(formed[:, part], tasks[:, part]))

        with tapped(self.network, self.layers, multiply):
            loss_backward(self.network, documents)
        return {name: total.cpu() for name, total in sums.items()}


def clamp(gradient: Tensor) -> Tensor:
    """sign(g)·min(max(|g|, 1e-4), 1), element by element; 0 stays 0."""
    return gradient.abs().clamp_(1e-4, 1).mul_(gradient.sign())


def clamped_products(a: Tensor, b: Tensor) -> Tensor:
    """⟨clamp(a_i), clamp(b_j)⟩: a [n, p], b [m, p] → [n, m] float32, clamped and multiplied tile by tile."""
    total = torch.zeros(len(a), len(b), dtype=torch.float32, device=a.device)
    tile = TILE if a.device.type == "cpu" else a.shape[1]
    for x, y in zip(a.split(tile, dim=1), b.split(tile, dim=1), strict=True):
        total += (clamp(x) @ clamp(y).T).float()
    return total


def signed_log(d: Tensor) -> Tensor:
    """sign(d)·ln|d|, 0 where d = 0."""
    return torch.where(d == 0, 0.0, d.sign() * d.abs().log())


def _packs(sequences: Sequence[Encoded], batch_tokens: int) -> list[range]:
    """Consecutive sequences whose tokens together are at most batch_tokens, at least one each."""
    edges, size = [0], 0
    for index, sequence in enumerate(sequences):
        if size and size + len(sequence.ids) > batch_tokens:
            edges.append(index)
            size = 0
        size += len(sequence.ids)
    return [range(a, b) for a, b in zip(edges, [*edges[1:], len(sequences)], strict=True)]


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB"
