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


def test_what_is_on_a_threshold_stays_there_whatever_the_width_of_the_scores():
    values = np.arange(1000) % 21 / 20
    table = pd.DataFrame({"id": [f"e{i}" for i in range(1000)], "score_icp": values})
    narrow = table.assign(score_icp=values.astype(np.float32))
    for threshold in (">0.6", ">0.8", "<=0.6"):
        wanted = icprobe.select(table, "icp", threshold)["id"].tolist()
        assert icprobe.select(narrow, "icp", threshold)["id"].tolist() == wanted
        assert icprobe.select(narrow.convert_dtypes(), "icp", threshold)["id"].tolist() == wanted


def test_a_table_of_texts_with_empty_cells_is_read_as_numbers():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({f"score_{m}": rng.random(40) for m in ("x", "y")}).assign(mean_effect_x=rng.random(40))
    table = table.assign(id=[f"e{i}" for i in range(40)], n_target=rng.integers(3, 90, 40))
    texts = table.astype(str)
    texts.loc[3, ["score_x", "mean_effect_x"]] = ""
    best = icprobe.select(table.drop(index=3), "x", "top 10%")["id"].tolist()
    assert icprobe.select(texts, "x", "top 10%")["id"].tolist() == best
    pd.testing.assert_frame_equal(icprobe.correlate(table.astype(str)), icprobe.correlate(table))
    assert "spearman_partial_length" not in {*icprobe.correlate(texts.assign(n_target=""))["statistic"]}
