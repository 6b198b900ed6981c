"""Correlations and their intervals against scipy, the residual formula and a naive bootstrap."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from icprobe.analysis import correlations as module
from icprobe.analysis.correlations import correlations, fisher_interval, label_correlations, resample_counts
from icprobe.errors import ScoreError


def score_set(n, seed=0, methods=4):
    """Scores with ties, a common cause and ids; and lengths that correlate with them."""
    rng = np.random.default_rng(seed)
    ids = [f"e{i}" for i in range(n)]
    cause = rng.standard_normal(n)
    scores = {}
    for k in range(methods):
        values = cause + rng.standard_normal(n)
        scores[f"m{k}"] = pd.Series(np.round(2 * values) / 2 if k % 2 else values, index=ids)
    return scores, pd.Series(np.round(np.exp(3 + cause + rng.standard_normal(n))), index=ids)


def rows_of(table, statistic):
    rows = table[table["statistic"] == statistic]
    return {(row.method_a, row.method_b): row for row in rows.itertuples()}


def residual_partial(a, b, t):
    """Partial rank correlation by its textbook meaning: that of the residuals of ranks regressed on ranks."""
    design = np.column_stack([np.ones(len(t)), rankdata(t)])
    left = [rankdata(x) - design @ np.linalg.lstsq(design, rankdata(x), rcond=None)[0] for x in (a, b)]
    return pearsonr(*left).statistic


NAIVE = {
    "spearman": lambda a, b, t: spearmanr(a, b).statistic,
    "pearson": lambda a, b, t: pearsonr(a, b).statistic,
    "kendall": lambda a, b, t: kendalltau(a, b).statistic,
    "spearman_partial_length": residual_partial,
}


@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_those_of_scipy_and_of_the_residual_formula(seed):
    scores, n_target = score_set(60, seed)
    table = correlations(scores, n_target, resamples=2)
    for row in table.itertuples():
        naive = NAIVE[row.statistic](scores[row.method_a], scores[row.method_b], n_target)
        assert abs(row.value - naive) < 1e-12, (row, naive)
    assert len(table) == 6 * 4


def test_intervals_are_those_of_a_naive_bootstrap_of_the_same_resamples():
    scores, n_target = score_set(40, methods=3)
    table = correlations(scores, n_target, resamples=60, seed=3)
    draws = [np.repeat(np.arange(40), row.astype(int)) for row in resample_counts(40, 60, 3)]
    for row in table.itertuples():
        a, b = scores[row.method_a].to_numpy(), scores[row.method_b].to_numpy()
        naive = [NAIVE[row.statistic](a[d], b[d], n_target.to_numpy()[d]) for d in draws]
        gap = np.abs(np.percentile(naive, [2.5, 97.5]) - [row.low, row.high]).max()
        assert gap < 1e-10, (row, gap)


def test_resamples_draw_n_of_n_with_equal_chance():
    counts = resample_counts(50, 4000, 0)
    assert (counts.sum(axis=1) == 50).all()
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.1
    assert abs(counts.var() - (1 - 1 / 50)) < 0.02


def test_intervals_do_not_depend_on_how_resamples_are_cut(monkeypatch):
    scores, n_target = score_set(30)
    whole = correlations(scores, n_target, resamples=50)
    monkeypatch.setattr(module, "ELEMENTS_AT_ONCE", 1000)
    monkeypatch.setattr(module, "KENDALL_ROWS_AT_ONCE", 7)
    pd.testing.assert_frame_equal(whole, correlations(scores, n_target, resamples=50), rtol=0, atol=1e-12)


def test_a_pair_has_the_same_interval_alone_and_among_others():
    scores, n_target = score_set(50)
    among = correlations(scores, n_target, resamples=50)
    among = among[(among["method_a"] == "m1") & (among["method_b"] == "m3")].reset_index(drop=True)
    alone = correlations(scores, n_target, pairs=[("m1", "m3")], resamples=50)
    pd.testing.assert_frame_equal(among, alone, rtol=0, atol=1e-12)


def test_pairs_stand_in_the_order_of_the_scores():
    scores, _ = score_set(10, methods=3)
    table = correlations({name: scores[name] for name in ("m2", "m0", "m1")}, None, resamples=5)
    pairs = list(dict.fromkeys(zip(table["method_a"], table["method_b"], strict=True)))
    assert pairs == [("m2", "m0"), ("m2", "m1"), ("m0", "m1")]
    assert set(table["statistic"]) == {"spearman", "pearson", "kendall"}


def test_correlations_do_not_depend_on_the_order_of_ids():
    scores, n_target = score_set(30, methods=2)
    shuffled = {"m0": scores["m0"], "m1": scores["m1"].sample(frac=1, random_state=1)}
    pd.testing.assert_frame_equal(
        correlations(scores, n_target, resamples=20), correlations(shuffled, n_target[::-1], resamples=20)
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("analytic_above", [10, 1000])
def test_a_constant_method_gives_nan_without_a_warning(analytic_above):
    scores, n_target = score_set(30, methods=2)
    table = correlations(scores | {"flat": scores["m0"] * 0}, n_target, resamples=20, analytic_above=analytic_above)
    with_flat = table["method_b"] == "flat"
    assert table.loc[with_flat, ["value", "low", "high"]].isna().all(axis=None)
    assert table.loc[~with_flat, ["value", "low", "high"]].notna().all(axis=None)


def test_what_length_determines_has_no_partial_correlation():
    scores, n_target = score_set(30, methods=2)
    table = correlations(scores | {"length": -(n_target**2)}, n_target, resamples=20)
    partial, plain = rows_of(table, "spearman_partial_length"), rows_of(table, "spearman")
    assert np.isnan(partial["m0", "length"].value)
    assert abs(plain["m0", "length"].value) > 0.1
    assert not np.isnan(partial["m0", "m1"].value)


@pytest.mark.filterwarnings("error")
def test_undefined_resamples_are_dropped():
    # Only one example differs: a third of the resamples miss it and are constant.
    ids = list("abcdefgh")
    scores = {"rare": pd.Series([1.0] + [0.0] * 7, index=ids), "other": pd.Series(np.arange(8.0), index=ids)}
    row = rows_of(correlations(scores, None, resamples=200), "spearman")["rare", "other"]
    draws = [np.repeat(np.arange(8), counts.astype(int)) for counts in resample_counts(8, 200, 0)]
    rare, other = scores["rare"].to_numpy(), scores["other"].to_numpy()
    naive = [spearmanr(rare[d], other[d]).statistic for d in draws if 0 in d and set(d) != {0}]
    assert 100 < len(naive) < 180
    assert np.allclose([row.low, row.high], np.percentile(naive, [2.5, 97.5]), atol=1e-12)


def test_a_pair_is_computed_over_the_examples_that_both_have():
    scores, n_target = score_set(40, methods=3)
    scores["m1"].iloc[:15] = np.nan
    table = correlations(scores, n_target, resamples=30)
    subset = {name: score.iloc[15:] for name, score in scores.items()}
    alone = correlations(subset, n_target, pairs=[("m0", "m1"), ("m1", "m2")], resamples=30)
    with_m1 = table[(table["method_a"] == "m1") | (table["method_b"] == "m1")].reset_index(drop=True)
    pd.testing.assert_frame_equal(with_m1, alone, rtol=0, atol=1e-12)
    assert set(with_m1["n"]) == {25}
    assert rows_of(table, "kendall")["m0", "m2"].n == 40


def test_nothing_in_common_is_a_row_that_says_zero():
    ids = ["a", "b"]
    scores = {"x": pd.Series([1.0, np.nan], index=ids), "y": pd.Series([np.nan, 1.0], index=ids)}
    table = correlations(scores, None)
    assert table["n"].tolist() == [0, 0, 0]
    assert table["value"].isna().all()


@pytest.mark.parametrize("statistic", ["spearman", "pearson", "kendall", "spearman_partial_length"])
def test_analytic_and_bootstrap_intervals_agree_on_independent_normals(statistic):
    rng = np.random.default_rng(5)
    scores = {name: pd.Series(rng.standard_normal(800)) for name in "ab"}
    n_target = pd.Series(rng.integers(1, 500, 800))
    boot = rows_of(correlations(scores, n_target, resamples=1000), statistic)["a", "b"]
    analytic = rows_of(correlations(scores, n_target, analytic_above=799), statistic)["a", "b"]
    assert (boot.interval, analytic.interval) == ("bootstrap", "analytic")
    assert boot.value == analytic.value
    width = analytic.high - analytic.low
    assert abs(boot.low - analytic.low) < 0.15 * width
    assert abs(boot.high - analytic.high) < 0.15 * width


@pytest.mark.filterwarnings("error")
def test_the_fisher_interval_is_the_textbook_one():
    low, high = fisher_interval("pearson", 0.5, 103)
    assert np.allclose([low, high], np.tanh(np.arctanh(0.5) + np.array([-1, 1]) * 1.959963984540054 / 10))
    assert fisher_interval("kendall", 1.0, 100) == (1.0, 1.0)
    assert np.isnan(fisher_interval("kendall", 0.5, 4)).all()


def test_scores_of_other_examples_are_refused():
    scores, n_target = score_set(10, methods=2)
    with pytest.raises(ScoreError, match="same examples"):
        correlations({"m0": scores["m0"], "m1": scores["m1"].iloc[1:]}, None)
    with pytest.raises(ScoreError, match="1 examples have no length, the first is 'e0'"):
        correlations(scores, n_target.iloc[1:])
    with pytest.raises(ScoreError, match="infinite"):
        correlations({"m0": scores["m0"], "m1": scores["m1"].replace(scores["m1"].max(), np.inf)}, None)
    with pytest.raises(ScoreError, match="No scores of m7"):
        correlations(scores, None, pairs=[("m0", "m7")])


# --- with labels that are numbers


@pytest.mark.parametrize("lengths", [True, False])
def test_rank_correlations_with_labels_are_those_of_scipy_over_labelled_and_evaluated_examples(lengths):
    scores, n_target = score_set(40, methods=2)
    scores["m1"] = scores["m1"].where(np.arange(40) > 3)
    stars = pd.Series(np.random.default_rng(5).integers(1, 6, 40).astype(float), index=scores["m0"].index)
    stars = stars.where(np.arange(40) < 36).sample(frac=1, random_state=1)
    table = label_correlations(scores, {"m0": stars}, n_target if lengths else None, resamples=50, seed=1)
    assert list(table) == ["label", "method", "statistic", "value", "low", "high", "interval", "n"]
    assert table["label"].tolist() == ["m0"] * (4 if lengths else 2), "a label may have a method's name"
    for row in table.itertuples():
        both = pd.DataFrame({"a": scores[row.method], "b": stars, "t": n_target}).dropna()
        assert row.n == len(both) == {"m0": 36, "m1": 32}[row.method]
        assert abs(row.value - NAIVE[row.statistic](both["a"], both["b"], both["t"])) < 1e-12, row
        assert row.low <= row.value <= row.high


def test_without_labels_that_are_numbers_the_table_is_empty():
    scores, n_target = score_set(5)
    assert label_correlations(scores, {}, n_target).empty
