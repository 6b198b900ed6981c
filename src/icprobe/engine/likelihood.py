"""Log-likelihoods of targets, many behind one shared prefix, exact, with the LM head only where a target needs it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icprobe.engine.matmul import matmul_float32
from icprobe.engine.network import Network
from icprobe.engine.rows import PrefixCache, Row

# Words of the vocabulary whose logits are formed at a time: their weights and logits stay in a CPU's cache, while the
# whole of the head's weight would be read from memory for every few rows.
HEAD_WORDS = 2048


@dataclass(frozen=True)
class Suffix:
    """Token ids that follow a prefix; those from index `first` on are the target."""

    ids: tuple[int, ...]
    first: int


def log_likelihoods(network: Network, prefix: Sequence[int], suffixes: Sequence[Suffix]) -> Tensor:
    """Summed target log-probabilities of each suffix behind one shared prefix, in nats.

    prefix: token ids [P], possibly none; suffixes: M of them. Returns [M] float64 on the CPU. The prefix runs once
    (Nuggets, arXiv 2312.10302, eq. 2); all suffixes stand behind it in one packed row, each seeing it and itself, and
    what several suffixes begin with alike stands there once.
    """
    return packed_log_likelihoods(network, [(prefix, suffixes)])[0]


@torch.no_grad()
def packed_log_likelihoods(
    network: Network, groups: Sequence[tuple[Sequence[int], Sequence[Suffix]]], base: PrefixCache | None = None
) -> list[Tensor]:
    """`log_likelihoods` of several (prefix, suffixes) in one row; one result [M] for each group.

    base: what all prefixes begin with, computed before (`Network.cache_prefix`); the prefixes are given without it.
    """
    row, predictors, targets, counts = Row(base), [], [], []
    for prefix, suffixes in groups:
        root = row.add(prefix) if prefix else None
        for suffix, places in zip(suffixes, row.add_tree([s.ids for s in suffixes], root), strict=True):
            before = [row.segments[root].end - 1] if root is not None else [None]
            predictors += (before + places)[suffix.first : -1]
            targets += suffix.ids[suffix.first :]
            counts.append(len(suffix.ids) - suffix.first)
    states = network.hidden(row)[torch.tensor(predictors, device=network.device)]
    summed = torch.stack([part.sum() for part in target_log_probabilities(network, states, targets).split(counts)])
    return list(summed.split([len(suffixes) for _, suffixes in groups]))


@torch.no_grad()
def target_log_probabilities(network: Network, states: Tensor, targets: Sequence[int]) -> Tensor:
    """log p(target_i | state_i): states [n, d], targets n ids → [n] float64 on the CPU, each in float32."""
    wanted = torch.tensor(targets, device=states.device)
    total = torch.full((len(states),), -torch.inf, device=states.device)
    chosen = torch.zeros_like(total)
    for start, logits in head_tiles(network, states):
        total = torch.logaddexp(total, logits.logsumexp(dim=1))
        inside = (wanted >= start) & (wanted < start + logits.shape[1])
        chosen[inside] = logits[inside, wanted[inside] - start]
    # Summed in float64 by the caller: hundreds of nats would lose 1e-4 in float32, which is what effects are made of.
    return (chosen - total).double().cpu()


def head_tiles(network: Network, states: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first word, logits [n, words] float32) of the LM head, a part of the vocabulary at a time."""
    weight, bias = network.head.weight, getattr(network.head, "bias", None)
    words = HEAD_WORDS if states.device.type == "cpu" else len(weight)
    for start in range(0, len(weight), words):
        part = slice(start, start + words)
        yield start, matmul_float32(states, weight[part], None if bias is None else bias[part])


@torch.no_grad()
def loss_gradient(network: Network, states: Tensor, targets: Sequence[int]) -> Tensor:
    """d(Σ −log p(target_i | state_i)) / d(state), [n, d]: (softmax − one-hot) W, in one pass over the vocabulary.

    The softmax of a part is rescaled when a later part raises the maximum, so that neither logits nor their gradient
    [n, V] are ever kept whole. The target's share, p − 1, is minus that of all other words: where p is near 1 the
    difference itself would be rounding.
    """
    wanted = torch.tensor(targets, device=states.device)
    weight = network.head.weight  # [V, d]
    highest = torch.full((len(states), 1), -torch.inf, device=states.device)
    total, others = torch.zeros_like(highest), torch.zeros_like(highest)
    mean = torch.zeros_like(states, dtype=torch.float32)  # of the other words' weights, by probability
    for start, logits in head_tiles(network, states):
        higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
        shrink = (highest - higher).exp()
        exponentials = logits.sub_(higher).exp_()
        total = total * shrink + exponentials.sum(dim=1, keepdim=True)
        inside = (wanted >= start) & (wanted < start + logits.shape[1])
        exponentials[inside, wanted[inside] - start] = 0
        rivals = exponentials.to(weight.dtype)
        others = others * shrink + rivals.sum(dim=1, keepdim=True, dtype=torch.float32)
        mean = mean.mul_(shrink).add_(matmul_float32(rivals, weight[start : start + logits.shape[1]].T))
        highest = higher
    return ((mean - others * weight[wanted].float()) / total).to(weight.dtype)
