"""Tables of examples, tasks and eval prompts: checked row by row, sampled, selected, written and read again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icprobe import jsonl
from icprobe.artifacts import atomic_path
from icprobe.errors import ArtifactError, DataError, reason, shown
from icprobe.reading import WHERE, read_file, read_source

TEXTS = ["instruction", "input", "output"]
WHOLE = {"domain": "all", "subset": "overall"}  # what tables call all of them
TAKEN = {"id", "score"}  # columns of attribution matrices that are no tasks
MAX_ID = 200  # characters
PIECE_BYTES = 64e6  # of a matrix in memory at a time


def read_table(
    source: dict[str, Any], extra: Iterable[str] = (), on_empty: str = "error", needs_output: bool = True
) -> pd.DataFrame:
    """Checked rows: `id` (str, unique), `instruction`, `input`, `output` (str), then those of `extra` that are there.

    source: the configuration's data.train, .tasks or .eval as a mapping (path, subsets, url or hub; columns). A row
    without `subset` takes `dataset`, AlpacaEval's name for it. on_empty: "error" or "drop" for rows without an output;
    `frame.attrs["dropped_empty"]` counts these. Raises DataError for the first row that cannot be used, with its file
    and line.
    """
    frame, origin = read_source(source)
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
            values = list(map(label, frame[column]))
            for where, value in zip(places, values, strict=True):
                _check_text(where, column, value)
                check_group(where, column, value)
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


def label(value: Any) -> str | None:
    """A label, domain or subset as one line without blanks around it; None where there is none: null, NaN, or blank.

    White space within it is one space: a line break would cut the tables that it names rows of.
    """
    return None if _missing(value) else " ".join(str(value).split()) or None


def domains(files: Iterable[str], columns: Mapping[str, str]) -> set[str]:
    """The domains that files of tasks name; none of files that cannot be read. columns: {our name: theirs}."""
    found: set[str | None] = set()
    for file in files:
        try:
            found |= {*map(label, read_file(file).get(columns.get("domain", "domain"), []))}
        except DataError:
            continue  # `read_table` says what is wrong
    return {one for one in found if one is not None}


def check_group(where: str, column: str, value: str | None) -> None:
    """Raises DataError where a row's domain or subset is called what means all of them in the tables."""
    if value is not None and value == WHOLE.get(column):
        raise DataError(f'{where}: a {column} must not be called "{value}", which means all of them in the tables.')


def check_tasks(ids: Iterable[str]) -> None:
    """Raises DataError for a task called as a column that means something else in the tables that follow."""
    if taken := sorted({*ids} & TAKEN):
        raise DataError(f'tasks: a task must not be called "{taken[0]}", a column of other meaning; rename it.')


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


def read_pieces(path: str | Path, piece_bytes: float = PIECE_BYTES) -> Iterator[pd.DataFrame]:
    """Rows of an attribution matrix in order, as many at a time as `piece_bytes` hold in float32; one piece at least.

    Raises ArtifactError as `read_parquet` does.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            rows = max(1, int(piece_bytes // (4 * len(file.schema_arrow.names))))
            if not file.metadata.num_rows:
                yield file.schema_arrow.empty_table().to_pandas()
            # Group by group: one reader for all would keep what it has read of every group before.
            for group in range(file.num_row_groups):
                for piece in file.iter_batches(rows, row_groups=[group]):
                    yield piece.to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: is damaged ({reason(error)}); remove it, it will be made anew.") from None


def write_jsonl(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Rows as JSONL in UTF-8, written atomically."""
    with atomic_path(path) as aside, open(aside, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(map(jsonl.line, rows))


def write_subset(
    examples: pd.DataFrame, chosen: Sequence[str], score: Mapping[str, float], path: str | Path, at_once: int = 10_000
) -> None:
    """The chosen examples in this order as JSONL: Alpaca's fields, `id`, and `score` (null where there is none).

    examples: indexed by id. Some rows at a time: as mappings, a million would fill gigabytes.
    """
    texts = examples[["id", *TEXTS]]
    parts = (records(texts.loc[chosen[start : start + at_once]]) for start in range(0, len(chosen), at_once))
    write_jsonl(({**row, "score": score.get(row["id"])} for part in parts for row in part), path)


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
    Raises DataError for unknown ids, too few rows, or an id that `check_tasks` refuses.
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
    check_tasks(chosen["id"])
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


def read_scores(methods: Iterable[str], paths: Iterable[str | Path]) -> dict[str, pd.Series]:
    """{method: score indexed by id} from score tables, in the order of `methods`."""
    return {m: read_parquet(path).set_index("id")["score"] for m, path in zip(methods, paths, strict=True)}
