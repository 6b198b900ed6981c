"""The engines tried on a few tokens of a model, against plain transformers: one sequence at a time, and autograd."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from icprobe.engine.batching import spans
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.gradients import Factors, Layer, collect_gradients, layers_of, loss_backward
from icprobe.engine.head import final_states
from icprobe.engine.likelihood import Suffix, packed_log_likelihoods
from icprobe.engine.models import linear_layers
from icprobe.engine.network import Network
from icprobe.engine.rows import Row
from icprobe.engine.stepping import backward_in_step
from icprobe.errors import ModelError, out_of_memory, reason
from icprobe.texts.prompts import Encoded

logger = logging.getLogger(__name__)

# Gradients this small beside the model's largest are rounding: those of key biases are zero in theory.
NEGLIGIBLE = 1e-4
# Output gradients of a few tokens whose sum is this small beside them cancel out; of others it is about a third.
STILL = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
# Layers that segment attention can stand for; and the window in which it is tried where they have one.
PACKED_KINDS, NARROW = {"full_attention", "sliding_attention"}, 2
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
        named = [getattr(config, f"{role}_token_id", None) for role in ("pad", "bos", "eos", "unk", "sep", "cls")]
        # Of ends a configuration may have a list.
        apart = {token for one in named for token in (one if isinstance(one, list) else [one])}
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


def by_transformers(model: PreTrainedModel, trial: Trial, unreached: Sequence[str] = ()) -> Computed:
    """One sequence at a time, through transformers' own forward pass and autograd over θ.

    unreached: linear layers outside of it.
    """
    states, log_likelihoods = [], []
    taken: list[Tensor] = []
    with hooks([model.get_output_embeddings().register_forward_pre_hook(lambda _m, args: taken.append(args[0][0]))]):
        for ids, begin, target in trial.pairs():
            logits = model(input_ids=ids_on(model, ids), use_cache=False).logits[0]
            states.append(taken.pop()[begin:].float())
            log_likelihoods.append(-_loss(logits, ids, target).double().cpu())
    gradients: dict[str, dict[int, Tensor]] = {}  # of each sequence; an expert may see no token of one
    handles, frozen = [], {p: p.requires_grad for p in model.parameters()}
    number = 0
    model.requires_grad_(False)
    for name, module in linear_layers(model).items():
        for part, parameter in module.named_parameters() if name not in unreached else ():

            def take(
                p: nn.Parameter, name: str = f"{name}.{part}", transposed: bool = isinstance(module, Conv1D)
            ) -> None:
                gradients.setdefault(name, {})[number] = _projected(p, transposed)

            handles.append(parameter.requires_grad_(True).register_post_accumulate_grad_hook(take))
    try:
        with hooks(handles), torch.enable_grad():
            for number, sequence in enumerate(trial.sequences):  # noqa: B007, the hooks read it
                logits = model(input_ids=ids_on(model, sequence.ids), use_cache=False).logits[0]
                _loss(logits, sequence.ids, sequence.n_context).backward()
    finally:
        for parameter, before in frozen.items():
            parameter.requires_grad_(before)
    whole = {
        name: torch.stack([of.get(n, torch.zeros_like(next(iter(of.values())))) for n in range(len(trial.sequences))])
        for name, of in gradients.items()
    }
    return Computed(states, torch.stack(log_likelihoods), whole)


def _projected(parameter: nn.Parameter, transposed: bool) -> Tensor:
    """Takes a parameter's gradient, that of a matrix along a direction [d_out]."""
    gradient, parameter.grad = parameter.grad.float(), None
    if gradient.dim() > 1:
        gradient = gradient.T if transposed else gradient
        gradient = gradient @ _direction(gradient)
    return gradient


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
def try_engines(model: PreTrainedModel, known: Capabilities) -> Capabilities:
    """What the engines can do with a model, in its dtype and on its device. known: what its structure tells."""
    found = replace(known, shares_input=_sharing_layers(model), pads_left=_pads_left(model))
    found = replace(found, still_biases=_still_biases(Network(model, found)))
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
    with collect_gradients(layers, lambda index, factors: gradients.update(_along(layers[index], factors, trial))):
        loss_backward(network, trial.sequences)
    return Computed([hidden[place] for place in places], log_likelihoods, gradients)


def _along(layer: Layer, factors: Factors, trial: Trial) -> dict[str, Tensor]:
    """The gradients of a layer's parameter tensors along the same directions, from its factors."""
    a, delta, where = factors.a.float(), factors.delta.float(), factors.spans(spans(trial.sequences))
    along = a @ _direction(a)
    found = {f"{layer.name}.weight": torch.stack([delta[span].T @ along[span] for span in where])}
    if layer.bias:
        found[f"{layer.name}.bias"] = torch.stack([delta[span].sum(0) for span in where])
    return found


