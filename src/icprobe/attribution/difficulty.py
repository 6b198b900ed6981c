"""How hard an example's response is for the model: `perplexity`, and `ifd`, the part of it that the query leaves."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import torch

from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.engine.execution import on_device
from icprobe.engine.likelihood import packed_targets, target_log_probabilities
from icprobe.engine.network import Network
from icprobe.errors import DataError, several, some
from icprobe.texts.chat import ChatPrompts
from icprobe.texts.completions import completions
from icprobe.texts.prompts import Encoded, encode


def attribute(inputs: Inputs, method: str, batches: Sequence[np.ndarray], batch_tokens: int = 1024) -> Pieces:
    """One column, of the likelihood of an example's response r given its query q.

    perplexity: (1/n) Σ_i log p(r_i | q, r_<i), minus the logarithm of the perplexity: high is easy. ifd: that sum over
    Σ_i log p(r_i | r_<i), the response alone: high is hard, above 1 the query makes the response less likely (arXiv
    2308.12032). Both sums of ifd are over the same tokens (`_both_ways`). By a chat template r is all that the
    assistant says; alone, each of its turns stands by itself. Raises DataError where of a response alone nothing can be
    said.
    """
    network = Network(inputs.model, inputs.capabilities, forward_only=True)
    rows = np.concatenate(batches).tolist()
    given, alone = dict(zip(rows, _responses(inputs, rows), strict=True)), {row: [] for row in rows}
    if method == "ifd":
        for row in rows:
            given[row], alone[row] = _both_ways(given[row], inputs.tokenizer.bos_token_id)
        _check(inputs, given)
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


def _responses(inputs: Inputs, rows: Sequence[int]) -> list[Encoded]:
    """Tokenises the examples of these rows; their targets are the response's tokens, with no end of sequence.

    By a chat template they are all turns of the assistant, with the ends that it writes itself.
    """
    prompts, examples = inputs.prompts.of(inputs.tokenizer), inputs.examples(rows)
    if isinstance(prompts, ChatPrompts):
        return completions(inputs.tokenizer, examples, prompts, sys.maxsize)[0]
    return [encode(inputs.tokenizer, prompts.query(example), prompts.target(example)) for example in examples]


def _both_ways(example: Encoded, bos: int | None) -> tuple[Encoded, list[Encoded]]:
    """An example, and the turns of its response each by itself; the targets of the former are those of the latter.

    A turn by itself stands behind the token that begins sequences (BOS). Where the tokenizer has none it begins with
    its own first token, which does not count, on either side.
    """
    places = [*example.targets]
    edges = [0, *(n for n in range(1, len(places)) if places[n] != places[n - 1] + 1), len(places)]
    turns = [places[start:end] for start, end in pairwise(edges)]
    before = () if bos is None else (bos,)
    alone = [Encoded((*before, *(example.ids[place] for place in turn)), 1) for turn in turns]
    counted = turns if before else [turn[1:] for turn in turns]
    return replace(example, among=tuple(chain.from_iterable(counted))), alone


def _check(inputs: Inputs, given: Mapping[int, Encoded]) -> None:
    """Raises DataError for examples of whose response no token counts."""
    silent = [inputs.lengths["id"].iloc[row] for row, example in given.items() if not example.n_target]
    if silent:
        raise DataError(
            f"ifd: {several(len(silent), 'example')} with a response of one token: {some(silent)}; this model's "
            "tokenizer has no token that begins sequences, so nothing would stand before it. Remove what is too short, "
            "or take perplexity."
        )


@torch.no_grad()
def _summed(network: Network, sequences: Sequence[Encoded]) -> np.ndarray:
    """Σ log p of each sequence's targets, in nats: [n] float64."""
    row, predictors, targets = packed_targets(sequences)
    states = network.hidden(row)[on_device(predictors, network.device)]
    parts = target_log_probabilities(network, states, targets).split([sequence.n_target for sequence in sequences])
    return torch.stack([part.sum() for part in parts]).cpu().numpy()
