"""Methods that are computed from the matrices of others, without a model: mean ranks, and ranks given length."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from icprobe.errors import ArtifactError, ScoreError, shown

SINGLE = ["score"]  # the column of a method with one number for each example


def combine(
    how: Mapping[str, Any], matrices: Iterable[tuple[str, pd.DataFrame]], n_target: pd.Series | None = None
) -> pd.DataFrame:
    """Computes the matrix of a combined method [N, M], in float64: `id`, then a column per task, or `score`.

    how: its section of the configuration. matrices: of its methods one after the other, with their names; each `id`,
    then its columns, all of the same examples in the same order. n_target: response lengths in tokens [N], indexed by
    id; what `given_length` needs. Raises ScoreError for a value that is NaN or infinite, ArtifactError where examples
    or tasks differ.
    """
    if how.get("mean_rank"):
        return mean_rank(matrices)
    ((name, matrix),) = matrices
    return given_length(name, matrix, n_target)


def mean_rank(matrices: Iterable[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """A[z, t] = (1/K) Σ_k rank_k(z, t) / N, with rank 1 for the lowest of a column and average ranks for ties.

    A method with a single score has that column in every task's place; where all have, the result does. Ranks are
    summed as whole numbers, and 1/(K N) is an `_exact_factor` (for a million examples, three methods and a thousand
    tasks less by a millionth): equal sums of ranks are equal to the bit, over methods here and tasks in `aggregate`.
    """
    total, columns, ids, count = np.zeros((1, 1), dtype=np.int64), SINGLE, None, 0
    for name, matrix in matrices:
        own, ranks = _twice_ranks(name, matrix)
        ids = matrix["id"] if ids is None else ids
        if not ids.equals(matrix["id"]) or (own != SINGLE and columns not in (SINGLE, own)):
            raise ArtifactError(f"The matrix of {name} has other examples or tasks than those it is combined with.")
        columns = columns if own == SINGLE else own
        total, count = total + ranks, count + 1
    return _table(ids, columns, total * _exact_factor(1 / (2 * count * len(total)), len(columns)))


def given_length(name: str, matrix: pd.DataFrame, n_target: pd.Series) -> pd.DataFrame:
    """A[z, t] = r(z, t) − r̄ − b_t (l(z) − l̄), in ranks: residuals of least squares of r on l, with an intercept.

    r: ranks of a column, l: those of the response's length, average ranks for ties. b_t is the quotient of two sums of
    whole numbers that are exact, as an `_exact_factor`. So a column with one value, and one that orders as
    length does or the other way round, leave zeros, not rounding; where all lengths are equal, b_t is 0; and examples
    of one length have equal sums over tasks, to the bit, where their ranks have.
    """
    columns, ranks = _twice_ranks(name, matrix)
    lengths = n_target.reindex(matrix["id"]).to_numpy(float)
    if np.isnan(lengths).any():
        raise ScoreError(f"{shown(matrix['id'].iloc[int(np.isnan(lengths).argmax())])} has no response length.")
    # Twice the distance of a rank from the mean rank, (N + 1) / 2: whole numbers, whose sum is 0.
    middle = len(ranks) + 1
    ranks, along = ranks - middle, _twice(lengths[:, None])[:, 0] - middle
    spread = _exact_sum(along * along)
    slopes = [_exact_sum(column * along) / spread if spread else 0.0 for column in ranks.T]
    largest = len(slopes) * middle * (1 + max(map(abs, slopes)))  # of sums over tasks
    slopes = [_exact_factor(slope, largest) for slope in slopes]
    return _table(matrix["id"], columns, (ranks - np.outer(along, slopes)) / 2)


def _twice(values: np.ndarray) -> np.ndarray:
    """Twice the average ranks within columns [N, M], from 2 for the lowest: whole numbers."""
    return np.rint(2 * rankdata(values, axis=0)).astype(np.int64)


def _twice_ranks(name: str, matrix: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """The columns of a method's matrix, and twice their ranks [N, M]; beside a single score nothing else counts."""
    columns = [column for column in matrix.columns if column != "id"]
    columns = SINGLE if columns[:1] == SINGLE else columns
    values = matrix[columns].to_numpy()
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        example = shown(matrix["id"].iloc[int(wrong.argmax())])
        raise ScoreError(f"{name} has a value of {example} that is NaN or infinite, and ranks are of all examples.")
    return columns, _twice(values)


def _exact_sum(products: np.ndarray) -> int:
    """Sums whole numbers [N], each below 2^63: in two halves, which do not overflow below 2^31 examples."""
    return (int((products >> 32).sum()) << 32) + int((products & 0xFFFFFFFF).sum())


def _exact_factor(value: float, largest: float) -> float:
    """The number next below value whose products with whole numbers, and sums of these, float64 holds exactly.

    As long as none is larger than `largest`. So equal sums are equal to the bit, whatever their order.
    """
    step = float(np.spacing(float(largest)))
    return math.floor(value / step) * step


def _table(ids: pd.Series, columns: list[str], values: np.ndarray) -> pd.DataFrame:
    return pd.concat([pd.DataFrame({"id": ids.array}), pd.DataFrame(values, columns=columns)], axis=1)
