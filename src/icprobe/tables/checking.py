"""Reads tables of examples, tasks and eval prompts, and checks them row by row."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd

from icprobe.artifacts import digest
from icprobe.errors import ConfigError, DataError, did_you_mean, shown, some
from icprobe.tables import conversations, unread
from icprobe.tables.reading import WHERE, read_file, read_source
from icprobe.texts.conversations import is_plain

logger = logging.getLogger(__name__)

TEXTS = ["instruction", "input", "output"]
ROW_NUMBER = "row_number"  # a column of tables whose rows came without ids: their places in the source, from 0
# What tables call all of them; held_out.csv has domains of tasks among its subsets.
NAMES_OF_ALL = {"domain": ("all", "overall"), "subset": ("overall",)}
RESERVED = {"id", "score"}  # columns of attribution matrices that are no tasks: none is called so
MAX_ID_CHARACTERS = 200
VALUES_SHOWN = 12  # of a column, in messages
ID_DIGITS = 12  # of an id that is made from a row's content: two of a million rows share one by chance in 0.2% of cases
# What others call our columns, for a guess in messages.
OFTEN_CALLED = {
    "instruction": ("prompt", "question", "query", "problem", "user"),
    "output": ("response", "completion", "answer", "target", "solution", "assistant"),
    "input": ("context",),
}


def read_table(
    source: dict[str, Any],
    extra: Iterable[str] = (),
    on_empty: str = "error",
    needs_output: bool = True,
    labels: Sequence[str] = (),
) -> pd.DataFrame:
    """Reads and checks rows: `id` (str, unique), `instruction`, `input`, `output` (str), and of `extra` what is there.

    Rows without ids take those of `content_ids`, and have the column `row_number` beside them. Conversations have a
    column `messages`, too, and `tools` where there are any (`conversations.read`).

    source: the configuration's data.train, .tasks or .eval as a mapping (path, subsets, url or hub; columns; format). A
    row without `subset` takes `dataset`, AlpacaEval's name for it. on_empty: "error" or "drop" for rows without an
    output; `frame.attrs["dropped_empty"]` counts these, and "turns_left" the turns without an answer. labels: as
    `extra`, but some row must have a value of each. Raises DataError for the first row that cannot be used, with its
    file and line, ConfigError for a label without a value.
    """
    frame, origin = read_source(source)
    places = frame.pop(WHERE)
    columns, asked = source.get("columns", {}), source.get("format", "auto")
    check_columns(frame.columns, origin, columns, needs_output, in_memory="rows" in source, asked=asked)
    check_labels(labels, [name for name in frame if any(map(label, frame[name]))], origin, columns)
    found = conversations.format_of(_names(frame.columns, columns), asked, columns, needs_output)
    unread.tell(frame, origin, found, {*columns.values(), *extra, *labels}, in_memory="rows" in source)
    if needs_output and asked == "auto" and "label" not in labels:
        _check_none_bad(frame, places)
    frame, unanswered = _with_our_names(frame, columns, labels), {"turns": 0, "rows": 0}
    if found != "alpaca":
        if found in ("prompt_completion", "preference") and asked == "auto":
            _check_no_input(frame, places, found)
        frame, kept, unanswered = conversations.read(frame, found, list(places), on_empty, needs_output)
        if frame.empty:
            raise DataError(f"{origin}: no row has an output.")
        places = places.iloc[kept].reset_index(drop=True)
    held = [column for column in conversations.HELD if found != "alpaca" and column in frame]
    texts = {column: _texts(frame, column, places) for column in TEXTS}
    if "id" in frame and not all(map(_missing, frame["id"])):
        result = pd.DataFrame({"id": _ids(frame, places), **texts})
    else:
        result = pd.DataFrame({"id": content_ids(_contents(texts, frame[held])), **texts})
        result[ROW_NUMBER] = np.arange(len(result)) if found == "alpaca" else kept
    result[held] = frame[held]
    for column in (*extra, *labels):
        if column in frame:
            result[column] = _labels(frame, column, places)
    if needs_output:
        result = _with_output(result, places, on_empty, origin)
        result.attrs["dropped_empty"] += unanswered["rows"]
    result.attrs["turns_left"] = unanswered["turns"]
    return result


def check_columns(
    names: Iterable[str],
    origin: str,
    columns: Mapping[str, str],
    needs_output: bool,
    in_memory: bool = False,
    key: str = "columns",
    asked: str = "auto",
) -> None:
    """Raises DataError where a table has not all columns that it needs, or that the configuration names.

    names: its columns; origin: what it comes from; columns: {our name: theirs}. in_memory: of such rows nothing maps
    the columns. key: what is to be written, where the configuration maps them. asked: the rows' format.
    """
    names = list(names)
    given, known = _names(names, columns), f"it has {listed(names)}"
    for ours, theirs in columns.items():
        if theirs not in names:
            hint = did_you_mean(theirs, names)
            raise DataError(
                f"{origin}: has no column {shown(theirs)}, which `columns` gives for our {ours!r}; {known}{hint or '.'}"
            )
    found = conversations.format_of(given, asked, columns, needs_output)
    if found != "alpaca":
        conversations.check_columns(given, origin, found, needs_output, known)
        lost = [ours for ours in TEXTS if ours in columns and (needs_output or ours != "output")]
        if lost:
            raise DataError(
                f"{origin}: {key} maps our {lost[0]!r}, which rows of the format {found} do not have ({known}); map "
                "instruction and output, too, or leave it out."
            )
        return
    told = [ours for ours in columns if ours in conversations.COLUMNS]
    if told:
        raise DataError(
            f"{origin}: {key} maps our {told[0]!r}, and rows are of the format alpaca, which has none, by their column "
            "instruction or output; set `format` to what the rows are, or leave that out."
        )
    needed = ["instruction", *(["output"] if needs_output else [])]
    if absent := [ours for ours in needed if ours not in given]:
        guesses = {
            ours: next((name for name in names if name.lower() in OFTEN_CALLED[ours]), "NAME") for ours in absent
        }
        about = next((name for name in names if name.lower() in OFTEN_CALLED["input"]), None)
        if about is not None and "input" not in given:
            guesses["input"] = about
        if in_memory:
            way = f"rename(columns={ {theirs: ours for ours, theirs in guesses.items()} })"
        else:
            way = f"{key}: {{{', '.join(f'{ours}: {theirs}' for ours, theirs in {**columns, **guesses}.items())}}}"
        lacks = " and ".join(f"no column {ours!r}" for ours in absent)
        what = "rename them" if in_memory else f"say which {'it is' if len(absent) == 1 else 'they are'}"
        raise DataError(f"{origin}: has {lacks} ({known}); {what}, such as {way}.")


def check_labels(labels: Iterable[str], names: Sequence[str], origin: str, columns: Mapping[str, str]) -> None:
    """Raises ConfigError for a label of which no row has a value. names: columns of which some row has one."""
    for ours in labels:
        theirs = columns.get(ours, ours)
        if theirs not in names:
            hint = did_you_mean(theirs, [name for name in names if name not in (*TEXTS, "id")])
            raise ConfigError(
                f"config: data.labels: no row of {origin} has a value in the column {shown(theirs)}{hint or ';'} "
                "correct the name, or remove it from data.labels"
            )


def _contents(texts: Mapping[str, Sequence[str]], held: pd.DataFrame) -> Iterator[Sequence[str]]:
    """What ids are made of: a row's texts, and its conversation where these are not all of it."""
    talks = held.astype(object).where(held.notna(), None).to_dict("records")
    for said, talk in zip(zip(*texts.values(), strict=True), talks or [{}] * len(held), strict=True):
        plain = is_plain(talk.get("messages"), talk.get("tools"))
        yield said if plain else (*said, *(talk[column] for column in talk if talk[column] is not None))


