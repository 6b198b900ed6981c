"""Tail patch: does one step of training on the examples that a method ranks highest help the tasks?

A check that costs no fine-tuning where `one_step` is computed: its matrix already says what a step on each example does
(DATE-LM, arXiv 2507.09424).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from icprobe.analysis.binning import Ranking, size_of, sizes

NUMBER, SHARE = 10, "top 10%"
DRAWN = 1000  # examples, at most, whose means are resampled
Z_95 = 1.96
COLUMNS = ["method", "which", "k", "n", "effect", "low", "high", "unit"]


def tail_patch(
    scores: Mapping[str, pd.DataFrame],
    one_step: pd.DataFrame,
    names: Sequence[str] = (),
    resamples: int = 2_000,
    seed: int = 0,
    unit: str = "nats",
) -> pd.DataFrame:
    """The rows of tail_patch.csv, without its column `model`.

    scores: method -> `id`, `score` [N], and `mean_effect` where it has one, of methods that one_step is no part of: it
    would judge itself; one_step: `id` and a column of effects for
    each task; unit: theirs, which is the last column; names: bins. For each method and each k (10, 10% and each bin,
    of which the size is taken) there are three rows: `effect` is the mean over tasks and over the n examples that the
    method ranks best, worst, or that are drawn at random (of these what is to be expected, the mean over all). A
    method that has evaluated fewer shows its smaller n. low, high: 95% percentile bootstrap over the n examples, for
    random what n examples drawn from all of them give; of more than DRAWN examples their normal limit; NaN below two.
    """
    effects = one_step.set_index("id").astype(np.float64).mean(axis=1)
    n_examples = len(effects)
    icp = scores["icp"].set_index("id")["score"] if "icp" in scores else None
    asked = {
        str(NUMBER): min(NUMBER, n_examples),
        SHARE.removeprefix("top "): size_of(SHARE, n_examples),
        **sizes(icp, names, n_examples),
    }
    rows = []
    for method, table in scores.items():
        table = table.set_index("id")
        ranking = Ranking(table["score"], table.get("mean_effect"))
        of_method = effects.loc[table.index].to_numpy()
        known = of_method[table["score"].notna().to_numpy()]
        for k, size in asked.items():
            n = min(size, ranking.evaluated)
            chosen = {"best": of_method[ranking.first("top 1", n)], "worst": of_method[ranking.first("bottom 1", n)]}
            for which, values in {**chosen, "random": known}.items():
                effect = values.mean() if n else np.nan
                rows.append((method, which, k, n, effect, *_interval(values, n, resamples, seed), unit))
    return pd.DataFrame(rows, columns=COLUMNS)


def _interval(values: np.ndarray, n: int, resamples: int, seed: int) -> tuple[float, float]:
    """95% of the means of n values drawn from these, with replacement."""
    if n < 2:
        return np.nan, np.nan
    if n > DRAWN:  # their mean is normal, and to draw so many takes minutes
        half = Z_95 * values.std() / np.sqrt(n)
        return float(values.mean() - half), float(values.mean() + half)
    drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, n))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
