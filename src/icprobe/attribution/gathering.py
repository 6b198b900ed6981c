"""Shards put together into one matrix, which is never held whole."""

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

BLOCK_BYTES = 256e6  # of the matrix in memory at a time


def gather(
    shards: Sequence[str | Path], train: str | Path, output: str | Path, block_bytes: float = BLOCK_BYTES
) -> tuple[int, int]:
    """Writes the rows of all shards in the order of `train`'s ids; returns (rows, columns beside id).

    One shard is open at a time; its rows are put in their places in a file in TMPDIR, as large as the matrix, from
    which some rows at a time are written: memory stays at a few `block_bytes`, however many shards, rows and columns
    there are. Raises ArtifactError naming a shard that cannot be read or does not belong, or an example that no shard
    holds, or more than one; also where TMPDIR has too little room.
    """
    wanted = pd.read_parquet(train, columns=["id"])["id"]
    columns = _open(shards[0]).schema_arrow.names[1:]
    n, row_bytes = len(wanted), 4 * len(columns)
    height = max(1, int(block_bytes // row_bytes))
    with temporary_directory() as folder:
        _check_room(folder, n * row_bytes, output)
        rows = Path(folder, "rows")
        _put_in_order(shards, pd.Index(wanted), columns, rows, height)
        schema = pa.schema([("id", pa.string()), *((column, pa.float32()) for column in columns)])
        with atomic_path(output) as aside, _writer(aside, schema) as writer:
            for start in range(0, n, height):
                ids = wanted.iloc[start : start + height]
                part = np.fromfile(rows, np.float32, len(ids) * len(columns), offset=start * row_bytes)
                arrays = [pa.array(column) for column in part.reshape(len(ids), len(columns)).T]
                writer.write_table(pa.Table.from_arrays([pa.array(ids, type=pa.string()), *arrays], schema=schema))
    return n, len(columns)


def _check_room(folder: str, needed: int, output: str | Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ArtifactError(
            f"{Path(folder).parent}: {needed / 1e9:.2g} GB are needed to put {output} in order, {free / 1e9:.2g} GB "
            "are free. Free some space, or set TMPDIR to a folder that has more."
        )


def _put_in_order(shards: Sequence[str | Path], wanted: pd.Index, columns: list[str], rows: Path, height: int) -> None:
    """Writes each row of the shards, `height` at a time, to its place in the file `rows`: float32 [N, columns]."""
    holder = np.full(len(wanted), -1, dtype=np.int32)  # which shard an example came from
    with open(rows, "wb") as file:
        for number, path in enumerate(shards):
            opened = _open(path)
            if opened.schema_arrow.names != ["id", *columns]:
                raise ArtifactError(f"{path}: has other columns than {shards[0]}; remove both.")
            for ids, values in _pieces(path, opened, height):
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


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def _open(path: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from None


def _pieces(path: str | Path, file: pq.ParquetFile, height: int) -> Iterator[tuple[pd.Series, np.ndarray]]:
    """(ids, values [rows, columns] float32) of a shard, at most `height` rows at a time."""
    batches = file.iter_batches(batch_size=height)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowInvalid) as error:
            raise _damaged(path, error) from None
        if batch is None:
            return
        columns = [batch.column(index).to_numpy(zero_copy_only=False) for index in range(1, batch.num_columns)]
        yield batch.column(0).to_pandas(), np.stack(columns, axis=1, dtype=np.float32, casting="same_kind")


def _damaged(path: str | Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path}: is damaged ({' '.join(str(error).split())[:150]}); remove it, it will be made anew.")
