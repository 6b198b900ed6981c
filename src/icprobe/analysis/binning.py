"""Puts examples into bins: ICP's by threshold, any other method's as many examples from the same end."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from icprobe.errors import ConfigError, ScoreError
from icprobe.formatting import bin_name, parse_threshold

OVERLAP_COLUMNS = ["method", "bin", "n", "n_overlap", "overlap", "chance", "low", "high"]


def check_thresholds(thresholds: Sequence[str]) -> None:
    """Raises ConfigError where a threshold cannot be read or two of them name the same bin."""
    names = {}
    for threshold in thresholds:
        name = bin_name(threshold)
        if name in names:
            raise ConfigError(f"bins: {names[name]!r} and {threshold!r} are the same bin; keep one of them.")
        names[name] = threshold


def members(scores: pd.DataFrame, threshold: str, reference: pd.DataFrame) -> list[str]:
    """Finds the ids in a method's bin, best fitting first.

    scores: the method's `id`, `score` [N]; reference: those of ICP (share of tasks helped), of the same examples. k is
    how many ICP scores meet the threshold; the bin is the first k by (score, id) for `<=`, by (−score, id) for `>`, ids
    compared as strings. For ICP itself that is the threshold. Raises ScoreError where the examples differ, an ICP score
    is missing, or the method has evaluated fewer than k examples.
    """
    return bins(reference, scores, [threshold])[threshold]


def bins(
    scores_icp: pd.DataFrame, scores_other: pd.DataFrame | None, thresholds: Sequence[str]
) -> dict[str, list[str]]:
    """Finds the ids of each threshold's bin in rank order, as `members` defines it: {threshold: ids}.

    Without scores_other: ICP's own bins.
    """
    check_thresholds(thresholds)
    scores = scores_icp if scores_other is None else scores_other
    icp = scores_icp["score"].to_numpy(dtype=np.float64)
    ids, values = scores["id"].to_numpy(), scores["score"].to_numpy(dtype=np.float64)
    by_id = _by_id(scores["id"])
    _aligned(scores["id"], by_id, scores_icp["id"], "the other method")
    ranking = _Ranking(values, by_id)
    result = {}
    for threshold, k in _sizes(icp, thresholds).items():
        if k > ranking.evaluated:
            raise ScoreError(
                f"Bin {threshold} holds {k} examples of ICP, but the other method has evaluated "
                f"{ranking.evaluated} of {len(ids)}. Raise its budget, or leave it out of finetune.methods."
            )
        result[threshold] = ids[ranking.first(threshold, k)].tolist()
    return result


def overlaps(scores: Mapping[str, pd.Series], thresholds: Sequence[str], reference: str = "icp") -> pd.DataFrame:
    """Counts how many examples of each method's bins lie in the reference's bin of the same name.

    scores: method -> score [N] indexed by id. Returns `method` (all but the reference), `bin` (the threshold as given),
    `n` (the bin's size), `n_overlap`, `overlap` = n_overlap/n (NaN when n is 0), `chance` = n_reference/N, what a
    random bin would reach, and `low`, `high`, the overlap's 95% interval for other examples of the same kind. A method
    that has evaluated fewer examples than the bin holds shows its smaller n. Raises ScoreError where the reference is
    absent, a score of it is missing, or the examples differ.

    The interval is Wilson's for n draws. Other examples would give another bin of the reference, each member of which
    lies in the method's bin with the same chance: a binomial count, if the method's limit stood fast. That it moves
    with the examples, so that both bins keep one size, makes the interval up to a third too wide where bins agree
    much. Simulated (N of 108 and 400, rank correlations from 0 to 0.95) it covers the truth in 93% of cases or more.
    A bootstrap over examples that forms both bins anew, the other candidate, is as good for large bins, but covers it
    in 63 to 95% of cases for bins of 8; drawing from the bin's members alone would call a share of 0 or 1 certain.
    """
    check_thresholds(thresholds)
    if reference not in scores:
        known = ", ".join(scores) or "nothing"
        raise ScoreError(f"Bins need the scores of {reference}; there are those of {known}.")
    target = scores[reference]
    values = target.to_numpy(dtype=np.float64)
    sizes = _sizes(values, thresholds)
    inside = {threshold: _meets(values, threshold) for threshold in thresholds}  # bool [N]
    rows = []
    for method, score in scores.items():
        if method == reference:
            continue
        by_id = _by_id(score.index)
        place = _aligned(score.index, by_id, target.index, method)
        ranking = _Ranking(score.to_numpy(dtype=np.float64), by_id)
        for threshold, size in sizes.items():
            chosen = ranking.first(threshold, min(size, ranking.evaluated))
            n, n_overlap = len(chosen), int(inside[threshold][place[chosen]].sum())
            share, chance = n_overlap / n if n else np.nan, size / max(len(values), 1)
            rows.append((method, threshold, n, n_overlap, share, chance, *_wilson(n_overlap, n)))
    return pd.DataFrame(rows, columns=OVERLAP_COLUMNS)


def _wilson(count: int, n: int) -> tuple[float, float]:
    """The 95% interval of count/n (Wilson 1927); NaN where n is 0."""
    if not n:
        return np.nan, np.nan
    # Here: the Snakefile reads this module each time it is parsed, and statsmodels takes a second.
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, method="wilson")
    # Its rounding misses 0 and 1 by the last digit.
    return float(low) if count else 0.0, float(high) if count < n else 1.0


class _Ranking:
    """Examples [N] from the lowest and from the highest score on, ids breaking ties; NaN is last in both."""

    def __init__(self, values: np.ndarray, by_id: np.ndarray):
        # A stable sort of what is in the order of ids leaves ties in that order.
        self._ascending = by_id[np.argsort(values[by_id], kind="stable")]
        self._descending = by_id[np.argsort(-values[by_id], kind="stable")]
        self.evaluated = int((~np.isnan(values)).sum())

    def first(self, threshold: str, k: int) -> np.ndarray:
        """Finds the positions [k] of the bin's members in rank order."""
        sign, _ = parse_threshold(threshold)
        return (self._ascending if sign == "<=" else self._descending)[:k]


def _by_id(ids: pd.Series | pd.Index) -> np.ndarray:
    """Sorts positions [N] by their ids as strings."""
    return pd.Series(ids.array).astype(str).argsort(kind="stable").to_numpy()


def _aligned(ids: pd.Series | pd.Index, by_id: np.ndarray, reference: pd.Series | pd.Index, method: str) -> np.ndarray:
    """Finds where each of ids [N] is in the reference; compares them in sorted order, which is faster."""
    ids, reference = pd.Index(ids), pd.Index(reference)
    if ids.equals(reference):
        return np.arange(len(ids))
    reference_by_id = _by_id(reference)
    if not ids.take(by_id).equals(reference.take(reference_by_id)):
        raise ScoreError(
            f"The scores of {method} ({len(ids)} examples) and of ICP ({len(reference)}) are not of "
            "the same examples. Compute both from the same data."
        )
    place = np.empty(len(ids), dtype=np.intp)
    place[by_id] = reference_by_id
    return place


def _meets(values: np.ndarray, threshold: str) -> np.ndarray:
    sign, limit = parse_threshold(threshold)
    return values <= limit if sign == "<=" else values > limit


def _sizes(values: np.ndarray, thresholds: Sequence[str]) -> dict[str, int]:
    if np.isnan(values).any():
        raise ScoreError(f"{np.isnan(values).sum()} of {len(values)} ICP scores are NaN. Bins need all of them.")
    return {threshold: int(_meets(values, threshold).sum()) for threshold in thresholds}
