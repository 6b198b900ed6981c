"""The engines tried on a few tokens of a model, against plain transformers: one sequence at a time, and autograd."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from icprobe.engine.capabilities import Capabilities
from icprobe.engine.gradients import Layer, collect_gradients, layers_of, loss_backward, spans
from icprobe.engine.likelihood import Suffix, packed_log_likelihoods
from icprobe.engine.models import linear_layers
from icprobe.engine.network import Network
from icprobe.engine.rows import Row
from icprobe.engine.stepping import backward_in_step
from icprobe.errors import ModelError, reason
from icprobe.texts.prompts import Encoded

logger = logging.getLogger(__name__)

# Gradients this small beside the model's largest are rounding: those of key biases are zero in theory.
NEGLIGIBLE = 1e-4
# How far two exact ways to the same states may lie apart, relative to their norm; a wrong way is off by all of it.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Trial:
    """Token ids: pairs behind a beginning that all share, with branches and leaves; and sequences for gradients."""

    base: tuple[int, ...]
    groups: list[tuple[tuple[int, ...], list[Suffix]]]
    sequences: list[Encoded]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Trial":
        """Drawn from the vocabulary, without tokens that some models treat apart."""
        rows, config = len(model.get_input_embeddings().weight), model.config
        apart = {getattr(config, f"{role}_token_id", None) for role in ("pad", "bos", "eos", "unk", "sep", "cls")}
        usable = [i for i in range(rows) if i not in apart] or [0]
        drawn = torch.randint(len(usable), (64,), generator=torch.Generator().manual_seed(0)).tolist()
        ids = iter([usable[i] for i in drawn])

        def take(n: int) -> tuple[int, ...]:
            return tuple(next(ids) for _ in range(n))

        stem = take(5)
        groups = [
            (take(3), [Suffix((*stem, *take(3)), 6), Suffix((*stem, *take(2)), 5), Suffix(take(4), 2)]),
            (take(2), [Suffix(take(5), 1)]),
        ]
        return cls(take(4), groups, [Encoded(take(9), 1), Encoded(take(6), 4)])

    def pairs(self) -> list[tuple[tuple[int, ...], int, int]]:
        """Of each pair its whole ids, where its suffix begins and where its target does."""
        return [
            ((*self.base, *prefix, *s.ids), len(self.base + prefix), len(self.base + prefix) + s.first)
            for prefix, suffixes in self.groups
            for s in suffixes
        ]


@dataclass(frozen=True)
class Computed:
    """What either way gives: of each pair the final hidden states behind the prefix [n, d] and the log-likelihood of
    its target [pairs]; of each parameter tensor of θ the gradients of all sequences, each along a random direction."""

    states: list[Tensor]
    log_likelihoods: Tensor
    gradients: dict[str, Tensor]


# --- plain transformers -----------------------------------------------------------------------------------------


@contextmanager
def hooks(handles: Sequence[Any]) -> Iterator[None]:
    """Removes hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ids_on(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """One sequence as a batch, where the model is."""
    return torch.tensor([ids], device=model.device)


def by_transformers(model: PreTrainedModel, trial: Trial) -> Computed:
    """One sequence at a time, through transformers' own forward pass and autograd over θ."""
    states, log_likelihoods = [], []
    taken: list[Tensor] = []
    with hooks([model.get_output_embeddings().register_forward_pre_hook(lambda _m, args: taken.append(args[0][0]))]):
        for ids, begin, target in trial.pairs():
            logits = model(input_ids=ids_on(model, ids), use_cache=False).logits[0]
            states.append(taken.pop()[begin:].float())
            log_likelihoods.append(-_loss(logits, ids, target).double().cpu())
    gradients: dict[str, list[Tensor]] = {}
    handles, frozen = [], {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    for name, module in linear_layers(model).items():
        for part, parameter in module.named_parameters():
            take = _projected(gradients.setdefault(f"{name}.{part}", []), isinstance(module, Conv1D))
            handles.append(parameter.requires_grad_(True).register_post_accumulate_grad_hook(take))
    try:
        with hooks(handles), torch.enable_grad():
            for sequence in trial.sequences:
                logits = model(input_ids=ids_on(model, sequence.ids), use_cache=False).logits[0]
                _loss(logits, sequence.ids, sequence.n_context).backward()
    finally:
        for parameter, before in frozen.items():
            parameter.requires_grad_(before)
    return Computed(states, torch.stack(log_likelihoods), {n: torch.stack(g) for n, g in gradients.items()})


def _projected(to: list[Tensor], transposed: bool) -> Callable[[nn.Parameter], None]:
    def take(parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad.float(), None
        if gradient.dim() > 1:
            gradient = gradient.T if transposed else gradient
            gradient = gradient @ _direction(gradient)
        to.append(gradient)

    return take


def _direction(like: Tensor) -> Tensor:
    """What a gradient [d_out, width] is multiplied with, so that none of a large model's is kept whole."""
    width = like.shape[1]
    return torch.randn(width, generator=torch.Generator().manual_seed(width)).to(like.device)


def _loss(logits: Tensor, ids: Sequence[int], target: int) -> Tensor:
    """Σ −log p of the ids from index `target` on; logits [S, V]."""
    targets = torch.tensor(ids[target:], device=logits.device)
    return nn.functional.cross_entropy(logits[target - 1 : -1].float(), targets, reduction="sum")


# --- the engines ------------------------------------------------------------------------------------------------


@torch.no_grad()
def try_engines(model: PreTrainedModel, attributed_share: float) -> Capabilities:
    """What the engines can do with a model, in its dtype and on its device."""
    found = Capabilities(attributed_share, False, False, {}, shares_input=_sharing_layers(model))
    packed = replace(found, packs=True)
    return replace(packed, in_step=_goes_in_step(Network(model, packed))) if _packs(model, packed) else found


def by_engines(network: Network, trial: Trial) -> Computed:
    """What `by_transformers` gives, by the engines."""
    base = network.cache_prefix(trial.base)
    groups = [(prefix if base else trial.base + prefix, suffixes) for prefix, suffixes in trial.groups]
    row, places = Row(base), []
    for prefix, suffixes in groups:
        places += row.add_tree([s.ids for s in suffixes], row.add(prefix))
    hidden = network.hidden(row).float()
    log_likelihoods = torch.cat(packed_log_likelihoods(network, groups, base)).cpu()
    layers = layers_of(network)
    gradients: dict[str, Tensor] = {}
    with collect_gradients(layers, lambda index, a, delta: gradients.update(_along(layers[index], a, delta, trial))):
        loss_backward(network, trial.sequences)
    return Computed([hidden[place] for place in places], log_likelihoods, gradients)


def _along(layer: Layer, a: Tensor, delta: Tensor, trial: Trial) -> dict[str, Tensor]:
    """The gradients of a layer's parameter tensors along the same directions, from its inputs and output gradients."""
    a, delta, where = a.float(), delta.float(), spans(trial.sequences)
    along = a @ _direction(a)
    found = {f"{layer.name}.weight": torch.stack([delta[span].T @ along[span] for span in where])}
    if layer.bias:
        found[f"{layer.name}.bias"] = torch.stack([delta[span].sum(0) for span in where])
    return found


def _packs(model: PreTrainedModel, capabilities: Capabilities) -> bool:
    """Whether a packed row gives what its sequences give one by one; the log says why not."""
    config, a, b, c = model.config, [5, 6, 7], [8, 9], [7, 5, 6]
    first, second = (_plain_states(model, ids) for ids in (a + b, a + c))
    row = Row()
    root = row.add(a)
    row.add(b, root), row.add(c, root)
    try:
        together = Network(model, capabilities).hidden(row)
        # By the norm: two exact kernels of bfloat16 differ by a rounding, more than 1% of some elements.
        apart = relative_difference(together.float(), torch.cat([first, second[len(a) :]]).float())
        same = apart <= ROUNDING[model.dtype]
        # What few tokens do not show: segment attention sees all that comes before, however far away.
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        if same and not kinds and not getattr(config, "sliding_window", None):
            return True
        why = "its attention has a window" if same else "packed and separate sequences differ"
    except (ModelError, NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        why = reason(error)
    logger.info("%s: its sequences cannot be packed (%s)", type(model).__name__, why)
    return False


def _plain_states(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Final hidden states [S, d] of one sequence, by transformers."""
    return model.base_model(input_ids=ids_on(model, ids), use_cache=False).last_hidden_state[0]


def _goes_in_step(network: Network) -> bool:
    """Whether `backward_in_step` shows hooks what `loss_backward` shows them."""
    batch = [Encoded((5, 6, 7, 8), 1), Encoded((9, 5, 6), 1)]
    layers = layers_of(network)
    whole: dict[int, tuple[Tensor, Tensor]] = {}
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    with collect_gradients(layers, lambda index, a, delta: whole.update({index: (a, delta)})):
        loss_backward(network, batch)
    try:
        backward_in_step(network, layers, [batch], lambda index, rows: parts.update({index: rows[0]}))
    except (NotImplementedError, TypeError, ValueError, RuntimeError):
        return False
    shown = [pair for index in whole for pair in zip(whole[index], parts.get(index, ()), strict=False)]
    return list(whole) == list(parts) and all(torch.allclose(x, y, rtol=1e-2, atol=1e-4) for x, y in shown)


def _sharing_layers(model: PreTrainedModel) -> tuple[str, ...]:
    """The layers whose input is that of the layer before."""
    layers, inputs = linear_layers(model), {}

    def keep(name: str) -> Callable:
        return lambda _module, args: inputs.update({name: args[0]})

    with hooks([module.register_forward_pre_hook(keep(name)) for name, module in layers.items()]):
        _plain_states(model, [5, 6])
    return tuple(name for before, name in pairwise(layers) if name in inputs and inputs[name] is inputs.get(before))


# --- how far apart ----------------------------------------------------------------------------------------------


def differences(found: Computed, right: Computed) -> dict[str, float]:
    """What is compared: how far it is from what is right, relative to that."""
    if lacking := sorted(found.gradients.keys() ^ right.gradients.keys()):
        return {f"the gradient of {lacking[0]}": float("inf")}
    return {
        "the hidden states": max(map(relative_difference, found.states, right.states)),
        "the log-likelihoods": relative_difference(found.log_likelihoods, right.log_likelihoods),
        **{
            f"the gradient of {name}": relative_difference(found.gradients[name], right.gradients[name])
            for name in _sizeable(right.gradients)
        },
    }


def relative_difference(found: Tensor, right: Tensor) -> float:
    """|found − right| / |right|; infinite where either is not finite."""
    apart = ((found - right).norm() / right.norm().clamp(min=1e-30)).item()
    return apart if apart == apart else float("inf")


def _sizeable(gradients: Mapping[str, Tensor]) -> list[str]:
    """The parameter tensors whose gradients are more than rounding."""
    largest = max(g.norm().item() for g in gradients.values())
    return [name for name, g in gradients.items() if g.norm().item() > NEGLIGIBLE * largest]
