"""Which models are admitted: those for which the engines give what plain transformers gives, tried out on a few tokens.

What can be told from a model's structure is told first, in its own sentence. Then the engines (packed or padded rows, a
remembered beginning, branches and leaves, gradients in one row and in step) are held against one sequence at a time and
autograd, so that kinds of models that nobody has thought of are refused as well. What is found is the model's
`Capabilities`, which its manifest keeps: nothing of it is tried again.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from icprobe.engine.capabilities import Capabilities
from icprobe.engine.models import blocks, check_causal, linear_layers, opened
from icprobe.engine.network import Network
from icprobe.engine.trials import (
    Computed,
    Trial,
    by_engines,
    by_transformers,
    differences,
    hooks,
    ids_on,
    relative_difference,
    try_engines,
)
from icprobe.errors import IcprobeError, ModelError, reason

logger = logging.getLogger(__name__)

# How far states and log-likelihoods, and gradients, may be from plain transformers' in float32, relative to what is
# compared: ten times and more what rounding makes of models of 30 layers.
TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 3e-3
# In another dtype both are held against float32: the engines may be some times as far as plain transformers, and more.
TIMES_AS_FAR, AND_MORE = 3.0, 0.1

ADVICE = "; such a model is not supported, choose another."


@torch.no_grad()
def admit(directory: str | Path, tokenizer: Any, trusted: bool = False) -> Capabilities:
    """Tries out the model that was saved in `directory`, in each dtype. Raises ModelError where float32 is wrong."""
    logger.info("trying the engines on a few tokens, in float32 and in bfloat16")
    capabilities, trial, exact = _try_out(opened(directory, "float32", trusted), tokenizer)
    if wrong := _wrong_in_bfloat16(directory, trusted, capabilities, trial, exact):
        logger.warning("%s; it can be used with attribution.dtype: float32", wrong)
        capabilities = replace(capabilities, refused_dtypes={"bfloat16": wrong})
    return capabilities


@torch.no_grad()
def capabilities_of(model: PreTrainedModel) -> Capabilities:
    """What the engines can do with a model in memory, in evaluation mode, which has no manifest.

    Raises ModelError as `admit` does. In another dtype than float32 there is nothing exact to hold the engines against:
    `refused_dtypes` is for a prepared model to say.
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
        share = check_theta(model)
        if tokenizer is not None:
            check_ids(model, tokenizer)
        trial = Trial.of(model)
    with _step(name, "a plain forward and backward pass"):
        check_calls(model, trial)
        check_head(model, trial)
        exact = by_transformers(model, trial)
    with _step(name, "a trial of the engines"):
        capabilities = try_engines(model, share)
        found = by_engines(Network(model, capabilities), trial)
    if model.dtype == torch.float32:
        far = differences(found, exact)
        refuse_far(name, far, {what: GRADIENT_TOLERANCE if "gradient" in what else TOLERANCE for what in far})
    return capabilities, trial, exact


def _wrong_in_bfloat16(
    directory: str | Path, trusted: bool, capabilities: Capabilities, trial: Trial, exact: Computed
) -> str:
    """What is wrong with the engines in bfloat16, or nothing; rounding takes plain transformers as far from `exact`."""
    model = opened(directory, "bfloat16", trusted)
    name = type(model).__name__
    try:
        with _step(name, "a plain forward and backward pass in bfloat16"):
            plain = by_transformers(model, trial)
        with _step(name, "a trial of the engines in bfloat16"):
            found = by_engines(Network(model, capabilities), trial)
        limits = {what: TIMES_AS_FAR * far + AND_MORE for what, far in differences(plain, exact).items()}
        refuse_far(f"{name} in bfloat16", differences(found, exact), limits)
    except ModelError as error:
        return str(error).removesuffix(ADVICE)
    return ""


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
    except (IcprobeError, MemoryError):
        raise
    except Exception as error:  # a model of an unforeseen kind fails anywhere in transformers, torch or the engines
        raise ModelError(f"{name}: {what} fails ({reason(error)}){ADVICE}") from None


# --- what its structure tells -----------------------------------------------------------------------------------


