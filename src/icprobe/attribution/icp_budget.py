"""In-context probing for those who want the best and the worst, and cannot pay for every example with every task."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm

from icprobe.attribution.icp import Probe
from icprobe.attribution.matrix import Blocks, Inputs, check_finite

logger = logging.getLogger(__name__)

# (rows, tasks) → effects [rows, tasks]
Evaluate = Callable[[Sequence[int], Sequence[int]], np.ndarray]


def attribute(
    inputs: Inputs,
    method: str,
    runs: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    share: float = 0.1,
    round_tasks: int = 10,
    confidence: float = 0.95,
) -> Blocks:
    """Columns `score` (share of the tried tasks that the example helps) and `n_tasks` (how many were tried).

    Needs all examples at once: it is one shard. See `eliminate`. Each round, and what a round has so far, is kept among
    `inputs.pieces`.
    """
    probe = Probe(inputs, batch_tokens)
    place = {row: number for number, row in enumerate(np.concatenate(runs))}
    order = np.concatenate(runs)

    progress, pieces = inputs.progress, inputs.pieces
    progress.expect(len(order) * len(inputs.tasks), "pair")
    waiting = len(inputs.tasks)

    def evaluate(rows: Sequence[int], tasks: Sequence[int]) -> np.ndarray:
        nonlocal waiting
        # What is left at most: examples that have stopped are tried no more.
        progress.total = progress.n + len(rows) * waiting
        waiting -= len(tasks)
        name = f"{method}/round/{tasks[0]}"
        if name in pieces:
            progress.found(pieces[name].size)
        else:
            effects = probe.effects(order[rows], name, tasks)
            # Of NaN no sign could be counted: it would pass for a task that the example does not help.
            check_finite(method, list(inputs.lengths["id"].iloc[order[rows]]), effects)
            pieces[name] = effects
        return pieces[name]

    scores, tried = eliminate(len(order), len(inputs.tasks), evaluate, share, round_tasks, confidence, inputs.seed)
    progress.total = progress.n
    logger.info("%.0f%% of the cost of all pairs", 100 * tried.sum() / (len(order) * len(inputs.tasks)))
    for rows in runs:
        at = [place[row] for row in rows]
        yield method, rows, np.stack([scores[at], tried[at]], axis=1).astype(np.float32)


def eliminate(
    n: int,
    m: int,
    evaluate: Evaluate,
    share: float = 0.1,
    round_tasks: int = 10,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n] (share of tried tasks with an effect > 0) and numbers of tried tasks [n], by successive elimination.

    Tasks come in random order, `round_tasks` at a time. After each round an example stops if its interval (Wilson's,
    narrowed for drawing without replacement) reaches neither the best nor the worst `share` of all examples: if fewer
    than that many lower bounds were below its upper bound it could still be among the best, and so at the other end.
    Source of the idea: successive elimination, Even-Dar, Mannor and Mansour, JMLR 7 (2006).
    """
    order = np.random.default_rng(seed).permutation(m)
    k = max(1, round(share * n))
    z = norm.ppf(0.5 + confidence / 2)
    positive, tried = np.zeros(n), np.zeros(n)
    active = np.arange(n)
    for start in range(0, m, round_tasks):
        tasks = order[start : start + round_tasks]
        positive[active] += (evaluate(active, tasks) > 0).sum(axis=1)
        tried[active] += len(tasks)
        low, high = wilson(positive, tried, m, z)
        best, worst = np.sort(low)[::-1][k - 1], np.sort(high)[k - 1]
        active = active[(high[active] >= best) | (low[active] <= worst)]
        if not len(active):
            break
    return positive / tried, tried


def wilson(positive: np.ndarray, tried: np.ndarray, of: int, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds [n] of the share of positives among `of` tasks, from `tried` ones drawn without replacement."""
    remaining = (of - tried) / max(of - 1, 1)  # finite population correction of the variance
    z2 = z**2 * remaining
    share = positive / tried
    middle = (share + z2 / (2 * tried)) / (1 + z2 / tried)
    radius = np.sqrt(z2 * (share * (1 - share) / tried + z2 / (4 * tried**2))) / (1 + z2 / tried)
    return middle - radius, middle + radius
