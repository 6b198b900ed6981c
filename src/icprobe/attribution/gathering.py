"""Puts shards together into one matrix, which is never whole in memory."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icprobe.artifacts import atomic_path, temporary_directory
from icprobe.errors import ArtifactError, shown
from icprobe.tables import parquet

PIECE_BYTES = 256e6  # of the matrix in memory at a time
FLOAT_BYTES = 4  # of one of its values


def gather(
    shards: Sequence[str | Path], train: str | Path, output: str | Path, piece_bytes: float = PIECE_BYTES
) -> tuple[int, int]:
    """Writes the rows of all shards in the order of `train`'s ids; returns (number of rows, columns beside id).

    One shard is open at a time; its rows are put in their places in a file in TMPDIR, as large as the matrix, from
    which some rows at a time are written: memory stays at a few `piece_bytes`, however many shards, rows and columns
    there are. Raises ArtifactError naming a shard that cannot be read or does not belong, or an example that no shard
    holds, or more than one; also where TMPDIR has too little room.
    """
    ids = pd.read_parquet(train, columns=["id"])["id"]
    columns = _open(shards[0]).schema_arrow.names[1:]
    rows_at_once = parquet.rows_within(piece_bytes, len(columns))
    with temporary_directory() as folder:
        _check_room(folder, FLOAT_BYTES * len(ids) * len(columns), output)
        in_order = Path(folder, "rows")
        _put_in_order(shards, pd.Index(ids), columns, in_order, rows_at_once)
        _write(in_order, ids, columns, output, rows_at_once)
    return len(ids), len(columns)


def _check_room(folder: str, needed: int, output: str | Path) -> None:
    """Raises ArtifactError where the disk of `folder` has less than the needed bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ArtifactError(
            f"{Path(folder).parent}: {needed / 1e9:.2g} GB are needed to put {output} in order, {free / 1e9:.2g} GB "
            "are free. Free some space, or set TMPDIR to a folder that has more."
        )


def _put_in_order(
    shards: Sequence[str | Path], wanted: pd.Index, columns: list[str], in_order: Path, rows_at_once: int
) -> None:
    """Writes each row of the shards to its place in the file `in_order`: float32 [N, columns]."""
    holder = np.full(len(wanted), -1, dtype=np.int32)  # which shard an example came from
    with open(in_order, "wb") as file:
        for number, path in enumerate(shards):
            opened = _open(path)
            if opened.schema_arrow.names != ["id", *columns]:
                raise ArtifactError(f"{path}: has other columns than {shards[0]}; remove both.")
            for ids, values in _pieces(path, opened, rows_at_once):
                places = wanted.get_indexer(ids)
                _check(places, ids, holder, path, shards)
                holder[places] = number
                for place, row in zip(places.tolist(), values, strict=True):
                    os.pwrite(file.fileno(), row, place * row.nbytes)
    if (holder < 0).any():
        lost = wanted[int((holder < 0).argmax())]
        raise ArtifactError(f"{shards[0]} and others: {shown(lost)} is in 0 shards, not in one; remove the shards.")


def _check(
    places: np.ndarray, ids: pd.Series, holder: np.ndarray, path: str | Path, shards: Sequence[str | Path]
) -> None:
    """Raises ArtifactError for a row of the shard `path` that is no example, or that stood in a shard before."""
    if (places < 0).any():
        stranger = ids.iloc[int((places < 0).argmax())]
        raise ArtifactError(f"{path}: holds {shown(stranger)}, which is no example; remove it.")
    doubled = (holder[places] >= 0) | pd.Series(places).duplicated().to_numpy()
    if doubled.any():
        row = int(doubled.argmax())
        first = holder[places[row]]
        raise ArtifactError(
            f"{path if first < 0 else shards[first]}, {path}: {shown(ids.iloc[row])} is in 2 shards, not in one; "
            "remove the shards."
        )


def _write(in_order: Path, ids: pd.Series, columns: list[str], output: str | Path, rows_at_once: int) -> None:
    """Writes the file `in_order`, float32 [N, columns], as a table with these ids."""
    schema = pa.schema([("id", pa.string()), *((column, pa.float32()) for column in columns)])
    with (
        atomic_path(output) as aside,
        pq.ParquetWriter(aside, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for start in range(0, len(ids), rows_at_once):
            some = ids.iloc[start : start + rows_at_once]
            offset = FLOAT_BYTES * start * len(columns)
            values = np.fromfile(in_order, np.float32, len(some) * len(columns), offset=offset)
            arrays = [pa.array(column) for column in values.reshape(len(some), len(columns)).T]
            writer.write_table(pa.Table.from_arrays([pa.array(some, type=pa.string()), *arrays], schema=schema))


def _open(path: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise parquet.damaged(path, error) from None


def _pieces(path: str | Path, file: pq.ParquetFile, rows_at_once: int) -> Iterator[tuple[pd.Series, np.ndarray]]:
    """(ids, values [rows, columns] float32) of a shard, some rows at a time."""
    batches = file.iter_batches(batch_size=rows_at_once)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowInvalid) as error:
            raise parquet.damaged(path, error) from None
        if batch is None:
            return
        columns = [batch.column(index).to_numpy(zero_copy_only=False) for index in range(1, batch.num_columns)]
        yield batch.column(0).to_pandas(), np.stack(columns, axis=1, dtype=np.float32, casting="same_kind")
