"""Labels of the examples: the values that mark good ones, and those that are numbers."""

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from icprobe.errors import ConfigError, did_you_mean, misspelt, shown, suggestion
from icprobe.tables.checking import listed

logger = logging.getLogger(__name__)


def check_sound_labels(table: pd.DataFrame, good: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many rows have a good value of each label, good: label -> these; warns of one that no row has."""
    for name, wanted in good.items():
        if absent := check_good(name, set(table[name].dropna()) if name in table else set(), wanted):
            logger.warning("data.sound_labels.%s: no row has %s", name, ", ".join(map(shown, absent)))
    return {name: int(table[name].isin([*wanted]).sum()) if name in table else 0 for name, wanted in good.items()}


def check_good(name: str, there: set[str], wanted: Sequence[str]) -> list[str]:
    """The values that are to mark a label's good examples and that it, having some, lacks. Raises ConfigError if it
    lacks all, or one that is another of its values but for a slip: misspelt, it would make good rows bad ones.
    """
    absent = [value for value in wanted if there and value not in there]
    way = "Correct it, or leave it out ([] where no value marks good examples)."
    for value in absent:
        if (meant := misspelt(value, there.difference(wanted))) or there.isdisjoint(wanted):
            check_values(f"data.sound_labels.{name}", name, there, value, way, meant=meant)
    return absent


def check_values(
    key: str,
    name: str,
    there: Iterable[str],
    wanted: str,
    way: str,
    table: str = "data.train",
    meant: str | None = None,
) -> None:
    """Raises ConfigError where a column has values, and the one that `key` names is not among them.

    way: out; meant: which of the values it may be, misspelt, where that is known.
    """
    there = sorted(set(there))
    if there and wanted not in there:
        raise ConfigError(
            f"config: {key}: no row of {table} has {shown(wanted)}; the column {name!r} holds {listed(there)}"
            f"{(suggestion(meant) if meant else did_you_mean(wanted, there)) or '.'} {way}"
        )


def check_unmarked(table: pd.DataFrame, labels: Iterable[str], good: Iterable[str]) -> list[str]:
    """Says of each label that is no number and not among `good` which key of the configuration gives it an AUC."""
    return [
        f"data.labels: nothing says which values of {name!r} mark good examples, so it has no AUC; write "
        f"data.sound_labels: {{{name}: [VALUE]}} (it holds {listed(sorted(set(table[name].dropna())))}), or [] where "
        "none does"
        for name in labels
        if name not in good and numbers(table[name]) is None
    ]


def numbers(label: pd.Series) -> pd.Series | None:
    """Reads a label as numbers, null as NaN; None where a value is no finite number, or where all are equal."""
    values = pd.to_numeric(label, errors="coerce").astype(float)
    known = values[label.notna()]
    return values if np.isfinite(known).all() and known.nunique() > 1 else None


def numbered_labels(table: pd.DataFrame, labels: Iterable[str]) -> dict[str, pd.Series]:
    """Finds the labels of a table that are numbers: label -> numbers [N] indexed by id."""
    by_id = table.set_index("id")
    found = {name: numbers(by_id[name]) for name in labels if name in by_id}
    return {name: values for name, values in found.items() if values is not None}
