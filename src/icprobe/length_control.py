"""The length-controlled win rate: what the judge would prefer, were both responses of one length."""

import numpy as np
import pandas as pd

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # C, what LogisticRegressionCV tries
LEAST = 2 * FOLDS  # prompts
LENGTH_COLUMNS = ("length_base", "length_response")


def length_controlled_win_rate(preferences: np.ndarray, length_base: np.ndarray, length_response: np.ndarray) -> float:
    """The win rate in percent that a logistic regression predicts at no difference in length.

    preferences: [n] in [1, 2], NaN where unreadable; lengths: [n] in characters. The model is logit(p) = θ + φ·tanh(d),
    d the length of the base model's response less that of the other one, divided by its standard deviation (ddof=1)
    over the prompts; p is fitted to preference − 1, each prompt standing once with label 1 and weight p and once with
    label 0 and weight 1 − p. θ and φ carry an L1 penalty whose strength is chosen among ten by the log loss in five
    folds of whole prompts. At d = 0 that leaves logistic(θ), the same for every prompt. NaN below ten prompts, where a
    length is unknown, or where all differences are equal.

    Source: AlpacaEval's `length_controlled_minimal` (Dubois et al., arXiv 2404.04475; metrics/glm_winrate.py), with the
    same solver, folds and grid. It differs from the leaderboard's `length_controlled_v1`, which adds the difficulty of
    each instruction and two models that game length, both from files on the Hugging Face hub.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    arrays = (np.asarray(values, dtype=np.float64) for values in (preferences, length_base, length_response))
    preferences, length_base, length_response = arrays
    known = ~np.isnan(preferences)
    wins, difference = preferences[known] - 1, (length_base - length_response)[known]
    if len(wins) < LEAST or np.isnan(difference).any() or difference.std() == 0:
        return float("nan")
    features = np.column_stack([np.tanh(difference / difference.std(ddof=1)), np.ones(len(wins))])
    both, labels = np.vstack([features, features]), np.repeat([1, 0], len(wins))
    weights, prompts = np.concatenate([wins, 1 - wins]), np.tile(np.arange(len(wins)), 2)

    def fitted(rows: np.ndarray, strength: float) -> np.ndarray:
        model = LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123, max_iter=1000
        )
        return model.fit(both[rows], labels[rows], sample_weight=weights[rows]).coef_[0]

    losses = np.zeros(len(STRENGTHS))
    for train, test in GroupKFold(n_splits=FOLDS).split(both, labels, prompts):
        # Each prompt stands in the test fold twice, with the same loss: once is enough.
        held = np.unique(prompts[test])
        for number, strength in enumerate(STRENGTHS):
            losses[number] += _log_loss(wins[held], features[held] @ fitted(train, strength))
    theta = fitted(np.arange(len(both)), STRENGTHS[losses.argmin()])[1]
    return 100 * float(np.exp(-np.logaddexp(0, -theta)))


def _log_loss(probabilities: np.ndarray, logits: np.ndarray) -> float:
    """Mean log loss of logits against probabilities, in nats."""
    return float(np.mean(np.logaddexp(0, logits) - probabilities * logits))


def with_length_control(table: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    """A table of win rates with one column more, `length_controlled_win_rate`.

    table: rows as `win_rate_table` gives them; judgements: those that it was made from, with `length_base` and
    `length_response`. Only the overall rows have one, as at AlpacaEval: a subset has too few prompts of like lengths,
    and the penalty would take it to 50%. Of "all" seeds it is the mean over the seeds that have one.
    """
    judgements = judgements.assign(seed=judgements["seed"].astype(str))
    rates: dict[tuple[str, str], dict[str, float]] = {}
    for (method, bin_, seed), rows in judgements.groupby(["method", "bin", "seed"]):
        rate = length_controlled_win_rate(*(rows[name] for name in ("preference", *LENGTH_COLUMNS)))
        rates.setdefault((method, bin_), {})[seed] = rate
    for seeds in rates.values():
        known = [rate for rate in seeds.values() if not np.isnan(rate)]
        seeds["all"] = float(np.mean(known)) if known else float("nan")
    found = [rates.get((row.method, row.bin), {}).get(str(row.seed), float("nan")) for row in table.itertuples()]
    return table.assign(length_controlled_win_rate=np.where(table["subset"] == "overall", found, np.nan))
