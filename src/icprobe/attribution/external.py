"""Scores and attribution matrices that somebody else computed, read from files of many kinds.

Nothing in such a file is run: pickles are refused, and PyTorch's files are loaded with `weights_only`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from icprobe.analysis.statistics import widen
from icprobe.errors import DataError, ScoreError, reason, shown
from icprobe.progress import Progress
from icprobe.tables import checking, reading

FORMATS = ".parquet, .csv, .json, .jsonl, .npy, .npz and .pt"
PICKLES = (".pkl", ".pickle", ".joblib", ".dill")


@dataclass(frozen=True)
class Scores:
    """What files hold: values [N, M] (M = 1 where there is one score for each example), and their rows' and columns'
    names, None where the files have none. A table's columns always have names."""

    values: np.ndarray
    examples: list[str] | None
    tasks: list[str] | None


def read(name: str, settings: Mapping[str, Any]) -> Scores:
    """All values of one set of external scores, parts put together, examples first.

    name: as the configuration calls it; settings: its section as a mapping. Raises DataError naming the file that
    cannot be read, has another shape than the configuration says, or does not fit the other parts.
    """
    paths = [settings["path"]] if isinstance(settings["path"], str) else settings["path"]
    parts = [_part(Path(path), settings) for path in Progress(paths, desc=name, unit="file")]
    along_examples = settings["parts"] == "examples" or settings["orientation"] == "scores"
    axis = 0 if along_examples else 1
    for path, part in zip(paths, parts, strict=True):
        size, first = part.values.shape[1 - axis], parts[0].values.shape[1 - axis]
        if size != first:
            what = "tasks" if along_examples else "examples"
            raise DataError(
                f"attribution.external.{name}: {path} has {size:,} {what} and {paths[0]} {first:,}; they are no parts "
                "of one matrix (see orientation and parts)."
            )
    values = np.concatenate([part.values for part in parts], axis=axis)
    examples = _together([part.examples for part in parts], along_examples, paths, f"{name}, ids")
    tasks = _together([part.tasks for part in parts], not along_examples, paths, f"{name}, tasks")
    return Scores(values, examples, tasks)


