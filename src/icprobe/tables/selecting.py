"""Chooses rows: samples of a table, and the tasks that `select` names."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from icprobe.errors import DataError, shown
from icprobe.tables.checking import check_tasks, find_rows


def sample(
    frame: pd.DataFrame, n: int, stratify: str | None = None, seed: int = 0, where: str = "data.train.sample"
) -> pd.DataFrame:
    """Draws n random rows, in file order; with `stratify` equally many of each value of that column, nulls left out.

    where: the key of the configuration, for messages. Raises DataError where there are too few rows.
    """
    generator = np.random.default_rng(seed)
    if stratify is None:
        groups = [("all", np.arange(len(frame)))]
    elif stratify not in frame:
        listed = "" if stratify == "subset" else "; list it under data.labels"
        raise DataError(f"{where}.stratify: the data have no column {stratify!r}{listed}.")
    else:
        groups = [
            (value, np.flatnonzero(frame[stratify] == value)) for value in sorted(frame[stratify].dropna().unique())
        ]
    if not groups:
        raise DataError(f"{where}.stratify: no row has a value of {stratify!r}.")
    share, rest = divmod(n, len(groups))
    chosen: list[int] = []
    for number, (value, rows) in enumerate(groups):
        wanted = share + (number < rest)
        if wanted > len(rows):
            of = "the rows" if stratify is None else f"the rows of {shown(value)}"
            raise DataError(f"{where}: {wanted} of {of} are wanted, but there are only {len(rows)}.")
        chosen += generator.choice(rows, size=wanted, replace=False).tolist()
    return frame.iloc[sorted(chosen)].reset_index(drop=True)


def select_tasks(
    frame: pd.DataFrame, select: str | list[str], seed: int, hidden_states: Callable[[], np.ndarray] | None = None
) -> pd.DataFrame:
    """Takes the tasks that data.tasks.select names, in its order where it is a list of ids, else in file order.

    hidden_states: gives the mean hidden state of each row's document [rows, d]; called for "kmeans:n" alone.
    Raises DataError for unknown ids, too few rows, or an id that `check_tasks` refuses.
    """
    if isinstance(select, list):
        found = find_rows(frame, select)
        if (found < 0).any():
            unknown = select[int((found < 0).argmax())]
            known = ", ".join(map(shown, frame["id"][:3]))
            raise DataError(f"data.tasks.select: there is no task {shown(unknown)}; the first ids are {known}.")
        rows = found.tolist()
        if len(set(rows)) < len(rows):
            raise DataError("data.tasks.select: a task appears twice.")
    elif select == "all":
        rows = list(range(len(frame)))
    else:
        kind, number = select.split(":")
        n = int(number)
        if n > len(frame):
            raise DataError(f"data.tasks.select: {n} tasks are wanted, but there are {len(frame)}.")
        if kind == "first":
            rows = list(range(n))
        elif kind == "random":
            rows = sorted(np.random.default_rng(seed).choice(len(frame), size=n, replace=False).tolist())
        else:
            rows = _nearest_to_centres(hidden_states(), n, seed)
    chosen = frame.iloc[rows].reset_index(drop=True)
    check_tasks(chosen["id"])
    return chosen


def _nearest_to_centres(points: np.ndarray, n: int, seed: int) -> list[int]:
    from sklearn.cluster import KMeans
    from sklearn.metrics import pairwise_distances

    centres = KMeans(n_clusters=n, n_init=10, random_state=seed).fit(points).cluster_centers_
    distances = pairwise_distances(centres, points)
    rows: list[int] = []
    for centre in distances:
        # Two centres may have the same nearest row; the later one takes its next.
        rows.append(next(int(row) for row in np.argsort(centre, kind="stable") if int(row) not in rows))
    return sorted(rows)
