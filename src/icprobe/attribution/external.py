"""Scores and attribution matrices that somebody else computed, joined with the experiment's examples and tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icprobe.analysis.statistics import widen
from icprobe.attribution.score_files import Scores, read_file
from icprobe.attribution.unnamed_ids import CALLED_IDS, may_be_numbers, name_ids
from icprobe.errors import DataError, ScoreError, several, shown, some
from icprobe.progress import Progress
from icprobe.tables import checking, reading


def read(name: str, settings: Mapping[str, Any]) -> Scores:
    """Reads one set of external scores, its parts put together, examples first.

    name: as the configuration calls it; settings: its section as a mapping. Raises DataError naming the file that
    cannot be read, has another shape than the configuration says, or does not fit the other parts.
    """
    paths = [settings["path"]] if isinstance(settings["path"], str) else settings["path"]
    parts = [read_file(Path(path), settings) for path in Progress(paths, desc=name, unit="file")]
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
    arrays = [part.values for part in parts]
    if settings["orientation"] == "scores" and len({array.dtype for array in arrays}) > 1:
        # Beside wider ones narrow parts would widen by their bits, before their decimals are looked at.
        arrays = [widen(array[:, 0])[:, None] for array in arrays]
    values = np.concatenate(arrays, axis=axis)
    by_id = settings["join"] == "id"
    examples = _together([part.examples for part in parts], along_examples, by_id, paths, f"{name}, ids")
    tasks = _together([part.tasks for part in parts], not along_examples, by_id, paths, f"{name}, tasks")
    return Scores(values, examples, tasks, any(part.from_table for part in parts))


def rows(name: str, settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names the examples and the tasks of an experiment without texts, as a set of scores does: (ids, ids).

    Zero-padded numbers where the files have no names, or where the configuration joins by order.
    """
    scores = read(name, settings)
    _check_columns(f"attribution.external.{name}", scores, None, None, settings)
    return _ids(scores.examples, len(scores.values), settings), _ids(scores.tasks, scores.values.shape[1], settings)


