"""The loss that trl's trainer minimises: held against the model's own logits, and kept to the tokens that have one."""

import functools
import types
from typing import Any

import torch
from trl.trainer import utils

from icprobe.errors import ModelError, out_of_memory, reason

# On so many tokens trl's loss is compared with the model's own, from which rounding may take it this far.
PROBED_TOKENS, LOSS_TOLERANCE = 32, {torch.float32: 1e-3, torch.bfloat16: 0.05}


def prepare_loss(model: Any, ids: list[int]) -> None:
    """Makes a model ready to be trained that trl's trainer has taken.

    ids: of an example, on whose first tokens the loss is tried. Raises ModelError where trl's loss of a model is not
    that of its logits.
    """
    _pass_over_ignored(_own(model))
    _check(model, ids)


def _pass_over_ignored(model: Any) -> None:
    """Makes trl's output embedding pass over the tokens without a label on a CPU, as it does on a GPU.

    They count for nothing: the loss is the same, and no logits are computed of padding and queries. trl decides by the
    device, in a function of its own, for the sake of accelerators that compile for each number of tokens. A version of
    trl without it goes on as it does.
    """
    with_head, decides = model.forward.__func__, getattr(utils, "_use_triton", None)
    if decides is None or model.device.type != "cpu":
        return

    @functools.wraps(with_head)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        utils._use_triton = lambda device: device.type == "cpu" or decides(device)
        try:
            return with_head(self, *args, **kwargs)
        finally:
            utils._use_triton = decides

    model.forward = types.MethodType(forward, model)


@torch.no_grad()
def _check(model: Any, ids: list[int]) -> None:
    """Raises ModelError where trl's loss of a model is not that of its logits.

    trl puts the output embedding behind the base model itself, and leaves out what some models do between the two.
    """
    probed = torch.tensor([ids[:PROBED_TOKENS]], device=model.device)
    training = model.training
    model.eval()
    try:
        logits = model(input_ids=probed, use_cache=False).logits[0, :-1].float()
        right = logits.log_softmax(-1).gather(1, probed[0, 1:, None])[:, 0]
        found = model(input_ids=probed, labels=probed, fused_lm_head=True).log_probs[0].float()
        apart = ((found - right).abs().max() / right.abs().max().clamp(min=1e-6)).item()
    except (RuntimeError, AttributeError, IndexError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{_name(model)}: trl cannot compute its loss ({reason(error)}); choose another model."
        ) from None
    finally:
        model.train(training)
    if not apart < LOSS_TOLERANCE[model.dtype]:
        raise ModelError(
            f"{_name(model)}: the loss that trl computes is {100 * apart:.2g}% off that of the model's own logits, so "
            "that training would minimise something else; choose another model."
        )


def _name(model: Any) -> str:
    return type(_own(model)).__name__


def _own(model: Any) -> Any:
    """The model below its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