def _names(names: Iterable[str], columns: Mapping[str, str]) -> list[str]:
    """What a table's columns are called by us. columns: {our name: theirs}.

    A text that is mapped to another of our texts is no longer what its own name says: a prompt called `input` would be
    asked twice.
    """
    texts = {*TEXTS, *conversations.COLUMNS}
    elsewhere = {theirs for ours, theirs in columns.items() if ours in texts} & texts - {*columns}
    return [name for name in dict.fromkeys([*names, *columns]) if name not in elsewhere]


def _with_our_names(frame: pd.DataFrame, columns: Mapping[str, str], labels: Iterable[str]) -> pd.DataFrame:
    """A table with its columns by our names. columns: {our name: theirs}; labels: columns that stay in any case."""
    named = frame.assign(**{ours: frame[theirs] for ours, theirs in columns.items()})
    ours = {*_names(frame.columns, columns), *labels}
    frame = named[[name for name in named if name in ours]]
    if "subset" not in frame and "dataset" in frame:
        frame = frame.assign(subset=frame["dataset"])
    return frame


def _texts(frame: pd.DataFrame, column: str, places: pd.Series) -> list[str]:
    """Checks a column of texts, and gives them; what is missing is an empty text."""
    values = frame[column] if column in frame else [None] * len(frame)
    for where, value in zip(places, values, strict=True):
        _check_text(where, column, value, required=column == "instruction")
    return ["" if _missing(value) else value for value in values]


