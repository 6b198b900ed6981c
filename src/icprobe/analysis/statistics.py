"""Reduces an attribution matrix to one score per example."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from icprobe.errors import ConfigError, ScoreError
from icprobe.formatting import number

AGGREGATORS = ("mean", "fraction_positive")
NAMED_IN_ERRORS = 5
TIED = 0.25  # of the examples with one score: more make it no ranking
DECIDES = 0.5  # of the variance of the scores: a task with more decides them
FEWEST_TASKS = 3  # of which one may decide; of two, one always has half


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
        score = widen(tasks["score"].to_numpy())
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


def warning_of_ties(method: str, table: pd.DataFrame) -> str:
    """Says so where more than a quarter of the examples have one share of tasks, which then hardly ranks them; else "".

    table: a method's `score` [N], NaN = not evaluated; with `mean_effect`, where the score is a share.
    """
    counts = table["score"].value_counts()
    if "mean_effect" not in table or len(counts) == 0 or counts.sum() < 2 or counts.iloc[0] <= TIED * counts.sum():
        return ""
    n, most = counts.sum(), counts.iloc[0]
    which = f"the {n} examples" if most == n else f"{most} of the {n} examples"
    return (
        f"{method} cannot tell {which} apart: all have the score {number(counts.index[0])}. A share of few tasks takes "
        f"few values: take more tasks, or the mean over tasks (attribution: {{aggregators: {{{method}: mean}}}})."
    )


def warning_of_one_task(
    method: str,
    attributions: pd.DataFrame | Iterable[pd.DataFrame],
    scores: pd.DataFrame,
    texts: Mapping[str, str] | None = None,
) -> str:
    """Says so where one task decides a method's mean over tasks, as its effects are larger than others'; else "".

    attributions, scores: as `aggregate` takes and returns them. texts: what the tasks ask, by their ids. A task's share
    of the variance of the means is cov(A[:, t] / M, score) / var(score); the shares of all tasks sum to 1.
    """
    if "mean_effect" in scores or scores["score"].count() < 2:
        return ""
    known = scores.set_index("id")["score"].dropna()
    centred, products = known - known.mean(), 0.0
    for piece in [attributions] if isinstance(attributions, pd.DataFrame) else attributions:
        tasks = piece[piece["id"].isin(centred.index)].set_index("id")
        if tasks.shape[1] < FEWEST_TASKS:
            return ""
        products = products + centred.loc[tasks.index].to_numpy() @ tasks.to_numpy(np.float64)
    total = float(np.sum(products))  # M times the variance of the scores, times the examples
    if total <= 0 or np.max(products) <= DECIDES * total:
        return ""
    most = tasks.columns[int(np.argmax(products))]
    named = most
    if texts is not None:
        named = f"{most} ({textwrap.shorten(texts[most], 60, placeholder='…')})"
    share = np.max(products) / total
    # Others may vary against it.
    made = f"makes {100 * share:.0f}% of" if share <= 1 else "makes all of"
    return (
        f"One of the {tasks.shape[1]} tasks, {named}, {made} the variance of {method}'s scores: its effects are larger "
        "than the others'. To give each task the same weight, rank "
        f"the examples task by task (attribution: {{combined: {{NAME: {{mean_rank: [{method}]}}}}}}), or let tasks "
        "take turns in a selection (per_task: round_robin)."
    )
