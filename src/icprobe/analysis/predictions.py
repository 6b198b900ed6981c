"""What methods predict of training on a subset: the sum of its members' attributions, a piece of a matrix at a time."""

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

from icprobe.analysis.agreement import tied
from icprobe.analysis.headline import DOCUMENT_TOKENS, RESPONSE_TOKENS
from icprobe.errors import DataError, ScoreError
from icprobe.tables.parquet import read_pieces

PIECE_BYTES = 16e6  # of a matrix in memory at a time


class Members:
    """Which examples are in which subset.

    members: `subset`, `id`, a row for each member; names: the subsets, in order; ids: all examples of the experiment.
    """

    def __init__(self, members: pd.DataFrame, names: Sequence[str], ids: Iterable[str]):
        self.ids = pd.Index(ids)
        rows, places = pd.Index(names).get_indexer(members["subset"]), self.ids.get_indexer(members["id"])
        if (places < 0).any():
            unknown = members["id"][places < 0]
            raise DataError(
                f"The subset {members['subset'][places < 0].iloc[0]} has the example {unknown.iloc[0]!r}, which the "
                "train table lacks. Make the subsets of truth/ again."
            )
        known = rows >= 0
        shape = len(names), len(self.ids)
        self._inside = csc_array((np.ones(known.sum()), (rows[known], places[known])), shape=shape)  # [R, N]

    def sums(self, pieces: Iterable[pd.DataFrame], method: str, columns: Sequence[str]) -> np.ndarray | None:
        """Sums the columns over the members of each subset: float64 [R, columns]; None where a value is NaN.

        pieces: `id` and columns, some rows at a time, the examples in any order. Raises ScoreError where they are not
        all examples, each once.
        """
        total, seen = np.zeros((self._inside.shape[0], len(columns))), np.zeros(len(self.ids), dtype=int)
        complete = True
        for piece in pieces:
            places = self.ids.get_indexer(piece["id"])
            known = places >= 0
            np.add.at(seen, places[known], 1)
            seen[0] += (~known).sum()  # as wrong as one that comes twice
            values = piece[list(columns)].to_numpy(dtype=np.float64)
            complete = complete and not np.isnan(values).any()
            total += self._inside[:, places] @ values
        if (seen != 1).any():
            raise ScoreError(
                f"The attributions of {method} are not of the experiment's {len(self.ids)} examples, each once. "
                "Compute them from the same data."
            )
        return tied(total) if complete else None


def of_methods(
    members: Members,
    tasks: Sequence[str],
    files: Mapping[str, str | Path],
    per_task: Container[str],
    lengths: pd.DataFrame,
) -> dict[str, np.ndarray | None]:
    """Predicts, by each method and rival, what training on each subset does for each task.

    files: of each method its matrix, if per_task names it, else its scores. lengths: `id`, `n_query`, `n_target`, in
    tokens. Returns method -> sums over members [R, M] or, of one score for all tasks, [R, 1]; None where the method has
    not evaluated all examples: a sum over some would compare subsets by how many of them it knows.
    """
    found = {
        method: members.sums(read_pieces(path, PIECE_BYTES), method, tasks if method in per_task else ["score"])
        for method, path in files.items()
    }
    for rival, columns in {DOCUMENT_TOKENS: ["n_query", "n_target"], RESPONSE_TOKENS: ["n_target"]}.items():
        table = lengths[["id"]].assign(score=lengths[columns].sum(axis=1))
        found[rival] = members.sums([table], rival, ["score"])
    return found


def outcomes_of(table: pd.DataFrame, name: str, subsets: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Takes the outcomes of a set, "tasks" or "eval": log-likelihoods in nats [R, S, M] and the ids of the M answers.

    table: `subset`, `seed`, `set`, `id`, `log_likelihood`. Raises DataError where a training lacks an answer that
    another has, or one is there twice.
    """
    own = table[table["set"] == name]
    seeds, ids = sorted(own["seed"].unique()), list(dict.fromkeys(own["id"]))
    axes = {"subset": subsets, "seed": seeds, "id": ids}
    places = [pd.Index(names).get_indexer(own[column]) for column, names in axes.items()]
    values = np.full((len(subsets), len(seeds), len(ids)), np.nan)
    values[tuple(places)] = own["log_likelihood"]
    if min(map(np.min, places), default=0) < 0 or len(own) != values.size or np.isnan(values).any():
        raise DataError(
            f"truth/: of {len(subsets)} trainings with {len(seeds)} seeds each, {len(own)} log-likelihoods of {name} "
            f"are there, where {values.size} ought to be, none of them NaN. Measure the outcomes again."
        )
    return values, ids
