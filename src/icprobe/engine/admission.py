"""Which models are admitted: those for which the engines give what plain transformers gives, tried out on a few tokens.

What can be told from a model's structure is told first, in its own sentence. Then the engines (packed or padded rows, a
remembered beginning, branches and leaves, gradients in one row and in step) are held against one sequence at a time and
autograd, so that kinds of models that nobody has thought of are refused as well. What is found is the model's
`Capabilities`, which its manifest keeps: nothing of it is tried again.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from icprobe.engine.capabilities import Capabilities
from icprobe.engine.experts import expert_layers, unstack
from icprobe.engine.head import Shape, given_logits, shape_of
from icprobe.engine.models import check_causal, opened
from icprobe.engine.network import Network
from icprobe.engine.quantization import dequantise, quantised
from icprobe.engine.theta import ADVICE, theta_of
from icprobe.engine.trials import (
    Computed,
    Trial,
    by_engines,
    by_transformers,
    differences,
    hooks,
    ids_on,
    plain_states,
    relative_difference,
    try_engines,
)
from icprobe.errors import IcprobeError, ModelError, out_of_memory, reason

logger = logging.getLogger(__name__)

# How far states and log-likelihoods, and gradients, may be from plain transformers' in float32, relative to what is
# compared: ten times and more what rounding makes of models of 30 layers.
TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 3e-3
# In another dtype both are held against float32: the engines may be some times as far as plain transformers, and more.
TIMES_AS_FAR, AND_MORE = 3.0, 0.1


@torch.no_grad()
def admit(
    directory: str | Path, tokenizer: Any, trusted: bool = False, load: dict[str, str] | None = None
) -> Capabilities:
    """Tries out the model that was saved in `directory`, in each dtype. Raises ModelError where float32 is wrong.

    load: its source's. Quantised, it is held against plain transformers with the dequantised weights.
    """
    logger.info("comparing our engines with plain transformers on a few tokens, in float32 and in bfloat16")
    with _step("the model", "to open it again once it is saved"):
        model = opened(directory, "float32", trusted, experts_apart=False)
    capabilities, trial, exact = _try_out(model, tokenizer)
    name, has_experts = type(model).__name__, bool(expert_layers(model))
    del model  # for the memory of those that follow
    opener = _Opener(directory, trusted, load)
    if quantised(load):
        if has_experts:
            raise ModelError(f"{name}: bitsandbytes leaves a mixture's experts as they are; remove load.quantization.")
        with _step(name, f"a trial in {load['quantization']}"):
            exact = by_transformers(opener.plain("float32"), trial, capabilities.unreached)
            far = differences(by_engines(Network(opener.model("float32"), capabilities), trial), exact)
        _refuse_far_in_float32(f"{name} in {load['quantization']}", far)
    if wrong := _wrong_in_bfloat16(opener, capabilities, trial, exact):
        logger.warning("%s; it can be used with attribution.dtype: float32", wrong)
        capabilities = replace(capabilities, refused_dtypes={"bfloat16": wrong})
    return capabilities


@dataclass(frozen=True)
class _Opener:
    """Opens a saved model as its source's `load` says, and as plain transformers would compute the same."""

    directory: str | Path
    trusted: bool
    load: dict[str, str] | None = None

    def model(self, dtype: str) -> PreTrainedModel:
        return opened(self.directory, dtype, self.trusted, **({"load": self.load} if self.load else {}))

    def plain(self, dtype: str) -> PreTrainedModel:
        model = self.model(dtype)
        dequantise(model)
        return model


@torch.no_grad()
def capabilities_of(model: PreTrainedModel) -> Capabilities:
    """What the engines can do with a model in memory, in evaluation mode, which has no manifest.

    The experts of a mixture stand apart afterwards (`experts.unstack`). Raises ModelError as `admit` does. In another
    dtype than float32 there is nothing exact to hold the engines against: `refused_dtypes` is for a prepared model to
    say.
    """
    return _try_out(model)[0]


def _try_out(model: PreTrainedModel, tokenizer: Any = None) -> tuple[Capabilities, Trial, Computed]:
    """A model's capabilities in its dtype, and what plain transformers gives on the trial's tokens.

    In float32 the engines have then given the same. tokenizer: where it is to be the model's.
    """
    name = type(model).__name__
    with _step(name, "a first prediction"):
        check_causal(model)
    with _step(name, "a look at its layers"):
        trial = Trial.of(model)
        check_experts(model, trial)
        theta = theta_of(model, trial)
        if tokenizer is not None:
            check_ids(model, tokenizer)
    with _step(name, "a plain forward and backward pass"):
        shape = check_head(model, trial)
        known = Capabilities(
            attributed_share=theta.share,
            expert_share=theta.expert_share,
            unreached=theta.unreached,
            left_out=theta.left_out,
            logit_scale=shape.scale,
            logit_cap=shape.cap,
        )
        exact = by_transformers(model, trial, theta.unreached)
    with _step(name, "a trial of the engines"):
        capabilities = try_engines(model, known)
        found = by_engines(Network(model, capabilities), trial)
    if model.dtype == torch.float32:
        _refuse_far_in_float32(name, differences(found, exact))
    return capabilities, trial, exact


