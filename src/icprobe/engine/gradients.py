"""Per-sequence gradients of the linear layers, from hooks, one layer at a time; no parameter requires grad.

In the backward pass each linear layer hands over its inputs a [S, d_in] and output gradients δ [S, d_out] for a packed
row of sequences. The gradient of sequence z is δ_zᵀ a_z (and Σδ_z for a bias); it is formed, used and overwritten. An
expert of a mixture has those of the tokens that are routed to it, and where there are none nothing.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from icprobe.engine.capabilities import Capabilities
from icprobe.engine.execution import Execution, on_device, under_way
from icprobe.engine.experts import expert_layers, routed_tokens
from icprobe.engine.likelihood import loss_gradient, packed_targets
from icprobe.engine.matmul import matmul, matmul_float32
from icprobe.engine.models import linear_layers
from icprobe.engine.network import Network
from icprobe.engine.parameters import chosen
from icprobe.texts.prompts import Encoded

logger = logging.getLogger(__name__)

NORM_TOKENS = 1024  # of a sequence against all of it, for its norm; [NORM_TOKENS, T] float32 is what that takes


@dataclass(frozen=True)
class Factors:
    """A layer's part in a row's backward pass: its gradients are products of these.

    a: inputs [n, d_in]; delta: output gradients [n, d_out]; tokens: which of the row's they are, ascending; None: all.
    """

    a: Tensor
    delta: Tensor
    tokens: Tensor | None = None

    def spans(self, where: Sequence[slice]) -> list[slice]:
        """Where sequences lie among these tokens. where: in the row, one behind the other."""
        if self.tokens is None:
            return list(where)
        edges = on_device([span.stop for span in where], self.tokens.device)
        return [slice(*pair) for pair in pairwise([0, *torch.searchsorted(self.tokens, edges).tolist()])]


# (layer index, factors) → None; called in the backward pass once for each layer that sees a token
Consumer = Callable[[int, Factors], None]
# hidden states [n, d] that predict the targets of a row → n ids to take for these targets
Label = Callable[[Tensor], Sequence[int]]


@dataclass(frozen=True)
class Layer:
    """A linear layer y = x Wᵀ + b in nn.Linear's orientation, whichever way its module stores W.

    share: of a row's tokens, those that it sees, on average; experts: the mixture that it is one of; expert: which.
    still_bias: the bias has a gradient of 0, but for rounding (`Capabilities.still_biases`).
    """

    name: str
    module: nn.Module
    d_in: int
    d_out: int
    bias: bool
    shares_input: bool = False  # with the layer before it, as keys and values do with queries
    share: float = 1.0
    experts: str = ""
    expert: int = 0
    still_bias: bool = False

    @property
    def width(self) -> float:
        """Elements that a token's factors take: inputs, unless the layer before holds them, and output gradients."""
        return self.share * (self.d_out + (0 if self.shares_input else self.d_in))

    @property
    def weight_size(self) -> int:
        return self.d_in * self.d_out

    @property
    def size(self) -> int:
        """Elements of weight and bias together."""
        return self.weight_size + (self.d_out if self.bias else 0)

    def parts(self, memory: Tensor) -> list[Tensor]:
        """The weights [n, d_out·d_in] and, where there are any, the biases [n, d_out] of gradients in a memory
        [n, size or more].
        """
        return [*memory[:, : self.size].split([self.weight_size, *([self.d_out] if self.bias else [])], dim=1)]


def layers_of(network: Network, parameters: str = "all") -> list[Layer]:
    """The layers that gradients are taken over, in the model's order. parameters: as `attribution.parameters` says.

    Raises ModelError as `parameters.chosen` does.
    """
    every = _layers(network.model, network.capabilities)
    if parameters == "all":
        return every
    logger.info("%s", coverage(network.model, network.capabilities, parameters).sentence(parameters))
    names = chosen([layer.name for layer in every], parameters, type(network.model).__name__)
    found, held = [], False
    for layer in every:
        held = held and layer.shares_input  # by a chosen layer, the input that this one shares
        if layer.name in names:
            found.append(replace(layer, shares_input=held))
            held = True
    return found


