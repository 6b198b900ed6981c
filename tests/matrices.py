"""A method's matrix in the order of its examples, and how near another must come."""

import numpy as np

from icprobe.engine.batching import batches

ARCHITECTURES = ["llama", "gpt_neox", "gpt2"]


def matrices(module, inputs, method, batch_tokens=200, **settings):
    """{method: [N, M]} with the rows in the order of inputs.train."""
    runs = batches(inputs.lengths, batch_tokens)
    out = {}
    for name, rows, block in module.attribute(inputs, method, runs, batch_tokens=batch_tokens, **settings):
        out.setdefault(name, np.full((len(inputs.train), len(inputs.tasks)), np.nan, np.float32))[rows] = block
    return out


def assert_close(fast, slow, tolerance, relative_to=1.0):
    difference = np.abs(fast - slow).max() / relative_to
    assert difference <= tolerance, f"largest difference {difference:.2e}, allowed {tolerance:.0e}"
