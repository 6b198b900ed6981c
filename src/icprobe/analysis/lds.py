"""Linear datamodeling score: does the sum of a method's attributions predict what training on a subset does?

Models are trained on random subsets, and asked for each task's log-likelihood. Of each task it is looked at whether the
subsets come in the same order by that outcome as by the sum of their members' attributions (TRAK, arXiv 2303.14186,
section 2). Where single examples were left out instead, each is a subset of its own, and the outcome is what it gave.
"""

import logging
from collections.abc import Container, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from icprobe.analysis.agreement import Jackknife, ceiling, of_mean, reliability
from icprobe.analysis.headline import ALL
from icprobe.analysis.holm import with_holm
from icprobe.analysis.predictions import Members, of_methods, outcomes_of

logger = logging.getLogger(__name__)

COLUMNS = [
    *("set", "domain", "method", "lds", "low", "high", "n_subsets", "n_seeds", "n_tasks"),
    *("reliability", "reliability_of_mean", "ceiling", "ceiling_low", "ceiling_high", "spread"),
]
DIFFERENCE_COLUMNS = [
    *("set", "domain", "method_a", "method_b", "n", "difference", "low", "high", "p_value", "p_value_holm"),
]
TASKS = "tasks"  # the set of answers that methods have values for; of any other, such as "eval", they know a mean


def tabulate(
    members: pd.DataFrame,
    outcomes: pd.DataFrame,
    files: Mapping[str, str | Path],
    per_task: Container[str],
    lengths: pd.DataFrame,
    domains: Mapping[str, Sequence[str]],
    reference: str | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of lds.csv and of lds_differences.csv over all sets of answers, without their column `model`.

    members: `subset`, `id`; outcomes: `subset`, `seed`, `set`, `id`, `log_likelihood`; files, per_task, lengths: as
    `predictions.of_methods` takes them; domains: name -> ids of its tasks. For answers other than the tasks', a method
    predicts the mean of its sums over tasks. reference: the subset that nothing is left out of; the members of each
    other are then what it lacks, and the outcome is by how much the reference's log-likelihood exceeds its own.
    """
    subsets = [name for name in dict.fromkeys(members["subset"]) if name != reference]
    known = Members(members[members["subset"] != reference], subsets, lengths["id"])
    _, tasks = outcomes_of(outcomes, TASKS, list(dict.fromkeys(members["subset"])))
    predictions = of_methods(known, tasks, files, per_task, lengths)
    tables, differences = [], []
    for name in dict.fromkeys(outcomes["set"]):
        asked = subsets if reference is None else [reference, *subsets]
        values, answers = outcomes_of(outcomes, name, asked)
        values = values if reference is None else values[0] - values[1:]
        own = predictions
        if name != TASKS:
            own = {m: None if sums is None else sums.mean(axis=1, keepdims=True) for m, sums in predictions.items()}
        places = {}
        if name == TASKS:
            place_of = {id: place for place, id in enumerate(answers)}
            places = {domain: [place_of[id] for id in ids if id in place_of] for domain, ids in domains.items()}
        table, of_pairs = lds(own, values, places, name, seed)
        tables.append(table)
        differences.append(of_pairs)
    return pd.concat(tables, ignore_index=True), pd.concat(differences, ignore_index=True)


def lds(
    predictions: Mapping[str, np.ndarray | None],
    outcomes: np.ndarray,
    domains: Mapping[str, Sequence[int]],
    name: str,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of lds.csv and of lds_differences.csv for one set of answers, without their column `model`.

    predictions: method -> [R, M], [R, 1] (the same for every task), or None, where the method has not evaluated all
    examples; outcomes: log-likelihoods in nats [R, S, M], of R subsets, S seeds and M answers. domains: name -> places
    of the answers that are of it, beside "all". name: of the set.

    lds: for each method and answer the Spearman correlation of its prediction and the mean outcome over seeds, over
    subsets; then the mean over answers. reliability: the same of one seed's outcomes with another's, over pairs of
    seeds; reliability_of_mean: of their mean (`agreement.of_mean`), ceiling: its square root. spread: of the mean
    outcomes over subsets, as a standard deviation in nats, mean over answers. n_tasks: answers in the mean; one whose
    outcomes with some seed are all equal is in none. low, high, p_value: of `agreement.Jackknife`, which leaves out the
    same subsets for all; p_value_holm over all pairs of a set and domain. n: subsets.
    """
    rows = Jackknife.over(len(outcomes), seed)
    trusted = reliability(outcomes, rows)  # [1 + G, M]
    mean = outcomes.mean(axis=1)
    found = {m: rows.correlations(values, mean) for m, values in predictions.items() if values is not None}
    for method in (method for method in predictions if method not in found):
        logger.warning("%s has not evaluated all examples: it predicts no sums of %s, its rows are empty", method, name)
    defined = np.ptp(outcomes, axis=0).all(axis=0)
    table, differences = [], []
    for domain, places in {ALL: np.arange(mean.shape[1]), **domains}.items():
        inside = [place for place in places if defined[place]]
        of_domain = {m: _mean(values[:, inside]) for m, values in found.items()}
        counts = {"n_seeds": outcomes.shape[1], "n_tasks": len(inside), "n_subsets": len(outcomes)}
        above = _ceiling(_mean(trusted[:, inside]), outcomes.shape[1], rows)
        above["spread"] = float(mean[:, inside].std(axis=0, ddof=1).mean()) if inside and len(mean) > 1 else np.nan
        for method in predictions:
            row = {"set": name, "domain": domain, "method": method, "n_subsets": 0, "n_tasks": 0, **above}
            if method in of_domain:
                row |= counts | dict(zip(("lds", "low", "high"), rows.interval(of_domain[method]), strict=True))
            table.append({**row, "n_seeds": outcomes.shape[1]})
        pairs = []
        for a, b in combinations(of_domain, 2):
            numbers = rows.difference(of_domain[a] - of_domain[b])
            pairs.append((name, domain, a, b, len(outcomes), *numbers, np.nan))
        differences.append(with_holm(pd.DataFrame(pairs, columns=DIFFERENCE_COLUMNS)))
    return pd.DataFrame(table, columns=COLUMNS), pd.concat(differences, ignore_index=True)


def _mean(correlations: np.ndarray) -> np.ndarray:
    """Averages [1 + G, M] over answers; NaN where there is none."""
    return correlations.mean(axis=1) if correlations.shape[1] else np.full(len(correlations), np.nan)


def _ceiling(trusted: np.ndarray, seeds: int, rows: Jackknife) -> dict[str, float]:
    value, low, high = rows.interval(trusted)
    return {
        "reliability": value,
        "reliability_of_mean": of_mean(value, seeds),
        "ceiling": ceiling(value, seeds),
        "ceiling_low": ceiling(low, seeds),
        "ceiling_high": ceiling(high, seeds),
    }
