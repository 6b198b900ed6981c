"""Scores and label AUCs against naive loops."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from icprobe import data
from icprobe.errors import ArtifactError, ConfigError, ScoreError
from icprobe.statistics import aggregate, auc, label_aucs, widen


def matrix(values, ids=None):
    values = np.asarray(values, dtype=np.float32)
    ids = [f"e{i}" for i in range(len(values))] if ids is None else ids
    return pd.DataFrame({"id": ids} | {f"t{k}": column for k, column in enumerate(values.T)})


def test_mean_is_reduced_in_float64():
    values = np.full((1, 3), 1e8, dtype=np.float32)
    values[0, 1:] = 1
    assert aggregate(matrix(values), "mean")["score"][0] == (1e8 + 2) / 3


def test_an_effect_of_zero_does_not_count_as_positive():
    table = aggregate(matrix([[0, 1, -1, 2], [0, 0, -0.0, 0]]), "fraction_positive")
    assert table["score"].tolist() == [0.5, 0.0]
    assert table["score"].dtype == np.float64


def test_a_share_of_tasks_meets_the_threshold_of_the_same_name():
    values = np.where(np.arange(100)[None] < np.arange(101)[:, None], 1, -1)
    scores = aggregate(matrix(values), "fraction_positive")["score"]
    assert scores.tolist() == [float(f"{k / 100:.2f}") for k in range(101)]


def test_scores_keep_the_order_of_the_rows():
    table = aggregate(matrix([[3, 3], [1, 1], [2, 2]], ids=["z", "a", "m"]), "mean")
    assert table.to_dict("list") == {"id": ["z", "a", "m"], "score": [3.0, 1.0, 2.0]}


@given(arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
@settings(max_examples=50)
def test_a_float32_widens_to_its_shortest_decimal(values):
    assert widen(values).tolist() == [float(str(value)) for value in values]


def test_a_single_score_column_is_widened_not_reduced():
    single = pd.DataFrame({"id": ["a", "b"], "score": np.float32([0.85, -7.1])})
    assert aggregate(single, "fraction_positive")["score"].tolist() == [0.85, -7.1]


def test_an_error_names_five_ids_and_the_count():
    values = np.ones((20, 3))
    values[4:12, 1] = np.nan
    with pytest.raises(ScoreError) as error:
        aggregate(matrix(values), "mean")
    assert "8 of 20" in str(error.value)
    assert "e8 (nan)" in str(error.value)
    assert "e9" not in str(error.value)


@pytest.mark.parametrize("how", ["mean", "fraction_positive"])
def test_an_example_that_was_not_evaluated_scores_nan_only_where_allowed(how):
    values = [[1, 1], [np.nan, np.nan], [1, np.nan]]
    assert aggregate(matrix(values), how, allow_missing=True)["score"].isna().tolist() == [False, True, True]
    with pytest.raises(ScoreError, match="2 of 3"):
        aggregate(matrix(values), how)
    with pytest.raises(ScoreError, match="inf"):
        aggregate(matrix([[1, np.inf]]), how, allow_missing=True)


@pytest.mark.parametrize("how", ["mean", "fraction_positive"])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_scores_of_a_file_do_not_depend_on_how_many_rows_are_read_at_a_time(how, rows, tmp_path):
    values = np.random.default_rng(0).normal(size=(57, 23)).astype(np.float32)
    data.write_parquet(matrix(values), tmp_path / "m.parquet")
    pieces = list(data.read_pieces(tmp_path / "m.parquet", rows * 4 * 24))
    assert [len(piece) for piece in pieces[:-1]] == [rows] * (len(pieces) - 1)
    pd.testing.assert_frame_equal(aggregate(pieces, how), aggregate(matrix(values), how), check_exact=True)


def test_what_is_refused_is_counted_over_all_pieces():
    values = np.ones((20, 3))
    values[4:12, 1] = np.nan
    with pytest.raises(ScoreError, match=r"8 of 20 examples .*: e4 \(nan\), e5"):
        aggregate((matrix(values[i : i + 5], [f"e{j}" for j in range(i, i + 5)]) for i in range(0, 20, 5)), "mean")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_matrix_is_named(damage, tmp_path):
    path = tmp_path / "m.parquet"
    data.write_parquet(matrix(np.ones((5, 2))), path)
    path.write_bytes(path.read_bytes()[:-20]) if damage == "truncated" else path.unlink()
    with pytest.raises(ArtifactError, match=r"m\.parquet: is damaged"):
        aggregate(data.read_pieces(path), "mean")


def test_an_unknown_aggregator_is_refused():
    with pytest.raises(ConfigError, match="median"):
        aggregate(matrix([[1.0]]), "median")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
@settings(max_examples=60)
def test_auc_is_the_share_of_pairs_in_order_with_ties_half(examples):
    positive = np.array([label for label, _ in examples])
    scores = np.array([float(score) for _, score in examples])
    wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    naive = np.mean(wins) if wins else np.nan
    assert np.isclose(auc(positive, scores), naive, equal_nan=True)


def test_auc_leaves_out_what_was_not_evaluated():
    assert auc([True, True, False], [np.nan, 2.0, 1.0]) == 1.0
    assert np.isnan(auc([True, False], [np.nan, 1.0]))


def test_labels_are_held_against_all_others_and_each_kind():
    ids = [f"e{i}" for i in range(7)]
    kinds = ["sound", "sound", "cut", "cut", "swapped", None, "swapped"]
    labels = pd.DataFrame({"id": ids[::-1], "planted": kinds[::-1]})
    scores = {"x": pd.Series([5.0, 3, 4, 1, 6, 9, np.nan], index=ids)}
    table = label_aucs(scores, labels, {"planted": "sound", "absent": "good"})
    rows = table.set_index("value")
    assert list(rows.index) == ["others", "cut", "swapped"]
    assert rows["auc"].tolist() == [3 / 6, 3 / 4, 0.0]
    assert rows["n_positive"].tolist() == [2, 2, 2]
    assert rows["n_negative"].tolist() == [3, 2, 1]


def test_a_label_of_two_values_is_one_row():
    labels = pd.DataFrame({"id": list("abc"), "published_icp": ["<=0.5", ">0.9", None]})
    table = label_aucs({"x": pd.Series([1.0, 2, 0], index=list("abc"))}, labels, {"published_icp": [">0.9"]})
    assert table.to_dict("records") == [
        {
            "label": "published_icp",
            "value": "<=0.5",
            "method": "x",
            "auc": 1.0,
            "n_positive": 1,
            "n_negative": 1,
        }
    ]
