"""The subset of examples that a model is fine-tuned on, as JSON Lines that any trainer reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from icprobe import jsonl
from icprobe.tables.checking import TEXTS, records


def write_subset(
    examples: pd.DataFrame, chosen: Sequence[str], score: Mapping[str, float], path: str | Path, at_once: int = 10_000
) -> None:
    """The chosen examples in this order as JSONL: Alpaca's fields, `id`, and `score` (null where there is none).

    examples: indexed by id. Some rows at a time: as mappings, a million would fill gigabytes.
    """
    texts = examples[["id", *TEXTS]]
    parts = (records(texts.loc[chosen[start : start + at_once]]) for start in range(0, len(chosen), at_once))
    jsonl.write(({**row, "score": score.get(row["id"])} for part in parts for row in part), path)
