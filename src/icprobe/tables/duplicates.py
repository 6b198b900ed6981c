"""Finds examples that repeat an earlier one, exactly or nearly, so that they can be dropped."""

import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from icprobe import artifacts
from icprobe.errors import several
from icprobe.tables.checking import records
from icprobe.tables.conversations import HELD
from icprobe.tables.repeated import compared

COLUMNS = ["id", "kept_id", "similarity"]
SHINGLE = 5  # characters: so that every script has some
PERMUTATIONS = 128
MISSED = 1e-3  # of the pairs that are just alike enough, at most
NEAR = 0.8  # how alike, where nobody says so

Shingles = tuple[frozenset[str], frozenset[str]]  # of what is asked, and of the answer


def duplicates(table: pd.DataFrame, how: str | Mapping[str, float]) -> pd.DataFrame:
    """Finds the rows of a table that repeat one before them, of which the first is kept.

    table: as `checking.read_table` gives it. how: "exact", the same texts but for white space; "near" or {"near":
    threshold}, texts that are alike, too: prompts and answers each have at least this Jaccard similarity of their
    shingles (5 characters each, in lower case). Returns `id`, `kept_id`, the most alike row of those that are kept and
    stand before it (the first of equal ones), and `similarity`, the smaller of both, in the order of the table. Rows of
    the same texts have what the first of them has.

    Candidates come from MinHash (Broder 1997), and are compared by all their shingles: whatever is found is as alike as
    it says; a pair at the threshold is missed in a thousandth of the cases at most.
    """
    near = None if how == "exact" else _Near(_threshold(how))
    talks = any(column in table for column in HELD)
    kept_of: dict[str, tuple[str, float]] = {}  # of texts: which row has them, or is like them, and how alike
    found = []
    for row in records(table):
        key = artifacts.digest(compared(row, "row", talks))
        earlier = kept_of.get(key) or (near and near.find(row["id"], _texts(row, talks)))
        kept_of.setdefault(key, earlier or (row["id"], 1.0))
        if earlier:
            found.append((row["id"], *earlier))
    return pd.DataFrame(found, columns=COLUMNS).astype({"id": object, "kept_id": object, "similarity": float})


def read(path: str | Path) -> pd.DataFrame:
    """A table of `duplicates` that was written as CSV: its ids are texts, whatever they look like."""
    return artifacts.read_csv(path)


def without(table: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Drops from a table what `duplicates` found in it. Its attrs stay."""
    return table[~table["id"].isin(found["id"])].reset_index(drop=True)


def remark(n: int, how: str | Mapping[str, float]) -> str:
    """Says how many rows were dropped; how: as in `duplicates`."""
    exactly = "exactly" if how == "exact" else f"exactly or nearly (similarity from {_threshold(how):g})"
    repeat, are = ("repeats", "is") if n == 1 else ("repeat", "are")
    return f"{several(n, 'training example')} that {repeat} an earlier one {exactly} {are} dropped"


def _threshold(how: str | Mapping[str, float]) -> float:
    return NEAR if how == "near" else how["near"]


class _Near:
    """The rows that are kept, so that the most alike one is found among them."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self._threshold = threshold
        self._none = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
        self._kept = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
        self._rows: list[tuple[str, tuple[str, str]]] = []  # id, texts
        self._shingles = lru_cache(maxsize=1024)(lambda place: shingles(self._rows[place][1]))

    def find(self, identity: str, texts: tuple[str, str]) -> tuple[str, float] | None:
        """The most alike row that is kept, and how alike; keeps this one where there is none."""
        own = shingles(texts)
        sketch = self._none.copy()
        # What is asked and what is answered are told apart: alike in each is alike in all, at least.
        sketch.update_batch([zlib.crc32(one.encode(), side) for side, part in enumerate(own) for one in part])
        there = [(similarity(own, self._shingles(place)), -place) for place in self._kept.query(sketch)]
        alike, place = max(there, default=(0.0, 0))
        if alike >= self._threshold:
            return self._rows[-place][0], alike
        self._kept.insert(len(self._rows), sketch)
        self._rows.append((identity, texts))
        return None


def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many rows a sketch is cut into: as few as miss no more than MISSED at the threshold.

    Two at least, which datasketch asks for.
    """
    return next(
        (PERMUTATIONS // rows, rows)
        for rows in range(PERMUTATIONS // 2, 0, -1)
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISSED
    )


def shingles(texts: tuple[str, str]) -> Shingles:
    """All runs of SHINGLE characters of a prompt and of an answer; a text that is shorter is one of its own."""
    lower = (text.casefold() for text in texts)
    return tuple(frozenset(t[i : i + SHINGLE] for i in range(max(1, len(t) - SHINGLE + 1))) for t in lower)


def similarity(one: Shingles, other: Shingles) -> float:
    """The smaller of the Jaccard similarities of prompts and of answers, from 0 to 1."""
    return min(len(a & b) / len(a | b) for a, b in zip(one, other, strict=True))


def _texts(row: Mapping[str, Any], talks: bool) -> tuple[str, str]:
    """A row's prompt and answer in one text each, white space aside."""
    prompt, whole = compared(row, "prompt", talks), compared(row, "row", talks)
    return _joined(prompt), _joined(whole[len(prompt) :])


def _joined(parts: list[Any]) -> str:
    # Of a message what it says, not who says it: every answer would be a little like every other.
    messages = ([v for k, v in part.items() if k != "role"] if isinstance(part, dict) else [part] for part in parts)
    values = [value for message in messages for value in message]
    return "\n".join(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values if v)
