"""Tables as parquet: written whole or not at all, read whole or a piece at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icprobe.artifacts import atomic_path
from icprobe.errors import ArtifactError, reason

PIECE_BYTES = 64e6  # of a matrix in memory at a time


def write_parquet(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes a table as parquet, atomically; the same rows give the same bytes. Its pages carry checksums."""
    with atomic_path(path) as aside:
        frame.to_parquet(aside, index=False, compression="zstd", write_page_checksum=True)


def read_parquet(
    path: str | Path, columns: list[str] | None = None, filters: list[tuple[str, str, list[str]]] | None = None
) -> pd.DataFrame:
    """Reads a table that `write_parquet` wrote. Raises ArtifactError where it is missing, truncated or changed.

    filters: of the rows, as pandas takes them.
    """
    try:
        return pd.read_parquet(path, columns=columns, filters=filters, page_checksum_verification=True)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise damaged(path, error) from None


def column_names(path: str | Path) -> list[str]:
    """Finds the columns of a table that `write_parquet` wrote. Raises ArtifactError as `read_parquet` does."""
    try:
        return pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from None


def damaged(path: str | Path, error: Exception) -> ArtifactError:
    """Makes the error for a table of ours that cannot be read."""
    return ArtifactError(f"{path}: is damaged ({reason(error)}); remove it to have it rebuilt.")


def rows_within(piece_bytes: float, columns: int) -> int:
    """Counts the rows of a matrix, one at least, that so many bytes hold in float32."""
    return max(1, int(piece_bytes // (4 * columns)))


def read_pieces(path: str | Path, piece_bytes: float = PIECE_BYTES) -> Iterator[pd.DataFrame]:
    """Reads an attribution matrix in pieces of as many rows as `piece_bytes` hold in float32; gives one at least.

    Raises ArtifactError as `read_parquet` does.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            rows = rows_within(piece_bytes, len(file.schema_arrow.names))
            if not file.metadata.num_rows:
                yield file.schema_arrow.empty_table().to_pandas()
            # Group by group: one reader for all would keep what it has read of every group before.
            for group in range(file.num_row_groups):
                for piece in file.iter_batches(rows, row_groups=[group]):
                    yield piece.to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from None


def read_scores(methods: Iterable[str], paths: Iterable[str | Path]) -> dict[str, pd.Series]:
    """Reads score tables as {method: score indexed by id}, in the order of `methods`."""
    return {m: read_parquet(path).set_index("id")["score"] for m, path in zip(methods, paths, strict=True)}