@dataclass(frozen=True)
class Coverage:
    """How much `attribution.parameters` chooses: layers of all in θ, and what share of θ and of the blocks' weights."""

    layers: int
    of_layers: int
    of_theta: float
    share: float

    def sentence(self, parameters: str) -> str:
        """Says it for the log."""
        return (
            f"Gradients are taken over {self.layers} of {self.of_layers} linear layers, {100 * self.share:.1f}% of the "
            f"weights of the blocks (attribution.parameters: {parameters})"
        )


def coverage(model: PreTrainedModel, capabilities: Capabilities, parameters: str) -> Coverage:
    """How much of a model is chosen; it may be on the meta device. Raises ModelError as `parameters.chosen` does."""
    sizes = {layer.name: layer.size for layer in _layers(model, capabilities)}
    names = chosen(list(sizes), parameters, type(model).__name__)
    of_theta = sum(sizes[name] for name in names) / sum(sizes.values())
    return Coverage(len(names), len(sizes), of_theta, of_theta * capabilities.attributed_share)


def _layers(model: PreTrainedModel, capabilities: Capabilities) -> list[Layer]:
    """All layers of θ, in the model's order."""
    found, sharing = [], set(capabilities.shares_input)
    of_experts, share = expert_layers(model), capabilities.expert_share
    for name, module in linear_layers(model).items():
        if name in capabilities.unreached:
            continue
        # A quantised weight has a shape of its own.
        d_out, d_in = module.weight.T.shape if isinstance(module, Conv1D) else (module.out_features, module.in_features)
        expert = (share, *of_experts[name]) if name in of_experts else ()
        biased, still = module.bias is not None, name in capabilities.still_biases
        found.append(Layer(name, module, d_in, d_out, biased, name in sharing, *expert, still_bias=still))
    return found


