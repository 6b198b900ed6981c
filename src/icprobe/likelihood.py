"""Log-likelihoods of targets, many behind one shared prefix, exact, with the LM head only where a target needs it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icprobe.packing import Network, Row

HEAD_ROWS = 128  # rows of logits at a time: with 49,152 words these are 25 MB, which a CPU's cache holds


@dataclass(frozen=True)
class Suffix:
    """Token ids that follow a prefix; those from index `first` on are the target."""

    ids: tuple[int, ...]
    first: int


def log_likelihoods(network: Network, prefix: Sequence[int], suffixes: Sequence[Suffix]) -> Tensor:
    """Summed target log-probabilities of each suffix behind one shared prefix, in nats.

    prefix: token ids [P], possibly none; suffixes: M of them. Returns [M] float64 on the CPU. The prefix runs once
    (Nuggets, arXiv 2312.10302, eq. 2); all suffixes stand behind it in one packed row, each seeing it and itself.
    """
    return packed_log_likelihoods(network, [(prefix, suffixes)])[0]


@torch.no_grad()
def packed_log_likelihoods(network: Network, groups: Sequence[tuple[Sequence[int], Sequence[Suffix]]]) -> list[Tensor]:
    """`log_likelihoods` of several (prefix, suffixes) in one row; one result [M] for each group."""
    row, predictors, targets, counts = Row(), [], [], []
    for prefix, suffixes in groups:
        root = row.add(list(prefix)) if prefix else None
        for suffix in suffixes:
            segment = row.add(suffix.ids, root)
            predictors += row.predictors(segment, suffix.first)
            targets += suffix.ids[suffix.first :]
            counts.append(len(suffix.ids) - suffix.first)
    states = network.hidden(row)[torch.tensor(predictors, device=network.device)]
    summed = torch.stack([part.sum() for part in target_log_probabilities(network, states, targets).split(counts)])
    return list(summed.split([len(suffixes) for _, suffixes in groups]))


@torch.no_grad()
def target_log_probabilities(network: Network, states: Tensor, targets: Sequence[int]) -> Tensor:
    """log p(target_i | state_i): states [n, d], targets n ids → [n] float64 on the CPU, each in float32."""
    wanted = torch.tensor(targets, device=states.device)
    parts = []
    for chunk, ids in zip(states.split(HEAD_ROWS), wanted.split(HEAD_ROWS), strict=True):
        logits = network.head(chunk).float()
        parts.append(logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(dim=1))
    # Summed in float64 by the caller: hundreds of nats would lose 1e-4 in float32, which is what effects are made of.
    return torch.cat(parts).double().cpu()
