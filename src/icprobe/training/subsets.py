"""The subset of examples that a model is fine-tuned on, as JSON Lines that trainers take as they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd

from icprobe import jsonl
from icprobe.artifacts import atomic_path
from icprobe.tables.checking import TEXTS, records
from icprobe.tables.conversations import HELD
from icprobe.texts.chat import Chat
from icprobe.texts.conversations import dumps, messages_of, tools_of
from icprobe.texts.prompts import Prompts


def write_subset(
    examples: pd.DataFrame,
    chosen: Sequence[str],
    score: Mapping[str, float],
    prompts: Prompts | Chat,
    path: str | Path,
    messages_path: str | Path,
    at_once: int = 10_000,
) -> None:
    """Writes the chosen examples in this order as JSONL, twice, for the two forms that trl's trainers take.

    path: `id`, Alpaca's fields, `score` (null where there is none), and `prompt` and `completion` as fine-tuning
    renders them; by a chat template these are messages, for each model has its own. messages_path: `id`, `score` and
    `messages`, for a model with a chat template. One file cannot hold both: trl takes whichever of the columns it meets
    first. examples: indexed by id. Some rows at a time: as mappings, a million would fill gigabytes.
    """
    texts = examples[["id", *TEXTS, *(column for column in HELD if column in examples)]]
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(aside, "w", encoding="utf-8", newline="\n"))
            for aside in [stack.enter_context(atomic_path(each)) for each in (path, messages_path)]
        ]
        for start in range(0, len(chosen), at_once):
            for row in records(texts.loc[chosen[start : start + at_once]]):
                known = score.get(row["id"])
                known = None if pd.isna(known) else known  # JSON has no NaN
                for file, made in zip(files, _forms(row, known, prompts), strict=True):
                    file.write(jsonl.line(made))


def _forms(row: dict[str, Any], score: float | None, prompts: Prompts | Chat) -> Iterator[dict[str, Any]]:
    """An example as prompt and completion, and as messages."""
    messages, tools = messages_of(row), tools_of(row)
    given = {"tools": tools} if tools else {}
    if isinstance(prompts, Chat):
        pair = {"prompt": messages[:-1], "completion": messages[-1:], **given}
    else:
        pair = {"prompt": prompts.query(row), "completion": prompts.target(row)}
    yield {"id": row["id"], **{text: row[text] for text in TEXTS}, "score": score, **pair}
    yield {"id": row["id"], "score": score, "messages": messages, **given}


def read_subset(path: str | Path) -> list[dict[str, Any]]:
    """Reads the examples of a subset as rows of a table; conversations as `messages` and `tools`, in JSON."""
    rows = jsonl.read(path)
    for row in rows:
        if isinstance(row["prompt"], list):
            row["messages"] = dumps([*row["prompt"], *row["completion"]])
            row["tools"] = dumps(row["tools"]) if row.get("tools") else None
    return rows
