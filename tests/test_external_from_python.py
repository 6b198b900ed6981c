"""Scores that somebody else computed join from Python as they do in the workflow."""

import numpy as np
import pytest
from test_from_python import TASKS, TRAIN, prepared  # noqa: F401, a fixture

import icprobe
from icprobe.errors import DataError

ROWS = [{name: value for name, value in row.items() if name != "id"} for row in TRAIN]


def test_files_that_number_their_rows_join_with_rows_that_came_without_ids(prepared, tmp_path):  # noqa: F811
    np.save(tmp_path / "s.npy", np.arange(float(len(ROWS))))
    section = {"path": str(tmp_path / "s.npy"), "orientation": "scores", "join": "id"}

    def valued(rows):
        return icprobe.value(rows, TASKS, model=prepared, methods=["theirs"], external={"theirs": section})[
            "score_theirs"
        ]

    for rows in (ROWS, ROWS[::-1]):
        assert valued(rows).tolist() == [*range(len(ROWS))], "by place, not by text"
    with pytest.raises(DataError, match="7 of 7 are not in the files"):
        valued([{"id": f"e{n}", **row} for n, row in enumerate(ROWS)])
