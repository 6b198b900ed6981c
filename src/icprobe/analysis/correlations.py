"""Estimates how much two methods agree: four correlations, each with a 95% interval.

A bootstrap resample is stored as how often each example was drawn. With these counts, ranks need no second sort (a
cumulative sum over the tie groups), Spearman and Pearson of all pairs are one matrix product per resample, and Kendall
is bilinear in the counts, exact in whole numbers.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, norm

from icprobe.errors import ScoreError

STATISTICS = ("spearman", "pearson", "kendall", "spearman_partial_length")
COLUMNS = ["method_a", "method_b", "statistic", "value", "low", "high", "interval", "n"]
LABEL_COLUMNS = ["label", "method", *COLUMNS[2:]]
ELEMENTS_AT_ONCE = 20_000_000  # of [resamples, methods, examples]: 160 MB
KENDALL_ROWS_AT_ONCE = 512  # of the [n, n] signs of differences
PARTIAL_IS_UNDEFINED = 1e-12  # 1 - r² below this: a method that orders as length does


def correlations(
    scores: Mapping[str, pd.Series],
    n_target: pd.Series | None,
    pairs: Sequence[tuple[str, str]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    analytic_above: int = 20_000,
    statistics: Sequence[str] = STATISTICS,
) -> pd.DataFrame:
    """Computes the statistics of every pair of methods, with its 95% interval.

    scores: method -> score [N] indexed by id; the ids agree, their order need not. NaN = not evaluated: a pair is
    computed over the n examples that both have. n_target: response length in tokens, indexed by id; None leaves the
    partial correlation out. pairs: which ones (default all, a before b in the order of `scores`). statistics: which
    ones.

    Returns `method_a`, `method_b`, `statistic`, `value`, `low`, `high`, `interval`, `n`. Statistics: spearman (average
    ranks), pearson, kendall (tau-b), and spearman_partial_length, the rank correlation given length,
    (r_ab − r_at·r_bt) / √((1 − r_at²)(1 − r_bt²)). A constant input gives NaN. Intervals: up to `analytic_above`
    examples, the percentile bootstrap over examples, re-ranked, the same resamples for all pairs over the same
    examples, undefined ones dropped; above, `fisher_interval`. Raises ScoreError where ids disagree, a score is
    infinite or a length is missing.
    """
    pairs = list(combinations(scores, 2)) if pairs is None else list(pairs)
    if not pairs:
        return pd.DataFrame(columns=COLUMNS)
    values = _aligned(scores, n_target, pairs)
    missing = {method: np.isnan(values[method]) for pair in pairs for method in pair}

    # Pairs over the same examples are computed together; without missing values, that is all of them.
    groups = defaultdict(list)
    for a, b in pairs:
        groups[(~(missing[a] | missing[b])).tobytes()].append((a, b))
    found = {}
    for mask, members in groups.items():
        complete = np.frombuffer(mask, dtype=bool)
        methods = list(dict.fromkeys(method for pair in members for method in pair))
        rows = np.stack([values[method][complete] for method in methods])
        control = None if n_target is None else values[None][complete]
        numbered = [(methods.index(a), methods.index(b)) for a, b in members]
        tables = _of_complete(rows, control, numbered, resamples, seed, analytic_above, statistics)
        found.update(zip(members, tables, strict=True))
    return pd.DataFrame(
        [(*pair, statistic, *row) for pair in pairs for statistic, row in found[pair].items()],
        columns=COLUMNS,
    )


def label_correlations(
    scores: Mapping[str, pd.Series], labels: Mapping[str, pd.Series], n_target: pd.Series | None, **settings: Any
) -> pd.DataFrame:
    """Computes the rank correlations of each method's scores with each label that is a number.

    scores: method -> score [N] indexed by id; labels: label -> numbers [N] indexed by id, NaN = unlabelled, left out.
    n_target and settings: as `correlations` takes them. Returns `label`, `method`, `statistic` (spearman, and
    spearman_partial_length where lengths are known), `value`, `low`, `high`, `interval`, `n`.
    """
    tables = []
    for label, values in labels.items():
        name = f"the label {label}"  # no method's name has a blank
        pairs = [(method, name) for method in scores]
        by_rank = ("spearman", "spearman_partial_length")
        table = correlations({**scores, name: values}, n_target, pairs, statistics=by_rank, **settings)
        tables.append(table.assign(label=label).rename(columns={"method_a": "method"})[LABEL_COLUMNS])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=LABEL_COLUMNS)


def _aligned(
    scores: Mapping[str, pd.Series], n_target: pd.Series | None, pairs: Iterable[tuple[str, str]]
) -> dict[str | None, np.ndarray]:
    """Puts all scores into one order of ids: {method: float64 [N]}; the key None holds the lengths."""
    methods = dict.fromkeys(method for pair in pairs for method in pair)
    if unknown := [method for method in methods if method not in scores]:
        raise ScoreError(f"No scores of {', '.join(unknown)}; there are those of {', '.join(scores)}.")
    ids = scores[next(iter(methods))].index
    values = {}
    for method in methods:
        series = scores[method]
        if not series.index.equals(ids):
            places = series.index.get_indexer(ids)
            if len(series) != len(ids) or (places < 0).any():
                raise ScoreError(
                    f"The scores of {method} ({len(series)} examples) and of {next(iter(methods))} "
                    f"({len(ids)}) are not of the same examples. Compute both from the same data."
                )
            series = series.iloc[places]
        values[method] = series.to_numpy(dtype=np.float64)
        if np.isinf(values[method]).any():
            raise ScoreError(f"{np.isinf(values[method]).sum()} scores of {method} are infinite. Compute them again.")
    if n_target is not None:
        lengths = n_target.reindex(ids).to_numpy(dtype=np.float64)
        if np.isnan(lengths).any():
            unknown = ids[np.isnan(lengths)]
            raise ScoreError(
                f"{len(unknown)} examples have no length, the first is {unknown[0]!r}. "
                "Measure the lengths of the same data."
            )
        values[None] = lengths
    return values


def _of_complete(values, control, pairs, resamples, seed, analytic_above, statistics) -> list[dict[str, tuple]]:
    """Computes for each pair of rows of values [m, n] without NaN: {statistic: (value, low, high, interval, n)}."""
    n = values.shape[1]
    names = [name for name in statistics if control is not None or name != "spearman_partial_length"]
    bootstrap = n <= analytic_above
    interval = "bootstrap" if bootstrap else "analytic"
    if n < 2:
        nothing = (np.nan, np.nan, np.nan, interval, n)
        return [dict.fromkeys(names, nothing) for _ in pairs]

    once = np.ones((1, n), dtype=np.float32)
    points = estimates(values, control, pairs, once)
    if "kendall" in names:
        points["kendall"] = np.array([[kendalltau(values[a], values[b]).statistic for a, b in pairs]])
    if bootstrap:
        counts = resample_counts(n, resamples, seed)
        draws = estimates(values, control, pairs, counts)
        if "kendall" in names:
            draws["kendall"] = _resampled_kendall(values, pairs, counts)

    tables = []
    for k in range(len(pairs)):
        table = {}
        for name in names:
            value = float(points[name][0, k])
            if bootstrap:
                low, high = percentiles(draws[name][:, k]) if not np.isnan(value) else (np.nan, np.nan)
            else:
                low, high = fisher_interval(name, value, n)
            table[name] = (value, low, high, interval, n)
        tables.append(table)
    return tables


def resample_counts(n: int, resamples: int, seed: int) -> np.ndarray:
    """Draws bootstrap resamples: how often each of n examples is in each, float32 [resamples, n]; rows sum to n."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, n), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    return counts


