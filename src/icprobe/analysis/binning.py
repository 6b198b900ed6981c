"""Puts examples into bins, and says where a bin's border falls among examples of one score.

A bin is one end of a method's ranking. Its size k is a share or number of all examples (`top 20%`, `bottom 1000`), or
by a threshold on the icp score (`>0.85`) the number of examples whose icp score meets it, whatever the method.
"""

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pandas as pd

from icprobe.errors import ConfigError, ScoreError
from icprobe.formatting import bin_name, number, parse_bin

OVERLAP_COLUMNS = ["method", "bin", "n", "n_overlap", "overlap", "chance", "low", "high"]
BORDER_COLUMNS = ["method", "bin", "n", "border", "n_tied", "n_tied_inside", "n_values"]
COARSE = 0.1  # of a bin that was chosen among examples of one score: a larger share is warned of


def check_bins(bins: Sequence[str]) -> None:
    """Raises ConfigError where a bin cannot be read or two of them are the same."""
    names = {}
    for bin in bins:
        name = bin_name(bin)
        if name in names:
            raise ConfigError(f"bins: {names[name]!r} and {bin!r} are the same bin; keep one of them.")
        names[name] = bin


def size_of(bin: str, n: int) -> int:
    """How many of n examples a bin by share or number holds: a share rounded half up, one at least.

    Raises ScoreError where there are fewer examples than the bin asks for.
    """
    asked = parse_bin(bin)
    if asked.percent:
        share = (asked.number * n / 100).quantize(Decimal(1), ROUND_HALF_UP)
        return min(max(int(share), 1), n)
    if asked.number > n:
        raise ScoreError(f"bins: {bin!r} asks for more examples than there are ({n}). Take fewer, or a share of them.")
    return int(asked.number)


def members(scores: pd.DataFrame, bin: str, reference: pd.DataFrame | None = None) -> list[str]:
    """Finds the ids in a method's bin, best fitting first.

    scores: the method's `id`, `score` [N], and `mean_effect` where it has one. reference: the same of ICP (share of
    tasks helped), of the same examples; needed for thresholds alone. The bin is the first k by (score, mean effect,
    id) where it is of the lowest scores (`<=`, `bottom`), else by (−score, −mean effect, id), ids compared as strings.
    For ICP itself a threshold is just that. Raises ScoreError where the examples differ, an ICP
    score is missing, there are fewer examples than the bin asks for, or the method has evaluated fewer than k.
    """
    return bins(reference, scores, [bin])[bin]


def bins(
    scores_icp: pd.DataFrame | None, scores_other: pd.DataFrame | None, names: Sequence[str]
) -> dict[str, list[str]]:
    """Finds the ids of each bin in rank order, as `members` defines it: {bin: ids}. Without scores_other: ICP's own."""
    check_bins(names)
    scores = scores_icp if scores_other is None else scores_other
    table = scores.set_index("id")
    icp = None if scores_icp is None else scores_icp.set_index("id")["score"]
    ranking = Ranking(table["score"], table.get("mean_effect"))
    if icp is not None:
        _aligned(table.index, ranking.by_id, icp.index, "the other method")
    result = {}
    for name, k in sizes(icp, names, len(table)).items():
        if k > ranking.evaluated:
            asked = f"holds {k} examples" + (" of ICP" if parse_bin(name).is_threshold else "")
            raise ScoreError(
                f"Bin {name} {asked}, but the other method has evaluated "
                f"{ranking.evaluated} of {len(table)}. Raise its budget, or leave it out of finetune.methods."
            )
        result[name] = table.index[ranking.first(name, k)].tolist()
    return result


