"""Scores and label AUCs against naive loops."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from scipy.stats import t as student

from icprobe.analysis.labels import LABEL_COLUMNS, MOST_KINDS, auc, kinds, label_aucs
from icprobe.analysis.statistics import aggregate, warning_of_one_task, warning_of_ties, widen
from icprobe.errors import ArtifactError, ConfigError, ScoreError
from icprobe.tables import parquet


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


def test_a_share_of_tasks_has_the_mean_effect_beside_it():
    effects = matrix([[3, 1, -1, 2], [1, 1, 1, -0.5]])
    table = aggregate([effects[:1], effects[1:]], "fraction_positive")
    assert table.to_dict("list") == {"id": ["e0", "e1"], "score": [0.75, 0.75], "mean_effect": [1.25, 0.625]}
    assert list(aggregate(effects, "mean")) == ["id", "score"]


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
    # A second column, of another type, would widen both.
    counted = aggregate(single.assign(n_tasks=np.int32([20, 100])), "fraction_positive")
    assert counted["score"].tolist() == [0.85, -7.1]
    assert counted["n_tasks"].tolist() == [20, 100]


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
    parquet.write_parquet(matrix(values), tmp_path / "m.parquet")
    pieces = list(parquet.read_pieces(tmp_path / "m.parquet", rows * 4 * 24))
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
    parquet.write_parquet(matrix(np.ones((5, 2))), path)
    path.write_bytes(path.read_bytes()[:-20]) if damage == "truncated" else path.unlink()
    with pytest.raises(ArtifactError, match=r"m\.parquet: is damaged"):
        aggregate(parquet.read_pieces(path), "mean")


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
    assert np.isclose(auc(positive, scores)[0], naive, equal_nan=True)


def test_auc_leaves_out_what_was_not_evaluated():
    assert auc([True, True, False], [np.nan, 2.0, 1.0])[0] == 1.0
    assert np.isnan(auc([True, False], [np.nan, 1.0])).all()


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


def test_a_value_called_others_is_not_taken_for_all_others():
    ids = [f"e{i}" for i in range(6)]
    labels = pd.DataFrame({"id": ids, "kind": ["good", "good", "cut", "cut", "others", "others"]})
    table = label_aucs({"x": pd.Series([5.0, 4, 9, 8, 1, 0], index=ids)}, labels, {"kind": ["good"]})
    rows = table.set_index("value")
    assert rows["auc"].to_dict() == {"all others": 0.5, "cut": 0.0, "others": 1.0}
    assert rows["n_negative"].to_list() == [4, 2, 2]


def test_a_label_of_two_values_is_one_row():
    labels = pd.DataFrame({"id": list("abc"), "published_icp": ["<=0.5", ">0.9", None]})
    table = label_aucs({"x": pd.Series([1.0, 2, 0], index=list("abc"))}, labels, {"published_icp": [">0.9"]})
    assert list(table.columns) == LABEL_COLUMNS
    (row,) = table.to_dict("records")
    assert np.isnan([row.pop("low"), row.pop("high")]).all()  # one example on each side
    assert row == {
        "label": "published_icp",
        "value": "<=0.5",
        "method": "x",
        "auc": 1.0,
        "n_positive": 1,
        "n_negative": 1,
    }


def naive_delong(positive, negative):
    """AUC and DeLong's variance: each example's share of pairs in order, its variance over the examples of a side."""
    order = [[(a > b) + 0.5 * (a == b) for b in negative] for a in positive]
    mean = sum(map(sum, order)) / (len(positive) * len(negative))
    variance = 0
    by_negative = zip(*order, strict=True)
    for shares in ([sum(row) / len(negative) for row in order], [sum(row) / len(positive) for row in by_negative]):
        middle = sum(shares) / len(shares)
        variance += sum((share - middle) ** 2 for share in shares) / (len(shares) - 1) / len(shares)
    return mean, variance


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "levels"), [(81, 7, None), (40, 200, None), (81, 7, 13), (9, 9, 4)]
)
def test_an_aucs_interval_is_delongs_on_the_logit_scale(n_positive, n_negative, levels):
    rng = np.random.default_rng(n_positive)
    positive, negative = rng.normal(0.7, 1, n_positive), rng.normal(0, 1, n_negative)
    if levels:  # as shares of tasks are tied
        positive, negative = (np.round(np.clip((x + 3) / 6, 0, 1) * levels) for x in (positive, negative))
    labels = np.repeat([True, False], [n_positive, n_negative])
    value, low, high = auc(labels, np.concatenate([positive, negative]))
    expected, variance = naive_delong(positive, negative)
    assert value == pytest.approx(expected, rel=1e-12)
    half = np.log(high / (1 - high)) - np.log(value / (1 - value))
    assert half == pytest.approx(np.log(value / (1 - value)) - np.log(low / (1 - low)))
    # Student's t of some degrees of freedom, between those of the smaller side and of both.
    quantile = half * value * (1 - value) / np.sqrt(variance)
    limits = student.ppf(0.975, [n_positive + n_negative - 2, min(n_positive, n_negative) - 1])
    assert limits[0] <= quantile <= limits[1]


@pytest.mark.parametrize("n_negative", [7, 27])
def test_an_aucs_interval_covers_the_truth_as_often_as_it_says(n_negative):
    rng, truth, covered, n = np.random.default_rng(0), 0.8, 0, 400
    labels = np.repeat([True, False], [81, n_negative])
    shift = np.sqrt(2) * norm.ppf(truth)
    for _ in range(n):
        _, low, high = auc(labels, np.concatenate([rng.normal(shift, 1, 81), rng.normal(0, 1, n_negative)]))
        covered += low <= truth <= high
    assert 0.92 <= covered / n <= 0.985, covered / n


def test_separated_classes_leave_an_interval_that_more_examples_close():
    reach = {}
    for n in (2, 7, 100):
        labels, scores = np.repeat([True, False], [81, n]), np.repeat([1.0, 0.0], [81, n])
        value, low, high = auc(labels, scores)
        assert (value, high) == (1.0, 1.0)
        assert auc(~labels, scores) == pytest.approx((0.0, 0.0, 1 - low))
        reach[n] = 1 - low
    # Newcombe (2006), method 5: (1 - a)² = 1.96²·a·(1 - a)·(1 + N·(1 - a)/(2 - a) + N·a/(1 + a))/(81·7), N = 43.
    a = 1 - reach[7]
    spread = a * (1 - a) * (1 + 43 * (1 - a) / (2 - a) + 43 * a / (1 + a)) / (81 * 7)
    assert (1 - a) ** 2 == pytest.approx(norm.ppf(0.975) ** 2 * spread)
    assert 0.5 > reach[2] > reach[7] > reach[100] > 0


def test_a_class_of_equal_scores_leaves_no_narrower_an_interval():
    # Simulated with 3 examples against 30 of scores 0 or 1: DeLong's variance alone covers the truth in 70%.
    labels = np.repeat([True, False], [3, 30])
    value, low, high = auc(labels, np.r_[np.ones(3), np.tile([0.0, 1.0], 15)])
    assert value == 0.75
    assert low < 0.5 < 0.9 < high < 1
    assert auc(~labels, np.r_[np.ones(3), np.tile([0.0, 1.0], 15)]) == pytest.approx((0.25, 1 - high, 1 - low))


def test_an_interval_that_cannot_be_told_is_none():
    assert np.isnan(auc([True, False, False], [1.0, 2.0, 0.0])[1:]).all()  # one positive has no variance
    assert auc([True, True, False, False], [3.0] * 4)[0] == 0.5
    assert np.isnan(auc([True, True, False, False], [3.0] * 4)[1:]).all()


SCORES = {"x": pd.Series(np.arange(40.0), index=[f"e{i}" for i in range(40)])}


@pytest.mark.parametrize("good", [{}, {"quality": []}, {"quality": ["none has it"]}, {"kind": ["a", "b"]}])
def test_a_label_that_marks_no_one_side_draws_no_column(good):
    labels = pd.DataFrame({"id": SCORES["x"].index, "quality": np.linspace(0, 1, 40), "kind": ["a", "b"] * 20})
    assert label_aucs(SCORES, labels, good).empty


def test_a_continuous_label_is_one_column_and_colours_nothing():
    labels = pd.DataFrame({"id": SCORES["x"].index, "quality": np.linspace(0, 1, 40), "kind": ["a", "b"] * 20})
    table = label_aucs(SCORES, labels, {"quality": ["1.0", "0.0"], "kind": ["a"]})
    assert list(zip(table["label"], table["value"], strict=True)) == [("quality", "others"), ("kind", "b")]
    assert table["n_negative"].tolist() == [38, 20]
    assert kinds(labels, ["absent", "quality", "kind"]).name == "kind"
    assert kinds(labels, ["quality"]) is None
    assert kinds(labels.assign(kind=None), ["kind"]) is None
    assert MOST_KINDS < 40


def test_a_share_that_many_examples_have_is_said_not_to_rank_them():
    def said(scores, **columns):
        return warning_of_ties("icp", pd.DataFrame({"score": scores, **columns}))

    assert said([1.0] * 40, mean_effect=0.1).startswith(
        "icp cannot tell the 40 examples apart: all have the score 1. A"
    )
    some = said([1.0] * 3 + [0.1, 0.2, 0.3, 0.4, np.nan], mean_effect=0.1)
    assert some.startswith("icp cannot tell 3 of the 7 examples apart: all have the score 1.")
    assert "attribution: {aggregators: {icp: mean}}" in some
    assert said([1.0, 1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], mean_effect=0.1) == ""
    assert said([1.0] * 40) == "", "of a number of tokens there is no mean effect"
    assert said([1.0], mean_effect=0.1) == said([np.nan, np.nan], mean_effect=0.1) == ""


def test_a_task_that_decides_the_means_is_named_with_its_share_of_their_variance():
    generator = np.random.default_rng(0)
    effects = generator.normal(size=(200, 5)) * [1, 1, 1, 1, 10]
    matrix = pd.DataFrame(effects, columns=list("abcde"))
    matrix.insert(0, "id", [f"z{row}" for row in range(200)])
    scores = aggregate(matrix, "mean")
    share = np.cov(effects[:, 4] / 5, scores["score"])[0, 1] / scores["score"].var()
    said = warning_of_one_task("influence", matrix, scores)
    assert said.startswith(f"One of the 5 tasks, e, makes {100 * share:.0f}% of the variance of influence's scores")
    assert "tasks, e (What is 6 times 7?), makes" in warning_of_one_task(
        "influence", matrix, scores, {"e": "What is\n6 times 7?"}
    )
    assert warning_of_one_task("influence", (matrix[k : k + 7] for k in range(0, 200, 7)), scores[::-1]) == said

    unknown = scores.assign(score=scores["score"].where(scores["id"] != "z3"))
    assert "e, makes" in warning_of_one_task("influence", matrix, unknown)
    even = matrix.assign(e=matrix["e"] / 10)
    assert warning_of_one_task("influence", even, aggregate(even, "mean")) == ""
    assert warning_of_one_task("icp", matrix, aggregate(matrix, "fraction_positive")) == "", "a share weighs all alike"
    of_two = matrix[["id", "a", "e"]]
    assert warning_of_one_task("influence", of_two, aggregate(of_two, "mean")) == ""
    equal = matrix.assign(**dict.fromkeys("abcde", 1.0))
    assert warning_of_one_task("influence", equal, aggregate(equal, "mean")) == ""
