"""The mean of `influence` over all tasks at the price of one, when nothing else is wanted of the matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import Inputs, Pieces, encode_tasks
from icprobe.attribution.objective import Objective
from icprobe.engine.batching import packs, spans
from icprobe.engine.gradients import Factors, Layer, collect_gradients, layers_of, loss_backward
from icprobe.engine.matmul import matmul_float32
from icprobe.engine.network import Network
from icprobe.texts.prompts import Encoded


def attribute(
    inputs: Inputs, method: str, batches: Sequence[np.ndarray], batch_tokens: int = 1024, **objective: Any
) -> Pieces:
    """score[z] = mean_t ⟨g_z, g_t⟩ = ⟨g_z, Σ_t g_t⟩ / M, one column. objective: whose gradients (`Objective`).

    The tasks' summed gradient V is one vector, whatever M is. No example's gradient is formed: in each layer
    ⟨δᵀa, V⟩ = Σ_s δ_s·(V a_s), as many operations as an ordinary weight gradient. (A forward-mode derivative along V
    costs as many again, for it too multiplies with W twice and with V once, and needs attention kernels that have one.)
    """
    network = Network(inputs.model, inputs.capabilities)
    whose = Objective(**objective)
    layers = layers_of(network, whose.parameters)
    documents, tasks = encode_documents(inputs, batches, whose), encode_tasks(inputs, whose.task_likelihood)
    task_tokens = sum(len(task.ids) for task in tasks)
    inputs.progress.expect(task_tokens + sum(len(document.ids) for document in documents.values()), "token")
    summed = _SummedGradient(network, layers)
    for pack in packs([len(task.ids) for task in tasks], batch_tokens, not inputs.capabilities.packs):
        summed.add(tasks[pack])
        inputs.progress.update(sum(len(task.ids) for task in tasks[pack]))
    summed.round_weights()
    for rows in batches:
        sequences = [documents[row] for row in rows]
        scores = summed.products(sequences) / len(tasks)
        inputs.progress.update(sum(len(sequence.ids) for sequence in sequences))
        yield method, rows, scores.cpu().numpy()[:, None].astype(np.float32)


class _SummedGradient:
    """The gradient V of the summed loss of many sequences, weights and biases layer by layer."""

    def __init__(self, network: Network, layers: Sequence[Layer]) -> None:
        self._network, self._layers = network, layers
        self._weights = [torch.zeros(layer.d_out, layer.d_in, device=network.device) for layer in layers]
        self._biases = [torch.zeros(layer.d_out, device=network.device) for layer in layers]

    def add(self, sequences: Sequence[Encoded]) -> None:
        """Adds the gradients of some sequences, in float32: 16 bits would lose one beside a hundred others."""

        def add_layer(index: int, factors: Factors) -> None:
            self._weights[index] += matmul_float32(factors.delta.T, factors.a.T)
            if self._layers[index].bias:
                self._biases[index] += factors.delta.sum(dim=0, dtype=torch.float32)

        with collect_gradients(self._layers, add_layer):
            loss_backward(self._network, sequences)

    def round_weights(self) -> None:
        """Rounds the weights' sums to the model's dtype, once, when all is added; one by one, to save memory."""
        for index, weight in enumerate(self._weights):
            self._weights[index] = weight.to(self._network.model.dtype)

    def products(self, sequences: Sequence[Encoded]) -> Tensor:
        """⟨g_z, V⟩ of each of some sequences: [n] float32."""
        per_token = torch.zeros(sum(len(sequence.ids) for sequence in sequences), device=self._network.device)

        def add_layer(index: int, factors: Factors) -> None:
            along = matmul_float32(factors.a, self._weights[index], self._biases[index])
            terms = (along * factors.delta).sum(dim=1, dtype=torch.float32)
            if factors.tokens is None:
                per_token.add_(terms)
            else:
                per_token.index_add_(0, factors.tokens, terms)

        with collect_gradients(self._layers, add_layer):
            loss_backward(self._network, sequences)
        return torch.stack([per_token[span].sum() for span in spans(sequences)])
