"""What figures are drawn from, what drawing gives, and how it is written."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from fontTools.subset import Options
from matplotlib import rc_context
from matplotlib.figure import Figure

from icprobe.analysis.headline import over_all_tasks
from icprobe.artifacts import PACKAGE, atomic_path, read_csv, write_csv
from icprobe.figures.style import STYLE
from icprobe.tables.parquet import read_parquet, read_scores

# Of the fonts within a PDF, whose pages place each glyph themselves: cutting these tables to a figure's glyphs takes
# longer than all else in drawing it. Not public; where it is gone, figures are drawn more slowly.
with suppress(AttributeError):
    Options._drop_tables_default.extend(["GDEF", "GPOS", "GSUB", "kern"])


@dataclass(frozen=True)
class Drawn:
    """A figure, the table of the numbers that it shows, and what it shows in a few words."""

    figure: Figure
    table: pd.DataFrame
    title: str
    findings: Sequence[str] = ()  # sentences for the log, where these numbers stand in no other table


class Inputs:
    """The files that figures are drawn from: each is read when the first figure asks for it, and once.

    files: `scores` has one for each of params.methods; the others go by the names that the registry uses. params:
    `colors` and what else the figures of a job need (`axis_labels`, `labels`, `in_domain`).
    """

    def __init__(self, files: Any, params: Any):
        self._files, self.params = files, params
        self.rows = cache(self._rows)

    @cached_property
    def scores(self) -> dict[str, pd.Series]:
        """Method -> score [N] indexed by id, NaN = not evaluated."""
        return read_scores(self.params.methods, self._files.scores)

    def _rows(self, name: str) -> pd.DataFrame:
        """A table; of several models, their rows one below the other."""
        paths = getattr(self._files, name)
        paths = [paths] if isinstance(paths, str) else paths
        tables = [read_parquet(path) if path.endswith(".parquet") else read_csv(path) for path in paths]
        return pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]

    def over_all_tasks(self, name: str) -> pd.DataFrame:
        """The rows of a table that are over all tasks."""
        return over_all_tasks(self.rows(name))


def save(figure: Figure, path: str | Path, table: pd.DataFrame, title: str = "", name: str = "") -> None:
    """Write the figure to path (.svg) and beside it, under the same stem, as PDF for papers and its numbers as CSV.

    title: what it shows, in a few words. name: that of its caption in captions/. Both go into the files' metadata. No
    file carries a date or random names: the same figure is the same file.
    """
    path = Path(path)
    said = caption(name) if name else ""
    metadata = {
        ".svg": {"Title": title, "Description": said, "Date": None},
        ".pdf": {"Title": title, "Subject": said, "CreationDate": None},
    }
    with rc_context(STYLE):
        for suffix, values in metadata.items():
            with atomic_path(path.with_suffix(suffix)) as aside:
                figure.savefig(aside, metadata={key: value for key, value in values.items() if value != ""})
            figure.set_layout_engine("none")  # it is laid out, and the same in both formats
    write_csv(path.with_suffix(".csv"), table)


def caption(name: str) -> str:
    """What a figure shows, as one paragraph; the same text stands in the reports."""
    text = (PACKAGE / "figures" / "captions" / f"{name}.rst").read_text(encoding="utf-8")
    return " ".join(text.replace("``", "").split())
