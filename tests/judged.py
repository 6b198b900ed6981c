"""Judgements for tests: as rows, and as preferences with the lengths of both responses."""

import numpy as np
import pandas as pd


def judgements(preferences, method="icp", bin_="gt-0.90", subset="koala", seed=0):
    return pd.DataFrame(
        {
            "method": method,
            "bin": bin_,
            "subset": subset,
            "seed": seed,
            "id": [f"p{i}" for i in range(len(preferences))],
            "preference": preferences,
        }
    )


def lengths_and_preferences(n, quality, taste, seed=0):
    rng = np.random.default_rng(seed)
    base, response = rng.integers(100, 900, n), rng.integers(300, 1500, n)
    feature = np.tanh((base - response) / (base - response).std(ddof=1))
    return 1 + 1 / (1 + np.exp(-quality + taste * feature + 0.3 * rng.normal(size=n))), base, response
