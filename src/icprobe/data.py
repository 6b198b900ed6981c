"""Tables of examples, tasks and eval prompts: read from files or the hub, checked row by row, sampled, selected."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icprobe.artifacts import atomic_path
from icprobe.errors import DataError

TEXTS = ["instruction", "input", "output"]
FORMATS = (".json", ".jsonl", ".csv", ".parquet")


# --- files ------------------------------------------------------------------------------------------------------


def read_file(path: str | Path) -> pd.DataFrame:
    """Rows of a JSON, JSONL, CSV or parquet file as they are, plus `_where` (file and line or row, for messages).

    Raises DataError naming the file and, where it can be told, the line.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: unknown format {path.suffix!r}; use one of {', '.join(FORMATS)}.")
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    reader = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix]
    frame = reader(path)
    if frame.empty:
        raise DataError(f"{path}: holds no rows.")
    return frame


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: is not UTF-8 (byte {error.start}); convert the file.") from None


def _parse(text: str) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands there twice")
        return row

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows, where = [], []
    # Only "\n" ends a line: str.splitlines would also cut at U+2028 inside a text.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = _parse(line)
        except ValueError as error:
            raise DataError(f"{place}: broken JSON ({error}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: a row must be a JSON object, not {type(row).__name__}.")
        rows.append(row)
        where.append(place)
    return _frame(rows, where)


def _read_json(path: Path) -> pd.DataFrame:
    try:
        rows = _parse(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({error}).") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must be a JSON list of objects; for one object a line name it .jsonl.")
    return _frame(rows, [f"{path}, row {number}" for number in range(1, len(rows) + 1)])


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(io.StringIO(_text(path)), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise DataError(f"{path}: broken CSV ({' '.join(str(error).split())}).") from None
    return frame.astype(object).assign(_where=[f"{path}, row {number}" for number in range(1, len(frame) + 1)])


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: broken parquet ({' '.join(str(error).split())[:200]}).") from None
    return frame.astype(object).assign(_where=[f"{path}, row {number}" for number in range(1, len(frame) + 1)])


def _frame(rows: list[dict[str, Any]], where: list[str]) -> pd.DataFrame:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # Object columns: what the file says stays what it is (an id 007 or a null is not turned into a float).
    table = {column: pd.Series([row.get(column) for row in rows], dtype=object) for column in columns}
    return pd.DataFrame(table, columns=columns).assign(_where=where)


def _read_hub(source: dict[str, Any]) -> pd.DataFrame:
    import datasets

    try:
        table = datasets.load_dataset(
            source["hub"], source.get("name"), split=source["split"], revision=source.get("revision")
        )
    except Exception as error:  # the library raises many kinds, for no network, no such set, no such split
        raise DataError(
            f"{source['hub']}: cannot be loaded from the hub: {' '.join(str(error).split())[:300]}"
        ) from None
    frame = table.to_pandas().astype(object)
    return frame.assign(_where=[f"{source['hub']} {source['split']}, row {n}" for n in range(1, len(frame) + 1)])


# --- checked tables ---------------------------------------------------------------------------------------------


def read_table(
    source: dict[str, Any], extra: Iterable[str] = (), on_empty: str = "error", needs_output: bool = True
) -> pd.DataFrame:
    """Checked rows: `id` (str, unique), `instruction`, `input`, `output` (str), then those of `extra` that are there.

    source: the configuration's data.train, .tasks or .eval as a mapping (path or hub, columns). on_empty: "error" or
    "drop" for rows without an output; `frame.attrs["dropped_empty"]` counts these. Raises DataError for the first row
    that cannot be used, with its file and line.
    """
    frame = read_file(source["path"]) if source.get("path") else _read_hub(source)
    for ours, theirs in source.get("columns", {}).items():
        if theirs not in frame:
            raise DataError(
                f"{source.get('path') or source['hub']}: has no column {theirs!r}, which data columns names."
            )
        frame[ours] = frame[theirs]
    origin = frame["_where"].iloc[0].rsplit(", ", 1)[0]
    needed = ["instruction", *(["output"] if needs_output else [])]
    for column in needed:
        if column not in frame:
            known = ", ".join(c for c in frame if c != "_where")
            raise DataError(f"{origin}: has no column {column!r} (it has {known}); name yours under `columns`.")
    result = pd.DataFrame({"id": _ids(frame)})
    for column in TEXTS:
        values = frame[column] if column in frame else pd.Series([""] * len(frame), dtype=object)
        for where, value in zip(frame["_where"], values, strict=True):
            _check_text(where, column, value, required=column == "instruction")
        result[column] = ["" if _missing(value) else value for value in values]
    for column in extra:
        if column in frame:
            result[column] = [None if _missing(value) else str(value) for value in frame[column]]
    if not needs_output:
        return result
    empty = ~result["output"].str.contains(r"\S", regex=True)
    if empty.any() and on_empty == "error":
        raise DataError(
            f'{frame["_where"][empty.to_numpy().argmax()]}: "output" is empty. An example needs a response; '
            "remove the line or set data.on_empty: drop."
        )
    result = result[~empty].reset_index(drop=True)
    result.attrs["dropped_empty"] = int(empty.sum())
    if result.empty:
        raise DataError(f"{origin}: no row has an output.")
    return result


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _check_text(where: str, column: str, value: Any, required: bool) -> None:
    if _missing(value):
        if required:
            raise DataError(f'{where}: "{column}" is missing.')
        return
    if not isinstance(value, str):
        raise DataError(f'{where}: "{column}" is {str(value)[:40]!r} ({type(value).__name__}), not a text.')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f'{where}: "{column}" holds half a surrogate pair, which is no text; correct the row.'
        ) from None
    if required and not value.strip():
        raise DataError(f'{where}: "{column}" is empty.')


