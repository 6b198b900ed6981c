"""Training examples as fine-tuning reads them: the loss is over the response and the end of sequence behind it.

By a chat template it is over all that the assistant says, with the ends of its turns.
"""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from icprobe.errors import DataError, ModelError, several, some
from icprobe.texts.chat import Chat, ChatPrompts
from icprobe.texts.prompts import Encoded, Prompts, encode
from icprobe.texts.turns import turns

logger = logging.getLogger(__name__)


def end_of_sequence(tokenizer: Any) -> int:
    """The id of the token that ends a response. Raises ModelError where there is none."""
    if tokenizer.eos_token_id is None:
        raise ModelError("The tokenizer has no end-of-sequence token, so a fine-tuned model could not learn to stop.")
    return tokenizer.eos_token_id


def completions(
    tokenizer: Any, rows: Iterable[Mapping[str, Any]], prompts: Prompts | Chat, max_length: int, end: bool = True
) -> tuple[list[Encoded | None], dict[str, int]]:
    """Tokenises examples for training: query + target + end of sequence, cut off after max_length tokens.

    end: False leaves out the end of sequence, which a tokenizer without one has not. The query is the context; a chat
    template ends each turn of the assistant itself. An example of which no target is
    left is None: it has no loss. Counts those that are "truncated" (they end without the end of sequence, which a
    response that is cut must not teach) or "dropped".
    """
    bound = prompts.of(tokenizer)
    found: list[Encoded | None] = []
    counts = {"truncated": 0, "dropped": 0}
    for row in rows:
        chat = isinstance(bound, ChatPrompts)
        whole = turns(tokenizer, row, bound) if chat else _completion(tokenizer, row, bound, end)
        kept = tuple(place for place in whole.targets if place < max_length)
        if not kept:
            counts["dropped"] += 1
            found.append(None)
            continue
        counts["truncated"] += len(whole.ids) > max_length
        found.append(Encoded(whole.ids[:max_length], whole.n_context, among=kept if whole.among is not None else None))
    return found, counts


def learnt(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    prompts: Prompts | Chat,
    max_length: int,
    end: bool = True,
    at_once: int = 10_000,
) -> tuple[list[int], dict[str, int]]:
    """Counts the tokens of each example whose loss fine-tuning minimises: 0 of one without a loss.

    The arguments are those of `completions`, whose counts are given, too. Some rows at a time: the tokens of a million
    would fill gigabytes.
    """
    found, counts = [], {"truncated": 0, "dropped": 0}
    for start in range(0, len(rows), at_once):
        encoded, told = completions(tokenizer, rows[start : start + at_once], prompts, max_length, end)
        found += [one.n_target if one else 0 for one in encoded]
        counts = {what: counts[what] + n for what, n in told.items()}
    return found, counts


def warn_of_cuts(n_rows: int, counts: Mapping[str, int], length: int) -> None:
    """Says in the log how many examples fine-tuning cuts off or drops. counts: as `completions` gives them."""
    if counts["truncated"] or counts["dropped"]:
        logger.warning(
            "%d of %d examples are cut off at %d tokens; %d are dropped because their query alone is as long.",
            counts["truncated"],
            n_rows,
            length,
            counts["dropped"],
        )


def _completion(tokenizer: Any, row: Mapping[str, Any], prompts: Prompts, end: bool) -> Encoded:
    encoded = encode(tokenizer, prompts.query(row), prompts.target(row))
    return Encoded((*encoded.ids, *([end_of_sequence(tokenizer)] if end else [])), encoded.n_context)


def check_end(tokenizer: Any, lengths: pd.DataFrame) -> None:
    """Raises ModelError where responses end with a token that there is not; a chat template ends each turn itself.

    lengths: as `check_trainable` takes it.
    """
    if "n_first" not in lengths:
        end_of_sequence(tokenizer)


def longest(max_length: int | None, max_positions: int | None) -> int:
    """Tokens after which an example is cut off: finetune.max_length, or the model's context where that is less.

    None, of either, sets no limit.
    """
    return min((limit for limit in (max_length, max_positions) if limit), default=sys.maxsize)


def check_trainable(lengths: pd.DataFrame, length: int, asked_by: str = "attribution.train_loss: response") -> None:
    """Raises DataError for examples whose query alone fills `length` tokens.

    lengths: table id, n_query, in tokens; of conversations n_first, too, the tokens before the first answer. asked_by:
    what needs a loss of every example, "truth" or the gradients' key of the configuration.
    """
    before = lengths["n_first"] if "n_first" in lengths else lengths["n_query"]
    without = lengths["id"][before >= length].tolist()
    if without:
        of_truth = "or remove what is too long (data.train.sample: {max_tokens: …})"
        of_gradients = "remove what is too long, or set train_loss: document"
        raise DataError(
            f"{asked_by}: {several(len(without), 'example')} without a loss: {some(without)}; "
            f"the query alone has {length} tokens or more, and fine-tuning cuts there. Raise finetune.max_length "
            f"(within the model's context), {of_truth if asked_by == 'truth' else of_gradients}."
        )
