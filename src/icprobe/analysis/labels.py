"""Tests how well scores find labelled examples: AUCs of good values against others, and their differences."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from icprobe.analysis.headline import BASELINES, RESPONSE_TOKENS

LABEL_COLUMNS = ["label", "value", "method", "auc", "low", "high", "n_positive", "n_negative"]
DIFFERENCE_COLUMNS = ["label", "method_a", "method_b", "n_positive", "n_negative", "difference", "low", "high"]
DIFFERENCE_COLUMNS += ["p_value", "p_value_holm"]
MOST_KINDS = 12  # values of a label that are told apart one by one; one of more, such as a number, is no set of kinds
TAIL = 0.975


def auc(labels_positive: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    """Estimates how often a positive example scores above a negative one: the area under the ROC curve.

    A tie counts half. labels_positive: bool [N]; scores: [N], NaN = not evaluated, left out. Returns (auc, low, high)
    with its 95% interval, NaN where either class is empty; the interval is NaN where either has one example, or all
    scores are equal.

    The variance is DeLong's (Biometrics 44, 1988), of positives and negatives apart, so that a class of few examples
    widens it, and ties count. The interval is formed on the scale log(auc/(1 − auc)), which keeps it within [0, 1],
    with Student's t and the degrees of freedom of Brunner and Munzel (Biometrical Journal 42, 2000). Simulated with 7
    examples against 81, normal scores of equal spread, it covers the truth in 93 to 98% of cases; DeLong's plain
    interval does in 73 to 90%, a stratified percentile bootstrap in 78 to 89%. Where the scores separate the classes,
    or those of one are all equal, DeLong's variance lacks theirs, and the interval is `_by_formula`.
    """
    # Here and below: scores are made in a process for each method, which needs none of this and would wait a second.
    from scipy.special import expit, logit
    from scipy.stats import t as student
    from statsmodels.stats.nonparametric import rank_compare_2indep

    labels_positive, scores = np.asarray(labels_positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    evaluated = ~np.isnan(scores)
    positive, negative = (scores[evaluated & side] for side in (labels_positive, ~labels_positive))
    if not len(positive) or not len(negative):
        return np.nan, np.nan, np.nan
    with np.errstate(divide="ignore", invalid="ignore"):  # one example has no variance, all equal ones a variance of 0
        found = rank_compare_2indep(positive, negative)
    value = float(np.clip(found.prob1, 0, 1))  # its rounding may pass them
    if min(len(positive), len(negative)) < 2 or np.ptp(scores[evaluated]) == 0:
        return value, np.nan, np.nan
    if positive.min() > negative.max() or positive.max() < negative.min():
        value = round(value)
    if not np.ptp(positive) or not np.ptp(negative) or value in (0, 1):
        return float(value), *_by_formula(value, len(positive), len(negative))
    half = student.ppf(TAIL, found.df) * np.sqrt(found.var_prob) / (value * (1 - value))
    return value, float(expit(logit(value) - half)), float(expit(logit(value) + half))


def _by_formula(value: float, n_positive: int, n_negative: int) -> tuple[float, float]:
    """Forms the 95% interval of an AUC whose examples do not show how much it varies.

    The score interval of Newcombe (Statistics in Medicine 25, 2006, method 5): the AUCs a whose standard error, by
    Hanley and McNeil's formula at a itself, is 1/1.96 of their distance from the value.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    mean = (n_positive + n_negative) / 2 - 1

    def excess(a: float) -> float:
        spread = (1 + mean * (1 - a) / (2 - a) + mean * a / (1 + a)) / (n_positive * n_negative)
        return (a - value) ** 2 - norm.ppf(TAIL) ** 2 * a * (1 - a) * spread

    tiny = 1e-9  # the value itself is a root where it is 0 or 1
    low = 0.0 if value == 0 else brentq(excess, 0, min(value, 1 - tiny))
    high = 1.0 if value == 1 else brentq(excess, max(value, tiny), 1)
    return float(low), float(high)


def beside_length(
    scores: Mapping[str, pd.Series], n_target: pd.Series | None, baselines: Sequence[str] = BASELINES
) -> dict[str, pd.Series]:
    """The scores, and beside them, where `length` is no method, the number of response tokens: what length alone does.

    n_target: [N] indexed by id, as the scores are; None where it is not known. baselines: those of the methods that
    are `length` and `random`, and not somebody's scores that are called so.
    """
    known = n_target is None or ("length" in scores and "length" in baselines)
    return {**scores} if known else {**scores, RESPONSE_TOKENS: n_target}


def label_aucs(
    scores: Mapping[str, pd.Series], labels: pd.DataFrame, good: Mapping[str, str | Sequence[str]]
) -> pd.DataFrame:
    """Tests how well each method tells the good values of a label from the others.

    scores: method -> score [N] indexed by id, NaN = not evaluated. labels: `id` and label columns; null =
    unlabelled, left out. good: label column -> the value (or values) that counts as positive; a column that the data
    lack, or in which no example or every example is good, says nothing and is skipped. Returns `label`, `value`,
    `method`, `auc`, `low`, `high` (95%, as `auc` gives them), `n_positive`, `n_negative`, where `value` says what
    stands against the good: each other value on its own, in sorted order, and before them, where there are several,
    all of them together as "others" ("all others" where one of them is called so); of more than MOST_KINDS other values
    "others" alone. So the first row of a label and method is its headline. auc is NaN where a method has evaluated none
    of a class.
    """
    rows = []
    for label, value, positive_values, chosen in _contrasts(labels, good):
        for method, score in scores.items():
            evaluated = score.reindex(chosen.index).dropna()
            positive = chosen.loc[evaluated.index].isin(positive_values).to_numpy()
            found = auc(positive, evaluated.to_numpy())
            rows.append((label, value, method, *found, int(positive.sum()), int((~positive).sum())))
    return pd.DataFrame(rows, columns=LABEL_COLUMNS)


