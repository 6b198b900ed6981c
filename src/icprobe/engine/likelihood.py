"""Log-likelihoods of targets, many behind one shared prefix, exact, with the LM head only where a target needs it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icprobe.engine.batching import spans, split_by_size
from icprobe.engine.execution import on_device
from icprobe.engine.matmul import compiled_on_cuda, matmul_float32
from icprobe.engine.network import Network
from icprobe.engine.rows import WORTH_SHARING, PrefixCache, Row, common_length
from icprobe.texts.prompts import Encoded

# Words of the vocabulary whose logits are formed at a time: their weights and logits stay in a CPU's cache, while the
# whole of the head's weight would be read from memory for every few rows.
HEAD_WORDS = 2048
# Logits that exist at a time, in float32: a row's length bounds no memory.
HEAD_LOGITS = 1 << 28
# Tokens behind a prefix that stands in several rows, for each of its own.
REPEATED = 8


@dataclass(frozen=True)
class Suffix:
    """Token ids that follow a prefix; those from index `first` on are the target."""

    ids: tuple[int, ...]
    first: int


def log_likelihoods(
    network: Network,
    prefix: Sequence[int],
    suffixes: Sequence[Suffix],
    base: PrefixCache | None = None,
    limit: float = math.inf,
) -> Tensor:
    """Summed target log-probabilities of each suffix behind one shared prefix, in nats.

    prefix: token ids [P], possibly none; suffixes: M of them. Returns [M] float64. The prefix runs once (Nuggets, arXiv
    2312.10302, eq. 2); the suffixes stand behind it in one packed row, each seeing it and itself, and what several
    suffixes begin with alike stands there once. Where they have more than `limit` tokens (`size`) they go into several
    rows, for which the prefix's keys and values are kept; where the network keeps none, it stands in each.
    """
    if size(network, prefix, suffixes) <= limit:
        return packed_log_likelihoods(network, [(prefix, suffixes)], base)[0]
    # A suffix that is all target is predicted from the prefix's last token on, which then stands in each row.
    split = len(prefix) - any(suffix.first == 0 for suffix in suffixes)
    kept = network.cache_prefix(prefix[:split], base)
    if kept is not None:
        prefix, base = prefix[split:], kept
    # A prefix that stands in each row is to be little beside what stands behind it.
    room = max(limit, REPEATED * len(prefix)) if network.capabilities.packs else limit
    longest = max(len(suffix.ids) for suffix in suffixes)
    tokens = [len(suffix.ids) if network.capabilities.packs else len(prefix) + longest for suffix in suffixes]
    # Rows of about one size: a short one at the end would take longer for each of its tokens.
    even = sum(tokens) / math.ceil(sum(tokens) / room)
    parts = ([suffixes[i] for i in part] for part in split_by_size(tokens, min(room, even + max(tokens))))
    return torch.cat([packed_log_likelihoods(network, [(prefix, part)], base)[0] for part in parts])


def size(network: Network, prefix: Sequence[int], suffixes: Sequence[Suffix]) -> int:
    """Tokens that a prefix and its suffixes put into the model, those of padding too where it pads."""
    lengths = [len(suffix.ids) for suffix in suffixes]
    if network.capabilities.packs:
        return len(prefix) + sum(lengths)
    return len(lengths) * (len(prefix) + max(lengths, default=0))


@torch.no_grad()
def packed_log_likelihoods(
    network: Network, groups: Sequence[tuple[Sequence[int], Sequence[Suffix]]], base: PrefixCache | None = None
) -> list[Tensor]:
    """`log_likelihoods` of several (prefix, suffixes) in one row; one result [M] float64 for each group.

    base: what all prefixes begin with, computed before (`Network.cache_prefix`); the prefixes are given without it.
    The results lie where the model does: on CUDA nobody waits for them yet.
    """
    row, predictors, targets, counts = Row(base), [], [], []
    shared = common_length([prefix for prefix, _ in groups])
    stem = row.add(groups[0][0][:shared]) if len(groups) > 1 and shared >= WORTH_SHARING else None
    shared = 0 if stem is None else shared
    for prefix, suffixes in groups:
        root = row.add(prefix[shared:], stem) if len(prefix) > shared else stem
        for suffix, places in zip(suffixes, row.add_tree([s.ids for s in suffixes], root), strict=True):
            before = [row.segments[root].end - 1] if root is not None else [None]
            predictors += (before + places)[suffix.first : -1]
            targets += suffix.ids[suffix.first :]
            counts.append(len(suffix.ids) - suffix.first)
    states = network.hidden(row)[on_device(predictors, network.device)]
    summed = torch.stack([part.sum() for part in target_log_probabilities(network, states, targets).split(counts)])
    return list(summed.split([len(suffixes) for _, suffixes in groups]))


def packed_targets(sequences: Sequence[Encoded]) -> tuple[Row, list[int], list[int]]:
    """Sequences one behind another in one row: (row, of each target the place of what predicts it, the targets)."""
    row, predictors, targets = Row(), [], []
    for sequence, span in zip(sequences, spans(sequences), strict=True):
        row.add(sequence.ids)
        predictors += [span.start + place - 1 for place in sequence.targets]
        targets += [sequence.ids[place] for place in sequence.targets]
    return row, predictors, targets


@torch.no_grad()
def target_log_probabilities(network: Network, states: Tensor, targets: Sequence[int]) -> Tensor:
    """log p(target_i | state_i): states [n, d], targets n ids → [n] float64, each in float32."""
    wanted = on_device(targets, states.device)
    parts = _at_a_time(network, states, wanted)
    # Summed in float64 by the caller: hundreds of nats would lose 1e-4 in float32, which is what effects are made of.
    return torch.cat([_log_probabilities(network, *part) for part in parts]).double()


def _log_probabilities(network: Network, states: Tensor, wanted: Tensor) -> Tensor:
    """The same of some states, in float32."""
    if states.device.type != "cpu":
        ((_, logits),) = head_tiles(network, states)
        return logits.gather(1, wanted[:, None])[:, 0] - logsumexp(logits)
    total = torch.full((len(states),), -torch.inf)
    chosen = torch.zeros_like(total)
    for start, logits in head_tiles(network, states):
        total = torch.logaddexp(total, logits.logsumexp(dim=1))
        inside = (wanted >= start) & (wanted < start + logits.shape[1])
        chosen[inside] = logits[inside, wanted[inside] - start]
    return chosen - total


@compiled_on_cuda  # which reads the logits once, where PyTorch's four kernels each do
def logsumexp(logits: Tensor) -> Tensor:
    return logits.logsumexp(dim=1)


def _at_a_time(network: Network, states: Tensor, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """States with their targets, so many at a time that no more than HEAD_LOGITS logits exist."""
    n = max(1, HEAD_LOGITS // words_at_a_time(network, states.device))
    return zip(states.split(n), wanted.split(n), strict=True)


@torch.no_grad()
def drawn_targets(network: Network, states: Tensor, uniforms: Tensor) -> list[int]:
    """Words drawn from the model's own distribution: states [n, d], uniforms [n] float64 in [0, 1) → n ids.

    By inversion: the first word up to which the probabilities add up to more than the uniform number. The vocabulary is
    gone through once for the sums of its parts; then each state sees one part again.
    """
    parts = _at_a_time(network, states, uniforms.to(states.device))
    return torch.cat([_drawn(network, *part) for part in parts]).tolist()


def _drawn(network: Network, states: Tensor, uniforms: Tensor) -> Tensor:
    """The same of some states, [n] int64."""
    tiles = [(start, logits.logsumexp(dim=1)) for start, logits in head_tiles(network, states)]
    shares = torch.stack([total for _, total in tiles], dim=1).double().softmax(dim=1)
    until = shares.cumsum(dim=1)
    tile = (until <= uniforms[:, None]).sum(dim=1).clamp_(max=len(tiles) - 1)
    own = shares.gather(1, tile[:, None])[:, 0]
    within = (uniforms - until.gather(1, tile[:, None])[:, 0] + own) / own  # where in the part the number lies
    words = torch.empty_like(tile)
    for number in tile.unique().tolist():
        rows = (tile == number).nonzero()[:, 0]
        probabilities = _tile(network, states[rows], tiles[number][0]).double().softmax(dim=1)
        below = probabilities.cumsum(dim=1) <= within[rows, None]
        words[rows] = tiles[number][0] + below.sum(dim=1).clamp_(max=probabilities.shape[1] - 1)
    return words


def words_at_a_time(network: Network, device: torch.device) -> int:
    """How many words of the vocabulary they are formed for at a time."""
    return HEAD_WORDS if device.type == "cpu" else len(network.head.weight)


def head_tiles(network: Network, states: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first word, logits [n, words] float32) of the LM head, a part of the vocabulary at a time."""
    for start in range(0, len(network.head.weight), words_at_a_time(network, states.device)):
        yield start, _tile(network, states, start)


