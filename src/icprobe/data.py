"""Tables of examples, tasks and eval prompts: read from files or the hub, checked row by row, sampled, selected."""

import csv
import hashlib
import io
import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icprobe import jsonl
from icprobe.artifacts import atomic_path, matching, temporary_directory
from icprobe.errors import ArtifactError, DataError, reason, shown

TEXTS = ["instruction", "input", "output"]
FORMATS = (".json", ".jsonl", ".csv", ".parquet")
WHERE = "_where"
MAX_ID = 200  # characters
MAX_COLUMNS = 1000


# --- files ------------------------------------------------------------------------------------------------------


def read_file(path: str | Path) -> pd.DataFrame:
    """Rows of a JSON, JSONL, CSV or parquet file as they are, plus `_where` (file and line or row, for messages).

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


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: is not UTF-8 (byte {error.start}); convert the file.") from None


def _parse(text: str) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            raise ValueError(f"the key {shown(_first_double([key for key, _ in pairs]))} stands there twice")
        return row

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _first_double(names: Iterable[str]) -> str | None:
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
            row = _parse(line)
        except ValueError as error:
            raise DataError(f"{place}: broken JSON ({reason(error)}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: a row must be a JSON object, not {type(row).__name__}.")
        rows.append(row)
        where.append(place)
    return _from_rows(path, rows, where)


def _read_json(path: Path) -> pd.DataFrame:
    try:
        rows = _parse(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: broken JSON ({reason(error)}).") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must be a JSON list of objects; for one object a line name it .jsonl.")
    return _from_rows(path, rows, [f"{path}, row {number}" for number in range(1, len(rows) + 1)])


def _read_csv(path: Path) -> pd.DataFrame:
    # Not pandas: it fills short rows, takes a surplus field for an index, and renames a column that stands there twice.
    csv.field_size_limit(2**31 - 1)
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[list[str]] = []
    where: list[str] = []
    header: list[str] = []
    try:
        for row in lines:
            place = f"{path}, line {lines.line_num}"
            if not row:
                continue
            if not header:
                header = row
                if (double := _first_double(header)) is not None:
                    raise DataError(f"{place}: the column {shown(double)} stands there twice; rename one.")
            elif len(row) != len(header):
                raise DataError(
                    f"{place}: holds {len(row)} fields where the header names {len(header)}; "
                    "a field with commas or line breaks stands in quotation marks."
                )
            else:
                rows.append(row)
                where.append(place)
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: broken CSV ({reason(error)}).") from None
    return _table({column: [row[i] for row in rows] for i, column in enumerate(header)}, where)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pq.ParquetFile(path).read()
        if (double := _first_double(table.column_names)) is not None:
            raise DataError(f"{path}: the column {shown(double)} stands there twice; rename one.")
        # Not to_pandas: it makes 7.0 of the id 7 where another id is null.
        columns = {column: table[column].to_pylist() for column in table.column_names}
    except (pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: broken parquet ({reason(error)}).") from None
    return _table(columns, [f"{path}, row {number}" for number in range(1, table.num_rows + 1)])


def _from_rows(path: Path, rows: list[dict[str, Any]], where: list[str]) -> pd.DataFrame:
    columns = dict.fromkeys(key for row in rows for key in row)
    if len(columns) > MAX_COLUMNS:
        raise DataError(f"{path}: its rows have {len(columns)} different keys; rows of one table share their keys.")
    return _table({column: [row.get(column) for row in rows] for column in columns}, where)


def _table(columns: dict[str, list[Any]], where: list[str]) -> pd.DataFrame:
    # Object columns: what the file says stays what it is (an id 007 or a null is not turned into a float).
    table = {name: pd.Series(values, dtype=object) for name, values in columns.items()}
    return pd.DataFrame({**table, WHERE: pd.Series(where, dtype=object)})


def _read_source(source: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    """(rows with `_where`, what they come from), of a file or several, an address, or the hub."""
    path = source.get("path") or []
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
    """A file's rows with the column `subset`, where there are several files or the configuration names it."""
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
            with urllib.request.urlopen(url, timeout=60) as answer, open(file, "wb") as copy:
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


# --- checked tables ---------------------------------------------------------------------------------------------