def rows(name: str, settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(ids of the examples, ids of the tasks) that a set of scores brings along, for experiments without texts.

    Zero-padded numbers where the files have no names, or where the configuration joins by order.
    """
    scores = read(name, settings)
    return _ids(scores.examples, len(scores.values), settings), _ids(scores.tasks, scores.values.shape[1], settings)


def attribution(
    name: str,
    settings: Mapping[str, Any],
    ids: Sequence[str],
    tasks: Sequence[str],
    named_by: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The set of scores as an attribution matrix [N, M] of the experiment's examples and tasks: `id`, then the columns.

    One score for each example is one column `score`, float64, in which narrower floats have widened by their shortest
    decimal; a matrix has one float32 column for each task. named_by: {"train": …, "tasks": …}, what the numbers of
    examples and tasks come from, for messages.

    Raises DataError where sizes or names do not fit the experiment's, ScoreError for values that are NaN or infinite.
    """
    named_by = {"train": "data.train", "tasks": "data.tasks", **(named_by or {})}
    found = read(name, settings)
    place = f"attribution.external.{name}"
    order = _join(found.examples, len(found.values), ids, settings, f"{place}, examples of {named_by['train']}")
    values = np.full((len(ids), found.values.shape[1]), np.nan, dtype=found.values.dtype)
    values[order >= 0] = found.values[order[order >= 0]]
    if settings["orientation"] != "scores":
        columns = _join(found.tasks, values.shape[1], tasks, settings, f"{place}, tasks of {named_by['tasks']}")
        if (columns < 0).any():
            raise DataError(f"{place}: has no task {shown(tasks[int((columns < 0).argmax())])}; see checking.tasks.")
        values = values[:, columns]
    _check(place, ids, values, settings["allow_missing"])
    if settings["orientation"] == "scores":
        return pd.DataFrame({"id": list(ids), "score": widen(values[:, 0])})
    matrix = pd.DataFrame(values.astype(np.float32, copy=False), columns=list(tasks))
    return pd.concat([pd.DataFrame({"id": list(ids)}), matrix], axis=1)


def _ids(names: list[str] | None, count: int, settings: Mapping[str, Any]) -> list[str]:
    numbers = checking.row_numbers(count)
    if names is None or settings["join"] == "order":
        return numbers
    # The authors' JSON calls its rows "0", "1", …: these are row numbers, and zero-padded as ours are.
    padded = {str(number): text for number, text in enumerate(numbers)}
    return [padded[name] for name in names] if set(names) == set(padded) else names


def _join(names: list[str] | None, count: int, wanted: Sequence[str], settings: Mapping[str, Any], what: str) -> Any:
    """The row of the files for each of `wanted`; -1 where they have none."""
    if settings["join"] == "order":
        if count != len(wanted):
            raise DataError(
                f"{what}: there are {len(wanted):,} of them, but the files hold {count:,}; they join by order only "
                "where the numbers agree (join: id takes some of them, by their ids)."
            )
        return np.arange(count)
    order = pd.Index(_ids(names, count, settings)).get_indexer(list(wanted))
    absent = int((order < 0).sum())
    if absent and not settings["allow_missing"]:
        first = wanted[int((order < 0).argmax())]
        raise DataError(
            f"{what}: {absent:,} of {len(wanted):,} are not in the files, first {shown(first)}; add them, join by "
            "order, or set allow_missing: true."
        )
    return order


def _check(place: str, ids: Sequence[str], values: np.ndarray, allow_missing: bool) -> None:
    wrong = np.isinf(values) if allow_missing else ~np.isfinite(values)
    with np.errstate(over="ignore"):
        wrong |= np.isfinite(values) & ~np.isfinite(values.astype(np.float32))
    lines = np.flatnonzero(wrong.any(axis=1))
    if len(lines):
        first = ", ".join(ids[line] for line in lines[:5])
        raise ScoreError(
            f"{place}: {len(lines):,} examples have a value that is NaN, infinite or beyond float32, first of {first}; "
            "correct the file, or set allow_missing: true where NaN means that there is none."
        )


def _together(names: list[list[str] | None], joined: bool, paths: Sequence[str], what: str) -> list[str] | None:
    """Names along one axis of parts that are joined along it, or that share it."""
    if any(part is None for part in names):
        return None
    if not joined:
        for path, part in zip(paths, names, strict=True):
            if part != names[0]:
                raise DataError(f"attribution.external.{what}: {path} has other names than {paths[0]}.")
        return names[0]
    return [name for part in names for name in part]


# --- one file ---------------------------------------------------------------------------------------------------


def _part(path: Path, settings: Mapping[str, Any]) -> Scores:
    """One file, its values examples first."""
    reader = {
        ".parquet": _of_parquet,
        ".csv": _of_csv,
        ".jsonl": _of_jsonl,
        ".json": _of_json,
        ".npy": _of_numpy,
        ".npz": _of_numpy,
        ".pt": _of_torch,
    }.get(path.suffix.lower())
    if path.suffix.lower() in PICKLES:
        raise _pickled(path)
    if reader is None:
        raise DataError(f"{path}: unknown format {path.suffix!r} of external scores; use one of {FORMATS}.")
    try:
        values, row_names, column_names = reader(path, settings)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}).") from None
    for names in (row_names, column_names):
        if names is not None and settings["join"] == "id" and len(set(names)) < len(names):
            double = next(name for number, name in enumerate(names) if name in names[:number])
            raise DataError(f"{path}: the name {shown(double)} stands there twice; rename one, or set join: order.")
    values = _numbers(path, values)
    if settings["orientation"] == "scores":
        if values.ndim == 2 and 1 in values.shape:
            if values.shape[1] != 1:
                row_names = column_names
            values = values.reshape(-1)
        if values.ndim != 1:
            raise DataError(
                f"{path}: holds {_shape(values)} numbers, not one for each example; set orientation: examples_by_tasks "
                "or tasks_by_examples, or name one column in key."
            )
        return Scores(values[:, None], row_names, None)
    if values.ndim != 2:
        raise DataError(
            f"{path}: holds {_shape(values)} numbers, not a matrix of examples and tasks; "
            + ("set orientation: scores." if values.ndim == 1 else "name the matrix in key.")
        )
    if settings["orientation"] == "tasks_by_examples":
        return Scores(values.T, column_names, row_names)
    return Scores(values, row_names, column_names)


def _shape(values: np.ndarray) -> str:
    return " x ".join(f"{size:,}" for size in values.shape) or "no"


def _numbers(path: Path, values: np.ndarray) -> np.ndarray:
    """The values as floats of at most 64 bits; whole numbers as float64."""
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


