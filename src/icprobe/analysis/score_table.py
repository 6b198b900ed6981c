"""Puts all that is known of every example into one table: texts, labels, lengths, each method's score and rank."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from icprobe.analysis.binning import ranks
from icprobe.artifacts import atomic_path
from icprobe.errors import ScoreError
from icprobe.tables.checking import TEXTS
from icprobe.tables.labels import numbers
from icprobe.tables.parquet import column_names, damaged, read_parquet

ROWS_AT_ONCE = 20_000  # whose texts are in memory


def write(
    train: str | Path,
    lengths: str | Path,
    scores: Mapping[str, str | Path],
    parquet: str | Path,
    csv: str | Path,
) -> pd.DataFrame:
    """Writes the table of scores as parquet and as CSV, atomically; returns it without its texts.

    train, lengths: data/train.parquet and data/lengths.parquet; scores: method -> its table of scores. Columns, in the
    order of the examples: `id` (and `row_number`, where the examples came without ids), `instruction`, `input`,
    `output`, labels (as numbers where all values are), `n_query`, `n_target`, and for each method `score_{method}`,
    `rank_{method}` (by `binning.ranks`, null where not evaluated) and, of scores that are shares of tasks,
    `mean_effect_{method}`, which orders what shares a rank. Raises ScoreError where scores or lengths are not of
    the same examples.
    """
    table = known(train, lengths, scores)
    facts = pa.Table.from_pandas(table, preserve_index=False)
    with atomic_path(parquet) as parquet_aside, atomic_path(csv) as csv_aside:
        pieces = _with_texts(facts, train)
        first = next(pieces)
        with (
            pq.ParquetWriter(parquet_aside, first.schema, compression="zstd", write_page_checksum=True) as as_parquet,
            pa_csv.CSVWriter(csv_aside, first.schema) as as_csv,
        ):
            for piece in (first, *pieces):
                as_parquet.write_table(piece)
                as_csv.write_table(piece)
    return table


def known(train: str | Path, lengths: str | Path, scores: Mapping[str, str | Path]) -> pd.DataFrame:
    """Makes the columns of the table that are no texts, in the order of the examples."""
    table = read_parquet(train, columns=[name for name in column_names(train) if name not in TEXTS])
    for label in table.columns[1:].drop("domain", errors="ignore"):  # a name, as in all other tables
        as_numbers = numbers(table[label]) if table[label].dtype.kind not in "iuf" else None
        # Not 007, nor versions 1.1 and 1.10: what only looks like numbers stays as it is written, as do numbers of more
        # digits than floats have.
        if as_numbers is not None and not (
            table[label].str.fullmatch(r"[-+]?0\d.*").any()
            or as_numbers.nunique() < table[label].nunique()
            or (as_numbers.abs() >= 2**53).any()
        ):
            table[label] = as_numbers
    counted = _of_examples(read_parquet(lengths), table["id"], "lengths")
    columns = {name: counted[name].astype("Int32") for name in ("n_query", "n_target")}
    for method, path in scores.items():
        found = _of_examples(read_parquet(path), table["id"], method)
        columns |= {f"score_{method}": found["score"], f"rank_{method}": ranks(found["score"]).astype("Int64")}
        if "mean_effect" in found:
            columns[f"mean_effect_{method}"] = found["mean_effect"]
    return table.assign(**columns)


def _of_examples(table: pd.DataFrame, ids: pd.Series, what: str) -> pd.DataFrame:
    """Puts the rows of a table into the order of the examples."""
    if table["id"].equals(ids):
        return table
    if len(table) != len(ids) or not table["id"].isin(ids).all():
        raise ScoreError(
            f"The {what} ({len(table)} examples) and data/train.parquet ({len(ids)}) are not of the same examples. "
            "Compute both from the same data."
        )
    return table.set_index("id").loc[ids].reset_index()


def _with_texts(facts: pa.Table, train: str | Path) -> Iterator[pa.Table]:
    """Adds the texts to the other columns, behind the ids, some rows at a time."""
    leading = [name for name in ("id", "row_number") if name in facts.column_names]
    names = [*leading, *TEXTS, *(name for name in facts.column_names if name not in leading)]
    start = 0
    try:
        with pq.ParquetFile(train, page_checksum_verification=True) as file:
            for texts in file.iter_batches(ROWS_AT_ONCE, columns=TEXTS):
                piece = facts.slice(start, len(texts))
                start += len(texts)
                yield pa.table([texts[name] if name in TEXTS else piece[name] for name in names], names=names)
    except (OSError, pa.ArrowException) as error:
        raise damaged(train, error) from None
