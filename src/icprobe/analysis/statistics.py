"""Reduces an attribution matrix to one score per example, and tests how well scores find labelled examples."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from icprobe.errors import ConfigError, ScoreError
from icprobe.formatting import number

AGGREGATORS = ("mean", "fraction_positive")
NAMED_IN_ERRORS = 5
LABEL_COLUMNS = ["label", "value", "method", "auc", "low", "high", "n_positive", "n_negative"]
TIED = 0.25  # of the examples with one score: more make it no ranking
MOST_KINDS = 12  # values of a label that are told apart one by one; one of more, such as a number, is no set of kinds
TAIL = 0.975


def aggregate(
    attributions: pd.DataFrame | Iterable[pd.DataFrame], how: str, allow_missing: bool = False
) -> pd.DataFrame:
    """Reduces the attribution matrix over its tasks: one score per example, in float64.

    attributions: `id`, then one column per task [N, M], in nats or the method's own unit; or pieces of it, some rows at
    a time, which change no bit of the result. how: `mean` keeps the unit; `fraction_positive` is the share of tasks
    with A > 0 (strict), in [0, 1]. A matrix whose only column is `score` is not reduced, whatever `how` says; a float32
    in it widens by its shortest decimal, so that 0.85 stays 0.85; `n_tasks` beside it, how many tasks an example got,
    stays. Returns `id`, `score` (float64) in the order of the rows, and of shares `mean_effect`, the mean over tasks:
    a share of few tasks takes few values, and bins break their ties by it.

    Raises ScoreError where a value is NaN or infinite. With allow_missing, for methods that evaluate only some
    examples, a row with a NaN scores NaN; an infinite value stays an error. Raises ConfigError for an unknown `how`.
    """
    if how not in AGGREGATORS:
        raise ConfigError(f"attribution.aggregators: {how!r} is unknown; use one of {', '.join(AGGREGATORS)}.")
    pieces = [attributions] if isinstance(attributions, pd.DataFrame) else attributions
    tables, wrong, n = [], [], 0
    for piece in pieces:
        table, wrong_here = _aggregate(piece, how, allow_missing)
        tables.append(table)
        wrong += wrong_here
        n += len(piece)
    if wrong:
        _refuse(wrong, n)
    return pd.concat(tables, ignore_index=True)


def _aggregate(attributions: pd.DataFrame, how: str, allow_missing: bool) -> tuple[pd.DataFrame, list[tuple]]:
    """Reduces some rows: their scores, and (id, value) of each that has a value which is refused."""
    if "id" not in attributions.columns or attributions.shape[1] < 2:
        raise ScoreError(
            f"An attribution matrix needs the column `id` and at least one task, but has the columns "
            f"{list(attributions.columns[:NAMED_IN_ERRORS])}. Compute it again."
        )
    tasks = attributions.drop(columns="id")
    values = tasks.to_numpy()  # [N, M]
    missing = np.isnan(values).any(axis=1)
    wrong = np.isinf(values).any(axis=1) if allow_missing else ~np.isfinite(values).all(axis=1)
    refused = [
        (attributions["id"].iloc[row], values[row][~np.isfinite(values[row])][0]) for row in np.flatnonzero(wrong)
    ]

    beside = {}
    if list(tasks.columns) in (["score"], ["score", "n_tasks"]):
        score = widen(values[:, 0])
        beside = {name: tasks[name].astype("int32") for name in tasks.columns[1:]}
    elif how == "mean":
        score = values.mean(axis=1, dtype=np.float64)
    else:
        score = (values > 0).sum(axis=1) / values.shape[1]
        beside = {"mean_effect": values.mean(axis=1, dtype=np.float64)}
    scores = pd.DataFrame({"id": attributions["id"].array, "score": np.where(missing, np.nan, score), **beside})
    return scores, refused


def widen(values: np.ndarray) -> np.ndarray:
    """Widens values [N] to float64; narrower floats become the number that their shortest decimal names.

    So float32 0.85 becomes 0.85, not 0.8500000238418579, and falls on the right side of a threshold.
    """
    if values.dtype.kind != "f" or values.dtype.itemsize >= 8:
        return values.astype(np.float64)
    return values.astype(np.dtypes.StringDType()).astype(np.float64)


def _refuse(wrong: Sequence[tuple], n: int) -> None:
    shown = ", ".join(f"{example} ({value})" for example, value in wrong[:NAMED_IN_ERRORS])
    more = ", …" if len(wrong) > NAMED_IN_ERRORS else ""
    raise ScoreError(
        f"{len(wrong)} of {n} examples have an attribution that is NaN or infinite: {shown}{more}. "
        "Look at these examples, then compute them again (if bfloat16 overflows: attribution.dtype: float32)."
    )


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
            chosen = known[known.isin(positive_values | negative_values)]
            for method, score in scores.items():
                evaluated = score.reindex(chosen.index).dropna()
                positive = chosen.loc[evaluated.index].isin(positive_values).to_numpy()
                found = auc(positive, evaluated.to_numpy())
                rows.append((label, value, method, *found, int(positive.sum()), int((~positive).sum())))
    return pd.DataFrame(rows, columns=LABEL_COLUMNS)


def warning_of_ties(method: str, table: pd.DataFrame) -> str:
    """Says so where more than a quarter of the examples have one share of tasks, which then hardly ranks them; else "".

    table: a method's `score` [N], NaN = not evaluated; with `mean_effect`, where the score is a share.
    """
    counts = table["score"].value_counts()
    if "mean_effect" not in table or len(counts) == 0 or counts.sum() < 2 or counts.iloc[0] <= TIED * counts.sum():
        return ""
    n, most = counts.sum(), counts.iloc[0]
    of = f"All {n} examples have" if most == n else f"{most} of {n} examples have"
    return (
        f"{of} the same {method} score, {number(counts.index[0])}, so that it does not rank them. A share of few tasks "
        f"takes few values: take more tasks, or the mean over tasks (attribution: {{aggregators: {{{method}: mean}}}})."
    )


def is_continuous(label: pd.Series) -> bool:
    """Whether a label is a number, of more values than can be told apart one by one."""
    known = label.dropna()
    return known.nunique() > MOST_KINDS and bool(pd.to_numeric(known, errors="coerce").notna().all())


def kinds(labels: pd.DataFrame, columns: Sequence[str]) -> pd.Series | None:
    """Finds, for colours, the first of these columns that the table has and that tells few kinds of examples apart."""
    return next((labels[name] for name in columns if name in labels and 0 < labels[name].nunique() <= MOST_KINDS), None)
