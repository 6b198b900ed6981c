"""Which models are admitted: those for which the engines give what plain transformers gives, tried out on a few tokens.

What can be told from a model's structure is told first, in its own sentence. Then the engines (packed or padded rows, a
remembered beginning, branches and leaves, gradients in one row and in step) are held against one sequence at a time and
autograd, so that kinds of models that nobody has thought of are refused as well.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from icprobe.engine.execution import Network
from icprobe.engine.gradients import Layer, collect_gradients, layers_of, loss_backward, spans
from icprobe.engine.likelihood import Suffix, packed_log_likelihoods
from icprobe.engine.models import blocks, check_causal, linear_layers, opened
from icprobe.engine.rows import Row
from icprobe.engine.stepping import activations_per_token
from icprobe.errors import IcprobeError, ModelError, reason
from icprobe.texts.prompts import Encoded

logger = logging.getLogger(__name__)

# How far states and log-likelihoods, and gradients, may be from plain transformers' in float32, relative to what is
# compared: ten times and more what rounding makes of models of 30 layers.
FAR, GRADIENTS_FAR = 1e-4, 3e-3
# Gradients this small beside the model's largest are rounding: those of key biases are zero in theory.
NOUGHT = 1e-4
# In another dtype both are held against float32: the engines may be some times as far as plain transformers, and more.
ROUNDING, BESIDES = 3.0, 0.1

ADVICE = "; such a model is not supported, choose another."


@dataclass(frozen=True)
class Capabilities:
    """What the engines can do with a model; kept in its manifest.

    attributed_share: share of the blocks' weights that θ covers, the rest being norms and the like. packs: sequences
    are packed, not padded (tried on the CPU). in_step: several batches can go back in step. refused_dtypes: those in
    which the engines come out wrong, and what was seen.
    """

    attributed_share: float
    packs: bool
    in_step: bool
    refused_dtypes: dict[str, str]


@torch.no_grad()
def admit(directory: str | Path, tokenizer: Any, trusted: bool = False) -> Capabilities:
    """Tries out the model that was saved in `directory`, in each dtype. Raises ModelError where float32 is wrong."""
    exact, trial, capabilities = _in_float32(directory, tokenizer, trusted)
    if wrong := _wrong_in_bfloat16(directory, trusted, trial, exact):
        logger.warning("%s; it can be used with attribution.dtype: float32", wrong)
        capabilities.refused_dtypes["bfloat16"] = wrong
    return capabilities


def _in_float32(directory: str | Path, tokenizer: Any, trusted: bool) -> tuple["Computed", "Trial", Capabilities]:
    """What plain transformers gives on the trial's tokens, once the engines have given the same."""
    model = opened(directory, "float32", trusted)
    name = type(model).__name__
    with _step(name, "a first prediction"):
        check_causal(model)
    with _step(name, "a look at its layers"):
        share = check_theta(model)
        check_ids(model, tokenizer)
        trial = Trial.of(model)
    with _step(name, "a plain forward and backward pass"):
        check_calls(model, trial)
        check_head(model, trial)
        exact = plainly(model, trial)
    with _step(name, "a trial of the engines"):
        network = Network(model)
        found, in_step = by_engines(network, trial)
    far = differences(found, exact)
    refuse_far(name, far, {what: GRADIENTS_FAR if "gradient" in what else FAR for what in far})
    return exact, trial, Capabilities(share, network.packs, in_step, {})


def _wrong_in_bfloat16(directory: str | Path, trusted: bool, trial: "Trial", exact: "Computed") -> str:
    """What is wrong with the engines in bfloat16, or nothing; rounding takes plain transformers as far from `exact`."""
    model = opened(directory, "bfloat16", trusted)
    name = type(model).__name__
    try:
        with _step(name, "a plain forward and backward pass in bfloat16"):
            plain = plainly(model, trial)
        with _step(name, "a trial of the engines in bfloat16"):
            found, _ = by_engines(Network(model), trial)
        limits = {what: ROUNDING * apart + BESIDES for what, apart in differences(plain, exact).items()}
        refuse_far(f"{name} in bfloat16", differences(found, exact), limits)
    except ModelError as error:
        return str(error).removesuffix(ADVICE)
    return ""


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
        raise ModelError(f"{name}: linear layers lie outside its {len(inside)} blocks, first {other[0]}; θ lacks them.")
    for layer, module in layers.items():
        if more := dict(module.named_parameters()).keys() - {"weight", "bias"}:
            raise ModelError(f"{name}: its layer {layer} has more than weight and bias: {', '.join(sorted(more))}.")
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


