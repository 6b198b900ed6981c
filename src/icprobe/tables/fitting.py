"""Decides which rows fit the models' contexts, and what becomes of those that do not."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from icprobe.errors import DataError, several, some
from icprobe.tables.checking import records
from icprobe.tables.selecting import sample as draw_sample
from icprobe.tables.selecting import select_tasks
from icprobe.texts.chat import Chat, ChatPrompts
from icprobe.texts.conversations import dumps, messages_of, unanswered
from icprobe.texts.prompts import Prompts
from icprobe.texts.readers import BORDERS, Reader, may_be_longest
from icprobe.texts.turns import turns

logger = logging.getLogger(__name__)


READ_AT_ONCE = 10_000  # rows whose tokens are in memory
# What of a row is counted: a text of the prompts that are bound to a model.
Rendered = Callable[[Prompts | ChatPrompts, dict[str, Any]], str]


def _document(prompts: Prompts | ChatPrompts, row: dict[str, Any]) -> str:
    return prompts.document(row)


def _one_shot_prefix(prompts: Prompts | ChatPrompts, row: dict[str, Any]) -> str:
    return prompts.one_shot_prefix(row)


def lengths(frame: pd.DataFrame, prompts: Prompts | Chat, reader: Reader) -> pd.DataFrame:
    """Counts the tokens of each row's query and target, in this model's tokens: table id, n_query, n_target.

    By a chat template the query is all before the last answer, and n_first counts the tokens before the first. Raises
    DataError for a row whose query or target has none: nothing could be said of its likelihood.
    """
    rows, prompts = frame.to_dict("records"), prompts.of(reader.tokenizer)
    texts = [prompts.document(row) for row in rows]
    chat = isinstance(prompts, ChatPrompts)
    for row in rows if chat else ():
        prompts.check_written(row)
    counted = []
    for start in range(0, len(rows), READ_AT_ONCE):
        part = rows[start : start + READ_AT_ONCE]
        contexts = [prompts.query(row) for row in part]
        # What a chat template writes behind the end of the last turn is no answer.
        answered = [context + prompts.target(row) for context, row in zip(contexts, part, strict=True)]
        counted += reader.shared(contexts, answered if chat else texts[start : start + READ_AT_ONCE])
    reader.log_control_tokens(texts)
    queries, targets = ([counts[side] for counts in counted] for side in (0, 1))
    for row, (query, target) in zip(rows, counted, strict=True):
        if query < 1 or target < 1:
            what = "query" if query < 1 else "response"
            raise DataError(f"row {row['id']}: its {what} has no token of {reader.model}; remove or correct it.")
    counts = {"n_query": queries, "n_target": targets}
    if chat:
        counts["n_first"] = [turns(reader.tokenizer, row, prompts).n_context for row in rows]
    return pd.DataFrame({"id": frame["id"], **counts}).astype(dict.fromkeys(counts, "int32"))


def unknown_lengths(frame: pd.DataFrame) -> pd.DataFrame:
    """Makes the table of `lengths` where no tokens can be counted, without texts or a model: its numbers are null."""
    unknown = pd.array([pd.NA] * len(frame), dtype="Int32")
    return pd.DataFrame({"id": frame["id"], "n_query": unknown, "n_target": unknown})


def draw(
    frame: pd.DataFrame,
    sample: dict[str, Any] | None,
    prompts: Prompts | Chat,
    readers: list[Reader],
    where: str,
    text: Rendered = _document,
) -> pd.DataFrame:
    """Draws the rows that a `sample` of the configuration (n, stratify, seed, max_tokens) asks for; all without one.

    text(prompts, row) is what max_tokens bounds, in the first reader's tokens; where: the configuration's key, for
    messages.
    """
    if not sample:
        return frame
    if sample["max_tokens"]:
        bound = prompts.of(readers[0].tokenizer)
        counts = readers[0].counts([text(bound, row) for row in records(frame)])
        frame = frame[[count < sample["max_tokens"] for count in counts]].reset_index(drop=True)
    return draw_sample(frame, sample["n"], sample["stratify"], sample["seed"], where)


def fit_tasks(tasks: pd.DataFrame, prompts: Prompts | Chat, readers: list[Reader], on_too_long: str) -> pd.DataFrame:
    """Takes the tasks that fit every model's context zero-shot; see `fit`. Raises DataError as `lengths` does, too.

    One that is cut is left half of the context, so that examples find room beside it.
    """
    for reader in readers:
        lengths(tasks, prompts, reader)
    alone, half = {r.model: 0 for r in readers}, {r.model: (r.max_positions or 0) // 2 for r in readers}
    return fit(tasks, readers, on_too_long, prompts, _document, alone, "tasks", half)


def choose_tasks(
    candidates: pd.DataFrame,
    select: str | list[str],
    seed: int,
    prompts: Prompts | Chat,
    readers: list[Reader],
    on_too_long: str,
    hidden_states: Callable[[list[str]], np.ndarray],
) -> pd.DataFrame:
    """Takes the tasks that `select` chooses (see `select_tasks`) and that fit every model's context (see `fit`).

    hidden_states: the mean hidden state [texts, d] of each document. For "kmeans:n" the first model reads all
    candidates before any is chosen, so that there all of them must fit, or are cut or dropped.
    """
    if str(select).startswith("kmeans"):
        candidates = fit_tasks(candidates, prompts, readers, on_too_long)
        bound = prompts.of(readers[0].tokenizer)
        documents = [bound.document(row) for row in records(candidates)]
        tasks = select_tasks(candidates, select, seed, lambda: hidden_states(documents))
        tasks.attrs["too_long"] = candidates.attrs["too_long"]
        return tasks
    return fit_tasks(select_tasks(candidates, select, seed), prompts, readers, on_too_long)


def fit_train(
    train: pd.DataFrame, tasks: pd.DataFrame, prompts: Prompts | Chat, readers: list[Reader], on_too_long: str
) -> pd.DataFrame:
    """Takes the examples that fit every model's context, alone and together with the longest task; see `fit`."""
    rows, longest, may_be = tasks.to_dict("records"), {}, {}
    for reader in readers:
        bound = prompts.of(reader.tokenizer)
        if isinstance(bound, ChatPrompts):
            bound.check_pairs(train.to_dict("records"), rows)
        texts = [bound.one_shot_suffix(task) + bound.target(task) for task in rows]
        counts = reader.counts(texts)
        longest[reader.model], may_be[reader.model] = max(counts, default=0), may_be_longest(rows, counts)

    def together(reader: Reader, example: dict[str, Any]) -> int:
        bound = prompts.of(reader.tokenizer)
        wholes = [bound.one_shot(example, task) + bound.target(task) for task in may_be[reader.model]]
        return max(reader.counts(wholes))

    together = together if rows else None
    return fit(
        train, readers, on_too_long, prompts, _one_shot_prefix, longest, "train", alone=_document, together=together
    )