def _labels(frame: pd.DataFrame, column: str, places: pd.Series) -> list[str | None]:
    """Checks a column of labels, domains or subsets, and gives them."""
    values = list(map(label, frame[column]))
    for where, value in zip(places, values, strict=True):
        _check_text(where, column, value)
        check_group(where, column, value)
    return values


def _with_output(table: pd.DataFrame, places: pd.Series, on_empty: str, origin: str) -> pd.DataFrame:
    """Drops rows without an output, and counts them in `attrs`; raises DataError where on_empty is "error"."""
    empty = np.array([not output.strip() for output in table["output"]])
    if empty.any() and on_empty == "error":
        raise DataError(
            f'{places[empty.argmax()]}: "output" is empty. An example needs a response; '
            "remove the line or set data.on_empty: drop."
        )
    table = table[~empty].reset_index(drop=True)
    table.attrs["dropped_empty"] = int(empty.sum())
    if table.empty:
        raise DataError(f"{origin}: no row has an output.")
    return table


def _check_no_input(frame: pd.DataFrame, places: pd.Series, name: str) -> None:
    """Raises DataError where a text stands beside a prompt that Alpaca's rows would have and these do not."""
    prompts = frame["prompt"] if "prompt" in frame else [None] * len(frame)
    for where, value, prompt in zip(places, frame.get("input", []), prompts, strict=False):
        if isinstance(value, str) and value.strip():
            beside, way = "prompt", "map instruction and output (`columns`)"
            if name == "preference" and _missing(prompt):  # a whole conversation, which has no columns to map
                beside, way = "chosen", "write it into that"
            raise DataError(
                f'{where}: "input" stands beside "{beside}", and rows of the format {name} have none; {way}, or set '
                f"format: {name} to leave it out."
            )


def _check_none_bad(frame: pd.DataFrame, places: pd.Series) -> None:
    """Raises DataError where a prompt's completion is marked as a bad one, as unpaired preferences (KTO) do."""
    if not {"prompt", "completion", "label"} <= {*frame}:
        return
    for where, value in zip(places, frame["label"], strict=True):
        if str(value).lower() == "false":  # in CSV a text
            raise DataError(
                f'{where}: "label" is false, as of a bad completion in unpaired preferences; leave such rows out, or '
                "set format: prompt_completion to take all completions for good answers."
            )


def label(value: Any) -> str | None:
    """Makes one line of a label, domain or subset, without blanks around it; None of null, NaN, or blanks.

    White space within it becomes one space: a line break would cut the tables that it names rows of. A whole number is
    written as one, 1 and not 1.0, for a column with gaps holds floats.
    """
    if isinstance(value, float | np.floating) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return None if _missing(value) else " ".join(str(value).split()) or None


def values(files: Iterable[str], columns: Mapping[str, str], ours: str) -> set[str]:
    """Finds what files hold in a column of labels, such as domains; nothing in those that cannot be read.

    columns: {our name: theirs}.
    """
    found: set[str | None] = set()
    for file in files:
        try:
            found |= {*map(label, read_file(file).get(columns.get(ours, ours), []))}
        except DataError:
            continue  # `read_table` says what is wrong
    return {one for one in found if one is not None}