def _direction(width: int) -> Tensor:
    """What a gradient [d_out, width] is multiplied with, so that none of a large model's is kept whole."""
    return torch.randn(width, generator=torch.Generator().manual_seed(width))


@contextmanager
def _hooks(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_calls(model: PreTrainedModel, trial: Trial) -> None:
    """Raises ModelError unless every layer of θ is called once for a sequence and sees each of its tokens."""
    rows: dict[str, list[int]] = {name: [] for name in linear_layers(model)}

    def count(name: str) -> Callable:
        return lambda _module, args: rows[name].append(args[0].shape[:-1].numel())

    ids = trial.sequences[0].ids
    with _hooks([m.register_forward_pre_hook(count(name)) for name, m in linear_layers(model).items()]):
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for name, seen in rows.items():
        if seen != [len(ids)]:
            what = f"sees {seen[0]} rows where a sequence has {len(ids)} tokens" if seen else "is never called"
            what = "is called several times" if len(seen) > 1 else what
            raise ModelError(
                f"{type(model).__name__}: its linear layer {name} {what}, so that gradients would be wrong{ADVICE}"
            )


def check_head(model: PreTrainedModel, trial: Trial) -> None:
    """Raises ModelError unless logits are the output embedding, a linear map, of the last hidden states and no more."""
    head, ids = model.get_output_embeddings(), torch.tensor([trial.sequences[0].ids])
    if head is None:
        raise ModelError(f"{type(model).__name__}: it has no output embedding; choose a causal language model.")
    if model.base_model is model:
        name = type(model).__name__
        raise ModelError(f"{name}: transformers has no module of it that gives hidden states and not logits{ADVICE}")
    taken: dict[str, Tensor] = {}

    def replace(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Logits as large as a trained model's, for a cap leaves small ones as they are.
        taken.update(states=args[0], own=output, given=torch.linspace(-99, 99, output.shape[-1]).expand_as(output))
        return taken["given"]

    with _hooks([head.register_forward_hook(replace)]):
        logits = model(input_ids=ids, use_cache=False).logits
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    linear = nn.functional.linear(taken["states"], head.weight, getattr(head, "bias", None))
    sides = ((logits, taken["given"]), (states, taken["states"]), (linear, taken["own"]))
    if any(a.shape != b.shape or _apart(a, b) > 1e-5 for a, b in sides):
        raise ModelError(
            f"{type(model).__name__}: its logits are not its output embedding of its last hidden state (they are "
            f"scaled, capped or made otherwise){ADVICE}"
        )


def plainly(model: PreTrainedModel, trial: Trial) -> Computed:
    """One sequence at a time, through transformers' own forward pass and autograd over θ."""
    states, log_likelihoods = [], []
    taken: list[Tensor] = []
    with _hooks([model.get_output_embeddings().register_forward_pre_hook(lambda _m, args: taken.append(args[0][0]))]):
        for ids, begin, target in trial.pairs():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            states.append(taken.pop()[begin:].float())
            log_likelihoods.append(-_loss(logits, ids, target).double())
    gradients: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in linear_layers(model).items():
        for part, parameter in module.named_parameters():
            take = _projected(gradients.setdefault(f"{name}.{part}", []), isinstance(module, Conv1D))
            handles.append(parameter.requires_grad_(True).register_post_accumulate_grad_hook(take))
    with _hooks(handles), torch.enable_grad():
        for sequence in trial.sequences:
            logits = model(input_ids=torch.tensor([sequence.ids]), use_cache=False).logits[0]
            _loss(logits, sequence.ids, sequence.n_context).backward()
    model.requires_grad_(False)
    return Computed(states, torch.stack(log_likelihoods), {n: torch.stack(g) for n, g in gradients.items()})


def _projected(to: list[Tensor], transposed: bool) -> Callable[[nn.Parameter], None]:
    def take(parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad.float(), None
        if gradient.dim() > 1:
            gradient = gradient.T if transposed else gradient
            gradient = gradient @ _direction(gradient.shape[1])
        to.append(gradient)

    return take


def _loss(logits: Tensor, ids: Sequence[int], target: int) -> Tensor:
    """Σ −log p of the ids from index `target` on; logits [S, V]."""
    return nn.functional.cross_entropy(logits[target - 1 : -1].float(), torch.tensor(ids[target:]), reduction="sum")


def by_engines(network: Network, trial: Trial) -> tuple[Computed, bool]:
    """The same by the engines; and whether batches go in step."""
    base = network.cache_prefix(trial.base)
    groups = [(prefix if base else trial.base + prefix, suffixes) for prefix, suffixes in trial.groups]
    row, places = Row(base), []
    for prefix, suffixes in groups:
        places += row.add_tree([s.ids for s in suffixes], row.add(prefix))
    hidden = network.hidden(row).float()
    log_likelihoods = torch.cat(packed_log_likelihoods(network, groups, base))
    layers = layers_of(network)
    gradients: dict[str, Tensor] = {}
    with collect_gradients(
        network, layers, lambda index, a, delta: gradients.update(_along(layers[index], a, delta, trial))
    ):
        loss_backward(network, trial.sequences)
    in_step = activations_per_token(network, layers) is not None  # held there against the gradients of one row
    return Computed([hidden[place] for place in places], log_likelihoods, gradients), in_step


def _along(layer: Layer, a: Tensor, delta: Tensor, trial: Trial) -> dict[str, Tensor]:
    """The gradients of a layer's parameter tensors along the same directions, from its inputs and output gradients."""
    a, delta, where = a.float(), delta.float(), spans(trial.sequences)
    along = a @ _direction(layer.d_in)
    found = {f"{layer.name}.weight": torch.stack([delta[span].T @ along[span] for span in where])}
    if layer.bias:
        found[f"{layer.name}.bias"] = torch.stack([delta[span].sum(0) for span in where])
    return found


# --- how far apart ----------------------------------------------------------------------------------------------


def differences(found: Computed, right: Computed) -> dict[str, float]:
    """What is compared: how far it is from what is right, relative to that."""
    if lacking := sorted(found.gradients.keys() ^ right.gradients.keys()):
        return {f"the gradient of {lacking[0]}": float("inf")}
    return {
        "the hidden states": max(map(_apart, found.states, right.states)),
        "the log-likelihoods": _apart(found.log_likelihoods, right.log_likelihoods),
        **{f"the gradient of {n}": _apart(found.gradients[n], right.gradients[n]) for n in _sizeable(right.gradients)},
    }


def refuse_far(name: str, found: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Raises ModelError where anything is farther from what is right than it may be."""
    for what, apart in found.items():
        if apart > limits.get(what, 0.0):
            raise ModelError(
                f"{name}: {what} of many sequences at once and of each one alone differ by {100 * apart:.2g}%, so that "
                f"attributions would come out wrong{ADVICE}"
            )


def _apart(found: Tensor, right: Tensor) -> float:
    """|found − right| / |right|; infinite where either is not finite."""
    apart = ((found - right).norm() / right.norm().clamp(min=1e-30)).item()
    return apart if apart == apart else float("inf")


def _sizeable(gradients: Mapping[str, Tensor]) -> list[str]:
    """The parameter tensors whose gradients are more than rounding."""
    largest = max(g.norm().item() for g in gradients.values())
    return [name for name, g in gradients.items() if g.norm().item() > NOUGHT * largest]