@contextmanager
def collect_gradients(layers: Sequence[Layer], consume: Consumer) -> Iterator[None]:
    """Within the block every backward pass calls `consume` for each layer, from the last to the first."""

    def collect(index: int) -> Callable:
        def forward_hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            a, execution, routed = inputs[0].detach(), under_way(), routed_tokens()
            if routed is None:
                of_row = execution.of_row
                output.register_hook(lambda delta: consume(index, Factors(of_row(a), of_row(delta))))
                return
            places, tokens = execution.among(routed)
            if len(tokens):
                output.register_hook(lambda delta: consume(index, Factors(a[places], delta[places], tokens)))

        return forward_hook

    handles = [layer.module.register_forward_hook(collect(index)) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loss_backward(network: Network, sequences: Sequence[Encoded], label: Label | None = None) -> None:
    """Backward pass of Σ −log p(target | context) over sequences packed in one row; hooks see the gradients.

    A document's loss over all tokens after the first is an `Encoded` with n_context = 1; where `mean` is set, a
    sequence's loss is divided by its number of targets. label: gives other targets in place of the texts' own.
    """
    _, states, delta = loss(network, sequences, label)
    states.backward(delta)


def loss(
    network: Network, sequences: Sequence[Encoded], label: Label | None = None
) -> tuple[Execution, Tensor, Tensor]:
    """The packed row, its final hidden states [S, d], and the gradient of Σ −log p(target | context) by them."""
    row, predictors, targets = packed_targets(sequences)
    counts = [one.n_target if one.mean else 1 for one in sequences for _ in range(one.n_target)]
    with torch.enable_grad():
        execution, states = network.run(row)
    delta = torch.zeros_like(states)
    chosen = on_device(predictors, states.device)
    if label is not None:
        targets = label(states.detach()[chosen])
    of_tokens = loss_gradient(network, states.detach()[chosen], targets)
    if any(sequence.mean for sequence in sequences):
        of_tokens = (of_tokens.float() / on_device(counts, states.device)[:, None]).to(of_tokens.dtype)
    delta[chosen] = of_tokens
    return execution, states, delta


def per_example_gradients(
    layer: Layer, a: Tensor, delta: Tensor, where: Sequence[slice], out: Tensor | None = None
) -> list[Tensor]:
    """Gradients of all sequences for one layer, parameter tensor by parameter tensor: weights [n, d_out·d_in], biases
    [n, d_out] where there are any. On a CPU they lie in out[:n, :layer.size] where it is given.

    Summed over tokens in float32, and rounded once where they are narrower.
    """
    n, dtype = len(where), a.dtype if out is None else out.dtype
    if _in_one_kernel(layer, a) and a.dtype == dtype:
        # Starting a product for each sequence takes longer than the products.
        ends = on_device([span.stop for span in where], a.device, torch.int32)
        parts = [grouped_mm(delta.contiguous().T, a.contiguous(), offs=ends).flatten(1)]
    else:
        out = torch.empty(n, layer.size, dtype=dtype, device=a.device) if out is None else out
        parts = layer.parts(out[:n])
        for row, span in zip(parts[0], where, strict=True):
            if span.start == span.stop:  # of an expert
                row.zero_()
            else:
                matmul(delta[span].T, a[span].T, out=row.view(layer.d_out, layer.d_in))
    if not layer.bias:
        return parts
    if a.device.type == "cpu":
        for row, span in zip(parts[1], where, strict=True):
            torch.sum(delta[span], dim=0, out=row)
        return parts
    return [parts[0], matmul_float32(_membership(where, delta), delta.T).to(dtype)]


def _in_one_kernel(layer: Layer, a: Tensor) -> bool:
    """Whether there is a kernel for the products of all sequences: on CUDA, in bfloat16, for rows of 16-byte words."""
    return (
        a.is_cuda
        and a.dtype == torch.bfloat16
        and layer.d_in % 8 == layer.d_out % 8 == 0
        and torch.cuda.get_device_capability(a.device) >= (8, 0)
    )


def grams(
    layer: Layer, a: Tensor, delta: Tensor, where: Sequence[slice], a2: Tensor, delta2: Tensor, where2: Sequence[slice]
) -> Tensor:
    """⟨g_i, g_j⟩ of one layer's gradients, none of which is formed: Σ_{s,t} (δ_s·δ_t)(a_s·a_t [+ 1 for a bias]).

    [S, d_in], [S, d_out] and spans of either side → [n, n2] float32.
    """
    pairs = matmul_float32(a, a2)
    if layer.bias:
        pairs += 1
    pairs *= matmul_float32(delta, delta2)
    return matmul(matmul(_membership(where2, pairs), pairs), _membership(where, pairs)).T


def squared_norms(layer: Layer, a: Tensor, delta: Tensor, where: Sequence[slice]) -> Tensor:
    """|g_i|² of one layer's gradients, [n] float32: Σ_{s,t} (δ_s·δ_t)(a_s·a_t [+ 1 for a bias]).

    No gradient is formed. Of each sequence by itself, so that no bit depends on its neighbours; of a long one some
    tokens at a time, so that memory grows with its length, not with the square of it.
    """
    found = torch.zeros(len(where), device=a.device)
    for number, span in enumerate(where):
        for start in range(span.start, span.stop, NORM_TOKENS):
            some = slice(start, min(start + NORM_TOKENS, span.stop))
            pairs = matmul_float32(a[some], a[span])
            found[number] += ((pairs + 1 if layer.bias else pairs) * matmul_float32(delta[some], delta[span])).sum()
    return found


def _membership(where: Sequence[slice], like: Tensor) -> Tensor:
    """Which tokens belong to which sequence, [n, S] of 0 and 1."""
    members = torch.zeros(len(where), where[-1].stop, dtype=like.dtype)
    for row, span in zip(members, where, strict=True):
        row[span] = 1
    return on_device(members, like.device)
