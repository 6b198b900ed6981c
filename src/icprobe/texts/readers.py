"""What a model makes of texts: how many tokens they are, and where their tokens end."""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from icprobe.errors import DataError, shown
from icprobe.texts.control_tokens import Text, count_control_tokens, token_ids
from icprobe.texts.prompts import border

logger = logging.getLogger(__name__)

# By how many tokens a text may be longer than its parts, at each border, where they are tokenised together.
BORDERS = 8


def may_be_longest(rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Those of rows with so many tokens that, behind another text, one of them may be the longest."""
    more_than = max(counts, default=0) - BORDERS
    return [row for row, count in zip(rows, counts, strict=True) if count > more_than]


@dataclass(frozen=True)
class Reader:
    """What a model makes of texts, without its weights.

    max_positions: tokens of its longest sequence (None: no limit). vocabulary: how many of the tokenizer's tokens it
    knows (None: all of them).
    """

    model: str
    tokenizer: Any
    max_positions: int | None
    vocabulary: int | None = None

    def counts(self, texts: list[str]) -> list[int]:
        """Counts the tokens of each text. Raises DataError for a token that the model does not know."""
        return [len(ids) for ids in self._ids(texts)]

    def shared(self, contexts: list[str], texts: list[str]) -> list[tuple[int, int]]:
        """Counts the tokens of contexts and of the targets behind them, whose letters may share tokens (`border`).

        texts: each context with its target. Raises as `counts` does.
        """
        pairs = zip(contexts, self._ids(contexts), texts, self._ids(texts), strict=True)
        before = [
            (border(self.tokenizer, context, text, alone, whole), len(whole)) for context, alone, text, whole in pairs
        ]
        return [(n_context, n - n_context) for n_context, n in before]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found = token_ids(self.tokenizer, texts)
        if self.vocabulary is not None:
            for text, ids in zip(texts, found, strict=True):
                if (highest := max(ids, default=0)) >= self.vocabulary:
                    self._refuse_unknown(text, highest)
        return found

    def _refuse_unknown(self, text: str, number: int) -> None:
        token = self.tokenizer.convert_ids_to_tokens(number)
        rows = [part.row for part in getattr(text, "parts", ()) if token in part.words()]
        raise DataError(
            f"{f'row {rows[0]}' if rows else 'templates'}: {shown(token)} is a control token of {self.model}'s "
            f"tokenizer that the model does not know (its number is {number}, the embedding has {self.vocabulary} "
            "rows); remove it, or set data.special_tokens: text if it is in a row's text."
        )

    def token_ends(self, text: str) -> list[int]:
        """Finds where the tokens of a text end, as numbers of characters.

        Left out are those that end within a letter: its bytes, or its marks (the vowels above a Thai consonant). Where
        a tokenizer does not say where its tokens end, every character's end counts.
        """
        ends = range(1, len(text) + 1)
        if getattr(self.tokenizer, "is_fast", False):
            pairs = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            ends = sorted({end for _, end in pairs} - {0})
        return [end for end in ends if end == len(text) or unicodedata.category(text[end])[0] != "M"]

    def log_control_tokens(self, texts: Sequence[Text]) -> None:
        """Says in the log how many rows hold control tokens, and what becomes of them; nothing where none does."""
        count, tokens = count_control_tokens(self.tokenizer, texts)
        if count:
            logger.warning(
                "%d of %d rows hold control tokens of %s (%s); they are %s (data.special_tokens)",
                count,
                len(texts),
                self.model,
                ", ".join(tokens[:5]),
                "tokens" if texts[0].special_tokens == "token" else "read as text",
            )
