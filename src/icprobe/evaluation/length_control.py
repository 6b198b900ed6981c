"""The length-controlled win rate: what the judge would prefer, were both responses of one length."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # C, what LogisticRegressionCV tries
LEAST = 2 * FOLDS  # prompts
NEXT_TO_NOTHING = 1e-7  # a coefficient that is 0 but for rounding
NEWTON_STEPS = 10
ROUNDING = 1e-12  # of a mean loss, in nats
LENGTH_COLUMNS = ("length_base", "length_response")
# Of a win rate, in percentage points, above which a 50 that the penalty makes says nothing. The penalty holds θ at 0
# within 1.5 to 2 standard errors of a draw, whatever the number of prompts; AlpacaEval's 805 have at most this one.
LARGEST_ERROR = 1.77


class LengthControl(NamedTuple):
    """A length-controlled win rate in percent, NaN where there is none, and then why, in words."""

    rate: float
    note: str = ""


def length_controlled_win_rate(preferences: np.ndarray, length_base: np.ndarray, length_response: np.ndarray) -> float:
    """The rate of `length_control` alone, in percent; NaN where there is none."""
    return length_control(preferences, length_base, length_response).rate


def length_control(preferences: np.ndarray, length_base: np.ndarray, length_response: np.ndarray) -> LengthControl:
    """The win rate in percent that a logistic regression predicts at no difference in length.

    preferences: [n] in [1, 2], NaN where unreadable; lengths: [n] in characters. The model is logit(p) = θ + φ·tanh(d),
    d the length of the base model's response less that of the other one, divided by its standard deviation (ddof=1)
    over the prompts; p is fitted to preference − 1 by the log loss. θ and φ carry an L1 penalty whose strength is
    chosen among ten by the log loss in five folds of prompts. At d = 0 that leaves logistic(θ), the same for every
    prompt.

    NaN, with a note, below ten prompts, where a length is unknown, where all differences are equal, where they lie so
    far on one side of 0 that the prompts say less of equal lengths than ten judgements at equal lengths would (or half
    as many as there are, where that is less), and where the penalty alone makes it 50: where it holds θ at 0, and the
    standard error of what length leaves of the preferences is above LARGEST_ERROR, so that win rates far from 50 would
    have come out as 50 too.

    Source: AlpacaEval's `length_controlled_minimal` (Dubois et al., arXiv 2404.04475; metrics/glm_winrate.py), with the
    same penalty, folds and grid. Its solver, liblinear, leaves a class without weight unfitted (all lost gives 50);
    L-BFGS-B does not. It differs from the leaderboard's `length_controlled_v1`, which adds the difficulty of each
    instruction and two models that game length, both from files on the Hugging Face hub.
    """
    from sklearn.model_selection import GroupKFold

    arrays = (np.asarray(values, dtype=np.float64) for values in (preferences, length_base, length_response))
    preferences, length_base, length_response = arrays
    known = ~np.isnan(preferences)
    wins, difference = preferences[known] - 1, (length_base - length_response)[known]
    n = len(wins)
    if n < LEAST:
        return LengthControl(np.nan, f"fewer than {LEAST} judgements")
    if np.isnan(difference).any():
        return LengthControl(np.nan, "the length of a response is unknown")
    if difference.std() == 0:
        return LengthControl(np.nan, "all differences in length are equal")
    features = np.column_stack([np.tanh(difference / difference.std(ddof=1)), np.ones(n)])  # [n, 2]
    if _worth(features[:, 0]) < min(LEAST, n / 2):
        return LengthControl(np.nan, "nearly all differences in length are on one side of 0")

    losses = np.zeros(len(STRENGTHS))
    for train, test in GroupKFold(n_splits=FOLDS).split(features, groups=np.arange(n)):
        for number, strength in enumerate(STRENGTHS):
            coefficients = _fitted(features[train], wins[train], strength)
            losses[number] += _log_loss(wins[test], features[test] @ coefficients)
    coefficients = _fitted(features, wins, STRENGTHS[losses.argmin()])
    theta = coefficients[1]
    left = 100 * float((wins - expit(features @ coefficients)).std(ddof=1))
    if theta == 0 and left / np.sqrt(n) > LARGEST_ERROR:
        needed = int(np.ceil((left / LARGEST_ERROR) ** 2))
        return LengthControl(
            np.nan, f"the penalty alone makes it 50; there are {n} judgements, and some {needed} are needed"
        )
    return LengthControl(100 * float(expit(theta)))


def _worth(lengths: np.ndarray) -> float:
    """How many judgements at no difference in length would tell as much about it as these do.

    lengths: tanh(d) of each [n]. It is one over the leverage of d = 0: n where differences lie around 0, next to
    nothing where 0 is far outside of them, for what would be preferred there is then read off the line's far end.
    """
    return len(lengths) / (1 + lengths.mean() ** 2 / max(lengths.var(), np.finfo(float).tiny))


def _fitted(features: np.ndarray, wins: np.ndarray, strength: float) -> np.ndarray:
    """The coefficients [2] of features [n, 2] that minimise their absolute sum + strength · the summed log loss."""
    penalty = 1 / (strength * len(wins))  # beside the mean loss, whose size depends on neither

    def objective(parts: np.ndarray) -> tuple[float, np.ndarray]:
        logits = features @ (parts[:2] - parts[2:])
        slope = features.T @ (expit(logits) - wins) / len(wins)
        return _log_loss(wins, logits) + penalty * parts.sum(), np.concatenate([slope, -slope]) + penalty

    # The coefficients' positive and negative parts, each at least 0: in these the L1 penalty is smooth.
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    found = minimize(objective, np.zeros(4), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 4, options=options)
    parts = np.where(found.x > NEXT_TO_NOTHING, found.x, 0)
    coefficients = parts[:2] - parts[2:]
    # Newton's method for those that are not 0: L-BFGS-B ends where the loss no longer tells, at half the digits.
    free = coefficients != 0
    for _ in range(NEWTON_STEPS):
        expected = expit(features @ coefficients)
        slope = features.T @ (expected - wins) / len(wins) + penalty * np.sign(coefficients)
        curvature = (features.T * (expected * (1 - expected))) @ features / len(wins)
        step = np.zeros(2)
        try:
            step[free] = np.linalg.solve(curvature[np.ix_(free, free)], slope[free])
        except np.linalg.LinAlgError:  # within a fold all lengths may differ alike
            break
        moved = coefficients - step
        before, after = (_log_loss(wins, features @ c) + penalty * np.abs(c).sum() for c in (coefficients, moved))
        if after > before + ROUNDING:
            break
        coefficients = moved
    return coefficients


def _log_loss(probabilities: np.ndarray, logits: np.ndarray) -> float:
    """Mean log loss of logits against probabilities, in nats."""
    return float(np.mean(np.logaddexp(0, logits) - probabilities * logits))


def with_length_control(table: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    """A table of win rates with two columns more, `length_controlled_win_rate` and `length_control_note`.

    table: rows as `win_rate_table` gives them; judgements: those that it was made from, with `length_base` and
    `length_response`. Only the overall rows have one, as at AlpacaEval: a subset has too few prompts of like lengths,
    and the penalty would take it to 50%. Of "all" seeds it is the mean over those that were judged; where one of them
    has none there is none, for the others' mean would be that of the seeds that chance took furthest from 50. The note
    says why a row that has judgements has no rate.
    """
    judgements = judgements.assign(seed=judgements["seed"].astype(str))
    found: dict[tuple[str, str, str], LengthControl] = {}
    for (method, bin_), of_condition in judgements.groupby(["method", "bin"]):
        of_seeds = {
            seed: length_control(*(rows[name] for name in ("preference", *LENGTH_COLUMNS)))
            for seed, rows in of_condition.groupby("seed")
            if rows["preference"].notna().any()
        }
        found |= {(method, bin_, seed): control for seed, control in of_seeds.items()}
        if of_seeds:
            notes = dict.fromkeys(control.note for control in of_seeds.values() if control.note)
            mean = float(np.mean([control.rate for control in of_seeds.values()]))
            found[method, bin_, "all"] = LengthControl(mean, next(iter(notes), ""))
    nothing = LengthControl(np.nan)
    rows = [
        found.get((row.method, row.bin, str(row.seed)), nothing) if row.subset == "overall" else nothing
        for row in table.itertuples()
    ]
    return table.assign(
        length_controlled_win_rate=[row.rate for row in rows], length_control_note=[row.note for row in rows]
    )
