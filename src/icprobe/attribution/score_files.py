"""One file of scores or attributions that somebody else computed, in any of the formats that people keep them in.

Nothing in a file is run: pickles are refused, and PyTorch's files are loaded with `weights_only`.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from icprobe.attribution.unnamed_ids import CALLED_IDS, is_text, may_have_names, may_name, name_ids
from icprobe.errors import DataError, reason, shown, some
from icprobe.tables import reading

FORMATS = ".parquet, .csv, .json, .jsonl, .npy, .npz and .pt"
PICKLES = (".pkl", ".pickle", ".joblib", ".dill")


@dataclass(frozen=True)
class Scores:
    """Values [N, M] of examples and tasks (M = 1 where there is one score for each example), and the names of both.

    None where the files have no names. from_table: whether a column of them could be ids that nobody named.
    """

    values: np.ndarray
    examples: list[str] | None
    tasks: list[str] | None
    from_table: bool = False


@dataclass(frozen=True)
class _Found:
    """What stands in a file: numbers, and names of their rows and columns where it has some."""

    values: np.ndarray
    row_names: list[str] | None = None
    column_names: list[str] | None = None
    is_table: bool = False


def read_file(path: Path, settings: Mapping[str, Any]) -> Scores:
    """Reads one file, its values examples first. settings: the section of its set of scores.

    Raises DataError where it cannot be read, or holds something else than the settings say.
    """
    found = _contents(path, settings)
    if settings["join"] == "id":
        _check_unique(path, found.row_names)
        _check_unique(path, found.column_names)
    found = replace(found, values=_numbers(path, found.values))
    return _one_each(path, found) if settings["orientation"] == "scores" else _matrix(path, found, settings)


def _contents(path: Path, settings: Mapping[str, Any]) -> _Found:
    """Reads what the file holds, as its suffix says."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise _pickled(path)
    if suffix not in READERS:
        raise DataError(f"{path}: unknown format {path.suffix!r} of external scores; use one of {FORMATS}.")
    try:
        return READERS[suffix](path, settings)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}).") from None


def _check_unique(path: Path, names: list[str] | None) -> None:
    """Raises DataError for a name that appears twice."""
    if (double := reading.first_double(names or [])) is not None:
        raise DataError(f"{path}: the name {shown(double)} appears twice; rename one, or set join: order.")


def _one_each(path: Path, found: _Found) -> Scores:
    """Takes what was found for one score of each example, in a column or in a row."""
    values, names = found.values, found.row_names
    if values.ndim == 2 and 1 in values.shape:
        names = names if values.shape[1] == 1 else found.column_names
        values = values.reshape(-1)
    if values.ndim != 1:
        raise DataError(
            f"{path}: holds {_shape(values)} numbers, not one for each example; set orientation: examples_by_tasks "
            "or tasks_by_examples, or name one column in key."
        )
    return Scores(values[:, None], names, None)


def _matrix(path: Path, found: _Found, settings: Mapping[str, Any]) -> Scores:
    """Takes what was found for a matrix of examples and tasks."""
    if found.values.ndim != 2:
        raise DataError(
            f"{path}: holds {_shape(found.values)} numbers, not a matrix of examples and tasks; "
            + ("set orientation: scores." if found.values.ndim == 1 else "name the matrix in key.")
        )
    if settings["orientation"] == "tasks_by_examples":
        return Scores(found.values.T, found.column_names, found.row_names, found.is_table)
    return Scores(found.values, found.row_names, found.column_names, found.is_table)


def _shape(values: np.ndarray) -> str:
    return " x ".join(f"{size:,}" for size in values.shape) or "no"


def _numbers(path: Path, values: np.ndarray) -> np.ndarray:
    """Gives the values as floats of at most 64 bits, whole numbers as float64; refuses what is no number."""
    if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
        raise DataError(f"{path}: holds values of type {values.dtype}, not real numbers; see key and id_column.")
    if not values.size:
        raise DataError(f"{path}: holds no numbers.")
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _pickled(path: Path) -> DataError:
    return DataError(
        f"{path}: holds a pickle or is damaged; a pickle can run code when it is loaded, so none is. Save the plain "
        "numbers as npz, parquet or CSV."
    )


