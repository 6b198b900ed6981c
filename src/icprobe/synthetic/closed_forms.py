"""Linear regression in context, where the value of a point has a closed form: closed forms, and correlations with them.

Functions are y = w·x + σε with w ~ N(0, I_d), x ~ N(0, I_d), ε ~ N(0, 1), as in icprobe.synthetic.regressor. The loss
of a query (x_t, y_t) is ½(y_t − ŷ)², the negative log-likelihood of unit variance up to a constant; every value of a
context point z is how much it lowers that loss, or promises to:

icp          by the trained transformer, z in its prompt against an empty one
influence    ⟨g_z, g_t⟩ of the linear model's losses, gradients at the prior mean w = 0
closed_form  by the exact posterior mean of w after z alone: one ridge update
"""

from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import rankdata

METHODS = ("icp", "influence", "closed_form")
PAIRS = (("icp", "influence"), ("icp", "closed_form"), ("influence", "closed_form"))
STATISTICS = ("spearman", "pearson", "spearman_within")
DIGITS = 12  # of a value relative to the largest; what lies below is rounding, and has no rank
COLUMNS = ["dimension", "noise", "method_a", "method_b", "statistic", "value", "low", "high", "interval"]


# --- closed forms -----------------------------------------------------------------------------------------------


def influence(x: np.ndarray, y: np.ndarray, query_x: np.ndarray, query_y: np.ndarray) -> np.ndarray:
    """First-order influence ⟨g_z, g_t⟩ of each point on its function's query: y_z·y_t·(x_z·x_t), as g = −y·x at w = 0.

    x [F, P, d], y [F, P]: points; query_x [F, d], query_y [F]. Returns [F, P].
    """
    return y * query_y[:, None] * _products(x, query_x)


def closed_form(x: np.ndarray, y: np.ndarray, query_x: np.ndarray, query_y: np.ndarray, noise: float) -> np.ndarray:
    """How much the posterior mean after one point lowers the query's loss: ½y_t² − ½(y_t − ŷ)², [F, P].

    Prior w ~ N(0, I), noise σ: the mean after z is x_z·y_z/(σ² + |x_z|²), so ŷ = y_z·(x_z·x_t)/(σ² + |x_z|²). To first
    order in ŷ it is influence/(σ² + |x_z|²). Shapes as for `influence`.
    """
    predicted = y * _products(x, query_x) / (noise**2 + (x**2).sum(axis=-1))
    return query_y[:, None] * predicted - predicted**2 / 2


def _products(x: np.ndarray, query_x: np.ndarray) -> np.ndarray:
    return (x @ query_x[..., None])[..., 0]  # [F, P]


def optimal_errors(x: np.ndarray, y: np.ndarray, noise: float) -> np.ndarray:
    """Squared error of the best prediction of each y from x and the points before it, [F, P].

    The best is the posterior mean, ridge regression with penalty σ²: ŷ = xᵀXᵀ(XXᵀ + σ²I)⁺y; without noise that is the
    least-squares solution of least norm.
    """
    errors = np.empty_like(y)
    errors[:, 0] = y[:, 0] ** 2
    for k in range(1, y.shape[1]):
        before = x[:, :k]
        gram = before @ before.transpose(0, 2, 1) + noise**2 * np.eye(k)  # [F, k, k]
        weights = np.linalg.pinv(gram, rcond=1e-10, hermitian=True) @ y[:, :k, None]
        predicted = (x[:, k, None] @ before.transpose(0, 2, 1) @ weights)[:, 0, 0]
        errors[:, k] = (y[:, k] - predicted) ** 2
    return errors


# --- tables -----------------------------------------------------------------------------------------------------


def correlations(values: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How far the values of points agree, for each dimension, noise and pair of methods.

    values: `dimension`, `noise`, `function`, `point` and a column for each of METHODS, every function with as many
    points. Statistics: spearman and pearson over all pairs of a point and its query; spearman_within, the mean over
    functions of the rank correlation among the points of one query, which is what choosing among them needs (NaN where
    points are worth the same, as in one dimension without noise, where each tells all). Intervals: 95% percentile
    bootstrap over functions, for points of one function share its weights and its query. Besides COLUMNS, `n` pairs and
    `functions`.
    """
    rows = []
    for (dimension, noise), cell in values.groupby(["dimension", "noise"], sort=True):
        functions = cell["function"].nunique()
        table = cell.sort_values(["function", "point"])[list(METHODS)].to_numpy().T.reshape(len(METHODS), functions, -1)
        scale = np.abs(table).max(axis=(1, 2), keepdims=True)
        table = np.round(table / np.where(scale > 0, scale, 1), DIGITS)
        estimates = _estimates(table)
        rng = np.random.default_rng([seed, int(dimension), round(1e6 * noise)])
        draws = [_estimates(table[:, rng.integers(0, functions, functions)]).ravel() for _ in range(resamples)]
        # Undefined ones are dropped.
        low, high = pd.DataFrame(draws).quantile([0.025, 0.975]).to_numpy().reshape(2, *estimates.shape)
        for (s, statistic), (k, pair) in product(enumerate(STATISTICS), enumerate(PAIRS)):
            numbers = [estimates[s, k], low[s, k], high[s, k]]
            rows.append([dimension, noise, *pair, statistic, *numbers, "bootstrap", table[0].size, functions])
    return pd.DataFrame(rows, columns=[*COLUMNS, "n", "functions"])


def _estimates(table: np.ndarray) -> np.ndarray:
    """[statistics, pairs] of values [methods, functions, points]."""
    places = [(METHODS.index(a), METHODS.index(b)) for a, b in PAIRS]
    pooled = table.reshape(len(METHODS), -1)
    within = _correlation_matrix(rankdata(table, axis=-1).transpose(1, 0, 2)).mean(axis=0)
    matrices = [_correlation_matrix(rankdata(pooled, axis=-1)), _correlation_matrix(pooled), within]
    return np.array([[matrix[place] for place in places] for matrix in matrices])


def _correlation_matrix(rows: np.ndarray) -> np.ndarray:
    """Pearson's correlations [..., m, m] of rows [..., m, n]; NaN where a row is constant."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    covariance = centred @ centred.swapaxes(-1, -2)
    spread = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance / (spread[..., :, None] * spread[..., None, :])