def _wrong_in_bfloat16(opener: _Opener, capabilities: Capabilities, trial: Trial, exact: Computed) -> str:
    """What is wrong with the engines in bfloat16, or nothing; rounding takes plain transformers as far from `exact`."""
    model = opener.model("bfloat16")
    name = type(model).__name__
    try:
        with _step(name, "a plain forward and backward pass in bfloat16"):
            as_such = opener.plain("bfloat16") if opener.load else model
            plain = by_transformers(as_such, trial, capabilities.unreached)
        with _step(name, "a trial of the engines in bfloat16"):
            found = by_engines(Network(model, capabilities), trial)
        limits = {what: TIMES_AS_FAR * far + AND_MORE for what, far in differences(plain, exact).items()}
        refuse_far(f"{name} in bfloat16", differences(found, exact), limits)
    except ModelError as error:
        return str(error).removesuffix(ADVICE)
    return ""


def _refuse_far_in_float32(name: str, far: Mapping[str, float]) -> None:
    refuse_far(name, far, {what: GRADIENT_TOLERANCE if "gradient" in what else TOLERANCE for what in far})


def refuse_far(name: str, found: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Raises ModelError where anything is farther from what is right than it may be."""
    for what, apart in found.items():
        if apart > limits.get(what, 0.0):
            raise ModelError(
                f"{name}: {what} of many sequences at once and of each one alone differ by {100 * apart:.2g}%, so that "
                f"attributions would come out wrong{ADVICE}"
            )


@contextmanager
def _step(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a model of an unforeseen kind fails anywhere in transformers, torch or the engines
        if isinstance(error, IcprobeError) or out_of_memory(error):
            raise
        raise ModelError(f"{name}: {what} fails ({reason(error)}){ADVICE}") from None


# --- what its structure tells -----------------------------------------------------------------------------------


def check_experts(model: PreTrainedModel, trial: Trial) -> None:
    """Puts a mixture's experts apart. Raises ModelError unless the model gives what it gave before."""
    own = [plain_states(model, sequence.ids).float() for sequence in trial.sequences]
    if not unstack(model):
        return
    apart = [plain_states(model, sequence.ids).float() for sequence in trial.sequences]
    far = max(map(relative_difference, apart, own))
    if far > (TOLERANCE if model.dtype == torch.float32 else AND_MORE):
        raise ModelError(
            f"{type(model).__name__}: its experts one by one give hidden states that differ from its own by "
            f"{100 * far:.2g}%, so that gradients would be wrong{ADVICE}"
        )


def check_ids(model: PreTrainedModel, tokenizer: Any) -> None:
    """Raises ModelError where the tokenizer gives ids that the embedding, or the head, has no row for.

    Control tokens that play no part (Gemma-3 1B has one for images) are left alone: text that is read as text gives
    none of them.
    """
    rows = min(len(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None)
    parts = {token for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
    idle = {str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special and str(t) not in parts}
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows and token not in idle)
    if beyond:
        number, token = beyond[0]
        raise ModelError(
            f"{type(model).__name__}: its tokenizer gives ids that its embedding of {rows} rows does not have, first "
            f"{number} ({token!r}); resize the embedding, or take a tokenizer that belongs to the model."
        )


# --- what is tried ----------------------------------------------------------------------------------------------


def check_head(model: PreTrainedModel, trial: Trial) -> Shape:
    """What the model does to the products of its last hidden states and its output embedding, a linear map.

    Raises ModelError where logits are made otherwise.
    """
    head, ids = model.get_output_embeddings(), ids_on(model, trial.sequences[0].ids)
    if head is None:
        raise ModelError(f"{type(model).__name__}: it has no output embedding; choose a causal language model.")
    taken: dict[str, Tensor] = {}

    def instead(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        taken.update(states=args[0], own=output, given=given_logits(output.shape[-1]).to(output).expand_as(output))
        return taken["given"].clone()  # some models change them in place

    with hooks([head.register_forward_hook(instead)]):
        logits = model(input_ids=ids, use_cache=False).logits
    linear = nn.functional.linear(taken["states"], head.weight, getattr(head, "bias", None))
    is_linear = linear.shape == taken["own"].shape == logits.shape and relative_difference(linear, taken["own"]) <= 1e-5
    shape = shape_of(taken["given"], logits, model.config) if is_linear else None
    if shape is None:
        raise ModelError(
            f"{type(model).__name__}: its logits are not its output embedding of hidden states, scaled or capped at "
            f"most{ADVICE}"
        )
    return shape
