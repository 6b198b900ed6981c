"""Chooses examples that are good and unlike each other: maximal marginal relevance (Carbonell and Goldstein 1998)."""

from collections.abc import Callable, Iterator

import numpy as np

# Parts of 1 to which vectors are rounded: float64 holds the sum of products of two such vectors to the last bit, in
# whatever order it is taken. So the same vectors give the same choice on every machine.
GRID = np.float32(2**24)
WINDOW = 16_384  # examples whose vectors are in memory: those whose bounds are the highest
FIRST_BLOCK, LARGEST_BLOCK = 32, 2048  # of them that are compared at once, more where a block did not settle it
TOGETHER = 128  # at least, where there are as many
CHOSEN_AT_ONCE = 4096  # chosen ones that they are compared with at once
CHOSEN = np.iinfo(np.int32).max
LEAST = -2.0  # below every cosine, of rounded vectors too


def relevance(score: np.ndarray) -> np.ndarray:
    """Ranks of ordered scores [n], from 1 (the first) to 0 (the last); equal ones share the mean of theirs."""
    n = len(score)
    starts = np.flatnonzero(np.concatenate([[True], score[1:] != score[:-1]])) if n else np.array([], dtype=int)
    ends = np.append(starts[1:], n)
    middle = np.repeat((starts + ends - 1) / 2, ends - starts)
    return 1 - middle / max(n - 1, 1)


def marginal(relevant: np.ndarray, vectors_of: Callable[[np.ndarray], np.ndarray], weight: float) -> Iterator[int]:
    """Gives one place after the other: that of the highest (1 − w) · relevance − w · (largest cosine to those before).

    relevant: [n], of examples in the order by which ties are decided. vectors_of: places [m] -> unit vectors [m, d]
    float32. w: weight.

    An example's value only falls as others are chosen. So what it was when it was last compared bounds it from above,
    and only examples whose bound is the highest are compared with those chosen since: the result is that of comparing
    all with all, without most of the products (lazy greedy, Minoux 1978).
    """
    all_of = _Examples((1 - weight) * relevant, weight)
    chosen: list[np.ndarray] = []  # vectors [up to CHOSEN_AT_ONCE, d]
    count = 0
    while all_of.bound.max(initial=-np.inf) > -np.inf:
        window, outside = _highest(all_of.bound)
        part, vectors = all_of.take(window), _on_grid(vectors_of(window))
        while (best := _settle(part, vectors, chosen, count, window, outside)) is not None:
            yield int(window[best])
            part.bound[best], part.seen[best] = -np.inf, CHOSEN
            if count % CHOSEN_AT_ONCE == 0:
                chosen.append(np.empty((CHOSEN_AT_ONCE, vectors.shape[1]), dtype=np.float32))
            chosen[-1][count % CHOSEN_AT_ONCE] = vectors[best]
            count += 1
        all_of.put(window, part)


class _Examples:
    """What is known of the values of examples [n]: own, what relevance adds; nearest, the largest cosine to the first
    `seen` of the chosen; bound, the value that this would make, and −∞ of the chosen.
    """

    def __init__(self, own: np.ndarray, weight: float) -> None:
        self.own, self.weight = own, weight
        self.nearest, self.seen = np.full(len(own), LEAST), np.zeros(len(own), dtype=np.int32)
        self.bound = own - weight * LEAST

    def take(self, places: np.ndarray) -> "_Examples":
        """A copy of some of them."""
        part = _Examples(self.own[places], self.weight)
        part.nearest, part.seen, part.bound = self.nearest[places], self.seen[places], self.bound[places]
        return part

    def put(self, places: np.ndarray, part: "_Examples") -> None:
        """Puts them back where they were taken from."""
        self.nearest[places], self.seen[places], self.bound[places] = part.nearest, part.seen, part.bound

    def compare(self, rows: np.ndarray, vectors: np.ndarray, chosen: list[np.ndarray], count: int) -> None:
        """Compares rows, whose vectors these are [m, d], with all of the `count` chosen that they have not seen."""
        at = int(self.seen[rows].min())
        while at < count:
            block, first = divmod(at, CHOSEN_AT_ONCE)
            end = min(CHOSEN_AT_ONCE, count - block * CHOSEN_AT_ONCE)
            self.nearest[rows] = largest_cosine(vectors, chosen[block][first:end], self.nearest[rows])
            at = block * CHOSEN_AT_ONCE + end
        self.seen[rows] = count
        self.bound[rows] = self.own[rows] - self.weight * self.nearest[rows]


