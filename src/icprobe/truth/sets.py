"""Which examples models are trained anew on: random subsets, all but a method's best, all but one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from icprobe.analysis.binning import Ranking
from icprobe.errors import ScoreError, several

WHOLE = "all"  # the set of left_out.parquet that nothing is left out of
# Streams of random numbers, so that no part's draws move another's.
SUBSETS, CONTROLS, LEFT_OUT = range(3)


@dataclass(frozen=True)
class Training:
    """One model to train: on these examples, in this order before it is shuffled, of which one may have no loss."""

    subset: str
    seed: int
    members: tuple[str, ...]
    masked: str | None = None


def random_subsets(ids: Sequence[str], number: int, share: float, seed: int) -> pd.DataFrame:
    """The table subsets.parquet: `subset` and `id`, one row a member, members in the order of `ids`.

    Each subset holds that share of the ids, rounded, and depends on its own number alone: more of them leave the
    first ones as they are.
    """
    size = _size(len(ids), share)
    return _table([(f"subset-{r}", _drawn(ids, size, seed, SUBSETS, r)) for r in range(number)])


def removals(
    ids: Sequence[str],
    methods: Mapping[str, tuple[pd.DataFrame, pd.DataFrame | None]],
    share: float,
    controls: int,
    seed: int,
) -> pd.DataFrame:
    """The table removals.parquet: `subset`, `method`, `task`, `id`; one row for each example that is removed.

    methods: its scores (`id`, `score`, `mean_effect` where there is one), and its matrix where its best examples for
    each task are removed in turn. Controls are random examples, as many, without method and task. Raises ScoreError
    where a method has not evaluated as many examples.
    """
    size = _size(len(ids), share)
    parts = []
    for method, (scores, matrix) in methods.items():
        if matrix is None:
            scores = scores.set_index("id").loc[list(ids)]
            best = Ranking(scores["score"], scores.get("mean_effect"))
            _check(method, best.evaluated, size)
            chosen = sorted(best.first("top 1", size))
            parts.append(_table([(method, [ids[row] for row in chosen])]).assign(method=method, task=None))
            continue
        matrix = matrix.set_index("id").loc[list(ids)]
        for task in matrix.columns:
            best = Ranking(matrix[task])
            _check(f"{method}, task {task}", best.evaluated, size)
            chosen = sorted(best.first("top 1", size))
            named = _table([(f"{method}/{task}", [ids[row] for row in chosen])])
            parts.append(named.assign(method=method, task=task))
    drawn = _table([(f"control-{k}", _drawn(ids, size, seed, CONTROLS, k)) for k in range(controls)])
    parts.append(drawn.assign(method=None, task=None))
    return pd.concat(parts, ignore_index=True)[["subset", "method", "task", "id"]].astype("str")


def left_out(ids: Sequence[str], number: int, seed: int) -> pd.DataFrame:
    """The table left_out.parquet: `subset` and `id`, the one example that is left out; none (null) of "all".

    A larger number adds examples to the same first ones. Raises ScoreError where there are fewer examples.
    """
    if number > len(ids):
        raise ScoreError(f"truth.leave_one_out: {number} is more than the {several(len(ids), 'example')} there are")
    chosen = np.random.default_rng([seed, LEFT_OUT]).permutation(len(ids))[:number]
    rows = [(WHOLE, None), *((f"without-{ids[i]}", ids[i]) for i in chosen)]
    return pd.DataFrame(rows, columns=["subset", "id"])


def trainings(part: str, table: pd.DataFrame, ids: Sequence[str], seeds: Sequence[int]) -> list[Training]:
    """All trainings of a part ("subsets", "removals", "left_out") by its table, those of one set side by side."""
    found = []
    for subset, of_set in table.groupby("subset", sort=False):
        named = set(of_set["id"].dropna())
        if part == "subsets":
            members, masked = [id for id in ids if id in named], None
        elif part == "removals":
            members, masked = [id for id in ids if id not in named], None
        else:
            members, masked = list(ids), next(iter(named), None)
        found += [Training(str(subset), seed, tuple(members), masked) for seed in seeds]
    return found


def _size(n: int, share: float) -> int:
    """How many of n examples a share is: at least one, and never all."""
    if n < 2:
        raise ScoreError(f"truth: {several(n, 'example')} cannot be divided; 2 are the least")
    return min(max(round(share * n), 1), n - 1)


def _drawn(ids: Sequence[str], size: int, *stream: int) -> list[str]:
    return [ids[row] for row in sorted(np.random.default_rng(stream).permutation(len(ids))[:size])]


def _table(sets: Sequence[tuple[str, Sequence[str]]]) -> pd.DataFrame:
    return pd.DataFrame([(subset, id) for subset, members in sets for id in members], columns=["subset", "id"])


def _check(what: str, evaluated: int, size: int) -> None:
    if evaluated < size:
        raise ScoreError(
            f"truth.removals: {what} has evaluated {several(evaluated, 'example')}, fewer than the {size} to remove; "
            "lower truth.drop or leave it out"
        )
