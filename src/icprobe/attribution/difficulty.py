"""How hard an example's response is for the model: `perplexity`, and `ifd`, the part of it that the query leaves."""

from collections.abc import Sequence

import numpy as np
import torch

from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.attribution.responses import both_ways, check_both_ways, responses
from icprobe.engine.execution import on_device
from icprobe.engine.likelihood import packed_targets, target_log_probabilities
from icprobe.engine.network import Network
from icprobe.texts.prompts import Encoded


def attribute(inputs: Inputs, method: str, batches: Sequence[np.ndarray], batch_tokens: int = 1024) -> Pieces:
    """One column, of the likelihood of an example's response r given its query q.

    perplexity: (1/n) Σ_i log p(r_i | q, r_<i), minus the logarithm of the perplexity: high is easy. ifd: that sum over
    Σ_i log p(r_i | r_<i), the response alone: high is hard, above 1 the query makes the response less likely (arXiv
    2308.12032). Both sums of ifd are over the same tokens (`both_ways`). By a chat template r is all that the
    assistant says; alone, each of its turns stands by itself. Raises DataError where of a response alone nothing can be
    said.
    """
    network = Network(inputs.model, inputs.capabilities, forward_only=True)
    rows = np.concatenate(batches).tolist()
    whole = responses(inputs.examples(rows), inputs.prompts, inputs.tokenizer)
    given, alone = dict(zip(rows, whole, strict=True)), {row: [] for row in rows}
    if method == "ifd":
        for row in rows:
            given[row], alone[row] = both_ways(given[row], inputs.tokenizer.bos_token_id)
        check_both_ways(inputs.train["id"].iloc[rows], given.values())
    tokens = {row: sum(len(one.ids) for one in [given[row], *alone[row]]) for row in rows}
    inputs.progress.expect(sum(tokens.values()), "token")
    for batch in batches:
        values = _summed(network, [given[row] for row in batch])
        if method == "ifd":
            turns = _summed(network, [turn for row in batch for turn in alone[row]])
            ends = np.cumsum([len(alone[row]) for row in batch])[:-1]
            values /= [part.sum() for part in np.split(turns, ends)]
        else:
            values /= [given[row].n_target for row in batch]
        inputs.progress.update(sum(tokens[row] for row in batch))
        yield method, batch, values[:, None].astype(np.float32)


@torch.no_grad()
def _summed(network: Network, sequences: Sequence[Encoded]) -> np.ndarray:
    """Σ log p of each sequence's targets, in nats: [n] float64."""
    row, predictors, targets = packed_targets(sequences)
    states = network.hidden(row)[on_device(predictors, network.device)]
    parts = target_log_probabilities(network, states, targets).split([sequence.n_target for sequence in sequences])
    return torch.stack([part.sum() for part in parts]).cpu().numpy()
