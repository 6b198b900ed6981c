"""The tokens of responses, given their queries and alone; no torch, so that what has none is known before any pass."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

from icprobe.errors import DataError, several, some
from icprobe.texts.chat import Chat, ChatPrompts
from icprobe.texts.completions import completions
from icprobe.texts.prompts import Encoded, Prompts, encode


def responses(rows: Sequence[Mapping[str, Any]], prompts: Prompts | Chat, tokenizer: Any) -> list[Encoded]:
    """Tokenises examples; their targets are the response's tokens, with no end of sequence.

    By a chat template they are all turns of the assistant, with the ends that it writes itself.
    """
    bound = prompts.of(tokenizer)
    if isinstance(bound, ChatPrompts):
        return completions(tokenizer, rows, bound, sys.maxsize)[0]
    return [encode(tokenizer, bound.query(row), bound.target(row)) for row in rows]


def both_ways(example: Encoded, bos: int | None) -> tuple[Encoded, list[Encoded]]:
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


def check_both_ways(ids: Iterable[str], examples: Iterable[Encoded]) -> None:
    """Raises DataError for examples, as `both_ways` gives them, of whose response no token counts."""
    silent = [name for name, example in zip(ids, examples, strict=True) if not example.n_target]
    if silent:
        raise DataError(
            f"ifd: {several(len(silent), 'example')} with a response of one token: {some(silent)}; this model's "
            "tokenizer has no token that begins sequences, so nothing would stand before it. Remove what is too short, "
            "or take perplexity."
        )
