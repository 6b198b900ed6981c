"""Journals in JSON Lines: rows are appended as they come, and survive a kill."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from icprobe.artifacts import atomic_path


def line(row: dict[str, Any]) -> str:
    """One row as a line; a row with NaN is refused, for JSON has none (null says "no value")."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a complete file."""
    # Not splitlines(): U+2028 and the like may stand inside a JSON string.
    return [json.loads(text) for text in Path(path).read_text(encoding="utf-8").split("\n") if text]


def append(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Adds rows to a journal; they are on disk when this returns."""
    with open(path, "ab") as file:
        file.write("".join(map(line, rows)).encode())
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a journal that may be growing: what stands after the last whole line does not count."""
    content = Path(path).read_bytes()
    text = content[: content.rfind(b"\n") + 1].decode()
    return [json.loads(line) for line in text.split("\n") if line]


def recover(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a journal whose writer may have been killed; what stands after the last whole line is cut off."""
    path = Path(path)
    if not path.exists():
        return []
    rows = whole_lines(path)
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    return rows


def write(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Rows as JSONL in UTF-8, written atomically."""
    with atomic_path(path) as aside, open(aside, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(map(line, rows))