def read_table(
    source: dict[str, Any], extra: Iterable[str] = (), on_empty: str = "error", needs_output: bool = True
) -> pd.DataFrame:
    """Checked rows: `id` (str, unique), `instruction`, `input`, `output` (str), then those of `extra` that are there.

    source: the configuration's data.train, .tasks or .eval as a mapping (path, subsets, url or hub; columns). A row
    without `subset` takes `dataset`, AlpacaEval's name for it. on_empty: "error" or "drop" for rows without an output;
    `frame.attrs["dropped_empty"]` counts these. Raises DataError for the first row that cannot be used, with its file
    and line.
    """
    frame, origin = _read_source(source)
    places = frame.pop(WHERE)
    renamed = {}
    for ours, theirs in source.get("columns", {}).items():
        if theirs not in frame:
            raise DataError(f"{origin}: has no column {shown(theirs)}, which data columns names.")
        renamed[ours] = frame[theirs]
    frame = frame.assign(**renamed)
    if "subset" not in frame and "dataset" in frame:
        frame = frame.assign(subset=frame["dataset"])
    for column in ["instruction", *(["output"] if needs_output else [])]:
        if column not in frame:
            known = ", ".join(shown(name) for name in frame.columns[:10])
            raise DataError(f"{origin}: has no column {column!r} (it has {known}); name yours under `columns`.")
    result = pd.DataFrame({"id": _ids(frame, places)})
    for column in TEXTS:
        values = frame[column] if column in frame else [None] * len(frame)
        for where, value in zip(places, values, strict=True):
            _check_text(where, column, value, required=column == "instruction")
        result[column] = ["" if _missing(value) else value for value in values]
    for column in extra:
        if column in frame:
            values = [None if _missing(value) else str(value) for value in frame[column]]
            for where, value in zip(places, values, strict=True):
                _check_text(where, column, value)
            result[column] = values
    if not needs_output:
        return result
    empty = np.array([not output.strip() for output in result["output"]])
    if empty.any() and on_empty == "error":
        raise DataError(
            f'{places[empty.argmax()]}: "output" is empty. An example needs a response; '
            "remove the line or set data.on_empty: drop."
        )
    result = result[~empty].reset_index(drop=True)
    result.attrs["dropped_empty"] = int(empty.sum())
    if result.empty:
        raise DataError(f"{origin}: no row has an output.")
    return result


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _check_text(where: str, column: str, value: Any, required: bool = False) -> None:
    if _missing(value):
        if required:
            raise DataError(f'{where}: "{column}" is missing.')
        return
    if not isinstance(value, str):
        raise DataError(f'{where}: "{column}" is {shown(value)} ({type(value).__name__}), not a text.')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f'{where}: "{column}" holds half a surrogate pair, which is no text; correct the row.'
        ) from None
    if required and not value.strip():
        raise DataError(f'{where}: "{column}" is empty.')


def _ids(frame: pd.DataFrame, places: pd.Series) -> list[str]:
    if "id" not in frame or all(map(_missing, frame["id"])):
        return row_numbers(len(frame))
    ids: dict[str, str] = {}
    for where, value in zip(places, frame["id"], strict=True):
        if _missing(value):
            raise DataError(f'{where}: "id" is missing; give all rows one, or none.')
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(f'{where}: "id" is {shown(value)} ({type(value).__name__}), not a text or a whole number.')
        name = str(value)
        _check_text(where, "id", name, required=True)
        if len(name) > MAX_ID or len(name.splitlines()) > 1 or any(ord(c) < 32 or ord(c) == 127 for c in name):
            raise DataError(
                f'{where}: "id" is {shown(name)}; an id is one line of at most {MAX_ID} characters, '
                "none of which steers a terminal."
            )
        if name in ids:
            raise DataError(f"{where}: the id {shown(name)} is that of {ids[name]} too; ids must be unique.")
        ids[name] = where
    return list(ids)


def row_numbers(count: int) -> list[str]:
    """Ids of rows that have none: their numbers from 0, zero-padded so that their order as texts is the rows' order."""
    width = len(str(count - 1))
    return [f"{number:0{width}d}" for number in range(count)]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries; what is missing is None, as JSON has it."""
    plain = frame.astype(object)
    return plain.where(plain.notna(), None).to_dict("records")


def write_parquet(frame: pd.DataFrame, path: str | Path) -> None:
    """A table as parquet, written atomically; the same rows give the same bytes. Its pages carry checksums."""
    with atomic_path(path) as aside:
        frame.to_parquet(aside, index=False, compression="zstd", write_page_checksum=True)


def read_parquet(path: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A table that `write_parquet` wrote. Raises ArtifactError where it is missing, truncated or changed."""
    try:
        return pd.read_parquet(path, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise ArtifactError(f"{path}: is damaged ({reason(error)}); remove it, it will be made anew.") from None


def write_jsonl(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Rows as JSONL in UTF-8, written atomically."""
    with atomic_path(path) as aside, open(aside, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(map(jsonl.line, rows))


# --- choosing rows ----------------------------------------------------------------------------------------------


def sample(
    frame: pd.DataFrame, n: int, stratify: str | None = None, seed: int = 0, where: str = "data.train.sample"
) -> pd.DataFrame:
    """n random rows in file order; with `stratify` equally many from each value of that column (nulls excluded).

    where: the key of the configuration, for messages. Raises DataError where there are too few rows.
    """
    generator = np.random.default_rng(seed)
    if stratify is None:
        groups = [("all", np.arange(len(frame)))]
    elif stratify not in frame:
        listed = "" if stratify == "subset" else "; list it under data.labels"
        raise DataError(f"{where}.stratify: the data have no column {stratify!r}{listed}.")
    else:
        groups = [
            (value, np.flatnonzero(frame[stratify] == value)) for value in sorted(frame[stratify].dropna().unique())
        ]
    if not groups:
        raise DataError(f"{where}.stratify: no row has a value of {stratify!r}.")
    share, rest = divmod(n, len(groups))
    chosen: list[int] = []
    for number, (value, rows) in enumerate(groups):
        wanted = share + (number < rest)
        if wanted > len(rows):
            raise DataError(f"{where}: {wanted} rows of {shown(value)} are wanted, but there are {len(rows)}.")
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
            raise DataError(
                f"data.tasks.select: there is no task {shown(unknown[0])} (ids run {frame['id'].iloc[0]!r}, …)."
            )
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
    return {m: read_parquet(path).set_index("id")["score"] for m, path in zip(methods, paths, strict=True)}