def overlaps(
    scores: Mapping[str, pd.Series],
    names: Sequence[str],
    reference: str = "icp",
    mean_effects: Mapping[str, pd.Series] | None = None,
) -> pd.DataFrame:
    """Counts how many examples of each method's bins lie in the reference's bin of the same name.

    scores: method -> score [N] indexed by id; mean_effects: the same of the methods that have them. Returns `method`
    (all but the reference), `bin` (as given), `n` (the bin's size), `n_overlap`, `overlap` = n_overlap/n (NaN when n
    is 0), `chance` = n_reference/N, what a random bin would reach, and `low`, `high`, the overlap's 95% interval for
    other examples of the same kind. A method that has evaluated fewer examples than the bin holds shows its smaller n.
    Raises ScoreError where the reference is absent, a score of it is missing, or the examples differ.

    The interval is Wilson's for n draws. Other examples would give another bin of the reference, each member of which
    lies in the method's bin with the same chance: a binomial count, if the method's limit stood fast. That it moves
    with the examples, so that both bins keep one size, makes the interval up to a third too wide where bins agree
    much. Simulated (N of 108 and 400, rank correlations from 0 to 0.95) it covers the truth in 93% of cases or more.
    A bootstrap over examples that forms both bins anew, the other candidate, is as good for large bins, but covers it
    in 63 to 95% of cases for bins of 8; drawing from the bin's members alone would call a share of 0 or 1 certain.
    """
    check_bins(names)
    if reference not in scores:
        known = ", ".join(scores) or "nothing"
        raise ScoreError(f"Bins need the scores of {reference}; there are those of {known}.")
    effects = mean_effects or {}
    target = scores[reference]
    of_reference = Ranking(target, effects.get(reference))
    asked = {name: min(k, of_reference.evaluated) for name, k in sizes(target, names, len(target)).items()}
    inside = {name: np.isin(np.arange(len(target)), of_reference.first(name, k)) for name, k in asked.items()}
    rows = []
    for method, score in scores.items():
        if method == reference:
            continue
        ranking = Ranking(score, effects.get(method))
        place = _aligned(score.index, ranking.by_id, target.index, method)
        for name, size in asked.items():
            chosen = ranking.first(name, min(size, ranking.evaluated))
            n, n_overlap = len(chosen), int(inside[name][place[chosen]].sum())
            share, chance = n_overlap / n if n else np.nan, size / max(len(target), 1)
            rows.append((method, name, n, n_overlap, share, chance, *_wilson(n_overlap, n)))
    return pd.DataFrame(rows, columns=OVERLAP_COLUMNS)


def borders(scores: Mapping[str, pd.Series], names: Sequence[str]) -> pd.DataFrame:
    """Says of each method's bins where they end, and how many examples are tied there.

    scores: method -> score [N] indexed by id, with those of icp where a bin is a threshold on them. Returns `method`,
    `bin`, `n`, `border` (the score of the last example in the bin; NaN where it is empty), `n_tied` (examples of that
    score), `n_tied_inside` (those of them that are in the bin) and `n_values` (different scores). Where `n_tied` is
    more than `n_tied_inside`, the score does not say which of them belong in. A method that has evaluated fewer
    examples than the bin holds shows its smaller n.
    """
    check_bins(names)
    rows = []
    for method, score in scores.items():
        ranking = Ranking(score)
        for name, size in sizes(scores.get("icp"), names, len(score)).items():
            k = min(size, ranking.evaluated)
            tied = ranking.tied(name, k)
            inside = int(np.isin(tied, ranking.first(name, k)).sum())
            rows.append((method, name, k, score.iloc[tied[0]] if k else np.nan, len(tied), inside, score.nunique()))
    return pd.DataFrame(rows, columns=BORDER_COLUMNS)


def decided_by_ties(table: pd.DataFrame) -> pd.DataFrame:
    """The bins of which ties decide more than COARSE; table: as `borders` makes it."""
    return table[(table["n_tied"] > table["n_tied_inside"]) & (table["n_tied_inside"] > COARSE * table["n"])]