def fit(
    frame: pd.DataFrame,
    readers: list[Reader],
    on_too_long: str,
    prompts: Prompts | Chat,
    text: Rendered,
    besides: dict[str, int],
    what: str,
    besides_cut: dict[str, int] | None = None,
    alone: Rendered | None = None,
    together: Callable[[Reader, dict[str, Any]], int] | None = None,
) -> pd.DataFrame:
    """Takes the rows whose `text(prompts, row)` and `besides[model]` more tokens fit every model, or makes them fit.

    A row too long for one model is so for all. on_too_long: "error" raises DataError with the ids, "drop" drops these
    rows, "truncate" cuts their outputs behind the last token with which they fit (besides_cut: tokens beside such a
    row, where these are more). alone: another text of a row, which has to fit with nothing beside it. together: the
    tokens of a row and what stands beside it as one text, asked where so few more would not fit that texts which merge
    at their border may need them.
    `frame.attrs["too_long"]` of the result counts them.
    """
    rows = frame.to_dict("records")
    bound = {reader.model: prompts.of(reader.tokenizer) for reader in readers}

    def counted(reader: Reader, some: list[dict[str, Any]]) -> list[int]:
        prompts = bound[reader.model]
        counts = reader.counts([text(prompts, row) for row in some])
        if alone is None:
            return counts
        # So many more than what stands beside it as the longer of the two needs.
        others = reader.counts([alone(prompts, row) for row in some])
        counts = [max(count, other - besides[reader.model]) for count, other in zip(counts, others, strict=True)]
        if together is None or reader.max_positions is None:
            return counts
        room = reader.max_positions - besides[reader.model]
        return [
            max(count, together(reader, row) - besides[reader.model]) if room - BORDERS < count <= room else count
            for count, row in zip(counts, some, strict=True)
        ]

    over = _too_long(rows, readers, counted, besides)
    if over and on_too_long == "error":
        first, (reader, count) = next(iter(over.items()))
        raise DataError(
            f"data.{what}: {several(len(over), 'row')} too long for a model's context: "
            f"{some([rows[place]['id'] for place in over])}; {rows[first]['id']} needs {count} tokens where "
            f"{reader.model} takes {reader.max_positions}. Shorten what is too long, or set data.on_too_long: truncate "
            "or drop."
        )
    if over and on_too_long == "truncate":
        cutters = {place: reader for place, (reader, _) in over.items()}
        result = frame.assign(output=_cut_outputs(rows, cutters, readers, counted, besides_cut or besides, what))
    else:
        result = frame.drop(index=frame.index[list(over)]).reset_index(drop=True)
    if result.empty:
        raise DataError(f"data.{what}: no row fits the context of {', '.join(r.model for r in readers)}.")
    result.attrs["too_long"] = len(over)
    return result