def _nameless(path: Path, key: str) -> DataError:
    return DataError(f"{path}: holds no names, so there is no {shown(key)} in it; set key: null.")


def _chosen(path: Path, names: Sequence[str], key: str | None) -> str:
    """Finds the name that `key` says, or the only one there is."""
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        known = ", ".join(shown(name) for name in names[:10])
        raise DataError(f"{path}: holds {known}; {'name one of them in key' if key is None else f'not {shown(key)}'}.")
    return key


def _of_numpy(path: Path, settings: Mapping[str, Any]) -> _Found:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if settings["key"] is not None:
                raise _nameless(path, settings["key"])
            return _Found(loaded)
        with loaded:
            key = _chosen(path, loaded.files, settings["key"])
            found = _Found(loaded[key])
            if settings["join"] == "id":
                _check_beside(path, key, found, {name: _flat(loaded, name) for name in loaded.files if name != key})
            return found
    except (OSError, MemoryError, DataError):
        raise
    except Exception:  # for a pickle, and a dozen other kinds for damage of each sort
        raise _pickled(path) from None


def _flat(file: Any, name: str) -> np.ndarray | None:
    """A flat array of an npz file; None where it would be unpickled. Others, which may be large, are not read."""
    try:
        with file.zip.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            flat = version != (1, 0) or len(np.lib.format.read_array_header_1_0(member)[0]) == 1
        return file[name] if flat else np.zeros((0, 0))
    except ValueError:
        return None


def _of_torch(path: Path, settings: Mapping[str, Any]) -> _Found:
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception:  # as above
        raise _pickled(path) from None

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            value = value.detach()
            # NumPy has no bfloat16; float32 holds each of its numbers.
            return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    try:
        found = plain(loaded)
    except (TypeError, RuntimeError) as error:  # a sparse tensor, or of a type that NumPy has not
        raise DataError(f"{path}: holds no plain tensor ({reason(error)}); save it as dense float32.") from None
    return _of_object(path, found, settings)


def _of_json(path: Path, settings: Mapping[str, Any]) -> _Found:
    try:
        loaded = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON ({reason(error)}).") from None
    if isinstance(loaded, list) and loaded and all(isinstance(row, dict) for row in loaded):
        return _of_frame(path, pd.DataFrame(loaded), settings)
    return _of_object(path, loaded, settings)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key appears twice")
    return row


def _of_object(path: Path, value: Any, settings: Mapping[str, Any]) -> _Found:
    """Reads nested lists of numbers, or a mapping of names to numbers or to rows of them."""
    key = settings["key"]
    if key is None:
        return _of_values(path, value)
    if not isinstance(value, Mapping):
        raise _nameless(path, key)
    found = _of_values(path, value[_chosen(path, list(value), key)])
    if settings["join"] == "id":
        _check_beside(path, key, found, {one: held for one, held in value.items() if one != key and held is not None})
    return found


def _of_values(path: Path, value: Any) -> _Found:
    names = None
    if isinstance(value, Mapping):
        names, value = [str(name) for name in value], list(value.values())
    elif not isinstance(value, list | np.ndarray):
        raise DataError(f"{path}: holds {shown(value)}, no list of numbers.")
    try:
        values = np.asarray(value)
    except (ValueError, TypeError):
        raise DataError(f"{path}: its rows are of different lengths, or it holds several arrays; see key.") from None
    return _Found(values, names)


def _check_beside(path: Path, key: str, found: _Found, others: Mapping[str, Any]) -> None:
    """Raises DataError where rows or columns have no names, and another array beside them could hold these."""
    named = (found.row_names, found.column_names)
    sizes = {size for size, names in zip(found.values.shape, named, strict=False) if names is None}
    for name, held in others.items():
        flat = isinstance(held, list) or (isinstance(held, np.ndarray) and held.ndim == 1)
        if (flat and len(held) in sizes and may_name(held)) or (held is None and CALLED_IDS.fullmatch(name)):
            raise DataError(
                f"{path}: {shown(name)} beside {shown(key)} could be ids to join by, which only tables have; save both "
                "as columns of a table and name this one in id_column, leave it out of the file, or set join: order."
            )


