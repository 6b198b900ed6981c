"""Shards put together into one matrix, which is never held whole."""

from collections.abc import Sequence
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

    Some columns of all rows are put in order at a time and set aside on disk, then some rows of all columns are
    written: memory stays at a few `block_bytes`. Raises ArtifactError naming a shard that cannot be read or does not
    belong, or the first example that no shard holds, or more than one.
    """
    wanted = pd.read_parquet(train, columns=["id"])["id"]
    files = [_open(path) for path in shards]
    columns = files[0].schema_arrow.names[1:]
    for path, file in zip(shards, files, strict=True):
        if file.schema_arrow.names != files[0].schema_arrow.names:
            raise ArtifactError(f"{path}: has other columns than {shards[0]}; remove both.")
    order = _order(wanted, [_read(p, f, ["id"])["id"] for p, f in zip(shards, files, strict=True)], shards)
    n = len(wanted)
    width = max(1, int(block_bytes // (4 * max(n, 1))))
    height = max(1, int(block_bytes // (4 * len(columns))))
    blocks = [columns[start : start + width] for start in range(0, len(columns), width)]
    with temporary_directory() as folder:
        for number, block in enumerate(blocks):
            values = np.empty((n, len(block)), dtype=np.float32)
            start = 0
            for path, file in zip(shards, files, strict=True):
                part = _read(path, file, block).to_numpy(dtype=np.float32)
                values[order[start : start + len(part)]] = part
                start += len(part)
            values.tofile(Path(folder, str(number)))
        schema = pa.schema([("id", pa.string()), *((column, pa.float32()) for column in columns)])
        with atomic_path(output) as aside, _writer(aside, schema) as writer:
            for start in range(0, n, height):
                ids = wanted.iloc[start : start + height]
                arrays = [pa.array(ids, type=pa.string())]
                for number, block in enumerate(blocks):
                    count, offset = len(ids) * len(block), start * len(block) * 4
                    part = np.fromfile(Path(folder, str(number)), np.float32, count, offset=offset)
                    arrays += [pa.array(column) for column in part.reshape(len(ids), len(block)).T]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return n, len(columns)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def _open(path: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from None


def _read(path: str | Path, file: pq.ParquetFile, columns: list[str]) -> pd.DataFrame:
    try:
        return file.read(columns=columns).to_pandas()[columns]
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from None


def _damaged(path: str | Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path}: is damaged ({' '.join(str(error).split())[:150]}); remove it, it will be made anew.")


def _order(wanted: pd.Series, found: Sequence[pd.Series], shards: Sequence[str | Path]) -> np.ndarray:
    """Row of `wanted` for each id found in the shards."""
    index = pd.Index(wanted)
    places = [index.get_indexer(ids) for ids in found]
    for path, ids, rows in zip(shards, found, places, strict=True):
        if (rows < 0).any():
            stranger = ids.iloc[int((rows < 0).argmax())]
            raise ArtifactError(f"{path}: holds {shown(stranger)}, which is no example; remove it.")
    counts = np.bincount(np.concatenate(places), minlength=len(wanted))
    if (counts != 1).any():
        row = int((counts != 1).argmax())
        holders = [str(path) for path, rows in zip(shards, places, strict=True) if (rows == row).any()]
        raise ArtifactError(
            f"{', '.join(holders) or f'{shards[0]} and others'}: {shown(wanted.iloc[row])} is in {counts[row]} shards, "
            "not in one; remove the shards."
        )
    return np.concatenate(places)
