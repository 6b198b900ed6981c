"""Reads rows as they are in files (JSON, JSONL, CSV, parquet), behind an address or on the hub, each with its place."""

import csv
import io
import json
import os
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icprobe.artifacts import matching, temporary_directory
from icprobe.errors import DataError, reason, shown
from icprobe.masking import reveal

FORMATS = (".json", ".jsonl", ".csv", ".parquet")
WHERE = "_where"  # the column that says where a row stands, for messages
MAX_COLUMNS = 1000
LOOKED_AT_BYTES = 300_000  # of a file, where its columns alone are asked for


def read_file(path: str | Path) -> pd.DataFrame:
    """Reads the rows of a JSON, JSONL, CSV or parquet file as they are, and `_where`: file and line, for messages.

    Raises DataError naming the file and, where it can be told, the line.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: unknown format {path.suffix!r}; use one of {', '.join(FORMATS)}.")
    reader = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix]
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file.")
        frame = reader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}).") from None
    if frame.empty:
        raise DataError(f"{path}: holds no rows.")
    return frame


def is_small(path: str | Path) -> bool:
    """Whether a file is small enough to be read whole where little of it is asked for."""
    return os.path.isfile(path) and os.path.getsize(path) <= LOOKED_AT_BYTES


def columns_of(path: str | Path) -> tuple[list[str], bool]:
    """Finds the columns of a file by its beginning: (their names, whether these are all).

    Not all, where rows that are not looked at may have others. A file that cannot be read has none here: `read_file`
    says what is wrong.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path).names, True
        if path.suffix == ".csv":
            with open(path, encoding="utf-8-sig", newline="") as file:
                header = next((row for row in csv.reader(file, strict=True) if row), [])
            return header, bool(header)
        if is_small(path):
            return [name for name in read_file(path) if name != WHERE], True
        if path.suffix == ".jsonl":
            with open(path, encoding="utf-8-sig") as file:
                rows = [parse(line) for line in file.readlines(LOOKED_AT_BYTES) if line.strip()]
            return list(dict.fromkeys(key for row in rows for key in row)), False
    except (OSError, ValueError, TypeError, csv.Error, pa.ArrowException, DataError):
        pass
    return [], False


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: is not UTF-8 (byte {error.start}); convert the file.") from None


def parse(text: str) -> Any:
    """Reads JSON strictly; raises ValueError for a key that appears twice, NaN, and what is nested too deeply."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            raise ValueError(f"the key {shown(first_double([key for key, _ in pairs]))} appears twice")
        return row

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def first_double(names: Iterable[str]) -> str | None:
    """Finds the first name that stood there before; None where each stands there once."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows, where = [], []
    # Only "\n" ends a line: str.splitlines would also cut at U+2028 inside a text.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = parse(line)
        except json.JSONDecodeError as error:  # its own line number is that within the row
            raise DataError(f"{place}: broken JSON ({error.msg}, character {error.colno}).") from None
        except ValueError as error:
            raise DataError(f"{place}: broken JSON ({reason(error)}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: a row must be a JSON object, not {type(row).__name__}.")
        rows.append(row)
        where.append(place)
    return _from_rows(path, rows, where)


def _read_json(path: Path) -> pd.DataFrame:
    try:
        rows = parse(_text(path))
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}"
        raise DataError(f"{place}: broken JSON ({error.msg}, character {error.colno}).") from None
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({reason(error)}).") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must be a JSON list of objects; if it has one object per line, name it .jsonl.")
    return _from_rows(path, rows, [f"{path}, row {number}" for number in range(1, len(rows) + 1)])


