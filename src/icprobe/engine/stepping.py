"""Backward passes of several packed rows in step, one transformer block at a time.

What a row keeps on its way are the inputs of its blocks (activation checkpointing, arXiv 1604.06174); each block is
computed anew when its turn comes. So rows of many tokens are under way at once, and what all of them need in a layer is
made once for all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icprobe.engine.execution import Execution
from icprobe.engine.gradients import Factors, Layer, collect_gradients, loss
from icprobe.engine.models import blocks
from icprobe.engine.network import Network
from icprobe.texts.prompts import Encoded

# (layer index, of each row its factors, None where it sees none of its tokens) → None; called once per layer
Consumer = Callable[[int, list[Factors | None]], None]


@dataclass
class _Pass:
    """A row on its way back. calls: what each block was called with; delta: the gradient of the next block's output."""

    execution: Execution
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    delta: Tensor

    def backward(self, block: nn.Module) -> None:
        """Through the last block that is left; its layers' hooks see what a whole backward pass would show them."""
        (x, *others), named = self.calls.pop()
        x = x.detach().requires_grad_()
        with torch.enable_grad(), self.execution.under_way():
            out = _states(block(x, *others, **named))
        (self.delta,) = torch.autograd.grad(out, x, self.delta)


def backward_in_step(
    network: Network, layers: Sequence[Layer], batches: Sequence[Sequence[Encoded]], consume: Consumer
) -> None:
    """`loss_backward` of every batch, layer by layer for all of them, in the same order and with the same bits.

    Raises NotImplementedError for a model whose blocks do not hand their output straight to the next.
    """
    with network.in_use():
        passes = [_forward(network, batch) for batch in batches]
        for block in reversed(blocks(network.model)):
            collected = _Collected(len(passes))
            with collect_gradients(layers, collected.add):
                for collected.number, one in enumerate(passes):
                    one.backward(block)
            for index in _in_order(layers, list(collected.factors)):
                consume(index, collected.factors.pop(index))


class _Collected:
    """What a block's layers show of several passes. number: of the one that is on its way."""

    def __init__(self, passes: int) -> None:
        self._passes, self.number = passes, 0
        self.factors: dict[int, list[Factors | None]] = {}

    def add(self, index: int, factors: Factors) -> None:
        self.factors.setdefault(index, [None] * self._passes)[self.number] = factors


def _in_order(layers: Sequence[Layer], seen: list[int]) -> list[int]:
    """Layers in the order in which a pass comes back to them, whichever experts it goes to.

    seen: as several passes came to them; each comes to a mixture's experts at once, from the last to the first.
    """
    first: dict[str | int, int] = {}
    for place, index in enumerate(seen):
        first.setdefault(layers[index].experts or index, place)
    return sorted(seen, key=lambda index: (first[layers[index].experts or index], -layers[index].expert))


def _forward(network: Network, batch: Sequence[Encoded]) -> _Pass:
    """Forward pass and loss, of which only the blocks' inputs are kept."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    leaves: list[Tensor] = []

    def cut(_block: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if not args or (leaves and args[0] is not leaves[-1]):
            raise NotImplementedError("its blocks do not stand one behind another")
        calls.append((args, named))
        leaves.append(_states(output).detach().requires_grad_())
        return (leaves[-1], *output[1:]) if isinstance(output, tuple) else leaves[-1]

    handles = [block.register_forward_hook(cut, with_kwargs=True) for block in blocks(network.model)]
    try:
        execution, states, delta = loss(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    return _Pass(execution, calls, torch.autograd.grad(states, leaves[-1], delta)[0])


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def activations_per_token(network: Network, layers: Sequence[Layer]) -> int | None:
    """Elements that a token keeps in `backward_in_step`; None where a model cannot go in step."""
    if not network.capabilities.in_step:
        return None
    number = len(blocks(network.model))
    return network.model.config.hidden_size * (number + 1) + math.ceil(sum(layer.width for layer in layers) / number)
