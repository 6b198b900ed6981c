"""Columns of files of scores that could be the ids of their rows, though nobody has said so: these are not guessed."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from icprobe.tables import checking, conversations

# Of the rows themselves, which may have their scores beside them: these name no rows, nor do texts of the second kind.
OWN = {*checking.TEXTS, *conversations.COLUMNS, "system", "rejected"}
OWN_TEXTS = {"text", "context", *(name for names in checking.OFTEN_CALLED.values() for name in names)}
# What ids are called in files that could not say so otherwise.
CALLED_IDS = re.compile(r"(.*[_ .-])?(ids?|uuids?|ind(ex|ices)|(row_)?numbers?|rows?|examples?|tasks?)", re.IGNORECASE)
LEAST_DISTINCT = 0.75  # share of a column's values, if it could be ids: some are repeated or absent by mistake


def name_ids(column: str) -> str:
    """What to do about a table without the column of ids."""
    return (
        f"name the one of ids in id_column, add a column {column} of ids (of row numbers, from 0, if your data "
        "have none), or set join: order."
    )


def may_have_names(table: pa.Table, settings: Mapping[str, Any]) -> bool:
    """Whether a column beside that of scores could name the rows. (A matrix's columns are looked at once its tasks are
    known.)
    """
    taken = settings["key"] or ("score" if settings["orientation"] == "scores" else None)
    if taken is None or table.num_columns == 1:
        return False
    others = {name: table[name] for name in table.column_names if name != taken and name not in OWN}
    return any(may_name(held) for name, held in others.items() if name not in OWN_TEXTS or not is_text(held.type))


def may_name(values: Any) -> bool:
    """Whether a column or a list could be ids: words or whole numbers, hardly any of them twice."""
    try:
        column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values)])
    except (pa.ArrowException, TypeError, ValueError):
        return False  # of different types
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return may_be_numbers(column.drop_null().cast(pa.float64(), safe=False).to_numpy())
    if not (is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_binary(column.type)):
        return False
    return _hardly_repeats(len(column.drop_null().unique()), len(column) - column.null_count)


def may_be_numbers(values: np.ndarray) -> bool:
    """Whether numbers [n], NaN for none, could be those of rows: whole, and hardly any of them twice."""
    values = values[~np.isnan(values)]
    if len(values) == 0 or (values != np.floor(values)).any():
        return False
    # Beyond 2^53, neighbours were other whole numbers before they were floats.
    return bool(np.abs(values).max() >= 2**53) or _hardly_repeats(len(np.unique(values)), len(values))


def _hardly_repeats(n_distinct: int, n: int) -> bool:
    return n > 1 and n_distinct >= LEAST_DISTINCT * n  # one value is always another than all others


def is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
