"""Influence with the identity as Hessian: does an example's gradient point where a task's does?"""

import logging
import time
from collections.abc import Iterable, Sequence

import numpy as np

from icprobe.attribution.contraction import CONTRACTIONS
from icprobe.attribution.holding import GradientCache, Plan, SequenceBatches, split_by_size
from icprobe.attribution.matrix import Blocks, Inputs, encode_documents, encode_tasks, packs
from icprobe.engine.gradients import layers_of
from icprobe.engine.network import Network
from icprobe.engine.stepping import activations_per_token

logger = logging.getLogger(__name__)

# Batches in step are parted so that no group takes much longer than two minutes, which is what a killed job may lose:
# by the rate at which gradients to be held were made, without the second forward pass, a third more.
GROUP_SECONDS = 90.0


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
    What a pair of batches gives is a piece of `inputs.pieces`, so that a killed job loses no more than a group's work.
    """
    network = Network(inputs.model, inputs.capabilities)
    layers = layers_of(network)
    documents, tasks = encode_documents(inputs, runs), encode_tasks(inputs)
    examples = SequenceBatches([[documents[row] for row in run] for run in runs])
    targets = SequenceBatches([tasks[pack] for pack in packs([len(task.ids) for task in tasks], batch_tokens)])
    alone = len(tasks) if set(methods) == {"influence"} else None
    itemsize = network.model.dtype.itemsize
    per_token = activations_per_token(network, layers)
    plan = Plan.cheapest(examples, targets, layers, memory_budget_gb * 1e9, itemsize, alone is not None, per_token)
    logger.info("%s", plan.sentence(memory_budget_gb))
    contractions = {method: CONTRACTIONS[method] for method in methods}
    by_example, pieces = plan.hold == "examples", inputs.pieces
    kept, streamed = (examples, targets) if by_example else (targets, examples)

    def piece(method: str, i: int, other: int) -> str:
        run, pack = (i, other) if by_example else (other, i)
        return f"{method}/{runs[run][0]}/{pack}"

    def finished(run: int) -> Blocks:
        for method in methods:
            names = [piece(method, *((run, n) if by_example else (n, run))) for n in range(len(targets.batches))]
            yield method, runs[run], np.concatenate([pieces.pop(name) for name in names], axis=1)

    def waiting(tile: list[int], group: Iterable[int]) -> list[int]:
        return [n for n in group if not all(piece(m, i, n) in pieces for m in methods for i in tile)]

    passes = [(tile, waiting(tile, range(len(streamed.batches)))) for tile in plan.tiles]
    of_passes = (sum(map(kept.tokens, tile)) + sum(map(streamed.tokens, others)) for tile, others in passes if others)
    inputs.progress.expect(sum(of_passes), "token")
    for number, tile in enumerate(plan.tiles):
        held, tokens = None, 0.0
        for group in plan.groups:
            left = waiting(tile, group)
            if left and held is None:
                begun = time.monotonic()
                batches = [kept.batches[i] for i in tile]
                held = GradientCache(network, layers, batches, plan.dense, alone, inputs.progress.update)
                tokens = GROUP_SECONDS * sum(map(kept.tokens, tile)) / (time.monotonic() - begun)
            for part in split_by_size([streamed.tokens(n) for n in left], tokens):
                others = [left[place] for place in part]
                rows = held.stream([streamed.batches[n] for n in others], contractions, by_example)
                for n, row in zip(others, rows, strict=True):
                    for i, products in zip(tile, row, strict=True):
                        for method, product in products.items():
                            pieces[piece(method, i, n)] = product.cpu().numpy()
            if not by_example and number == len(plan.tiles) - 1:
                for run in group:
                    yield from finished(run)
        if by_example:
            for run in tile:
                yield from finished(run)
