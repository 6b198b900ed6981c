"""Held-out gain: by how much fine-tuning raises the likelihood of answers that no model was trained on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from icprobe.analysis.holm import with_holm
from icprobe.errors import DataError
from icprobe.evaluation.win_rates import (
    DRAWS_PER_PAIR,
    FEWEST,
    crossed_half_width,
    over_seeds_too,
    sign_flip_p_values,
)

OVERALL, ALL = "overall", "all"
COLUMNS = ["method", "bin", "set", "subset", "seed", "n", "nll", "nll_base", "gain", "low", "high"]
DIFFERENCE_COLUMNS = [
    *("set", "bin", "method_a", "method_b", "n", "difference", "low", "high", "p_value", "p_value_holm"),
]
RESAMPLES_AT_A_TIME = 1000

Condition = tuple[str, str, int]  # method, bin, seed
Tuned = Mapping[tuple[str, str], np.ndarray]  # (method, bin) -> log-likelihoods [answers, seeds], NaN: not trained


def tabulate(
    base: pd.DataFrame,
    tuned: Mapping[Condition, pd.DataFrame],
    groups: Mapping[str, Mapping[str, str | None]],
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of held_out.csv and of held_out_differences.csv, without their column `model`.

    base, tuned: `id`, `set`, `log_likelihood` (nats), `n_tokens` of each answer; a model that was not trained, because
    its bin is empty, has no rows, and stands in the table with n = 0. groups: set -> id -> the answer's subset (a
    task's domain), or None.

    nll and nll_base are nats per token, all answers' over all their tokens; gain = nll_base − nll, positive where
    training made the answers likelier; n: answers. low, high: 95%, a percentile bootstrap over answers, each with its
    tokens and both models' likelihoods (below six answers it holds 0 always, below two it is NaN). seed "all" is the
    mean over seeds; with two seeds or more its interval is `crossed_half_width`'s, for other seeds and other answers,
    by each answer's share in the ratio (the delta method). Raises DataError where two models were asked other answers.
    """
    asked: dict[tuple[str, str], list[int]] = {}
    for method, bin_, number in tuned:
        asked.setdefault((method, bin_), []).append(number)
    rows, tests = [], []
    for name in dict.fromkeys(base["set"]):
        of_set = base[base["set"] == name].reset_index(drop=True)
        found = {
            (method, bin_): np.stack([_aligned(tuned[method, bin_, s], of_set, name) for s in seeds], axis=1)
            for (method, bin_), seeds in asked.items()
        }
        subsets = of_set["id"].map(groups.get(name, {}))
        of_subsets = [(subset, (subsets == subset).to_numpy()) for subset in dict.fromkeys(subsets.dropna())]
        for subset, inside in [*of_subsets, (OVERALL, np.ones(len(of_set), dtype=bool))]:
            part = {key: values[inside] for key, values in found.items()}
            for row in _gains(of_set[inside], part, asked, resamples, seed):
                rows.append({"set": name, "subset": subset, **row})
        tests += [{"set": name, **row} for row in _differences(of_set, found, resamples, seed)]
    places = {key: place for place, key in enumerate(asked)}
    rows.sort(key=lambda row: places[row["method"], row["bin"]])  # stable: sets and subsets stay in order
    return pd.DataFrame(rows, columns=COLUMNS), with_holm(pd.DataFrame(tests, columns=DIFFERENCE_COLUMNS))


def _aligned(tuned: pd.DataFrame, base: pd.DataFrame, name: str) -> np.ndarray:
    """A fine-tuned model's log-likelihoods in the order of the base model's; NaN throughout where it has none."""
    if tuned.empty:
        return np.full(len(base), np.nan)
    own = tuned[tuned["set"] == name].set_index("id")
    if set(own.index) != set(base["id"]) or (own["n_tokens"].loc[base["id"]].to_numpy() != base["n_tokens"]).any():
        raise DataError(f"{name}: the base model and a fine-tuned one were asked other answers. Make outcomes/ again.")
    return own["log_likelihood"].loc[base["id"]].to_numpy()


# --- gains ------------------------------------------------------------------------------------------------------