def check_theta(model: PreTrainedModel) -> float:
    """The share of the blocks' weights that lie in θ. Raises ModelError for matrices outside of it, and shared ones.

    Outside of θ may be vectors, norms (one of queries has a weight for each head), embeddings (of relative positions)
    and convolutions of one channel each: none of them is a matrix that tokens are multiplied with.
    """
    name, inside, layers = type(model).__name__, blocks(model), linear_layers(model)
    if other := [n for n, m in model.named_modules() if _in_another_list(model, inside, m)]:
        raise ModelError(
            f"{name}: it has linear layers outside its {len(inside)} blocks, first {other[0]}: gradients would leave "
            f"them out{ADVICE}"
        )
    for layer, module in layers.items():
        if more := dict(module.named_parameters()).keys() - {"weight", "bias"}:
            raise ModelError(
                f"{name}: its layer {layer} has parameters besides weight and bias: {', '.join(sorted(more))}{ADVICE}"
            )
    covered = {id(p) for module in layers.values() for p in module.parameters()}
    free = {
        id(p)
        for module in inside.modules()
        if isinstance(module, nn.Embedding)
        or (isinstance(module, nn.Conv1d) and module.groups == module.in_channels)
        or type(module).__name__.endswith("Norm")
        for p in module.parameters(recurse=False)
    }
    total = sum(p.numel() for p in inside.parameters())
    lacking = {
        n: p
        for n, p in inside.named_parameters()
        if id(p) not in covered | free and sum(size > 1 for size in p.shape) > 1
    }
    if lacking:
        share = sum(p.numel() for p in lacking.values()) / total
        first, parameter = next(iter(lacking.items()))
        raise ModelError(
            f"{name}: {100 * share:.0f}% of the weights of its blocks are in no linear layer (first {first} "
            f"{list(parameter.shape)}): gradients would leave them out{ADVICE}"
        )
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for layer, module in layers.items():
        if any(uses[id(p)] > 1 for p in module.parameters()):
            raise ModelError(
                f"{name}: the weights of {layer} are used in several places, so that they would count as often{ADVICE}"
            )
    return sum(p.numel() for p in inside.parameters() if id(p) in covered) / total


def _in_another_list(model: PreTrainedModel, inside: nn.ModuleList, module: nn.Module) -> bool:
    """Whether a list of modules holds linear layers of which none is in the blocks."""
    if not isinstance(module, nn.ModuleList):
        return False
    within = {id(m) for m in inside.modules()}
    linear = [id(m) for m in module.modules() if isinstance(m, nn.Linear | Conv1D)]
    return any(m not in within and m != id(model.get_output_embeddings()) for m in linear)


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


def check_calls(model: PreTrainedModel, trial: Trial) -> None:
    """Raises ModelError unless every layer of θ is called once for a sequence and sees each of its tokens."""
    rows: dict[str, list[int]] = {name: [] for name in linear_layers(model)}

    def count(name: str) -> Callable:
        return lambda _module, args: rows[name].append(args[0].shape[:-1].numel())

    ids = trial.sequences[0].ids
    with hooks([m.register_forward_pre_hook(count(name)) for name, m in linear_layers(model).items()]):
        model(input_ids=ids_on(model, ids), use_cache=False)
    for name, seen in rows.items():
        if seen != [len(ids)]:
            what = f"sees {seen[0]} rows where a sequence has {len(ids)} tokens" if seen else "is never called"
            what = "is called several times" if len(seen) > 1 else what
            raise ModelError(
                f"{type(model).__name__}: its linear layer {name} {what}, so that gradients would be wrong{ADVICE}"
            )


def check_head(model: PreTrainedModel, trial: Trial) -> None:
    """Raises ModelError unless logits are the output embedding, a linear map, of the last hidden states and no more."""
    head, ids = model.get_output_embeddings(), ids_on(model, trial.sequences[0].ids)
    if head is None:
        raise ModelError(f"{type(model).__name__}: it has no output embedding; choose a causal language model.")
    if model.base_model is model:
        name = type(model).__name__
        raise ModelError(f"{name}: transformers has no module of it that gives hidden states and not logits{ADVICE}")
    taken: dict[str, Tensor] = {}

    def instead(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Logits as large as a trained model's, for a cap leaves small ones as they are.
        taken.update(
            states=args[0],
            own=output,
            given=torch.linspace(-99, 99, output.shape[-1], device=output.device).expand_as(output),
        )
        return taken["given"]

    with hooks([head.register_forward_hook(instead)]):
        logits = model(input_ids=ids, use_cache=False).logits
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    linear = nn.functional.linear(taken["states"], head.weight, getattr(head, "bias", None))
    sides = ((logits, taken["given"]), (states, taken["states"]), (linear, taken["own"]))
    if any(a.shape != b.shape or relative_difference(a, b) > 1e-5 for a, b in sides):
        raise ModelError(
            f"{type(model).__name__}: its logits are not its output embedding of its last hidden state (they are "
            f"scaled, capped or made otherwise){ADVICE}"
        )