def _tile(network: Network, states: Tensor, start: int) -> Tensor:
    """The logits of the part of the vocabulary that begins at word `start`."""
    weight, bias = network.head.weight, getattr(network.head, "bias", None)
    part = slice(start, start + words_at_a_time(network, states.device))
    return network.logit_shape(matmul_float32(states, weight[part], None if bias is None else bias[part]))


@torch.no_grad()
def loss_gradient(network: Network, states: Tensor, targets: Sequence[int]) -> Tensor:
    """d(Σ −log p(target_i | state_i)) / d(state), [n, d]: (softmax − one-hot) W, in one pass over the vocabulary.

    Where logits are capped each word's share counts by the slope of its own logit, where they are scaled all alike.

    The softmax of a part is rescaled when a later part raises the maximum, so that neither logits nor their gradient
    [n, V] are ever kept whole. The target's share, p − 1, is minus that of all other words: where p is near 1 the
    difference itself would be rounding.
    """
    wanted = on_device(targets, states.device)
    return torch.cat([_loss_gradient(network, *part) for part in _at_a_time(network, states, wanted)])


def _loss_gradient(network: Network, states: Tensor, wanted: Tensor) -> Tensor:
    """The same of some states."""
    weight = network.head.weight  # [V, d]
    highest = torch.full((len(states), 1), -torch.inf, device=states.device)
    total, others = torch.zeros_like(highest), torch.zeros_like(highest)
    shape, slope_of_wanted = network.logit_shape, torch.ones_like(highest)
    mean = torch.zeros_like(states, dtype=torch.float32)  # of the other words' weights, by probability
    for start, logits in head_tiles(network, states):
        higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
        shrink = (highest - higher).exp()
        slope = shape.slope(logits) if shape.cap else None
        exponentials = logits.sub_(higher).exp_()
        total = total * shrink + exponentials.sum(dim=1, keepdim=True)
        if logits.shape[1] == len(weight):  # on CUDA nobody waits, as a choice of words inside would make them
            exponentials.scatter_(1, wanted[:, None], 0.0)
            if slope is not None:
                slope_of_wanted = slope.gather(1, wanted[:, None])
        else:
            inside = (wanted >= start) & (wanted < start + logits.shape[1])
            exponentials[inside, wanted[inside] - start] = 0
            if slope is not None:
                slope_of_wanted[inside, 0] = slope[inside, wanted[inside] - start]
        rivals = exponentials.to(weight.dtype)
        others = others * shrink + rivals.sum(dim=1, keepdim=True, dtype=torch.float32)
        if slope is not None:
            rivals = (rivals * slope).to(weight.dtype)
        mean = mean.mul_(shrink).add_(matmul_float32(rivals, weight[start : start + logits.shape[1]].T))
        highest = higher
    gradient = (mean - others * slope_of_wanted * weight[wanted].float()) / total
    return (gradient if shape.cap else gradient * shape.scale).to(weight.dtype)
