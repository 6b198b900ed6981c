"""The way from a final hidden state to logits: the output embedding, and what some models do to what it gives."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from icprobe.errors import ModelError

# Logits at which the way is tried: large ones, as a trained model's are, for a cap leaves small ones as they are; and
# one so small that it shows the scale alone.
TRIED, SMALL = 99.0, 0.01
EXACT = 1e-5  # how far from the way that is found anything may be, relative to it


class _Reached(Exception):
    """Ends a model's forward pass where its output embedding would begin."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def final_states(model: PreTrainedModel, **arguments: Tensor) -> Tensor:
    """The hidden states [..., S, d] that a model's output embedding is given; it is not called.

    Some models do more between their last block and the output embedding than their base model does.
    """

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _Reached(args[0])

    handle = model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        model(**arguments, use_cache=False)
    except _Reached as reached:
        return reached.states
    finally:
        handle.remove()
    raise ModelError(f"{type(model).__name__}: its output embedding is never called; choose another model.")


@dataclass(frozen=True)
class Shape:
    """What is done to the products x of hidden states and output embedding: cap·tanh(scale·x/cap), or scale·x."""

    scale: float = 1.0
    cap: float = 0.0  # 0: none

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, in place of x."""
        if self.scale != 1:
            x = x.mul_(self.scale)
        return x.div_(self.cap).tanh_().mul_(self.cap) if self.cap else x

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logit / d x, of logits."""
        return self.scale * (1 - (logits / self.cap) ** 2) if self.cap else self.scale


def given_logits(words: int) -> Tensor:
    """What a head is to have given [words], so that the logits after it show its shape."""
    given = torch.linspace(-TRIED, TRIED, words)
    given[0] = SMALL
    return given


def shape_of(given: Tensor, logits: Tensor, config: Any) -> Shape | None:
    """The shape by which `given_logits` came out as these logits; None where it is another kind.

    config: a model's, whose numbers are taken where they are what was found, for this is so many digits. Of 16 bits,
    which show few digits, no other numbers are taken.
    """
    eps = torch.finfo(logits.dtype).eps
    exact, close = max(EXACT, 4 * eps), max(1e-4, 4 * eps)
    given, logits = given.double().flatten(), logits.double().flatten()
    numbers = [float(n) for n in vars(config).values() if isinstance(n, int | float) and not isinstance(n, bool) and n]

    def said(found: float) -> float:
        known = [n for value in (1.0, *numbers) for n in (value, 1 / value) if math.isclose(n, found, rel_tol=close)]
        return min(known, key=lambda n: abs(n - found), default=found if close == 1e-4 else math.nan)

    scale = said((logits[0] / given[0]).item())
    if not scale or not math.isfinite(scale):
        return None
    found = Shape(scale)
    if _apart(found, given, logits) > exact:
        found = Shape(scale, said(_cap(scale * TRIED, logits.abs().max().item())))
    return found if _apart(found, given, logits) <= exact else None


def _apart(shape: Shape, given: Tensor, logits: Tensor) -> float:
    """How far logits are from what a shape makes, relative to the largest."""
    apart = (shape(given.clone()) - logits).abs().max() / logits.abs().max().clamp(min=1e-30)
    return apart.item() if apart == apart else math.inf


def _cap(x: float, logit: float) -> float:
    """The c > 0 with c·tanh(x/c) = logit; NaN where there is none."""
    from scipy.optimize import brentq

    x = abs(x)
    if not 0 < logit < x:
        return math.nan
    return brentq(lambda c: c * math.tanh(x / c) - logit, logit * (1 - 1e-12), 1e6 * x, xtol=1e-12, rtol=1e-12)
