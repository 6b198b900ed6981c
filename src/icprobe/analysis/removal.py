"""Removal: how much likelihood the tasks lose where a method's best examples are not trained on.

A model is trained without them, and others without as many that are drawn at random, the controls.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student

from icprobe.analysis.agreement import SAME
from icprobe.analysis.headline import ALL
from icprobe.analysis.holm import with_holm
from icprobe.analysis.predictions import outcomes_of
from icprobe.errors import DataError

COLUMNS = [
    *("domain", "method", "n_removed", "loss", "low", "high", "p_value", "p_value_holm"),
    *("n_tasks", "n_seeds", "n_controls"),
]
TAIL = 0.975


def removal(removals: pd.DataFrame, table: pd.DataFrame, domains: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The rows of removal.csv, without its column `model`.

    removals: `subset`, `method` (null: a control), `task` (null: removed for all tasks), `id`, a row for each removed
    example; table: outcomes, as `predictions.outcomes_of` takes them; domains: name -> ids of its tasks, beside "all".
    Where a method's best are removed task by task, each task's outcome is that of the model without its own.

    loss: the mean over tasks, seeds and controls of the log-likelihood, less that without the method's best, in nats;
    positive where these are missed more than others. n_removed: examples, of each model. low, high: 95% prediction
    interval, loss ± t(C − 1)·sd·√(1 + 1/C), of the standard deviation over C controls, each the mean over tasks and
    seeds, so that the noise of both the choice of examples and the seeds is in it; p_value: two-sided, that the model
    is one more control. NaN with one control. p_value_holm is over the methods of a domain. Simulated with 4 and 8
    controls where nothing is lost, 4 and 6% of p-values lie below 0.05 if noise is normal, 6 and 8% if it has the tails
    of Student's t of 3 degrees of freedom. Task by task the mean is over as many models, whose noise averages out, so
    that interval and p-value are larger than need be.
    """
    sets = removals.drop_duplicates("subset").set_index("subset")
    sizes = removals.groupby("subset").size()
    outcomes, tasks = outcomes_of(table, "tasks", list(sets.index))
    outcomes = pd.DataFrame(outcomes.mean(axis=1), index=sets.index, columns=tasks)  # [R, M]
    is_control = sets["method"].isna()
    controls, n_seeds = outcomes[is_control], table["seed"].nunique()
    if controls.empty:
        raise DataError("truth/removals.parquet has no random removals to compare with; make it again.")
    tables = []
    for domain, ids in {ALL: tasks, **domains}.items():
        ids = list(ids)
        chance = controls[ids].mean(axis=1).to_numpy()
        rows = []
        for method, own in sets[~is_control].groupby("method", sort=False):
            without = _without_its_best(outcomes, own, method)[ids].mean()
            numbers = (*against(chance, without), np.nan)
            rows.append((domain, method, sizes[own.index].max(), *numbers, len(ids), n_seeds, len(chance)))
        tables.append(with_holm(pd.DataFrame(rows, columns=COLUMNS)))
    return pd.concat(tables, ignore_index=True)


def _without_its_best(outcomes: pd.DataFrame, sets: pd.DataFrame, method: str) -> pd.Series:
    """Each task's log-likelihood by the model that was trained without the method's best for it."""
    if sets["task"].isna().all():
        return outcomes.loc[sets.index[0]]
    model_of = dict(zip(sets["task"], sets.index, strict=True))
    if missing := [task for task in outcomes.columns if task not in model_of]:
        raise DataError(f"truth/removals.parquet has no best examples of {method} for {missing[0]!r}; make it again.")
    return pd.Series({task: outcomes.loc[model_of[task], task] for task in outcomes.columns})


def against(controls: np.ndarray, without: float) -> tuple[float, float, float, float]:
    """Compares one outcome with those of the controls [C]: (loss, low, high, p-value), as in `removal`."""
    n, loss = len(controls), float(controls.mean() - without)
    error = controls.std(ddof=1) * np.sqrt(1 + 1 / n) if n > 1 else 0.0
    if not error > SAME * np.abs(controls).max(initial=0.0):
        return loss, np.nan, np.nan, np.nan
    half = student.ppf(TAIL, n - 1) * error
    return loss, loss - half, loss + half, float(2 * student.sf(abs(loss) / error, n - 1))