def _chosen(path: Path, names: Sequence[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        known = ", ".join(shown(name) for name in names[:10])
        raise DataError(f"{path}: holds {known}; {'name one of them in key' if key is None else f'not {shown(key)}'}.")
    return key


def _of_numpy(path: Path, settings: Mapping[str, Any]) -> tuple:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None, None
        with loaded:
            return loaded[_chosen(path, loaded.files, settings["key"])], None, None
    except (OSError, MemoryError, DataError):
        raise
    except Exception:  # for a pickle, and a dozen other kinds for damage of each sort
        raise _pickled(path) from None


def _of_torch(path: Path, settings: Mapping[str, Any]) -> tuple:
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

    return _of_object(path, plain(loaded), settings["key"])


def _of_json(path: Path, settings: Mapping[str, Any]) -> tuple:
    try:
        loaded = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON ({reason(error)}).") from None
    if isinstance(loaded, list) and loaded and all(isinstance(row, dict) for row in loaded):
        return _of_frame(path, pd.DataFrame(loaded), settings)
    return _of_object(path, loaded, settings["key"])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _of_object(path: Path, value: Any, key: str | None) -> tuple:
    """Nested lists of numbers, or a mapping of names to numbers or to rows of them."""
    if key is not None:
        if not isinstance(value, Mapping):
            raise DataError(f"{path}: holds no names, so there is no {shown(key)} in it; set key: null.")
        value = value[_chosen(path, list(value), key)]
    names = None
    if isinstance(value, Mapping):
        names, value = [str(name) for name in value], list(value.values())
    elif not isinstance(value, list | np.ndarray):
        raise DataError(f"{path}: holds {shown(value)}, no list of numbers.")
    try:
        values = np.asarray(value)
    except (ValueError, TypeError):
        raise DataError(f"{path}: its rows are of different lengths, or it holds several arrays; see key.") from None
    return values, names, None


def _of_jsonl(path: Path, settings: Mapping[str, Any]) -> tuple:
    return _of_frame(path, reading.read_file(path).drop(columns=reading.WHERE), settings)


def _of_frame(path: Path, frame: pd.DataFrame, settings: Mapping[str, Any]) -> tuple:
    try:
        columns = {name: pa.array(list(frame[name])) for name in frame}
    except (pa.ArrowException, TypeError, ValueError):
        raise DataError(f"{path}: a column holds values of different types.") from None
    return _of_table(path, pa.table(columns), settings)


def _of_parquet(path: Path, settings: Mapping[str, Any]) -> tuple:
    try:
        return _of_table(path, pq.ParquetFile(path).read(), settings)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: broken parquet ({reason(error)}).") from None


def _of_csv(path: Path, settings: Mapping[str, Any]) -> tuple:
    try:
        table = pa_csv.read_csv(
            path,
            # One line may be 52,002 examples wide.
            read_options=pa_csv.ReadOptions(
                autogenerate_column_names=not settings["header"], block_size=1 << 26, use_threads=False
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={settings["id_column"]: pa.string()}, null_values=["", "NaN", "nan", "NA", "null"]
            ),
        )
        values, row_names, column_names = _of_table(path, table, settings)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: broken CSV ({reason(error)}).") from None
    return values, row_names, column_names if settings["header"] else None


def _of_table(path: Path, table: pa.Table, settings: Mapping[str, Any]) -> tuple:
    """Numbers of a table's columns, all but the id column or the one that key names, which may hold lists."""
    names = table.column_names
    if len(set(names)) < len(names):
        double = next(name for number, name in enumerate(names) if name in names[:number])
        raise DataError(f"{path}: the column {shown(double)} stands there twice; rename one.")
    row_names = _row_names(path, table, settings["id_column"])
    rest = [name for name in names if name != settings["id_column"]]
    if settings["key"] is not None or settings["orientation"] == "scores":
        name = _chosen(path, rest, settings["key"])
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            return *_of_object(path, column.to_pylist(), None)[:1], row_names, None
        return _column(path, name, column), row_names, None
    return np.column_stack([_column(path, name, table[name]) for name in rest]), row_names, rest


def _row_names(path: Path, table: pa.Table, column: str) -> list[str] | None:
    if column not in table.column_names:
        return None
    found = table[column]
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    if found.null_count or not any(is_kind(found.type) for is_kind in kinds):
        raise DataError(f"{path}: the column {shown(column)} must hold a text or a whole number in each row.")
    return [str(value) for value in found.to_pylist()]


def _column(path: Path, name: str, column: Any) -> np.ndarray:
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise DataError(f"{path}: the column {shown(name)} holds {kind}, no numbers; see key and id_column.")
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    # to_pandas: nulls become NaN.
    return column.to_pandas().to_numpy()
