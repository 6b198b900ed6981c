"""The subset of examples that a model is fine-tuned on, as JSON Lines that trainers take as they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd

from icprobe import jsonl
from icprobe.artifacts import atomic_path
from icprobe.tables.checking import TEXTS, records
from icprobe.texts.prompts import Prompts, full_instruction

# Texts that play no part in fine-tuning; a change of them repeats nothing.
UNUSED = {"one_shot_prefix": "", "separator": ""}


def prompts_of(templates: Mapping[str, str]) -> Prompts:
    """The prompts of fine-tuning. templates: `query`, `target` and `special_tokens`."""
    return Prompts({**UNUSED, **templates})


def write_subset(
    examples: pd.DataFrame,
    chosen: Sequence[str],
    score: Mapping[str, float],
    prompts: Prompts,
    path: str | Path,
    messages_path: str | Path,
    at_once: int = 10_000,
) -> None:
    """Writes the chosen examples in this order as JSONL, twice, for the two forms that trl's trainers take.

    path: `id`, Alpaca's fields, `score` (null where there is none), and `prompt` and `completion` as fine-tuning
    renders them. messages_path: `id`, `score` and `messages`, for a model with a chat template. One file cannot hold
    both: trl takes whichever of the columns it meets first. examples: indexed by id. Some rows at a time: as mappings,
    a million would fill gigabytes.
    """
    texts = examples[["id", *TEXTS]]
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(aside, "w", encoding="utf-8", newline="\n"))
            for aside in [stack.enter_context(atomic_path(each)) for each in (path, messages_path)]
        ]
        for start in range(0, len(chosen), at_once):
            for row in records(texts.loc[chosen[start : start + at_once]]):
                for file, made in zip(files, _forms(row, score.get(row["id"]), prompts), strict=True):
                    file.write(jsonl.line(made))


def _forms(row: dict[str, Any], score: float | None, prompts: Prompts) -> Iterator[dict[str, Any]]:
    """An example as prompt and completion, and as messages."""
    yield {**row, "score": score, "prompt": prompts.query(row), "completion": prompts.target(row)}
    said = {"user": full_instruction(row), "assistant": row["output"]}
    yield {
        "id": row["id"],
        "score": score,
        "messages": [{"role": role, "content": content} for role, content in said.items()],
    }