def fisher_interval(statistic: str, value: float, n: int) -> tuple[float, float]:
    """Forms the 95% interval of a correlation from its normal approximation on the scale z = artanh(r).

    Variance of z: 1/(n − 3) for Pearson (Fisher 1921), 1.06/(n − 3) for Spearman and 0.437/(n − 4) for Kendall
    (Fieller, Hartley and Pearson 1957, Biometrika 44); a partial correlation loses one more (Fisher 1924).
    """
    variance, lost = {
        "pearson": (1.0, 3),
        "spearman": (1.06, 3),
        "kendall": (0.437, 4),
        "spearman_partial_length": (1.06, 4),
    }[statistic]
    if np.isnan(value) or n <= lost:
        return np.nan, np.nan
    half = norm.ppf(0.975) * np.sqrt(variance / (n - lost))
    with np.errstate(divide="ignore"):  # artanh(±1) is infinite, and the interval the point itself
        z = np.arctanh(value)
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """Finds the bounds of the central 95% of bootstrap draws; undefined ones do not count."""
    defined = draws[~np.isnan(draws)]
    if not defined.size:
        return np.nan, np.nan
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def estimates(values, control, pairs, counts) -> dict[str, np.ndarray]:
    """Computes Spearman, Pearson and the partial [R, pairs] of values [m, n] in each resample of counts [R, examples].

    An example is n / examples neighbouring values (the cells of its row of a matrix), which are drawn together.
    """
    m, n = values.shape
    cells = n // counts.shape[1]
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    ranked = values if control is None else np.vstack([values, control])
    ties = [TieGroups(row) for row in ranked]
    scale = np.abs(values - values.mean(axis=1, keepdims=True)).max(axis=1, keepdims=True)
    scaled = (values - values.mean(axis=1, keepdims=True)) / np.where(scale > 0, scale, 1)

    found = {name: np.empty((len(counts), len(pairs))) for name in STATISTICS if name != "kendall"}
    step = max(1, ELEMENTS_AT_ONCE // (len(ranked) * n))
    for start in range(0, len(counts), step):
        part = slice(start, start + step)
        drawn = np.repeat(counts[part].astype(np.float64), cells, axis=1)  # [r, n]
        total = drawn.sum(axis=1)[:, None, None]
        groups = [tie.counts(drawn) for tie in ties]
        defined = np.stack([(group > 0).sum(axis=1) > 1 for group in groups], axis=1)  # [r, m (+ control)]
        ranks = np.stack([tie.ranks(group) for tie, group in zip(ties, groups, strict=True)], axis=1)
        by_rank = _weighted_correlations(ranks - (total + 1) / 2, drawn, defined)
        centred = scaled[None] - (drawn @ scaled.T)[:, :, None] / total  # [r, m, n]
        by_value = _weighted_correlations(centred, drawn, defined[:, :m])
        found["spearman"][part] = by_rank[:, first, second]
        found["pearson"][part] = by_value[:, first, second]
        if control is not None:
            found["spearman_partial_length"][part] = partial_correlation(
                by_rank[:, first, second], by_rank[:, first, m], by_rank[:, second, m]
            )
    return found


def partial_correlation(r_ab: np.ndarray, r_at: np.ndarray, r_bt: np.ndarray) -> np.ndarray:
    """Computes the correlation of a and b given t, from the three plain ones; NaN where t determines a or b."""
    left_a, left_b = 1 - r_at**2, 1 - r_bt**2
    undefined = (left_a < PARTIAL_IS_UNDEFINED) | (left_b < PARTIAL_IS_UNDEFINED)
    with np.errstate(divide="ignore", invalid="ignore"):
        partial = (r_ab - r_at * r_bt) / np.sqrt(left_a * left_b)
    return np.where(undefined, np.nan, np.clip(partial, -1, 1))


class TieGroups:
    """The examples of one score [n] in ascending groups of equal values, by which a resample is ranked again."""

    def __init__(self, values: np.ndarray):
        self.order = np.argsort(values, kind="stable")
        changes = np.diff(values[self.order]) != 0
        self.starts = np.flatnonzero(np.concatenate([[True], changes]))
        self.group = np.empty(len(values), dtype=np.intp)
        self.group[self.order] = np.concatenate([[0], np.cumsum(changes)])

    def counts(self, drawn: np.ndarray) -> np.ndarray:
        """Counts the draws that fall in each group: [R, groups] from draws per example [R, n]."""
        return np.add.reduceat(drawn[:, self.order], self.starts, axis=1)

    def ranks(self, counts: np.ndarray) -> np.ndarray:
        """Finds the average rank of each example within the resample: [R, n] from draws per group [R, groups]."""
        return (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, self.group]


def _weighted_correlations(centred: np.ndarray, weights: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Computes correlations [r, k, k] of centred values [r, k, n], weights [r, n]; defined [r, k]: which rows vary."""
    weighted = centred * np.sqrt(weights)[:, None]
    covariance = weighted @ weighted.transpose(0, 2, 1)
    spread = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    spread = np.where(defined & (spread > 0), spread, np.nan)
    return np.clip(covariance / (spread[:, :, None] * spread[:, None]), -1, 1)


def _resampled_kendall(values: np.ndarray, pairs: Sequence[tuple[int, int]], counts: np.ndarray) -> np.ndarray:
    """Computes Kendall's tau-b [R, pairs] of values [m, n] in each resample.

    Concordant less discordant pairs are Σ_i<j c_i·c_j·sign(a_i − a_j)·sign(b_i − b_j). The products with the counts are
    whole numbers below 2^24 and so exact in float32.
    """
    n = values.shape[1]
    ties = [TieGroups(row) for row in values]
    untied = []  # pairs of draws that differ in value, times two, per method
    for tie in ties:
        squares = (tie.counts(counts).astype(np.float64) ** 2).sum(axis=1)
        untied.append(float(n) ** 2 - squares)
    codes = np.stack([tie.group for tie in ties]).astype(np.float32)

    difference = np.zeros((len(counts), len(pairs)))
    for start in range(0, n, KENDALL_ROWS_AT_ONCE):
        stop = min(start + KENDALL_ROWS_AT_ONCE, n)
        signs = [np.sign(code[start:stop, None] - code[None, start:]) for code in codes]  # [rows, n - start]
        for k, (a, b) in enumerate(pairs):
            agreement = np.triu(signs[a] * signs[b])
            products = counts[:, start:] @ agreement.T  # [R, rows]
            difference[:, k] += np.einsum("rb,rb->r", products, counts[:, start:stop], dtype=np.float64)
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    untied = np.stack(untied, axis=1)
    norm_ab = np.sqrt(untied[:, first]) * np.sqrt(untied[:, second])
    return 2 * difference / np.where(norm_ab > 0, norm_ab, np.nan)