def coarse(table: pd.DataFrame) -> list[str]:
    """Warns, a sentence each, of bins of which ties decide more than COARSE; table: as `borders` makes it."""
    return [
        f"{row.method}, bin {row.bin}: {row.n_tied} examples share the score {number(row.border)} at its border, and "
        f"{row.n_tied_inside} of them are among its {row.n}, by mean effect where there is one, then by id. The score "
        f"is too coarse for this bin: it takes {row.n_values} values. If it is a share of tasks helped, more tasks "
        "or their mean (attribution.aggregators) make it finer."
        for row in decided_by_ties(table).itertuples()
    ]


def ranks(score: pd.Series) -> pd.Series:
    """Ranks of scores [N]: 1 is the highest, equal scores share the best of their ranks; NaN where not evaluated."""
    return score.rank(ascending=False, method="min")


def _wilson(count: int, n: int) -> tuple[float, float]:
    """The 95% interval of count/n (Wilson 1927); NaN where n is 0."""
    if not n:
        return np.nan, np.nan
    # Here: the Snakefile reads this module each time it is parsed, and statsmodels takes a second.
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, method="wilson")
    # Its rounding misses 0 and 1 by the last digit.
    return float(low) if count else 0.0, float(high) if count < n else 1.0


class Ranking:
    """Examples [N] from the lowest and from the highest score on; NaN is last in both.

    score: [N] indexed by id; mean_effect: the same. Of equal scores those of the lower (higher) mean effect come first,
    and of equal effects those that are first by id.
    """

    def __init__(self, score: pd.Series, mean_effect: pd.Series | None = None):
        self.by_id = _by_id(score.index)
        self._values = score.to_numpy(dtype=np.float64)
        effects = np.zeros(len(score)) if mean_effect is None else mean_effect.to_numpy(dtype=np.float64)
        # A stable sort of what is in the order of ids leaves ties in that order.
        self._ascending, self._descending = (
            self.by_id[np.lexsort((sign * effects[self.by_id], sign * self._values[self.by_id]))] for sign in (1, -1)
        )
        self.evaluated = int((~np.isnan(self._values)).sum())

    def first(self, bin: str, k: int) -> np.ndarray:
        """Finds the positions [k] of a bin's members in rank order."""
        return self._order(bin)[:k]

    def tied(self, bin: str, k: int) -> np.ndarray:
        """Finds the positions of all examples, in rank order, that have the score of the last of a bin's k members."""
        order = self._order(bin)
        return order[self._values[order] == self._values[order[k - 1]]] if k else order[:0]

    def _order(self, bin: str) -> np.ndarray:
        return self._descending if parse_bin(bin).is_best else self._ascending


def _by_id(ids: pd.Series | pd.Index) -> np.ndarray:
    """Sorts positions [N] by their ids as strings."""
    return pd.Series(ids.array).astype(str).argsort(kind="stable").to_numpy()


def _aligned(ids: pd.Index, by_id: np.ndarray, reference: pd.Index, method: str) -> np.ndarray:
    """Finds where each of ids [N] is in the reference; compares them in sorted order, which is faster."""
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


def sizes(icp: pd.Series | None, names: Sequence[str], n: int) -> dict[str, int]:
    """The size of each bin of n examples; icp: [n], whose scores decide on thresholds."""
    thresholds = [name for name in names if parse_bin(name).is_threshold]
    if thresholds and icp is None:
        raise ScoreError(f"Bin {thresholds[0]} is a threshold on the icp score, which is absent.")
    if thresholds and icp.isna().any():
        raise ScoreError(f"{icp.isna().sum()} of {len(icp)} ICP scores are NaN. Bins need all of them.")
    if thresholds and len(icp) and not icp.between(0, 1).all():
        raise ScoreError(
            f"Bin {thresholds[0]} is a threshold on shares of tasks, but the icp scores go from {number(icp.min())} to "
            f"{number(icp.max())}. Write bins such as top 20%."
        )
    return {
        name: int(_meets(icp.to_numpy(dtype=np.float64), name).sum()) if name in thresholds else size_of(name, n)
        for name in names
    }


def _meets(values: np.ndarray, threshold: str) -> np.ndarray:
    limit = parse_bin(threshold)
    return values > float(limit.number) if limit.is_best else values <= float(limit.number)