def auc_differences(
    scores: Mapping[str, pd.Series], labels: pd.DataFrame, good: Mapping[str, str | Sequence[str]]
) -> pd.DataFrame:
    """Tests which of two methods tells the good values of a label from all others better, of every two methods.

    Arguments as `label_aucs` takes them. Returns `label`, `method_a`, `method_b`, `n_positive`, `n_negative` (examples
    that both have evaluated), `difference` = AUC of a less AUC of b, `low`, `high` (95%), `p_value`, and `p_value_holm`
    by Holm's correction over the table; NaN where a class has fewer than two examples or the difference does not vary.

    The variance is DeLong's (Biometrics 44, 1988), of pairs: each example has a place by both methods, the share of the
    other class that it is above or below. Interval and p-value are Student's, with Welch's degrees of freedom for the
    two classes. Simulated (normal scores, 4 against 6 to 27 against 81 examples, correlated 0 to 0.95) the interval
    covers the truth in 92 to 98% of cases; where both methods hardly err and one class has 7 examples, in 81%.
    """
    # Here: figures and the report read this module for its `kinds`, and statsmodels takes a second.
    from icprobe.analysis.holm import with_holm

    against_all: dict[str, pd.Series] = {}
    for label, _, positive_values, chosen in _contrasts(labels, good):
        against_all.setdefault(label, chosen.isin(positive_values))
    rows = []
    for label, positive in against_all.items():
        for a, b in combinations(scores, 2):
            both = pd.DataFrame({"a": scores[a], "b": scores[b]}).reindex(positive.index).dropna()
            is_positive = positive.loc[both.index].to_numpy()
            found = _difference(is_positive, both["a"].to_numpy(), both["b"].to_numpy())
            rows.append((label, a, b, int(is_positive.sum()), int((~is_positive).sum()), *found, np.nan))
    return with_holm(pd.DataFrame(rows, columns=DIFFERENCE_COLUMNS))


def _contrasts(
    labels: pd.DataFrame, good: Mapping[str, str | Sequence[str]]
) -> Iterator[tuple[str, str, set[str], pd.Series]]:
    """Yields each label with what stands against its good values, those, and the values [n] of the examples in both.

    The first of a label is against all other values.
    """
    by_id = labels.set_index("id")
    for label, wanted in good.items():
        if label not in by_id.columns:
            continue
        positive_values = {wanted} if isinstance(wanted, str) else {str(value) for value in wanted}
        known = by_id[label].dropna().astype(str)
        others = sorted(set(known) - positive_values)
        if not others or not known.isin(positive_values).any():
            continue
        contrasts = {value: {value} for value in others if len(others) <= MOST_KINDS}
        if len(others) > 1:
            together = "others"
            while together in contrasts:  # a value of the data may be called so, too
                together = f"all {together}"
            contrasts = {together: set(others)} | contrasts
        for value, negative_values in contrasts.items():
            yield label, value, positive_values, known[known.isin(positive_values | negative_values)]


def _difference(positive: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float, float, float]:
    """Estimates the difference of two AUCs on the same examples: (difference, low, high, p-value)."""
    from scipy.stats import rankdata
    from scipy.stats import t as student

    def places(scores: np.ndarray) -> list[np.ndarray]:
        """For each class: the share of the other that each of its examples is above, ties as half."""
        ranks = rankdata(scores)
        sides = (positive, ~positive)
        return [(ranks[side] - rankdata(scores[side])) / max((~side).sum(), 1) for side in sides]

    differences = [one - other for one, other in zip(places(a), places(b), strict=True)]
    if min(map(len, differences)) < 1:
        return np.nan, np.nan, np.nan, np.nan
    value = float(differences[0].mean())
    if min(map(len, differences)) < 2:
        return value, np.nan, np.nan, np.nan
    variances = np.array([side.var(ddof=1) / len(side) for side in differences])
    # Of shares that are all alike but for their last bit the variance is that bit's.
    if variances.sum() <= 1e-24:
        return value, np.nan, np.nan, np.nan
    freedom = variances.sum() ** 2 / sum(v**2 / (len(d) - 1) for v, d in zip(variances, differences, strict=True))
    error = float(np.sqrt(variances.sum()))
    half = student.ppf(TAIL, freedom) * error
    # No difference of two AUCs is beyond 1.
    return value, max(value - half, -1.0), min(value + half, 1.0), float(2 * student.sf(abs(value) / error, freedom))


def is_continuous(label: pd.Series) -> bool:
    """Whether a label is a number, of more values than can be told apart one by one."""
    known = label.dropna()
    return known.nunique() > MOST_KINDS and bool(pd.to_numeric(known, errors="coerce").notna().all())


def kinds(labels: pd.DataFrame, columns: Sequence[str]) -> pd.Series | None:
    """Finds, for colours, the first of these columns that the table has and that tells few kinds of examples apart."""
    return next((labels[name] for name in columns if name in labels and 0 < labels[name].nunique() <= MOST_KINDS), None)
