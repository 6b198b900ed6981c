"""Whose tokens they are in a conversation: which of them the assistant says, by the model's chat template."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any

from icprobe.texts.chat import ChatPrompts
from icprobe.texts.prompts import Encoded, border, token_ids


def turns(tokenizer: Any, row: Mapping[str, Any], prompts: ChatPrompts) -> Encoded:
    """A whole conversation; its targets are the assistant's turns."""
    text, among = prompts.document(row), []
    ids, letters = token_ids(tokenizer, text), _letters(tokenizer, text)
    for turn, (first, last) in enumerate(prompts.answers(row)):
        if letters is not None:
            # Tokens with letters of others, too, count.
            start, end = bisect_right(letters[1], first), bisect_left(letters[0], last)
        else:
            parts = (prompts.until(row, turn, side) for side in (0, 1))
            start, end = (border(tokenizer, part, text, token_ids(tokenizer, part), ids) for part in parts)
        among += range(start, end)
    return Encoded(ids, among[0] if among else len(ids), among=tuple(among))


def _letters(tokenizer: Any, text: str) -> tuple[list[int], list[int]] | None:
    """Where the tokens of a text begin and end, in letters; None where the tokenizer does not say, or has others."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    found = tokenizer(str(text), add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = ([*side] for side in zip(*found["offset_mapping"], strict=True))
    known = (
        tuple(found["input_ids"]) == token_ids(tokenizer, text) and starts == sorted(starts) and ends == sorted(ends)
    )
    return (starts, ends) if known else None
