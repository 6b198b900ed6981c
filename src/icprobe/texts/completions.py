"""Training examples as fine-tuning reads them: the loss is over the response and the end of sequence behind it."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from icprobe.errors import DataError, ModelError, several, some
from icprobe.texts.prompts import Encoded, Prompts, encode


def end_of_sequence(tokenizer: Any) -> int:
    """The id of the token that ends a response. Raises ModelError where there is none."""
    if tokenizer.eos_token_id is None:
        raise ModelError("The tokenizer has no end-of-sequence token, so a fine-tuned model could not learn to stop.")
    return tokenizer.eos_token_id


def completions(
    tokenizer: Any, rows: Iterable[Mapping[str, Any]], prompts: Prompts, max_length: int
) -> tuple[list[Encoded | None], dict[str, int]]:
    """Tokenises examples for training: query + target + end of sequence, cut off after max_length tokens.

    The query is the context. An example whose query alone fills max_length is None: it has no loss. Counts those that
    are "truncated" (they end without the end of sequence, which a response that is cut must not teach) or "dropped".
    """
    end = end_of_sequence(tokenizer)
    found: list[Encoded | None] = []
    counts = {"truncated": 0, "dropped": 0}
    for row in rows:
        encoded = encode(tokenizer, prompts.query(row), prompts.target(row))
        ids = (*encoded.ids, end)
        if encoded.n_context >= max_length:
            counts["dropped"] += 1
            found.append(None)
            continue
        counts["truncated"] += len(ids) > max_length
        found.append(Encoded(ids[:max_length], encoded.n_context))
    return found, counts


def longest(max_length: int | None, max_positions: int | None) -> int:
    """Tokens after which an example is cut off: finetune.max_length, or the model's context where that is less.

    None, of either, sets no limit.
    """
    return min((limit for limit in (max_length, max_positions) if limit), default=sys.maxsize)


def check_trainable(lengths: pd.DataFrame, length: int) -> None:
    """Raises DataError for examples whose query alone fills `length` tokens. lengths: table id, n_query, in tokens."""
    without = lengths["id"][lengths["n_query"] >= length].tolist()
    if without:
        raise DataError(
            f"attribution.train_loss: response: {several(len(without), 'example')} without a loss: {some(without)}; "
            f"the query alone has {length} tokens or more, and fine-tuning cuts there. Raise finetune.max_length "
            "(within the model's context), remove what is too long, or set train_loss: document."
        )
