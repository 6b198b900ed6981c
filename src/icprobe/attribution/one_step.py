"""One step of fine-tuning on one example: by how much does it change each task's likelihood?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from icprobe.attribution.matrix import Blocks, Inputs, encode_documents, encode_tasks, packs
from icprobe.engine.gradients import Layer, collect_gradients, layers_of, loss_backward, spans
from icprobe.engine.likelihood import Suffix, packed_log_likelihoods
from icprobe.engine.matmul import matmul
from icprobe.engine.network import Network

Factors = list[tuple[Tensor, Tensor]]  # per layer: inputs [T, d_in], output gradients [T, d_out]


def attribute(
    inputs: Inputs,
    method: str,
    runs: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    learning_rate: float = 1e-4,
) -> Blocks:
    """A[z, t] = ll(t; θ − η·g_z) − ll(t; θ), in nats, zero-shot; the one-step check of arXiv 2407.12259.

    The update of a linear layer by one example has rank T (its tokens): it is added to the layer's output, or to a
    copy of its weight where that is cheaper; the model's own weights never change. Needs a float32 model.
    """
    network = Network(inputs.model, inputs.capabilities)
    layers = layers_of(network)
    documents = encode_documents(inputs, runs)
    encoded = encode_tasks(inputs)
    # Rows of tasks are fixed, so that before and after differ by the update alone.
    suffixes = [Suffix(e.ids, e.n_context) for e in encoded]
    rows_of_tasks = [suffixes[pack] for pack in packs([len(s.ids) for s in suffixes], batch_tokens)]
    before = torch.cat(list(_task_likelihoods(network, rows_of_tasks)))
    inputs.progress.expect(len(documents) * len(encoded), "pair")
    for rows in runs:
        names = [f"{method}/{rows[0]}/{place}" for place in range(len(rows))]
        sequences = [documents[row] for row in rows]
        where = spans(sequences)
        taken: dict[int, tuple[Tensor, Tensor]] = {}
        with collect_gradients(layers, lambda index, a, delta, taken=taken: taken.update({index: (a, delta)})):
            loss_backward(network, sequences)
        for name, span in zip(names, where, strict=True):
            if name in inputs.pieces:
                inputs.progress.found(len(encoded))
                continue
            factors = [(taken[index][0][span], taken[index][1][span]) for index in range(len(layers))]
            after = []
            with updated(layers, factors, learning_rate, sum(len(s.ids) for s in rows_of_tasks[0])):
                for likelihoods in _task_likelihoods(network, rows_of_tasks):
                    after.append(likelihoods)
                    inputs.progress.update(len(likelihoods))
            inputs.pieces[name] = (torch.cat(after) - before).numpy().astype(np.float32)
        yield method, rows, np.stack([inputs.pieces.pop(name) for name in names])


def _task_likelihoods(network: Network, rows: Sequence[Sequence[Suffix]]) -> Iterator[Tensor]:
    """Of the tasks in each row [tasks], one pass each."""
    for row in rows:
        yield packed_log_likelihoods(network, [((), row)])[0]


@contextmanager
def updated(layers: Sequence[Layer], factors: Factors, learning_rate: float, tokens: int) -> Iterator[None]:
    """Within the block the layers compute with W − η·δᵀa and b − η·Σδ.

    tokens: how many go through each forward pass. Adding x aᵀ δ costs T·(d_in + d_out) for each of them, forming δᵀa
    once T·d_in·d_out; the cheaper way is taken, layer by layer.
    """
    widest = max(layer.weight_size for layer in layers)
    scratch = torch.empty(widest, device=factors[0][0].device)
    handles = []
    kept: list[tuple[nn.Module, nn.Parameter]] = []
    for layer, (a, delta) in zip(layers, factors, strict=True):
        if tokens * (layer.d_in + layer.d_out) > layer.weight_size:
            kept.append((layer.module, layer.module.weight))
            handles.append(
                layer.module.register_forward_pre_hook(_materialise(layer, a, delta, learning_rate, scratch))
            )
            handles.append(layer.module.register_forward_hook(_restore(layer.module.weight)))
            low_rank = False
        else:
            low_rank = True
        if low_rank or layer.bias:
            handles.append(layer.module.register_forward_hook(_add(layer, a, delta, learning_rate, low_rank)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, weight in kept:
            module.weight = weight


def _materialise(layer: Layer, a: Tensor, delta: Tensor, learning_rate: float, scratch: Tensor):
    transposed = isinstance(layer.module, Conv1D)
    left, right = (a, delta) if transposed else (delta, a)

    def hook(module: nn.Module, _inputs: tuple) -> None:
        out = scratch[: layer.weight_size].view(module.weight.shape)
        torch.sub(module.weight, matmul(left.T, right.T), alpha=learning_rate, out=out)
        module.weight = nn.Parameter(out, requires_grad=False)

    return hook


def _restore(weight: nn.Parameter):
    def hook(module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        module.weight = weight

    return hook


def _add(layer: Layer, a: Tensor, delta: Tensor, learning_rate: float, low_rank: bool):
    shift = delta.sum(dim=0).mul_(learning_rate) if layer.bias else None

    def hook(_module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if low_rank:
            output = output - matmul(matmul(inputs[0], a), delta.T).mul_(learning_rate)
        return output if shift is None else output - shift

    return hook
