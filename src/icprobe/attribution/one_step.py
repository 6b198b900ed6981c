"""One step of fine-tuning on one example: by how much does it change each task's likelihood?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import Inputs, Pieces, encode_tasks
from icprobe.attribution.objective import Objective
from icprobe.engine.batching import packs, spans
from icprobe.engine.gradients import Factors, Layer, collect_gradients, layers_of, loss_backward
from icprobe.engine.likelihood import Suffix, packed_log_likelihoods
from icprobe.engine.matmul import matmul
from icprobe.engine.network import Network
from icprobe.engine.quantization import weight_of
from icprobe.texts.prompts import Encoded

GRADIENT_COST = 3  # of a token's forward and backward pass; 1 is a forward pass

# Of a gradient, by layer: inputs [T, d_in], output gradients [T, d_out]; a layer of which it is 0 has none.
Update = dict[int, tuple[Tensor, Tensor]]


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    learning_rate: float = 1e-4,
    **objective: Any,
) -> Pieces:
    """A[z, t] = ll(t; θ − η·g_z) − ll(t; θ), in nats, zero-shot; the one-step check of arXiv 2407.12259.

    objective: whose gradient, and whether ll is the sum over a target's tokens or their mean (`Objective`).

    The update of a linear layer by one example has rank T (its tokens): it is added to the layer's output, or to a
    copy of its weight where that is cheaper; the model's own weights never change. Needs a float32 model.
    """
    network = Network(inputs.model, inputs.capabilities)
    whose = Objective(**objective)
    layers = layers_of(network, whose.parameters)
    documents, tasks = encode_documents(inputs, batches, whose), encode_tasks(inputs, whose.task_likelihood)
    divisors = np.array([task.n_target if task.mean else 1 for task in tasks])
    task_rows = _rows_of_tasks(tasks, batch_tokens, not network.capabilities.packs)
    before = torch.cat(list(_log_likelihoods(network, task_rows)))
    row_tokens = [sum(len(suffix.ids) for suffix in row) for row in task_rows]
    # What a token of an example costs with each row of tasks: its update, and a share of its gradient.
    update_cost = _update_cost(layers, layers_of(network), row_tokens[0]) + GRADIENT_COST / len(task_rows)
    tokens_of = {row: len(document.ids) for row, document in documents.items()}
    work = len(documents) * sum(row_tokens) + len(task_rows) * update_cost * sum(tokens_of.values())
    inputs.progress.expect(len(documents) * len(tasks), "pair", work)
    for rows in batches:
        names = [f"{method}/{rows[0]}/{place}" for place in range(len(rows))]
        gradients = _gradients(network, layers, [documents[row] for row in rows])
        for row, name, factors in zip(rows, names, gradients, strict=True):
            of_update = update_cost * tokens_of[row]
            if name in inputs.pieces:
                inputs.progress.found(len(tasks), sum(row_tokens) + len(task_rows) * of_update)
                continue
            after = []
            with updated(layers, factors, learning_rate, row_tokens[0]):
                for n, of_row in zip(row_tokens, _log_likelihoods(network, task_rows), strict=True):
                    after.append(of_row)
                    inputs.progress.update(len(of_row), n + of_update)
            inputs.pieces[name] = ((torch.cat(after) - before).cpu().numpy() / divisors).astype(np.float32)
        yield method, rows, np.stack([inputs.pieces.pop(name) for name in names])


def _update_cost(layers: Sequence[Layer], passed: Sequence[Layer], tokens: int) -> float:
    """What a token of an example costs a pass of so many tokens, as `updated` lets layers compute; 1 is a forward pass.

    passed: all layers that it goes through; layers: those that are updated. Its term of the update is added to each
    output, or once to the weight.
    """
    costs = [
        layer.share * min(tokens * layer.share * (layer.d_in + layer.d_out), layer.weight_size) for layer in layers
    ]
    return sum(costs) / sum(layer.share * layer.weight_size for layer in passed)


def _rows_of_tasks(tasks: Sequence[Encoded], batch_tokens: int, padded: bool) -> list[list[Suffix]]:
    """Puts the tasks into rows, the same before and after a step, so that these differ by the update alone."""
    suffixes = [Suffix(task.ids, task.n_context) for task in tasks]
    return [suffixes[pack] for pack in packs([len(suffix.ids) for suffix in suffixes], batch_tokens, padded)]


def _log_likelihoods(network: Network, task_rows: Sequence[Sequence[Suffix]]) -> Iterator[Tensor]:
    """Log-likelihoods [tasks] of the tasks in each row, one pass each."""
    for row in task_rows:
        yield packed_log_likelihoods(network, [((), row)])[0]


def _gradients(network: Network, layers: Sequence[Layer], sequences: Sequence[Encoded]) -> Iterator[Update]:
    """The gradient of each sequence as its factors, from one backward pass over all of them."""
    of_row: dict[int, Factors] = {}
    with collect_gradients(layers, lambda index, factors: of_row.update({index: factors})):
        loss_backward(network, sequences)
    where = {index: factors.spans(spans(sequences)) for index, factors in of_row.items()}
    for number in range(len(sequences)):
        yield {
            index: (factors.a[span], factors.delta[span])
            for index, factors in sorted(of_row.items())
            if (span := where[index][number]).start < span.stop
        }


@contextmanager
def updated(layers: Sequence[Layer], factors: Update, learning_rate: float, tokens: int) -> Iterator[None]:
    """Lets the layers compute with W − η·δᵀa and b − η·Σδ, as long as the context is open.

    tokens: how many go through each forward pass. Adding x aᵀ δ costs T·(d_in + d_out) for each of them, forming δᵀa
    once T·d_in·d_out; each layer takes what is cheaper.
    """
    widest = max(layer.weight_size for layer in layers)
    scratch = torch.empty(widest, device=layers[0].module.weight.device)
    handles = []
    weights: list[tuple[nn.Module, nn.Parameter]] = []
    for index, (a, delta) in factors.items():
        layer, module = layers[index], layers[index].module
        low_rank = tokens * layer.share * (layer.d_in + layer.d_out) <= layer.weight_size
        if not low_rank:
            weights.append((module, module.weight))
            handles.append(module.register_forward_pre_hook(_materialise(layer, a, delta, learning_rate, scratch)))
            handles.append(module.register_forward_hook(_restore(module.weight)))
        if low_rank or layer.bias:
            handles.append(module.register_forward_hook(_add(layer, a, delta, learning_rate, low_rank)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, weight in weights:
            module.weight = weight


def _materialise(layer: Layer, a: Tensor, delta: Tensor, learning_rate: float, scratch: Tensor):
    """A hook that puts the updated weight, formed in `scratch`, into the layer before it computes."""
    transposed = isinstance(layer.module, Conv1D)
    left, right = (a, delta) if transposed else (delta, a)

    def hook(module: nn.Module, _inputs: tuple) -> None:
        weight = weight_of(module, scratch.dtype)
        out = scratch[: layer.weight_size].view(weight.shape)
        torch.sub(weight, matmul(left.T, right.T), alpha=learning_rate, out=out)
        module.weight = nn.Parameter(out, requires_grad=False)

    return hook


def _restore(weight: nn.Parameter):
    """A hook that puts the model's own weight back when the layer has computed."""

    def hook(module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        module.weight = weight

    return hook


def _add(layer: Layer, a: Tensor, delta: Tensor, learning_rate: float, low_rank: bool):
    """A hook that adds to the layer's output what the update of the bias, and where `low_rank` of the weight, gives."""
    shift = delta.sum(dim=0).mul_(learning_rate) if layer.bias else None

    def hook(_module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if low_rank:
            output = output - matmul(matmul(inputs[0], a), delta.T).mul_(learning_rate)
        return output if shift is None else output - shift

    return hook
