"""From an attribution matrix to one score per example, and how well scores find labelled examples."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from icprobe.errors import ConfigError, ScoreError

AGGREGATORS = ("mean", "fraction_positive")
NAMED_IN_ERRORS = 5


def aggregate(
    attributions: pd.DataFrame | Iterable[pd.DataFrame], how: str, allow_missing: bool = False
) -> pd.DataFrame:
    """One score per example: the attribution matrix reduced over its tasks, in float64.

    attributions: `id`, then one column per task [N, M], in nats or the method's own unit; or pieces of it, some rows at
    a time, which change no bit of the result. how: `mean` keeps
    the unit; `fraction_positive` is the share of tasks with A > 0 (strict), in [0, 1]. A matrix whose only
    column is `score` is not reduced, whatever `how` says; a float32 in it widens by its shortest decimal,
    so that 0.85 stays 0.85; `n_tasks` beside it, how many tasks an example got, is kept. Returns `id`, `score`
    (float64) in the order of the rows.

    Raises ScoreError where a value is NaN or infinite. With allow_missing, for methods that evaluate only
    some examples, a row with a NaN scores NaN; an infinite value stays an error. Raises ConfigError for an
    unknown `how`.
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
    """The scores of some rows, and (id, value) of each that has a value which is refused."""
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

    kept = {}
    if list(tasks.columns) in (["score"], ["score", "n_tasks"]):
        score = widen(values[:, 0])
        kept = {name: tasks[name].astype("int32") for name in tasks.columns[1:]}
    elif how == "mean":
        score = values.mean(axis=1, dtype=np.float64)
    else:
        score = (values > 0).sum(axis=1) / values.shape[1]
    scores = pd.DataFrame({"id": attributions["id"].array, "score": np.where(missing, np.nan, score), **kept})
    return scores, refused


def widen(values: np.ndarray) -> np.ndarray:
    """Values [N] as float64; floats narrower than that become the number that their shortest decimal names.

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


def auc(labels_positive: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve: how often a positive example scores above a negative one, a tie
    counting half.

    labels_positive: bool [N]; scores: [N], NaN = not evaluated, left out. NaN where either class is empty.
    """
    labels_positive, scores = np.asarray(labels_positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    evaluated = ~np.isnan(scores)
    labels_positive, scores = labels_positive[evaluated], scores[evaluated]
    if labels_positive.all() or not labels_positive.any():
        return float("nan")
    return float(roc_auc_score(labels_positive, scores))


def label_aucs(
    scores: Mapping[str, pd.Series], labels: pd.DataFrame, good: Mapping[str, str | Sequence[str]]
) -> pd.DataFrame:
    """How well each method tells the good value of a label from the others.

    scores: method -> score [N] indexed by id, NaN = not evaluated. labels: `id` and label columns; null =
    unlabelled, left out. good: label column -> the value (or values) that counts as positive; a column that
    the data lacks is skipped. Returns `label`, `value`, `method`, `auc`, `n_positive`, `n_negative`, where
    `value` says what stands against the good: each other value on its own, in sorted order, and before
    them, where there are several, all of them together as "others". So the first row of a label and method
    is its headline. auc is NaN where a class is empty.
    """
    rows = []
    by_id = labels.set_index("id")
    for label, wanted in good.items():
        if label not in by_id.columns:
            continue
        positive_values = {wanted} if isinstance(wanted, str) else {str(value) for value in wanted}
        known = by_id[label].dropna().astype(str)
        others = sorted(set(known) - positive_values)
        contrasts = {value: {value} for value in others}
        if len(others) != 1:
            contrasts = {"others": set(others)} | contrasts
        for value, negative_values in contrasts.items():
            chosen = known[known.isin(positive_values | negative_values)]
            for method, score in scores.items():
                evaluated = score.reindex(chosen.index).dropna()
                positive = chosen.loc[evaluated.index].isin(positive_values).to_numpy()
                rows.append(
                    {
                        "label": label,
                        "value": value,
                        "method": method,
                        "auc": auc(positive, evaluated.to_numpy()),
                        "n_positive": int(positive.sum()),
                        "n_negative": int((~positive).sum()),
                    }
                )
    return pd.DataFrame(rows, columns=["label", "value", "method", "auc", "n_positive", "n_negative"])