def largest_cosine(vectors: np.ndarray, others: np.ndarray, least: np.ndarray) -> np.ndarray:
    """The largest product of each of `vectors` [m, d] with `others` [s, d], or `least` [m] where that is larger.

    Both are float32 on the grid, of unit vectors; the result is exact in float64. In float32 it is found which of the
    products may be the largest: a sum of d products is off by d · 2⁻²⁴ at most (Higham 2002, section 3.1).
    """
    off = np.float32((vectors.shape[1] + 4) * 2.0**-24)  # the 4: so that rounding what follows loses nothing
    about = vectors @ others.T
    largest = about.max(axis=1)
    larger = largest + off > least
    from_here = np.where(larger, largest - 2 * off, np.float32(np.inf))  # float32, or all products would be converted
    near, other = np.divmod(np.flatnonzero(about >= from_here[:, None]), len(others))
    found = least.copy()
    if len(near) <= 4 * len(vectors):
        np.maximum.at(found, near, np.einsum("nd,nd->n", vectors[near], others[other], dtype=np.float64))
    else:  # as where many texts are the same
        exact = (vectors[larger].astype(np.float64) @ others.T.astype(np.float64)).max(axis=1)
        found[larger] = np.maximum(found[larger], exact)
    return found


def _on_grid(vectors: np.ndarray) -> np.ndarray:
    return np.rint(vectors * GRID) / GRID


def _highest(bound: np.ndarray) -> tuple[np.ndarray, tuple[float, int]]:
    """The places of the WINDOW highest bounds, ascending, and (bound, −place) of the first of all others."""
    if len(bound) <= WINDOW:
        return np.arange(len(bound)), (-np.inf, 0)
    least = np.partition(bound, -WINDOW)[-WINDOW]
    inside = bound > least
    inside[np.flatnonzero(bound == least)[: WINDOW - inside.sum()]] = True
    others = np.flatnonzero(~inside)
    first = others[bound[others].argmax()]
    return np.flatnonzero(inside), (bound[first], -first)


def _settle(
    part: _Examples, vectors: np.ndarray, chosen: list[np.ndarray], count: int, window: np.ndarray, outside: tuple
) -> int | None:
    """Which of a window has the highest value, the first of equal ones; None where another outside may have it."""
    block = FIRST_BLOCK
    while True:
        best = int(part.bound.argmax())
        if part.bound[best] == -np.inf or (part.bound[best], -window[best]) < outside:
            return None
        if part.seen[best] >= count:
            return best
        stale = np.flatnonzero(part.seen < count)
        # Those that have seen about as many: one that has seen none does not let all be compared with all. And never a
        # few with many: that takes as long as it takes to read the many.
        behind = np.frexp(count - part.seen[stale])[1]
        wanted = behind[_first(-part.bound[stale], block)]
        for group, there in zip(*np.unique(wanted, return_counts=True), strict=True):
            rows = stale[behind == group]
            rows = rows[_first(-part.bound[rows], max(there, TOGETHER))]
            part.compare(rows, vectors[rows], chosen, count)
        block = min(2 * block, LARGEST_BLOCK)


def _first(values: np.ndarray, k: int) -> np.ndarray:
    """Where the k lowest values are, in any order."""
    return np.argpartition(values, k)[:k] if k < len(values) else np.arange(len(values))
