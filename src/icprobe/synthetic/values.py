"""What the points of held-out linear functions are worth by each method, and how well the transformer has learned."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from icprobe.synthetic.closed_forms import closed_form, influence, optimal_errors
from icprobe.synthetic.regressor import THREADS, Regressor, draw

PROMPTS_AT_ONCE = 4096  # of the model


@torch.inference_mode()
def predictions(model: Regressor, x: np.ndarray, y: np.ndarray, noise: float) -> np.ndarray:
    """The model's predictions of each y from its x and the points before it, float64 [F, k]; x [F, k, d], y [F, k]."""
    found = []
    for start in range(0, len(x), PROMPTS_AT_ONCE):
        part = slice(start, start + PROMPTS_AT_ONCE)
        xs, ys = (torch.from_numpy(array[part]).float() for array in (x, y))
        found.append(model(xs, ys, torch.full((len(xs),), float(noise))).double().numpy())
    return np.concatenate(found)


def icp(model: Regressor, x: np.ndarray, y: np.ndarray, noise: float) -> np.ndarray:
    """How much each point lowers the query's loss ½(y_t − ŷ)² when it alone stands in the prompt before it: [F, P].

    x [F, P + 1, d], y [F, P + 1]; the last point is the query.
    """
    functions, points, d = x.shape[0], x.shape[1] - 1, x.shape[2]
    zero_shot = predictions(model, x[:, -1:], y[:, -1:], noise)  # [F, 1]
    pairs_x = np.stack([x[:, :-1], np.broadcast_to(x[:, -1:], (functions, points, d))], axis=2)  # [F, P, 2, d]
    pairs_y = np.stack([y[:, :-1], np.broadcast_to(y[:, -1:], (functions, points))], axis=2)
    both = predictions(model, pairs_x.reshape(-1, 2, d), pairs_y.reshape(-1, 2), noise)
    one_shot = both[:, 1].reshape(functions, points)
    return ((y[:, -1:] - zero_shot) ** 2 - (y[:, -1:] - one_shot) ** 2) / 2


def value_points(model: Regressor, settings: dict[str, Any], seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The values of the points of held-out functions, and how well the model predicts against the best predictor.

    settings: the configuration's `synthetic`. Returns `dimension`, `noise`, `function`, `point` and a column for each
    method; and `dimension`, `noise`, `n_context` (points in the prompt), `functions`, `squared_error` (of the
    model), `optimal_squared_error` (of ridge regression) and `excess_standard_error` (of their mean difference).
    """
    torch.set_num_threads(THREADS)
    values, learning = [], []
    for d, sigma in product(settings["dimensions"], settings["noise"]):
        rng = np.random.default_rng([seed, 1, d, round(1e6 * sigma)])
        x, y = draw(settings["functions"], settings["points"] + 1, d, sigma, rng)
        points = (x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])
        functions, count = points[1].shape
        table = {
            "dimension": d,
            "noise": float(sigma),
            "function": np.repeat(np.arange(functions), count),
            "point": np.tile(np.arange(count), functions),
            "icp": icp(model, x, y, sigma).ravel(),
            "influence": influence(*points).ravel(),
            "closed_form": closed_form(*points, sigma).ravel(),
        }
        values.append(pd.DataFrame(table))
        errors, optimal = (predictions(model, x, y, sigma) - y) ** 2, optimal_errors(x, y, sigma)
        excess = (errors - optimal).std(axis=0, ddof=1) / np.sqrt(functions) if functions > 1 else np.nan
        curve = {
            "dimension": d,
            "noise": float(sigma),
            "n_context": np.arange(count + 1),
            "functions": functions,
            "squared_error": errors.mean(axis=0),
            "optimal_squared_error": optimal.mean(axis=0),
            "excess_standard_error": excess,
        }
        learning.append(pd.DataFrame(curve))
    return pd.concat(values, ignore_index=True), pd.concat(learning, ignore_index=True)