def _read_csv(path: Path) -> pd.DataFrame:
    # Not pandas: it fills short rows, takes a surplus field for an index, and renames a column that appears twice.
    csv.field_size_limit(2**31 - 1)
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[list[str | None]] = []
    where: list[str] = []
    header: list[str] = []
    try:
        for row in lines:
            place = f"{path}, line {lines.line_num}"
            if not row:
                continue
            if not header:
                header = row
                if (double := first_double(header)) is not None:
                    raise DataError(f"{place}: the column {shown(double)} appears twice; rename one.")
            elif len(row) != len(header):
                raise DataError(
                    f"{place}: holds {len(row)} fields where the header names {len(header)}; "
                    "put a field with commas or line breaks in quotation marks."
                )
            else:
                rows.append([cell or None for cell in row])  # CSV has no other word for what is absent
                where.append(place)
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: broken CSV ({reason(error)}).") from None
    return _table({column: [row[i] for row in rows] for i, column in enumerate(header)}, where)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pq.ParquetFile(path).read()
        if (double := first_double(table.column_names)) is not None:
            raise DataError(f"{path}: the column {shown(double)} appears twice; rename one.")
        # Not to_pandas: it makes 7.0 of the id 7 where another id is null.
        columns = {column: table[column].to_pylist() for column in table.column_names}
    except (pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: broken parquet ({reason(error)}).") from None
    return _table(columns, [f"{path}, row {number}" for number in range(1, table.num_rows + 1)])


def _from_rows(path: Path | str, rows: list[Mapping[str, Any]], where: list[str]) -> pd.DataFrame:
    columns = dict.fromkeys(key for row in rows for key in row)
    if len(columns) > MAX_COLUMNS:
        raise DataError(f"{path}: its rows have {len(columns)} different keys; rows of one table share their keys.")
    return _table({column: [row.get(column) for row in rows] for column in columns}, where)


def _table(columns: dict[str, list[Any]], where: list[str]) -> pd.DataFrame:
    # Object columns: what the file says stays what it is (an id 007 or a null is not turned into a float).
    table = {name: pd.Series(values, dtype=object) for name, values in columns.items()}
    return pd.DataFrame({**table, WHERE: pd.Series(where, dtype=object)})


def read_rows(rows: Any, name: str) -> pd.DataFrame:
    """Takes rows that are in memory, a table or mappings, as they are, and `_where`: `train.iloc[3]` or `train[3]`.

    name: of the table, for messages. Raises DataError for what are no rows.
    """
    if isinstance(rows, pd.DataFrame):
        if "id" in rows.index.names and "id" not in rows:  # as DataFrame.set_index("id") leaves them
            rows = rows.reset_index("id")
        if (double := first_double(map(str, rows.columns))) is not None:
            raise DataError(f"{name}: the column {shown(double)} appears twice; rename one.")
        plain = rows.astype(object).where(rows.notna(), None)
        where = [f"{name}.iloc[{number}]" for number in range(len(rows))]
        frame = _table({str(column): plain[column].tolist() for column in rows.columns}, where)
    else:
        if not isinstance(rows, Iterable):
            raise DataError(f"{name}: rows are needed (a DataFrame, a list of mappings, a path), not {shown(rows)}.")
        listed = list(rows)
        where = [f"{name}[{number}]" for number in range(len(listed))]
        for place, row in zip(where, listed, strict=True):
            if not isinstance(row, Mapping):
                raise DataError(f"{place}: a row must be a mapping, not {type(row).__name__}.")
        frame = _from_rows(name, listed, where)
    if frame.empty:
        raise DataError(f"{name}: holds no rows.")
    return frame


def read_source(source: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    """Reads the rows of a file or several, an address, or the hub: (rows with `_where`, what they come from).

    `rows` of the source are in memory; its path is then their name.
    """
    path = source.get("path") or []
    if "rows" in source:
        return read_rows(source["rows"], path), path
    if isinstance(path, str) and Path(path).is_file():
        return read_file(path), path
    named = [(file, None) for file in matching([path] if isinstance(path, str) else path)]
    named += [(file, subset) for subset, file in source.get("subsets", {}).items()]
    if named:
        several = len(named) > 1
        frames = [_with_subset(read_file(file), file, subset, several) for file, subset in named]
        frame = pd.concat(frames, ignore_index=True)
        return frame.astype(object).where(frame.notna(), None), ", ".join(file for file, _ in named[:3])
    if source.get("url"):
        return _read_url(source["url"]), source["url"]
    return _read_hub(source), source["hub"]


def _with_subset(frame: pd.DataFrame, file: str, subset: str | None, several: bool) -> pd.DataFrame:
    """Gives a file's rows the column `subset`, where there are several files or the configuration names it."""
    if subset is not None:
        return frame.assign(subset=subset)
    if not several or "subset" in frame:
        return frame
    stems = pd.Series([Path(file).stem] * len(frame), dtype=object)
    return frame.assign(subset=frame["dataset"].where(frame["dataset"].notna(), stems) if "dataset" in frame else stems)


def _read_url(url: str) -> pd.DataFrame:
    address = urllib.parse.urlsplit(url)
    with temporary_directory() as folder:
        file = Path(folder, Path(address.path).name or "table")
        try:
            with urllib.request.urlopen(reveal(url), timeout=60) as answer, open(file, "wb") as copy:
                shutil.copyfileobj(answer, copy)
        except (OSError, ValueError) as error:
            raise DataError(f"{url}: cannot be fetched ({reason(error)}); get the file and give its path.") from None
        try:
            frame = read_file(file)
        except DataError as error:
            raise DataError(str(error).replace(str(file), url)) from None
    return frame.assign(**{WHERE: [place.replace(str(file), url) for place in frame[WHERE]]})


def _read_hub_file(source: dict[str, Any]) -> pd.DataFrame:
    import huggingface_hub

    where = f"{source['hub']}, {source['file']}"
    try:
        file = huggingface_hub.hf_hub_download(
            source["hub"], source["file"], repo_type="dataset", revision=source.get("revision")
        )
    except Exception as error:  # as below
        raise DataError(f"{where}: cannot be fetched from the hub: {reason(error)}") from None
    frame = read_file(file)
    return frame.assign(**{WHERE: [place.replace(str(file), where) for place in frame[WHERE]]})


def _read_hub(source: dict[str, Any]) -> pd.DataFrame:
    if source.get("file"):
        return _read_hub_file(source)
    import datasets

    try:
        table = datasets.load_dataset(
            source["hub"], source.get("name"), split=source["split"], revision=source.get("revision")
        )
        columns = {column: list(table[column]) for column in table.column_names}
    except Exception as error:  # the library raises many kinds, for no network, no such set, no such split
        raise DataError(f"{source['hub']}: cannot be loaded from the hub: {reason(error)}") from None
    return _table(columns, [f"{source['hub']} {source['split']}, row {n}" for n in range(1, len(table) + 1)])