def _gains(
    base: pd.DataFrame, tuned: Tuned, seeds: Mapping[tuple[str, str], Sequence[int]], resamples: int, seed: int
) -> Iterator[dict]:
    """Rows of one set and subset: of each method and bin every seed, and then all of them."""
    tokens, before = base["n_tokens"].to_numpy(float), base["log_likelihood"].to_numpy()
    raised = np.concatenate([values - before[:, None] for values in tuned.values()], axis=1)  # [answers, models]
    draws = iter(_intervals(raised, tokens, resamples, seed))
    for (method, bin_), values in tuned.items():
        of_seeds = []
        for number, column in zip(seeds[method, bin_], values.T, strict=True):
            row = {"method": method, "bin": bin_, "seed": str(number), "n": 0}
            low, high = next(draws)
            if not np.isnan(column).any():
                nll, nll_base = -column.sum() / tokens.sum(), -before.sum() / tokens.sum()
                row |= {"n": len(base), "nll": nll, "nll_base": nll_base, "gain": nll_base - nll}
                row |= {"low": low, "high": high}
                of_seeds.append(row)
            yield row
        yield _over_seeds(of_seeds, values - before[:, None], tokens) | {"method": method, "bin": bin_, "seed": ALL}


def _intervals(raised: np.ndarray, tokens: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """95% percentile intervals [models, 2] of Σ raised / Σ tokens, [answers, models] over [answers]."""
    n, models = raised.shape
    if n < 2:
        return np.full((models, 2), np.nan)
    draws = np.concatenate(
        [(counts @ raised) / (counts @ tokens)[:, None] for counts in _resamples(n, resamples, seed)]
    )  # [resamples, models]
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    if n < FEWEST:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    return np.stack([low, high], axis=1)


def _resamples(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n answers is drawn, some resamples [r, n] at a time: all at once might not fit in memory."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_A_TIME):
        draws = min(RESAMPLES_AT_A_TIME, resamples - start)
        yield generator.multinomial(n, np.full(n, 1 / n), draws).astype(float)


def _over_seeds(rows: list[dict], raised: np.ndarray, tokens: np.ndarray) -> dict:
    if not rows:
        return {"n": 0}
    if len(rows) < 2:
        return rows[0]
    row = {key: float(np.mean([one[key] for one in rows])) for key in ("nll", "nll_base", "gain")}
    raised = raised[:, ~np.isnan(raised).any(axis=0)]
    shares = row["gain"] + (raised - row["gain"] * tokens[:, None]) / tokens.mean()  # [answers, seeds], mean: the gain
    half = crossed_half_width(shares)
    low, high = row["gain"] - half, row["gain"] + half
    if len(tokens) < FEWEST:
        low, high = min(low, 0), max(high, 0)
    return row | {"n": len(tokens), "low": low, "high": high}


# --- differences between methods --------------------------------------------------------------------------------


def _differences(base: pd.DataFrame, tuned: Tuned, resamples: int, seed: int) -> Iterator[dict]:
    """How much the gains of two methods on the same bin differ (a − b, nats per token), answer by answer.

    low, high: 95% percentile bootstrap over answers; p_value: two-sided, of `sign_flip_p_values`; where a method has
    two seeds or more, both as `win_rates.paired_differences` makes them.
    """
    tokens = base["n_tokens"].to_numpy(float)
    trained = {key: values[:, ~np.isnan(values).any(axis=0)] for key, values in tuned.items()}
    pairs = [
        (bin_, a, b)
        for bin_ in dict.fromkeys(bin_ for _, bin_ in tuned)
        for a, b in combinations([method for method, of in trained if of == bin_ and trained[method, of].size], 2)
    ]
    if not pairs:
        return
    means = {key: values.mean(axis=1) for key, values in trained.items() if values.size}
    raised = np.stack([means[a, bin_] - means[b, bin_] for bin_, a, b in pairs], axis=1)  # [answers, pairs]
    intervals = _intervals(raised, tokens, resamples, seed)
    p_values = sign_flip_p_values(raised, max(resamples, DRAWS_PER_PAIR * len(pairs)), seed)
    for k, (bin_, a, b) in enumerate(pairs):
        row = {"bin": bin_, "method_a": a, "method_b": b, "n": len(base)}
        if len(base) > 1:
            difference, (low, high), p_value = raised[:, k].sum() / tokens.sum(), intervals[k], p_values[k]
            several = [trained[method, bin_] for method in (a, b) if trained[method, bin_].shape[1] > 1]
            if several:
                gains = [values.sum(axis=0) / tokens.sum() for values in several]
                of_seeds = [(float(gain.var(ddof=1)) / len(gain), len(gain) - 1) for gain in gains]
                shares = difference + (raised[:, k] - difference * tokens) / tokens.mean()
                low, high, over_seeds = over_seeds_too(shares, of_seeds, limit=math.inf)
                p_value = max(p_value, over_seeds)
                if len(base) < FEWEST:
                    low, high = min(low, 0), max(high, 0)
            row |= {"difference": difference, "low": low, "high": high, "p_value": p_value}
        yield row
