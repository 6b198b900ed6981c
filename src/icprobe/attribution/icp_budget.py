"""In-context probing for those who want the best and the worst, and cannot pay for every example with every task."""

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm

from icprobe.attribution.icp import Probe
from icprobe.attribution.matrix import Inputs, Pieces, check_finite
from icprobe.engine import batching

logger = logging.getLogger(__name__)

# (examples, tasks), as numbers from 0, → effects [examples, tasks]
Evaluate = Callable[[Sequence[int], Sequence[int]], np.ndarray]


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    share: float = 0.1,
    round_tasks: int = 10,
    confidence: float = 0.95,
) -> Pieces:
    """Columns `score` (share of the tried tasks that the example helps) and `n_tasks` (how many were tried).

    Needs all examples at once, whichever of them are asked for: it is one shard. See `eliminate`.
    """
    order = np.concatenate(batching.batches(inputs.lengths, batch_tokens))
    rounds = _Rounds(inputs, method, order, batch_tokens)
    n, m = len(order), len(inputs.tasks)
    scores, tried = eliminate(n, m, rounds.effects, share, round_tasks, confidence, inputs.seed)
    inputs.progress.remains(0, 0.0)
    logger.info("%.0f%% of the cost of all pairs", 100 * tried.sum() / (n * m))
    place = {row: number for number, row in enumerate(order)}
    for rows in batches:
        at = [place[row] for row in rows]
        yield method, rows, np.stack([scores[at], tried[at]], axis=1).astype(np.float32)


class _Rounds:
    """Effects of the examples that are left on the tasks of a round.

    A round that is finished, and what one has so far, is among `inputs.pieces`. order: rows of the examples, by the
    numbers that `eliminate` gives them.
    """

    def __init__(self, inputs: Inputs, method: str, order: np.ndarray, batch_tokens: int) -> None:
        self._inputs, self._method, self._order = inputs, method, order
        self._probe = Probe(inputs, batch_tokens)
        self._tasks_left = [*range(len(inputs.tasks))]
        inputs.progress.expect(len(order) * len(inputs.tasks), "pair", self._probe.tokens(order))

    def effects(self, examples: Sequence[int], tasks: Sequence[int]) -> np.ndarray:
        """Computes A[z, t] of some examples and tasks, or finds it: [examples, tasks] float32, in nats."""
        progress, pieces = self._inputs.progress, self._inputs.pieces
        rows = self._order[examples]
        # At most what is left: examples that have stopped are tried no more, the others anew in each round.
        later = [task for task in self._tasks_left if task not in tasks]
        again = math.ceil(len(later) / len(tasks)) * self._probe.tokens(rows, [])
        tokens = again + self._probe.tokens(rows, self._tasks_left)
        progress.remains(len(examples) * len(self._tasks_left), tokens)
        self._tasks_left = later
        name = f"{self._method}/round/{tasks[0]}"
        if name in pieces:
            progress.found(pieces[name].size, self._probe.tokens(rows, tasks))
        else:
            effects = self._probe.effects(rows, name, tasks)
            # Of NaN no sign could be counted: it would pass for a task that the example does not help.
            check_finite(self._method, list(self._inputs.lengths["id"].iloc[rows]), effects)
            pieces[name] = effects
        return pieces[name]


def eliminate(
    n: int,
    m: int,
    evaluate: Evaluate,
    share: float = 0.1,
    round_tasks: int = 10,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores n examples by successive elimination: (share of tried tasks with an effect > 0, number of them), each [n].

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
    """Bounds the share of positives among `of` tasks, from `tried` ones drawn without replacement: (low, high), [n]."""
    remaining = (of - tried) / max(of - 1, 1)  # finite population correction of the variance
    z2 = z**2 * remaining
    share = positive / tried
    middle = (share + z2 / (2 * tried)) / (1 + z2 / tried)
    radius = np.sqrt(z2 * (share * (1 - share) / tried + z2 / (4 * tried**2))) / (1 + z2 / tried)
    return middle - radius, middle + radius