def _of_jsonl(path: Path, settings: Mapping[str, Any]) -> _Found:
    return _of_frame(path, reading.read_file(path).drop(columns=reading.WHERE), settings)


def _of_frame(path: Path, frame: pd.DataFrame, settings: Mapping[str, Any]) -> _Found:
    try:
        columns = {name: pa.array(list(frame[name])) for name in frame}
    except (pa.ArrowException, TypeError, ValueError):
        raise DataError(f"{path}: a column holds values of different types.") from None
    return _of_table(path, pa.table(columns), settings)


def _of_parquet(path: Path, settings: Mapping[str, Any]) -> _Found:
    try:
        return _of_table(path, pq.ParquetFile(path).read(), settings)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: broken parquet ({reason(error)}).") from None


def _of_csv(path: Path, settings: Mapping[str, Any]) -> _Found:
    try:
        # In a file of one column an empty line is a row without a value; in others, and at the ends, it is none.
        one_column = _has_one_column(path)
        table = pa_csv.read_csv(
            pa.py_buffer(path.read_bytes().strip(b"\r\n")) if one_column else path,
            parse_options=pa_csv.ParseOptions(ignore_empty_lines=not one_column),
            # One line may be 52,002 examples wide.
            read_options=pa_csv.ReadOptions(
                autogenerate_column_names=not settings["header"], block_size=1 << 26, use_threads=False
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={settings["id_column"]: pa.string()}, null_values=["", "NaN", "nan", "NA", "null"]
            ),
        )
        found = _of_table(path, table, settings)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: broken CSV ({reason(error)}).") from None
    return found if settings["header"] else replace(found, column_names=None)


def _has_one_column(path: Path) -> bool:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return len(next((row for row in csv.reader(file) if row), [])) == 1


def _of_table(path: Path, table: pa.Table, settings: Mapping[str, Any]) -> _Found:
    """Reads the columns of a table: all but the id column, or the one that key names, which may hold lists."""
    names = table.column_names
    if (double := reading.first_double(names)) is not None:
        raise DataError(f"{path}: the column {shown(double)} appears twice; rename one.")
    row_names = _row_names(path, table, settings)
    rest = [name for name in names if name != settings["id_column"]]
    if settings["key"] is not None or settings["orientation"] == "scores":
        # A table of scores of ours may have other columns beside them.
        name = _chosen(path, rest, settings["key"] or ("score" if "score" in rest else None))
        column = table[name].combine_chunks()
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if any(is_kind(column.type) for is_kind in kinds):
            return _Found(_of_values(path, column.to_pylist()).values, row_names)
        return _Found(_column(path, name, column), row_names)
    if not rest:
        raise DataError(
            f"{path}: has no column of scores beside {shown(settings['id_column'])}; add one for each task."
        )
    return _Found(np.column_stack([_column(path, name, table[name]) for name in rest]), row_names, rest, True)


def _row_names(path: Path, table: pa.Table, settings: Mapping[str, Any]) -> list[str] | None:
    """What the rows are called; None where nothing in the table can be a name, so that they go by their numbers."""
    column = settings["id_column"]
    if column not in table.column_names:
        if settings["join"] == "id" and (column != "id" or may_have_names(table, settings)):
            raise DataError(
                f"{path}: has no column {shown(column)} to join by, but {some(table.column_names)}; "
                + name_ids(shown(column))
            )
        return None
    found = table[column]
    if pa.types.is_dictionary(found.type):
        found = found.cast(found.type.value_type)
    if found.null_count or not (is_text(found.type) or pa.types.is_integer(found.type)):
        raise DataError(f"{path}: the column {shown(column)} must hold a text or a whole number in each row.")
    return [str(value) for value in found.to_pylist()]


def _column(path: Path, name: str, column: Any) -> np.ndarray:
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise DataError(f"{path}: the column {shown(name)} holds {kind}, no numbers; see key and id_column.")
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    return column.to_pandas().to_numpy()  # nulls become NaN


READERS = {
    ".parquet": _of_parquet,
    ".csv": _of_csv,
    ".jsonl": _of_jsonl,
    ".json": _of_json,
    ".npy": _of_numpy,
    ".npz": _of_numpy,
    ".pt": _of_torch,
}