def attribution(
    name: str,
    settings: Mapping[str, Any],
    ids: Sequence[str],
    tasks: Sequence[str],
    named_by: Mapping[str, str] | None = None,
    row_numbers: Mapping[str, Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Makes an attribution matrix [N, M] of the experiment's examples and tasks: `id`, then the columns.

    One score for each example is one column `score`, float64, in which narrower floats have widened by their shortest
    decimal; a matrix has one float32 column for each task. named_by: {"train": …, "tasks": …}, what the numbers of
    examples and tasks come from, for messages. row_numbers: of the same tables those whose rows came without ids, and
    their places in the source: by these, files join that call their rows by numbers.

    Raises DataError where sizes or names do not fit the experiment's, ScoreError for values that are NaN or infinite.
    """
    named_by = {"train": "data.train", "tasks": "data.tasks", **(named_by or {})}
    row_numbers = row_numbers or {}
    found = read(name, settings)
    place = f"attribution.external.{name}"
    _check_columns(place, found, ids, tasks, settings)
    examples = f"{place}, examples of {named_by['train']}"
    order = _join(found.examples, len(found.values), ids, row_numbers.get("train"), settings, examples)
    values = np.full((len(ids), found.values.shape[1]), np.nan, dtype=found.values.dtype)
    values[order >= 0] = found.values[order[order >= 0]]
    if settings["orientation"] != "scores":
        what = f"{place}, tasks of {named_by['tasks']}"
        columns = _join(found.tasks, values.shape[1], tasks, row_numbers.get("tasks"), settings, what)
        if (columns < 0).any():
            unknown = shown(tasks[int((columns < 0).argmax())])
            raise DataError(
                f"{place}: has no task {unknown}; add it to the files, or leave it out in data.tasks.select."
            )
        values = values[:, columns]
    _check(place, ids, values, settings["allow_missing"], narrowed=settings["orientation"] != "scores")
    if settings["orientation"] == "scores":
        return pd.DataFrame({"id": list(ids), "score": widen(values[:, 0])})
    matrix = pd.DataFrame(values.astype(np.float32, copy=False), columns=list(tasks))
    return pd.concat([pd.DataFrame({"id": list(ids)}), matrix], axis=1)


def _check_columns(
    place: str, found: Scores, ids: Sequence[str] | None, tasks: Sequence[str] | None, settings: Mapping[str, Any]
) -> None:
    """Raises DataError where the rows of a matrix have no names, and a column that nobody asks for could hold them.

    ids, tasks: those that are asked for; None where the file itself is to name them.
    """
    if settings["join"] == "order" or settings["orientation"] == "scores":
        return
    sides = [(found.tasks, found.examples, tasks, found.values.T), (found.examples, found.tasks, ids, found.values)]
    for names, others, wanted, lines in sides:
        asked = {*(wanted or ())}
        unasked = ((name, line) for name, line in zip(names or [], lines, strict=False) if name not in asked)
        for name, line in unasked if others is None else ():
            # A row of a mapping is taken for ids by its name alone.
            called = CALLED_IDS.fullmatch(name) or (found.from_table and not checking.is_number(name))
            if called and may_be_numbers(line):
                column, could = shown(settings["id_column"]), f"{shown(name)} could be"
                raise DataError(
                    f"{place}: there is no column {column} to join by, and {could} it; {name_ids(column)}"
                    if found.from_table
                    else f"{place}: {could} ids to join by, which a mapping has no place for; save a table with a "
                    f"column {column} of them, leave this out of the file, or set join: order."
                )
    if found.from_table and found.examples is found.tasks is None:
        _check_nameless(place, *sides[settings["orientation"] == "tasks_by_examples"][2:])


def _check_nameless(place: str, wanted: Sequence[str] | None, columns: np.ndarray) -> None:
    """Raises DataError where a column [M, n] of a CSV without a header could be the ids of its rows."""
    could = [may_be_numbers(column) for column in columns]
    # A matrix may be of whole numbers; if all of its columns are asked for, none of them is of ids.
    if any(could) and (wanted is None or len(wanted) != len(could)):
        raise DataError(
            f"{place}: there are no ids to join by, and the column 'f{could.index(True)}' (counted from f0) could be "
            "them; name the one of ids in id_column, put row numbers, from 0, before the scores and set id_column: f0, "
            "or set join: order."
        )


def _ids(names: list[str] | None, count: int, settings: Mapping[str, Any]) -> list[str]:
    numbers = checking.row_numbers(count)
    if names is None or settings["join"] == "order":
        return numbers
    # The authors' JSON calls its rows "0", "1", …: these are row numbers, and zero-padded as ours are.
    padded = {str(number): text for number, text in enumerate(numbers)}
    return [padded[name] for name in names] if set(names) == set(padded) else names


def _join(
    names: list[str] | None,
    count: int,
    wanted: Sequence[str],
    numbers: Sequence[int] | None,
    settings: Mapping[str, Any],
    what: str,
) -> Any:
    """Finds the row of the files for each of `wanted`; -1 where they have none. numbers: those of `attribution`."""
    if settings["join"] == "order":
        if count != len(wanted):
            raise DataError(
                f"{what}: there are {len(wanted):,} of them, but the files hold {count:,}; they join by order only "
                "where the numbers agree (join: id takes some of them, by their ids)."
            )
        if (found := _elsewhere(names, wanted, numbers)) is not None:
            raise DataError(
                f"{what}: the files call rows by names that stand here in another order; set join: id, or, if the "
                f"order counts, take the names out of the files (the first is {shown(found)})."
            )
        return np.arange(count)
    # As the files call them, or else by row numbers, which may be what these names are: whichever finds more.
    spelt = [pd.Index(called).get_indexer(list(wanted)) for called in (names or [], _ids(names, count, settings))]
    order = max(spelt, key=lambda found: int((found >= 0).sum()))
    if numbers is not None and (order < 0).all():
        called = _by_number(names, count)
        from_one = sorted(called) == [*range(1, count + 1)] and {*called} != {*numbers}
        if names is not None and from_one and 0 not in numbers:
            raise DataError(
                f"{what}: the files call their rows 1 to {count:,}, and row numbers are counted from 0; subtract 1 if "
                "these are counted from 1, else add row 0."
            )
        order = called.get_indexer(list(numbers))
    absent = int((order < 0).sum())
    if settings["allow_missing"] and absent == len(wanted) > 0:
        raise DataError(f"{what}: none of the {absent:,} is in the files; look at the ids of both, or join by order.")
    if absent and not settings["allow_missing"]:
        first = wanted[int((order < 0).argmax())]
        raise DataError(
            f"{what}: {absent:,} of {len(wanted):,} are not in the files, first {shown(first)}; add them, join by "
            "order, or set allow_missing: true."
        )
    return order


def _elsewhere(names: list[str] | None, wanted: Sequence[str], numbers: Sequence[int] | None) -> str | None:
    """The first name in the files that is another place's; None where names and order agree, or names mean nothing.

    numbers: as `_join` takes them. Numbers from 0 or 1 in their order say no more than the order, and names that appear
    twice, in parts each of which counts for itself, say nothing.
    """
    if names is None or len({*names}) < len(names):
        return None
    called = _counted(names)
    if called in ([*range(len(called))], [*range(1, len(called) + 1)]):
        return None
    places = {name: place for place, name in enumerate(wanted)}
    if not {*names} & {*places} and numbers is not None and -1 not in called:
        names, places = [*map(str, called)], {str(number): place for place, number in enumerate(numbers)}
    return next((name for i, name in enumerate(names) if places.get(name, i) != i), None)


def _counted(names: Sequence[str]) -> list[int]:
    """The numbers of rows that names are; -1 of one that is none."""
    return [int(name) if checking.is_number(name) else -1 for name in names]


def _by_number(names: list[str] | None, count: int) -> pd.Index:
    """The files' rows by the numbers that they are called by, or, where they have no names, by their places."""
    index = pd.Index(range(count) if names is None else _counted(names))
    # A number in two spellings, or words among numbers: then they are no numbers of rows.
    return index if index.is_unique and (index >= 0).all() else pd.Index([])


def _check(place: str, ids: Sequence[str], values: np.ndarray, allow_missing: bool, narrowed: bool) -> None:
    """Raises ScoreError where a value is infinite, beyond float32, or NaN where that does not mean "none".

    narrowed: values are made float32, of which one that is not 0 must not become 0.
    """
    wrong = np.isinf(values) if allow_missing else ~np.isfinite(values)
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    wrong |= np.isfinite(values) & ~np.isfinite(narrow)
    wrong |= narrowed & (narrow == 0) & (values != 0)
    lines = np.flatnonzero(wrong.any(axis=1))
    if len(lines):
        raise ScoreError(
            f"{place}: {several(len(lines), 'example')} with a value that is NaN, infinite or too large or small for "
            f"float32: {some([ids[line] for line in lines])}; "
            "correct the file, or set allow_missing: true where NaN means that there is none."
        )


def _together(
    names: list[list[str] | None], joined: bool, by_id: bool, paths: Sequence[str], what: str
) -> list[str] | None:
    """Puts together the names along one axis, of parts that are joined along it or that share it.

    Raises DataError where parts that share it have other names, or where two have one, or only some have any, that rows
    are found by (by_id).
    """
    if any(part is None for part in names):
        if by_id and any(part is not None for part in names):
            without = next(path for path, part in zip(paths, names, strict=True) if part is None)
            raise DataError(
                f"attribution.external.{what}: {without} has none, where other parts have; name the rows of all parts "
                "or of none, or set join: order."
            )
        return None
    if not joined:
        for path, part in zip(paths, names, strict=True):
            if part != names[0]:
                raise DataError(f"attribution.external.{what}: {path} has other names than {paths[0]}.")
        return names[0]
    together = [name for part in names for name in part]
    if by_id and (double := reading.first_double(together)) is not None:
        first, second = [path for path, part in zip(paths, names, strict=True) if double in part][:2]
        raise DataError(
            f"attribution.external.{what}: {second} has the name {shown(double)}, which {first} has, too; rename one, "
            "or set join: order."
        )
    return together