def _ids(frame: pd.DataFrame) -> list[str]:
    if "id" not in frame:
        width = len(str(len(frame) - 1))
        return [f"{number:0{width}d}" for number in range(len(frame))]
    ids, seen = [], {}
    for where, value in zip(frame["_where"], frame["id"], strict=True):
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
            raise DataError(f'{where}: "id" is {value!r} ({type(value).__name__}), not a text or a whole number.')
        _check_text(where, "id", str(value), required=True)
        if str(value) in seen:
            raise DataError(f"{where}: the id {str(value)!r} is that of {seen[str(value)]} too; ids must be unique.")
        seen[str(value)] = where
        ids.append(str(value))
    return ids


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries."""
    return frame.to_dict("records")


def write_parquet(frame: pd.DataFrame, path: str | Path) -> None:
    """A table as parquet, written atomically; the same rows give the same bytes."""
    with atomic_path(path) as aside:
        frame.to_parquet(aside, index=False, compression="zstd")


def write_jsonl(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Rows as JSONL in UTF-8, written atomically."""
    with atomic_path(path) as aside, open(aside, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


# --- choosing rows ----------------------------------------------------------------------------------------------


def sample(frame: pd.DataFrame, n: int, stratify: str | None = None, seed: int = 0) -> pd.DataFrame:
    """n random rows in file order; with `stratify` equally many from each value of that column (nulls excluded).

    Raises DataError where there are too few rows.
    """
    generator = np.random.default_rng(seed)
    if stratify is None:
        groups = [("all", np.arange(len(frame)))]
    elif stratify not in frame:
        raise DataError(f"data.train.sample.stratify: the data have no column {stratify!r}; list it under data.labels.")
    else:
        groups = [
            (value, np.flatnonzero(frame[stratify] == value)) for value in sorted(frame[stratify].dropna().unique())
        ]
    share, rest = divmod(n, max(len(groups), 1))
    chosen: list[int] = []
    for number, (value, rows) in enumerate(groups):
        wanted = share + (number < rest)
        if wanted > len(rows):
            raise DataError(f"data.train.sample: {wanted} rows of {value!r} are wanted, but there are {len(rows)}.")
        chosen += generator.choice(rows, size=wanted, replace=False).tolist()
    return frame.iloc[sorted(chosen)].reset_index(drop=True)


def select_tasks(
    frame: pd.DataFrame, select: str | list[str], seed: int, hidden_states: Callable[[], np.ndarray] | None = None
) -> pd.DataFrame:
    """The tasks that the configuration's data.tasks.select names, in its order (file order for all but a list of ids).

    hidden_states: gives the mean hidden state of each row's document [rows, d]; called for "kmeans:n" alone.
    Raises DataError for unknown ids, too few rows, or the id "id", which would collide with the matrix's own column.
    """
    if isinstance(select, list):
        position = {row_id: row for row, row_id in enumerate(frame["id"])}
        unknown = [row_id for row_id in select if row_id not in position]
        if unknown:
            raise DataError(f"data.tasks.select: there is no task {unknown[0]!r} (ids run {frame['id'].iloc[0]!r}, …).")
        if len(set(select)) < len(select):
            raise DataError("data.tasks.select: an id stands there twice.")
        rows = [position[row_id] for row_id in select]
    elif select == "all":
        rows = list(range(len(frame)))
    else:
        kind, number = select.split(":")
        n = int(number)
        if n > len(frame):
            raise DataError(f"data.tasks.select: {n} tasks are wanted, but there are {len(frame)}.")
        if kind == "first":
            rows = list(range(n))
        elif kind == "random":
            rows = sorted(np.random.default_rng(seed).choice(len(frame), size=n, replace=False).tolist())
        else:
            rows = _nearest_to_centres(hidden_states(), n, seed)
    chosen = frame.iloc[rows].reset_index(drop=True)
    if (chosen["id"] == "id").any():
        raise DataError('tasks: a task must not be called "id"; rename it.')
    return chosen


def _nearest_to_centres(points: np.ndarray, n: int, seed: int) -> list[int]:
    from sklearn.cluster import KMeans
    from sklearn.metrics import pairwise_distances

    centres = KMeans(n_clusters=n, n_init=10, random_state=seed).fit(points).cluster_centers_
    distances = pairwise_distances(centres, points)
    rows: list[int] = []
    for centre in distances:
        # Two centres may have the same nearest row; the later one takes its next.
        rows.append(next(int(row) for row in np.argsort(centre, kind="stable") if int(row) not in rows))
    return sorted(rows)


def order_seed(*parts: Any) -> int:
    """A 32-bit seed from plain values, the same on every machine."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts, default=str).encode()).digest()[:4], "big")


def read_scores(methods: Iterable[str], paths: Iterable[str | Path]) -> dict[str, pd.Series]:
    """{method: score indexed by id} from score tables, in the order of `methods`."""
    return {m: pd.read_parquet(path).set_index("id")["score"] for m, path in zip(methods, paths, strict=True)}
