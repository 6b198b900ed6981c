"""Counts rows that stand in the data more than once: within the examples, and in examples, tasks and prompts alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icprobe.artifacts import digest
from icprobe.errors import shown
from icprobe.tables.checking import TEXTS
from icprobe.tables.conversations import HELD
from icprobe.tables.parquet import damaged
from icprobe.texts.conversations import ANSWER, messages_of

COLUMNS = ["table", "also_in", "same", "n", "n_rows", "first_id"]
# Same prompt: whatever the answer. White space aside.
SAME = {"row": TEXTS, "prompt": TEXTS[:2]}
WORDS = {"train": "training examples", "tasks": "tasks", "eval": "eval prompts"}
ROWS_AT_ONCE = 20_000


@dataclass(frozen=True)
class _Rows:
    """The ids of a table, and a digest of each row's texts, by what is compared ("row", "prompt")."""

    ids: list[str]
    digests: dict[str, list[str]]


def repeated(tables: Mapping[str, str | Path]) -> pd.DataFrame:
    """Counts the rows of each table that repeat an earlier row of train, or stand in another table, too.

    tables: "train", "tasks", "eval" -> parquet file, those that there are. Returns `table`, `also_in`, `same` (row:
    instruction, input and output are the same but for white space; prompt: instruction and input are), `n` of the
    `n_rows` rows of `table`, and `first_id`, the first of them (empty where there is none). Conversations are compared
    whole, their prompts without the last answer.
    """
    talks = any({*HELD} & {*pq.read_schema(path).names} for path in tables.values())
    rows = {name: _read(path, talks) for name, path in tables.items()}
    names = list(rows)
    found = []
    for place, table in enumerate(names):
        for other in names[place + 1 :] if table != "train" else names[place:]:
            for same in SAME:
                keys = rows[table].digests[same]
                repeats = _earlier(keys) if table == other else _among(keys, set(rows[other].digests[same]))
                first = rows[table].ids[repeats[0]] if repeats else None
                found.append((table, other, same, len(repeats), len(keys), first))
    return pd.DataFrame(found, columns=COLUMNS)


def remarks(table: pd.DataFrame) -> list[str]:
    """Says what a table of `repeated` found, a sentence for each pair of tables that share rows."""
    sentences = []
    for (name, other), rows in table.groupby(["table", "also_in"], sort=False):
        by = {row.same: row for row in rows.itertuples()}
        prompt, whole = by["prompt"], by["row"]
        if name == other and whole.n:
            sentences.append(
                f"data.{name}: {whole.n} of {whole.n_rows} {WORDS[name]} repeat an earlier one, first "
                f"{shown(whole.first_id)}; each counts on its own, and none is dropped"
            )
        if name != other and prompt.n:
            sentences.append(
                f"data.{name}: {prompt.n} of {prompt.n_rows} {WORDS[name]} share their prompt with {WORDS[other]} "
                f"({whole.n} the output, too), first {shown(prompt.first_id)}; that flatters these examples, and none "
                "is dropped"
            )
    return sentences


def _read(path: str | Path, talks: bool) -> _Rows:
    ids: list[str] = []
    digests: dict[str, list[str]] = {same: [] for same in SAME}
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            columns = ["id", *TEXTS, *(column for column in HELD if column in file.schema_arrow.names)]
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    ids.append(row["id"])
                    for same in SAME:
                        digests[same].append(digest(compared(row, same, talks))[:32])
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from None
    return _Rows(ids, digests)


def compared(row: dict[str, Any], same: str, talks: bool) -> list[Any]:
    """What of a row is compared, without white space; talks: whether any table has conversations."""
    if not talks:
        return [" ".join(row[column].split()) for column in SAME[same]]
    messages = messages_of(row)
    if same == "prompt" and messages[-1]["role"] == ANSWER:
        messages = messages[:-1]
    return [row.get("tools"), *({**m, "content": " ".join(m["content"].split())} for m in messages)]


def _earlier(keys: list[str]) -> list[int]:
    """Finds the places of keys that stood there before."""
    return np.flatnonzero(pd.Series(keys, dtype=object).duplicated()).tolist()


def _among(keys: list[str], others: set[str]) -> list[int]:
    return [place for place, key in enumerate(keys) if key in others]