# How many tokens rows have, as a reader's model reads them.
Counted = Callable[[Reader, list[dict[str, Any]]], list[int]]


def _too_long(
    rows: list[dict[str, Any]], readers: list[Reader], counted: Counted, besides: dict[str, int]
) -> dict[int, tuple[Reader, int]]:
    """Finds the rows that do not fit: place -> (the first model that it is too long for, tokens that it would need)."""
    over: dict[int, tuple[Reader, int]] = {}
    for reader in readers:
        if reader.max_positions is None:
            continue
        for place, count in enumerate(counted(reader, rows)):
            if count + besides[reader.model] > reader.max_positions:
                over.setdefault(place, (reader, count + besides[reader.model]))
    return over


def _cut_outputs(
    rows: list[dict[str, Any]],
    cutters: dict[int, Reader],
    readers: list[Reader],
    counted: Counted,
    besides: dict[str, int],
    what: str,
) -> list[str]:
    """Gives the outputs of all rows, those at the places of `cutters` cut so that they fit; says so in the log."""
    outputs = [row["output"] for row in rows]
    for place, reader in cutters.items():
        outputs[place] = _truncated(rows[place], reader, readers, counted, besides)
        if not outputs[place]:
            row, taken = rows[place], besides[reader.model]
            calls = messages_of(row)[-1].get("tool_calls")
            how = (
                "and its answer is a call of a tool, which is not cut"
                if calls
                else "even with its output cut to one token"
            )
            other = f": another row (the longest task, or an example) needs {taken} of them" if taken else ""
            raise DataError(
                f"data.{what}: row {row['id']} does not fit into the {reader.max_positions} tokens of {reader.model}, "
                f"{how}{other}. Remove this row{', or shorten that one' if taken else ''}."
            )
    logger.warning(
        "data.%s: the outputs of %d of %d rows are cut to fit, from %d to %d characters in all; each ends there",
        what,
        len(cutters),
        len(rows),
        sum(len(rows[place]["output"]) for place in cutters),
        sum(len(outputs[place]) for place in cutters),
    )
    return outputs


def _truncated(
    row: dict[str, Any], cutter: Reader, readers: list[Reader], counted: Counted, besides: dict[str, int]
) -> str:
    """Cuts the row's output at the last end of a token of `cutter` with which it fits all models; may leave nothing."""
    ends = [0, *cutter.token_ends(row["output"])]

    def cut(tokens: int) -> str:
        return row["output"][: ends[tokens]].rstrip()

    low, high = 0, len(ends)  # the first `low` tokens fit, `high` do not: a text grows with its output
    while high - low > 1:
        middle = (low + high) // 2
        shorter = [{**row, "output": cut(middle)}]
        fits = all(
            r.max_positions is None or counted(r, shorter)[0] + besides[r.model] <= r.max_positions for r in readers
        )
        low, high = (middle, high) if fits else (low, middle)
    return cut(low)


def prompt_lengths(frame: pd.DataFrame, prompts: Prompts | Chat, reader: Reader, max_new_tokens: int) -> pd.DataFrame:
    """Counts the tokens of each eval prompt's query, in this model's tokens: table id, n_query.

    Raises DataError for a query that has none, or that leaves no room for max_new_tokens in the model's context.
    """
    bound, rows = prompts.of(reader.tokenizer), frame.to_dict("records")
    for row in rows if isinstance(bound, ChatPrompts) else ():
        asked = unanswered(messages_of(row))  # of the answer, no template writes anything here
        bound.check_written({**row, "messages": dumps(asked), "output": ""})
    texts = [bound.query(row) for row in rows]
    counts = reader.counts(texts)
    reader.log_control_tokens(texts)
    limit = reader.max_positions
    if 0 in counts:
        row_id = frame["id"].iloc[counts.index(0)]
        raise DataError(f"data.eval: the prompt {row_id} has no token of {reader.model}; remove it.")
    long = [i for i, n in enumerate(counts) if limit is not None and n + max_new_tokens > limit]
    if long:
        raise DataError(
            f"data.eval: {several(len(long), 'prompt')} with no room for evaluation.max_new_tokens: {max_new_tokens} "
            f"within the {limit} tokens of {reader.model}: {some(frame['id'].iloc[long].tolist())}. Shorten or remove "
            "what is too long."
        )
    return pd.DataFrame({"id": frame["id"], "n_query": counts}).astype({"n_query": "int32"})