def _packs(model: PreTrainedModel, capabilities: Capabilities) -> bool:
    """Whether a packed row gives what its sequences give one by one; the log says why not."""
    try:
        if kinds := set(getattr(model.config, "layer_types", None) or ()) - PACKED_KINDS:
            why = f"it has layers of {', '.join(sorted(kinds))}"
        elif not _packed_as_separate(model, capabilities):
            why = "packed and separate sequences differ"
        else:
            with _narrow_windows(model) as narrowed:
                if not narrowed or _packed_as_separate(model, capabilities):
                    return True
            why = "its attention has a window of its own kind"
    except (ModelError, NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        why = reason(error)
    logger.info("%s: its sequences cannot be packed (%s)", type(model).__name__, why)
    return False


def _pads_left(model: PreTrainedModel) -> bool:
    """Whether a sequence behind padding is gone on with as it is alone: by the logits of its next token."""
    ids, pad = [5, 6, 7, 8], [9, 9, 9]
    options = {
        "max_new_tokens": 1,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    try:
        alone, behind = (
            model.generate(
                input_ids=ids_on(model, before + ids),
                attention_mask=ids_on(model, [0] * len(before) + [1] * len(ids)),
                generation_config=GenerationConfig(**options),
            ).logits[0]
            for before in ([], pad)
        )
    except Exception as error:  # a type that transformers cannot generate with, or not with padding
        if out_of_memory(error):
            raise
        logger.info("%s: prompts are answered one by one (%s)", type(model).__name__, reason(error))
        return False
    return relative_difference(behind.float(), alone.float()) <= ROUNDING[model.dtype]


def _packed_as_separate(model: PreTrainedModel, capabilities: Capabilities) -> bool:
    """Whether a packed row of two branches gives what both sequences give alone."""
    a, b, c = [5, 6, 7], [8, 9], [7, 5, 6]
    first, second = (plain_states(model, ids) for ids in (a + b, a + c))
    row = Row()
    root = row.add(a)
    row.add(b, root), row.add(c, root)
    together = Network(model, capabilities).hidden(row)
    # By the norm: two exact kernels of bfloat16 differ by a rounding, more than 1% of some elements.
    apart = relative_difference(together.float(), torch.cat([first, second[len(a) :]]).float())
    return apart <= ROUNDING[model.dtype]


@contextmanager
def _narrow_windows(model: PreTrainedModel) -> Iterator[bool]:
    """Within the block attention that has a window sees few tokens, as a few tokens show; says whether any has one."""
    held = [(owner, value) for owner in (model.config, *model.modules()) if (value := _window(owner))]
    try:
        for owner, _ in held:
            owner.sliding_window = NARROW
        yield bool(held)
    finally:
        for owner, value in held:
            owner.sliding_window = value


def _window(owner: Any) -> int | None:
    """The window of a configuration or a module, where it has one."""
    value = getattr(owner, "sliding_window", None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > NARROW else None


def plain_states(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Final hidden states [S, d] of one sequence, by transformers."""
    return final_states(model, input_ids=ids_on(model, ids))[0]


def _goes_in_step(network: Network) -> bool:
    """Whether `backward_in_step` shows hooks what `loss_backward` shows them."""
    batch = [Encoded((5, 6, 7, 8), 1), Encoded((9, 5, 6), 1)]
    layers = layers_of(network)
    whole: dict[int, Factors] = {}
    parts: dict[int, Factors] = {}
    with collect_gradients(layers, lambda index, factors: whole.update({index: factors})):
        loss_backward(network, batch)
    try:
        backward_in_step(network, layers, [batch], lambda index, rows: parts.update({index: rows[0]}))
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        return False
    if list(whole) != list(parts):
        return False
    shown = [pair for index in whole for pair in zip(_tensors(whole[index]), _tensors(parts[index]), strict=True)]
    near = max(1e-2, ROUNDING[network.model.dtype])  # by the norm: the gradients of large models may be tiny
    return all(x.shape == y.shape and relative_difference(y.float(), x.float()) <= near for x, y in shown)


def _still_biases(network: Network) -> tuple[str, ...]:
    """The layers in which the output gradients of a sequence's tokens add up to nothing but rounding."""
    biased = [layer for layer in layers_of(network) if layer.bias]
    moved: dict[str, list[bool]] = {layer.name: [] for layer in biased}

    def look(index: int, factors: Factors) -> None:
        delta = factors.delta.float()
        size = delta.norm(dim=1).sum()
        if size > 0:
            moved[biased[index].name].append(bool(delta.sum(0).norm() > STILL[network.model.dtype] * size))

    for ids in ((5, 6, 7, 8), (9, 5, 6)):
        with collect_gradients(biased, look):
            loss_backward(network, [Encoded(ids, 1)])
    return tuple(name for name, found in moved.items() if found and not any(found))


def _tensors(factors: Factors) -> tuple[Tensor, Tensor]:
    return factors.a, factors.delta


def _sharing_layers(model: PreTrainedModel) -> tuple[str, ...]:
    """The layers whose input is that of the layer before."""
    layers, inputs = linear_layers(model), {}

    def keep(name: str) -> Callable:
        return lambda _module, args: inputs.update({name: args[0]})

    with hooks([module.register_forward_pre_hook(keep(name)) for name, module in layers.items()]):
        plain_states(model, [5, 6])
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
