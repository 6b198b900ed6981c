"""A method's matrix in the order of its examples, and how near another must come."""

import naive
import numpy as np
import pandas as pd

from icprobe.attribution.shards import compute
from icprobe.engine.batching import batches

ARCHITECTURES = ["llama", "gpt_neox", "gpt2"]


def matrices(module, inputs, method, batch_tokens=200, **settings):
    """{method: [N, M]} with the rows in the order of inputs.train."""
    runs = batches(inputs.lengths, batch_tokens)
    out = {}
    for name, rows, block in module.attribute(inputs, method, runs, batch_tokens=batch_tokens, **settings):
        out.setdefault(name, np.full((len(inputs.train), len(inputs.tasks)), np.nan, np.float32))[rows] = block
    return out


def in_shards(module, inputs, settings, shards, batch_tokens, folder):
    """A method's matrix [N, M] in the order of the ids, from so many shards; folder: where each may keep its pieces."""
    method = module.__name__.rsplit(".", 1)[1]
    parts = [
        compute(module.__name__, [method], inputs, settings, n, shards, batch_tokens, folder / f"{n}-of-{shards}")
        for n in range(1, shards + 1)
    ]
    return pd.concat([part[method] for part in parts]).set_index("id").sort_index().to_numpy()


def assert_influence_log(fast, examples, tasks):
    """That a matrix is the naive loop's where no term is near its jump; examples, tasks: naive gradients."""
    compared = 0
    for i, z in enumerate(examples):
        for j, t in enumerate(tasks):
            terms = naive.signed_log_terms(z, t)
            if all(abs(d) >= 1e-6 * total for d, total in terms):
                compared += 1
                slow = naive.influence_log(z, t)
                # Each d_p may be off by 1e-4 of its absolute terms, which its logarithm magnifies.
                allowed = sum(1e-4 * total / abs(d) for d, total in terms if total) + 1e-4 * abs(slow)
                assert abs(fast[i, j] - slow) <= allowed, f"pair {i},{j}: {fast[i, j]} against {slow}"
    assert compared >= 10


def assert_close(fast, slow, tolerance, relative_to=1.0):
    difference = np.abs(fast - slow).max() / relative_to
    assert difference <= tolerance, f"largest difference {difference:.2e}, allowed {tolerance:.0e}"
