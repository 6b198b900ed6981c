"""`icprobe.select` takes the examples of a bin out of a table of scores."""

import numpy as np
import pandas as pd
import pytest
from conftest import demo_rows

import icprobe
from icprobe.errors import IcprobeError, ScoreError

SCORES = pd.DataFrame(
    {
        "id": ["b", "a", "10", "9", "c"],
        "score_icp": [1.0, 0.5, 1.0, 0.2, 0.9],
        "score_influence": [1.0, 2.0, 2.0, np.nan, -3.0],
    }
)


@pytest.mark.parametrize(
    ("bin", "ids"),
    [
        ("top 2", ["10", "a"]),  # equal scores in the order of ids as texts
        ("top 60%", ["10", "a", "b"]),
        ("top 50%", ["10", "a", "b"]),  # 2.5 rows: half is rounded up
        ("bottom 1", ["c"]),
        ("top 1%", ["10"]),  # one at least
        ("bottom 40 %", ["c", "b"]),
        (">0.9", ["10", "a"]),  # as many as ICP has there
        ("<=0.2", ["c"]),
    ],
)
def test_a_bin_holds_the_rows_that_it_names_best_fitting_first(bin, ids):
    assert icprobe.select(SCORES, "influence", bin)["id"].tolist() == ids


@pytest.mark.parametrize(
    ("method", "bin", "said"),
    [
        ("influence", "best 3", "not 'best 3'"),
        ("influence", "top 5", "holds 5 examples, but the other method has evaluated 4 of 5"),
        ("influence", "top 101%", "not 'top 101%'"),
        ("influence", "top 0", "not 'top 0'"),
        ("influence", "top 2.5", "not 'top 2.5'"),
        ("one_step", "top 2", "no scores of 'one_step'; the table has those of icp, influence"),
    ],
)
def test_a_bin_that_cannot_be_is_refused(method, bin, said):
    with pytest.raises(IcprobeError, match=said):
        icprobe.select(SCORES, method, bin)


def test_rows_that_appear_twice_are_refused_by_select():
    train = demo_rows("train")[:7]
    table = pd.DataFrame([dict(row, score_mine=1.0) for row in (*train, train[0])])
    with pytest.raises(ScoreError, match=rf"The id '{train[0]['id']}' appears twice"):
        icprobe.select(table, "mine", "top 2")
