"""Rivals that cost nothing: the length of the response, and chance."""

from collections.abc import Sequence

import numpy as np

from icprobe.attribution.matrix import Inputs, Pieces


def attribute(inputs: Inputs, method: str, batches: Sequence[np.ndarray]) -> Pieces:
    """One column, `score`. length: tokens of the response; random: uniform in [0, 1) from the seed and nothing else."""
    if method == "length":
        values = inputs.lengths["n_target"].to_numpy()
    else:
        values = np.random.default_rng(inputs.seed).random(len(inputs.lengths))
    for rows in batches:
        yield method, rows, values[rows, None].astype(np.float32)
