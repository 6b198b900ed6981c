"""θ, the weights that gradients are taken over, every linear layer of the blocks that they reach; what it leaves out.

Outside of θ may be vectors, norms (one of queries has a weight for each head), embeddings (of relative positions) and
convolutions of one channel each: none of them is a matrix that tokens are multiplied with. Nor is a mixture's router
part of it, which chooses. Other matrices that θ lacks are named, and many of them refused.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from icprobe.engine.experts import expert_layers, routers
from icprobe.engine.models import blocks, linear_layers
from icprobe.engine.trials import Trial, hooks, ids_on
from icprobe.errors import ModelError

MOST_LEFT_OUT = 0.1  # of the blocks' weights
ADVICE = "; such a model is not supported, choose another."


@dataclass(frozen=True)
class Theta:
    """What θ is of a model.

    share: of the blocks' weights that play a part, those in θ; expert_share: of a mixture's experts, those that a token
    goes to (1 where there are none); unreached: linear layers that no gradient comes to, for they are never called or
    only choose what others see; left_out: what θ lacks besides vectors and norms, without the number of its block, and
    linear layers beside the blocks -> its size over that of the blocks' weights.
    """

    share: float
    expert_share: float
    unreached: tuple[str, ...]
    left_out: dict[str, float]


def theta_of(model: PreTrainedModel, trial: Trial) -> Theta:
    """What θ is of a model whose experts stand apart. Raises ModelError where gradients over it would be wrong."""
    _check_structure(model)
    layers, experts, tokens = linear_layers(model), expert_layers(model), len(trial.sequences[0].ids)
    rows, reached = _calls(model, trial)
    for name, seen in rows.items():
        if seen and seen != [tokens] and name not in experts:
            what = f"sees {seen[0]} rows where a sequence has {tokens} tokens"
            what = "is called several times" if len(seen) > 1 else what
            raise _refused(model, f"its linear layer {name} {what}, so that gradients would be wrong")
    unreached = tuple(name for name in rows if name not in reached and name not in experts)
    idle = _idle(model, trial, unreached)
    covered = {id(p) for name, module in layers.items() if name not in unreached for p in module.parameters()}
    inside = {n: p for n, p in blocks(model).named_parameters() if id(p) not in idle}
    total = sum(p.numel() for p in inside.values())
    left_out = _left_out(model, inside, covered)
    if sum(left_out.values()) > MOST_LEFT_OUT * total:
        first, parameter = next((n, p) for n, p in inside.items() if _kind(n) == next(iter(left_out)))
        raise _refused(
            model,
            f"{100 * sum(left_out.values()) / total:.0f}% of the weights of its blocks are in no linear layer (first "
            f"{first} {list(parameter.shape)}): gradients would leave them out",
        )
    left_out |= {f"{name}.weight": module.weight.numel() for name, module in _beside(model).items()}
    return Theta(
        sum(p.numel() for p in inside.values() if id(p) in covered) / total,
        sum(sum(rows[name]) for name in experts) / (tokens * len(experts)) if experts else 1.0,
        unreached,
        {kind: size / total for kind, size in left_out.items()},
    )


def _refused(model: PreTrainedModel, why: str) -> ModelError:
    return ModelError(f"{type(model).__name__}: {why}{ADVICE}")


def _check_structure(model: PreTrainedModel) -> None:
    """Raises ModelError for linear layers outside the blocks, with other parameters, or that several places share."""
    inside, layers = blocks(model), linear_layers(model)
    beside = {id(module) for module in _beside(model).values()}
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if other := [name for name, one in lists.items() if any(id(module) in beside for module in one.modules())]:
        raise _refused(
            model,
            f"it has linear layers outside its {len(inside)} blocks, first {other[0]}: gradients would leave them out",
        )
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for layer, module in layers.items():
        if more := dict(module.named_parameters()).keys() - {"weight", "bias"}:
            raise _refused(
                model, f"its layer {layer} has parameters besides weight and bias: {', '.join(sorted(more))}"
            )
        if any(uses[id(p)] > 1 for p in module.parameters()):
            raise _refused(
                model, f"the weights of {layer} are used in several places, so that they would count as often"
            )


def _beside(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers before and behind the blocks by name, but for the output embedding."""
    within = {id(module) for module in blocks(model).modules()} | {id(model.get_output_embeddings())}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in within
    }


def _calls(model: PreTrainedModel, trial: Trial) -> tuple[dict[str, list[int]], set[str]]:
    """Of each linear layer, the rows that it sees of a sequence, call by call; and the layers that gradients reach."""
    rows: dict[str, list[int]] = {name: [] for name in linear_layers(model)}
    reached: set[str] = set()

    def note(name: str) -> Callable:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            rows[name].append(args[0].shape[:-1].numel())
            if isinstance(output, Tensor) and output.requires_grad:
                reached.add(name)

        return hook

    embed = model.get_input_embeddings()
    handles = [embed.register_forward_hook(lambda _module, _args, output: output.requires_grad_().clone())]
    handles += [m.register_forward_hook(note(name)) for name, m in linear_layers(model).items()]
    with hooks(handles), torch.enable_grad():
        model(input_ids=ids_on(model, trial.sequences[0].ids), use_cache=False)
    return rows, reached


def _idle(model: PreTrainedModel, trial: Trial, unreached: tuple[str, ...]) -> set[int]:
    """The ids of those parameters of unreached layers which no gradient comes to in any other way.

    So it is with a decoder's attention to an encoder; but Mamba multiplies with the weight of a layer that it does not
    call.
    """
    parameters = [p for name in unreached for p in model.get_submodule(name).parameters()]
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        if not parameters:
            return set()
        with torch.enable_grad():
            logits = model(input_ids=ids_on(model, trial.sequences[0].ids), use_cache=False).logits
            if not logits.requires_grad:
                return {id(p) for p in parameters}
            found = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    finally:
        for p, required in zip(parameters, before, strict=True):
            p.requires_grad_(required)
    return {id(p) for p, gradient in zip(parameters, found, strict=True) if gradient is None}


def _left_out(model: PreTrainedModel, inside: dict[str, nn.Parameter], covered: set[int]) -> dict[str, float]:
    """What of the blocks' parameters is neither in θ nor a vector or a norm: kind -> elements."""
    free = {
        id(p)
        for module in blocks(model).modules()
        if isinstance(module, nn.Embedding)
        or (isinstance(module, nn.Conv1d) and module.groups == module.in_channels)
        or type(module).__name__.endswith("Norm")
        for p in module.parameters(recurse=False)
    } - {id(p) for p in routers(model).values()}
    found: dict[str, float] = {}
    for name, p in inside.items():
        if id(p) not in covered | free and sum(size > 1 for size in p.shape) > 1:
            found[_kind(name)] = found.get(_kind(name), 0) + p.numel()
    return found


def _kind(name: str) -> str:
    """A parameter's name without the number of its block."""
    return re.sub(r"^\d+\.", "", name)
