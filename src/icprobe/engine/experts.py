"""A mixture's experts, each of whose matrices becomes a linear layer: hooks, adapters and updates see it as any other.

transformers keeps the matrices of all experts of a block in one parameter of three dimensions. Here an expert's own are
`nn.Linear` that share its memory, and read the tokens that are routed to it; so whoever collects their inputs has to
ask which tokens these are (`routed_tokens`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "icprobe_experts"
MATRICES = ("gate_up_proj", "up_proj", "down_proj")
HELD = "_icprobe_stacked"  # the attribute of a model that `stack` undoes its experts' standing apart by

_routed: ContextVar[Tensor | None] = ContextVar("routed", default=None)


def routed_tokens() -> Tensor | None:
    """Which tokens of the batch, flattened and ascending, the layer sees that is called at the moment; None: all."""
    return _routed.get()


def expert_layers(model: nn.Module) -> dict[str, tuple[str, int]]:
    """The linear layers that are experts' own, by name: (their module's name, the expert's number)."""
    return {
        f"{name}.{matrix}.{number}": (name, number)
        for name, module in model.named_modules()
        for matrix, experts in _lists(module).items()
        for number in range(len(experts))
    }


def routers(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices [experts, width] by which tokens are routed, by name, where these do more than multiply.

    Such a router is no layer of θ: what it gives is a choice. One that is a plain linear layer is as any other.
    """
    found = {}
    for name, parent in model.named_modules():
        counts = {len(m) for child in parent.children() for m in _lists(child).values()}
        for path, parameter in parent.named_parameters(prefix=name) if counts else ():
            module = model.get_submodule(path.rpartition(".")[0])
            plain = isinstance(module, nn.Embedding) or type(module).forward is nn.Linear.forward
            if parameter.dim() == 2 and len(parameter) in counts and not plain:
                found[path] = parameter
    return found


def unstack(model: PreTrainedModel) -> bool:
    """Puts an nn.Linear in place of each expert's matrices, which shares their memory; says whether there are any.

    Such a model computes, and is trained, but is not saved: its weights have other names.
    """
    held: dict[nn.Module, dict[str, nn.Parameter]] = {}
    for module in [m for m in model.modules() if _is_stacked(m)]:
        held[module] = {}
        for name in MATRICES:
            if (weights := module._parameters.get(name)) is None:
                continue
            biases = module._parameters.get(f"{name}_bias")
            held[module] |= {n: module._parameters.pop(n) for n in (name, f"{name}_bias") if n in module._parameters}
            layers = [
                _linear(weight.T if module.is_transposed else weight, None if biases is None else biases[number])
                for number, weight in enumerate(weights)
            ]
            setattr(module, name, nn.ModuleList(layers).train(module.training))
    if held:
        vars(model)[HELD] = (model.get_experts_implementation(), held)
        model.set_experts_implementation(NAME)
    return bool(held)


def stack(model: PreTrainedModel) -> None:
    """Undoes `unstack`."""
    implementation, held = vars(model).pop(HELD, (None, {}))
    for module, parameters in held.items():
        for name in MATRICES:
            module._modules.pop(name, None)
        module._parameters.update(parameters)
    if held:
        model.set_experts_implementation(implementation)


def _is_stacked(module: nn.Module) -> bool:
    """Whether a module keeps its experts as transformers' `use_experts_implementation` describes it."""
    return hasattr(module, "is_transposed") and isinstance(module._parameters.get("down_proj"), nn.Parameter)


def _lists(module: nn.Module) -> dict[str, nn.ModuleList]:
    """The experts' layers that a module holds itself, by matrix."""
    known = hasattr(module, "is_transposed")
    return {name: m for name in MATRICES if known and isinstance(m := module._modules.get(name), nn.ModuleList)}


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer [d_out, d_in] that computes with these tensors themselves."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def by_expert(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What a module of experts gives, expert by expert; transformers' experts interface.

    hidden_states: [tokens, d]; top_k_index, top_k_weights: [tokens, k], which experts a token goes to and what each
    counts. An index beyond the experts means none.
    """
    wide = torch.promote_types(hidden_states.dtype, torch.float32)
    summed = torch.zeros(hidden_states.shape, dtype=wide, device=hidden_states.device)
    inner = self.gate_up_proj if self.has_gate else self.up_proj
    for number in top_k_index.unique().tolist():
        if not 0 <= number < len(inner):
            continue
        tokens, places = torch.where(top_k_index == number)
        with _routing(tokens):
            states = inner[number](hidden_states[tokens])
            states = self._apply_gate(states) if self.has_gate else self.act_fn(states)
            states = self.down_proj[number](states)
        if self.has_post_expert_norm:
            states = self.post_expert_norm(states)
        summed.index_add_(0, tokens, (states * top_k_weights[tokens, places, None]).to(wide))
    return summed.to(hidden_states.dtype)


@contextmanager
def _routing(tokens: Tensor) -> Iterator[None]:
    token = _routed.set(tokens)
    try:
        yield
    finally:
        _routed.reset(token)


ALL_EXPERTS_FUNCTIONS.register(NAME, by_expert)
