"""Reads what an experiment computed for its report: tables, rows of matrices, figures."""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from icprobe import artifacts
from icprobe.errors import DataError, ScoreError
from icprobe.tables.parquet import read_pieces

Source = str | Path | pd.DataFrame  # a parquet or CSV file, or the table itself

DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
WIDE_POINTS = 400  # a figure of a paper's page, not of a column, gets the width of the report


def table_of(source: Source | None) -> pd.DataFrame | None:
    if source is None or isinstance(source, pd.DataFrame):
        return source
    path = Path(source)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return artifacts.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read for the report ({error}). Remove it to have it rebuilt.") from None


def pieces_of(source: Source) -> Iterator[pd.DataFrame]:
    """A matrix, of a file some rows at a time; ids as strings."""
    in_pieces = not isinstance(source, pd.DataFrame) and Path(source).suffix == ".parquet"
    for piece in read_pieces(source) if in_pieces else [table_of(source)]:
        yield piece.astype({"id": str})


def rows_of(source: Source, wanted: pd.Series, known: pd.Series, what: str) -> pd.DataFrame:
    """The wanted rows of a matrix, indexed by id. Refuses ids that are not known."""
    kept, ids = [], []
    for piece in pieces_of(source):
        piece = piece.set_index("id")
        ids.extend(piece.index)
        kept.append(piece[piece.index.isin(wanted)])
    refuse_unknown(ids, known, what)
    return pd.concat(kept)


def columns_of(source: Source) -> list[str]:
    if isinstance(source, pd.DataFrame):
        return list(source.columns)
    if Path(source).suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_schema(source).names
    return list(table_of(source).columns)


def refuse_unknown(found: Iterable[str], ids: pd.Series, what: str) -> None:
    if unknown := sorted(set(found) - set(ids)):
        raise ScoreError(
            f"{what}: {len(unknown)} ids are not among the training examples, the first is {unknown[0]!r}. "
            "Compute it again from the same data."
        )


def content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read for the report ({error}). Remove it to have it rebuilt.") from None


def figure_of(path: Path) -> dict[str, Any]:
    """An SVG file as a data address: in an <img> its ids cannot meet those of another, and no script of it runs."""
    content = content_of(path)
    try:
        drawing = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: is no SVG figure ({error}). Remove it to have it rebuilt.") from None
    # Of the drawing itself: the program that drew it has a dc:title too.
    work = drawing.find(".//{http://creativecommons.org/ns#}Work")
    title, text = ("", "") if work is None else (work.findtext(DUBLIN_CORE + key) for key in ("title", "description"))
    box = drawing.get("viewBox", "").split()  # x, y, width, height
    caption = title or (path.stem.replace("--", " against ") if "--" in path.stem else path.stem.replace("_", " "))
    return {
        "caption": caption,
        "text": text or "",
        "wide": float(box[2]) > WIDE_POINTS if len(box) == 4 else False,
        "source": "data:image/svg+xml;base64," + base64.b64encode(content).decode(),
    }
