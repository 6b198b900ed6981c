"""The mean of `influence` over all tasks at the price of one, when nothing else is wanted of the matrix."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from icprobe.attribution.matrix import Blocks, Inputs, encode_documents, encode_tasks, packs
from icprobe.engine.gradients import collect_gradients, layers_of, loss_backward, spans
from icprobe.engine.matmul import matmul_float32
from icprobe.engine.network import Network


def attribute(inputs: Inputs, method: str, runs: Sequence[np.ndarray], batch_tokens: int = 1024) -> Blocks:
    """score[z] = mean_t ⟨g_z, g_t⟩ = ⟨g_z, Σ_t g_t⟩ / M, one column.

    The tasks' summed gradient V is one vector, whatever M is. No example's gradient is formed: in each layer
    ⟨δᵀa, V⟩ = Σ_s δ_s·(V a_s), as many operations as an ordinary weight gradient. (A forward-mode derivative along V
    costs as many again, for it too multiplies with W twice and with V once, and needs attention kernels that have one.)
    V is summed in float32 and rounded to the model's dtype once: 16 bits would lose a task beside a hundred others.
    """
    network = Network(inputs.model, inputs.capabilities)
    layers = layers_of(network)
    documents, tasks = encode_documents(inputs, runs), encode_tasks(inputs)
    weights = [torch.zeros(layer.d_out, layer.d_in, device=network.device) for layer in layers]
    biases = [torch.zeros(layer.d_out, device=network.device) for layer in layers]

    def add(index: int, a: Tensor, delta: Tensor) -> None:
        weights[index] += matmul_float32(delta.T, a.T)
        if layers[index].bias:
            biases[index] += delta.sum(dim=0, dtype=torch.float32)

    tokens = [len(task.ids) for task in tasks]
    inputs.progress.expect(sum(tokens) + sum(len(document.ids) for document in documents.values()), "token")
    with collect_gradients(layers, add):
        for pack in packs(tokens, batch_tokens):
            loss_backward(network, tasks[pack])
            inputs.progress.update(sum(tokens[pack]))
    for index, weight in enumerate(weights):
        weights[index] = weight.to(network.model.dtype)
    for rows in runs:
        sequences = [documents[row] for row in rows]
        per_token = torch.zeros(sum(len(s.ids) for s in sequences), device=network.device)

        def contract(index: int, a: Tensor, delta: Tensor, per_token: Tensor = per_token) -> None:
            per_token += (matmul_float32(a, weights[index], biases[index]) * delta).sum(dim=1, dtype=torch.float32)

        with collect_gradients(layers, contract):
            loss_backward(network, sequences)
        inputs.progress.update(len(per_token))
        scores = torch.stack([per_token[span].sum() for span in spans(sequences)]) / len(tasks)
        yield method, rows, scores.cpu().numpy()[:, None].astype(np.float32)
