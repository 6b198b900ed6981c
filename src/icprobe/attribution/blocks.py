"""Blocks of matrices that were computed before, so that new tasks and new examples are computed for their price alone.

An entry of most methods depends on its example and its task, and on nothing beside them but what all entries share: the
model, the templates, the settings. So it is kept under the contents of the two, and is found again whatever stands
beside them, in whichever order, under whatever ids.
"""

import logging
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from icprobe import artifacts
from icprobe.tables.checking import TEXTS
from icprobe.tables.conversations import HELD

logger = logging.getLogger(__name__)

DIGITS = 32  # of a content's digest


def contents(table: pd.DataFrame) -> np.ndarray:
    """What stands for each row's texts, whatever its id, domain and labels: bytes [n]."""
    texts = table[[column for column in (*TEXTS, *HELD) if column in table]].astype(object)
    rows = texts.where(texts.notna(), None).to_dict("records")
    return np.array([artifacts.digest(row)[:DIGITS] for row in rows], dtype=f"S{DIGITS}")


class Blocks:
    """The blocks of one method's matrix, in a folder that belongs to all that its entries share.

    work: names the work that a job is to do. Where it was done before it is to be done again, for there is no other
    reason to ask for it than that its result is not trusted: nothing is then known. used: whether anything was.
    """

    def __init__(self, folder: str | Path, work: str) -> None:
        self.folder, self._work, self.used = Path(folder), work, False

    def find(self, examples: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """The entries that are known, of these contents: [n, M] float32, NaN for the others."""
        values = np.full((len(examples), len(tasks)), np.nan, dtype=np.float32)
        blocks = [block for _, block in self._read("work", "examples", "tasks", "values")]
        if any(block["work"] == self._work for block in blocks):
            return values
        for block in blocks:
            rows, columns = (
                pd.Index(block[side]).get_indexer(wanted) for side, wanted in (("examples", examples), ("tasks", tasks))
            )
            here = np.ix_(np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0))
            values[here] = block["values"][np.ix_(rows[rows >= 0], columns[columns >= 0])]
        self.used = not np.isnan(values).all()
        return values

    def keep(self, examples: np.ndarray, tasks: np.ndarray, values: np.ndarray) -> None:
        """Keeps a block [n, M], and removes those that it holds wholly."""
        rows, columns = (np.unique(names, return_index=True)[1] for names in (examples, tasks))
        path = self.folder / f"{uuid.uuid4().hex}.npz"
        block = {"examples": examples[rows], "tasks": tasks[columns], "values": values[np.ix_(rows, columns)]}
        with artifacts.atomic_path(path) as aside:
            np.savez(aside, work=self._work, **block)
        for older, block in self._read("examples", "tasks"):
            held = np.isin(block["examples"], examples).all() and np.isin(block["tasks"], tasks).all()
            if older != path and held:
                older.unlink(missing_ok=True)

    def _read(self, *names: str) -> Sequence[tuple[Path, dict[str, np.ndarray]]]:
        found = []
        for path in sorted(self.folder.glob("[!.]*.npz")):
            try:
                with np.load(path) as file:
                    found.append((path, {name: file[name] for name in names}))
            except FileNotFoundError:  # another job has taken it into a larger one
                continue
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                logger.info("%s is damaged (%s); what it held is computed again", path, error)
                path.unlink(missing_ok=True)
        return found