def check_group(where: str, column: str, value: str | None) -> None:
    """Raises DataError where a row's domain or subset has the name that means all of them in the tables."""
    if value is not None and value in NAMES_OF_ALL.get(column, ()):
        raise DataError(f'{where}: a {column} must not be called "{value}", which means all of them in the tables.')


def listed(values: Sequence[str]) -> str:
    """The values of a column, or the first of many, for a message."""
    return some([*map(shown, values)], VALUES_SHOWN)


def check_tasks(ids: Iterable[str]) -> None:
    """Raises DataError for a task called as a column that means something else in the tables that follow."""
    if taken := sorted({*ids} & RESERVED):
        raise DataError(f'tasks: a task must not be called "{taken[0]}", a column of other meaning; rename it.')


def _missing(value: Any) -> bool:
    return (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float | np.floating) and value != value)
    )


def _check_text(where: str, column: str, value: Any, required: bool = False) -> None:
    if _missing(value):
        if required:
            raise DataError(f'{where}: "{column}" is missing.')
        return
    if not isinstance(value, str):
        raise DataError(f'{where}: "{column}" is {shown(value)} ({type(value).__name__}), not a string.')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f'{where}: "{column}" holds half a surrogate pair, which is not valid text; correct the row.'
        ) from None
    if required and not value.strip():
        raise DataError(f'{where}: "{column}" is empty.')


def _ids(frame: pd.DataFrame, places: pd.Series) -> list[str]:
    """Checks a column of ids, and gives them."""
    ids: dict[str, str] = {}
    for where, value in zip(places, frame["id"], strict=True):
        if _missing(value):
            raise DataError(f'{where}: "id" is missing; give all rows one, or none.')
        if isinstance(value, bool) or not isinstance(value, str | Integral):
            raise DataError(
                f'{where}: "id" is {shown(value)} ({type(value).__name__}), not a string or a whole number.'
            )
        name = str(value)
        _check_text(where, "id", name, required=True)
        steers_terminal = any(ord(c) < 32 or ord(c) == 127 for c in name)
        if len(name) > MAX_ID_CHARACTERS or len(name.splitlines()) > 1 or steers_terminal:
            raise DataError(
                f'{where}: "id" is {shown(name)}; an id is one line of at most {MAX_ID_CHARACTERS} characters, '
                "without control characters."
            )
        if name in ids:
            earlier = ids[name].removeprefix(where.rpartition(", ")[0] + ", ")  # the file is named already
            raise DataError(f"{where}: the id {shown(name)} is already used by {earlier}; ids must be unique.")
        ids[name] = where
    return list(ids)


def content_ids(rows: Iterable[Sequence[str]]) -> list[str]:
    """Makes ids of rows that have none from their texts (instruction, input, output).

    "x" and the first digits of the texts' SHA-256, so that a row keeps its id wherever it stands and whatever stands
    beside it, and no table takes the id for a number. A row that repeats another is numbered: x1c0…, x1c0…-2.
    """
    seen: Counter[str] = Counter()
    ids = []
    for texts in rows:
        name = f"x{digest(texts)[:ID_DIGITS]}"
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return ids


def find_rows(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Finds the rows of a table that names mean: positions [names], -1 where there is none.

    A name is an id or, where the rows came without ids, a number: the row's place in its source, from 0, zero-padded or
    not.
    """
    found = pd.Index(table["id"]).get_indexer(list(names))
    if ROW_NUMBER in table:
        numbers = pd.Index(table[ROW_NUMBER]).get_indexer([int(name) if is_number(name) else -1 for name in names])
        found = np.where(found < 0, numbers, found)
    return found


def is_number(name: str) -> bool:
    """Whether a name can be the number of a row."""
    return name.isascii() and name.isdigit() and len(name) < 19


def row_numbers(count: int) -> list[str]:
    """Makes ids of rows without texts: their numbers from 0, zero-padded so that they sort as texts in this order."""
    width = len(str(count - 1))
    return [f"{number:0{width}d}" for number in range(count)]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Makes dictionaries of rows; what is missing is None, as JSON has it."""
    plain = frame.astype(object)
    return plain.where(plain.notna(), None).to_dict("records")
