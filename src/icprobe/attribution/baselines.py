"""Rivals that cost nothing: the length of the response, and chance."""

from collections.abc import Sequence

import numpy as np

from icprobe.attribution.matrix import Blocks, Inputs


def attribute(inputs: Inputs, method: str, runs: Sequence[np.ndarray]) -> Blocks:
    """One column, `score`. length: tokens of the response; random: uniform in [0, 1) from the seed and nothing else."""
    if method == "length":
        values = inputs.lengths["n_target"].to_numpy()
    else:
        values = np.random.default_rng(inputs.seed).random(len(inputs.lengths))
    for rows in runs:
        yield method, rows, values[rows, None].astype(np.float32)
