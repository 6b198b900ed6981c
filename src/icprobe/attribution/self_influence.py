"""Self-influence: how long is an example's gradient, the classical finder of mislabelled rows?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.attribution.objective import Objective
from icprobe.engine.batching import spans
from icprobe.engine.gradients import Factors, collect_gradients, layers_of, loss_backward, squared_norms
from icprobe.engine.network import Network


def attribute(
    inputs: Inputs, method: str, batches: Sequence[np.ndarray], batch_tokens: int = 1024, **objective: Any
) -> Pieces:
    """score[z] = −⟨g_z, g_z⟩, one column, so that the best are the most ordinary. objective: whose gradients.

    TracIn's self-influence (arXiv 2002.08484) with one checkpoint. No gradient is formed (`squared_norms`); the layers
    are summed in float64.
    """
    network = Network(inputs.model, inputs.capabilities)
    whose = Objective(**objective)
    layers = layers_of(network, whose.parameters)
    documents = encode_documents(inputs, batches, whose)
    inputs.progress.expect(sum(len(document.ids) for document in documents.values()), "token")
    for rows in batches:
        sequences = [documents[row] for row in rows]
        where, total = spans(sequences), torch.zeros(len(rows), dtype=torch.float64, device=network.device)

        def add_layer(index: int, factors: Factors, where=where, total=total) -> None:
            total += squared_norms(layers[index], factors.a, factors.delta, factors.spans(where))

        with collect_gradients(layers, add_layer):
            loss_backward(network, sequences)
        inputs.progress.update(sum(len(sequence.ids) for sequence in sequences))
        yield method, rows, -total.cpu().numpy()[:, None].astype(np.float32)
