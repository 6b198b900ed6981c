"""Differences of AUCs between methods on the same examples, against naive loops and simulated truths."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from icprobe.analysis.labels import DIFFERENCE_COLUMNS, auc, auc_differences
from icprobe.report import label_sentences

N = 30
IDS = [f"e{i}" for i in range(N)]


def above(one, other):
    """Of two scores: 1 where the first is above, a half where they are equal."""
    return 1.0 if one > other else 0.5 if one == other else 0.0


def naive(positive, a, b):
    """The difference with its interval and p-value, example by example."""
    sides = [[i for i in range(len(a)) if positive[i] == side] for side in (True, False)]
    values = []
    for mine, others in (sides, sides[::-1]):
        sign = 1 if mine is sides[0] else -1
        values.append([sign * np.mean([above(s[i], s[j]) for j in others]) for s in (a, b) for i in mine])
    gaps = [np.subtract(*np.split(np.array(side), 2)) for side in values]
    errors = [np.var(gap, ddof=1) / len(gap) for gap in gaps]
    freedom = sum(errors) ** 2 / sum(e**2 / (len(g) - 1) for e, g in zip(errors, gaps, strict=True))
    half = student.ppf(0.975, freedom) * np.sqrt(sum(errors))
    value = np.mean(gaps[0])
    return value, value - half, value + half, 2 * student.sf(abs(value) / np.sqrt(sum(errors)), freedom)


@pytest.mark.parametrize("levels", [3, 1000])
def test_a_difference_is_that_of_the_aucs_with_delongs_variance(levels):
    rng = np.random.default_rng(levels)
    labels = pd.DataFrame({"id": IDS[::-1], "planted": rng.choice(["sound", "cut", "swapped", None], N)})
    scores = {name: pd.Series(rng.integers(0, levels, N).astype(float), index=IDS) for name in ("x", "y", "z")}
    scores["y"].iloc[:5] = np.nan
    table = auc_differences(scores, labels, {"planted": ["sound"], "absent": ["good"]})
    assert list(table.columns) == DIFFERENCE_COLUMNS
    assert list(zip(table["method_a"], table["method_b"], strict=True)) == [("x", "y"), ("x", "z"), ("y", "z")]
    known = labels.set_index("id")["planted"].dropna()
    for row in table.itertuples():
        both = pd.DataFrame({"a": scores[row.method_a], "b": scores[row.method_b]}).loc[known.index].dropna()
        positive = (known[both.index] == "sound").to_numpy()
        expected = naive(positive, *both.to_numpy().T)
        assert (row.difference, row.low, row.high, row.p_value) == pytest.approx(expected, abs=1e-12)
        assert row.difference == pytest.approx(np.subtract(*(auc(positive, both[m])[0] for m in "ab")))
        assert (row.n_positive, row.n_negative) == (positive.sum(), (~positive).sum())
    assert (table["p_value_holm"] >= table["p_value"]).all()


def test_what_does_not_vary_or_has_one_example_has_no_interval():
    labels = pd.DataFrame({"id": IDS[:5], "planted": ["sound", "sound", "cut", "cut", "cut"]})
    scores = {"x": pd.Series(np.arange(5.0), index=IDS[:5]), "same": pd.Series(np.arange(5.0) * 2, index=IDS[:5])}
    (row,) = auc_differences(scores, labels, {"planted": ["sound"]}).itertuples()
    assert row.difference == 0
    assert np.isnan([row.low, row.high, row.p_value, row.p_value_holm]).all()
    alone = labels.assign(planted=["sound", *["cut"] * 4])
    (row,) = auc_differences({**scores, "same": -scores["x"]}, alone, {"planted": ["sound"]}).itertuples()
    assert (row.difference, np.isnan(row.low)) == (-1.0, True)
    assert auc_differences(scores, labels, {"planted": ["none"]}).empty


@pytest.mark.parametrize(("n_positive", "n_negative", "shared"), [(7, 81, 0.5), (12, 24, 0.8), (27, 81, 0.0)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n_positive, n_negative, shared):
    rng = np.random.default_rng(0)
    labels = pd.DataFrame({"planted": ["sound"] * n_positive + ["cut"] * n_negative})
    labels["id"] = [f"e{i}" for i in range(len(labels))]
    positive = (labels["planted"] == "sound").to_numpy()
    shifts, covered, times = {"a": 1.2, "b": 0.5}, 0, 250
    truth = np.subtract(*(norm.cdf(shift / np.sqrt(2)) for shift in shifts.values()))
    for _ in range(times):
        a, b = rng.standard_normal((2, len(labels)))
        noise = {"a": a, "b": shared * a + np.sqrt(1 - shared**2) * b}
        scores = {name: pd.Series(noise[name] + shifts[name] * positive, index=labels["id"]) for name in shifts}
        (row,) = auc_differences(scores, labels, {"planted": ["sound"]}).itertuples()
        covered += row.low <= truth <= row.high
    assert covered / times >= 0.91


def told(aucs, differences):
    rows = pd.DataFrame(aucs, columns=["method", "auc", "low", "high"]).assign(n_positive=24, n_negative=12)
    columns = ["method_a", "method_b", "difference", "p_value_holm"]
    return " ".join(label_sentences.labels("quality", "good", rows, pd.DataFrame(differences, columns=columns)))


def test_the_report_says_whom_the_best_method_is_told_apart_from_and_what_length_alone_does():
    aucs = [
        ("influence", 0.88, 0.71, 0.96),
        ("icp", 0.77, 0.56, 0.89),
        ("random", 0.42, 0.24, 0.63),
        ("response tokens", 0.92, 0.71, 0.98),
    ]
    said = told(
        aucs,
        [
            ("icp", "influence", -0.11, 0.3),
            ("influence", "random", 0.46, 0.001),
            ("influence", "response tokens", -0.04, 0.6),
            ("icp", "random", 0.35, 0.01),
            ("icp", "response tokens", -0.15, 0.2),
        ],
    )
    assert (
        "Of the methods, influence has the highest AUC and is not shown to differ from icp and number of response "
        "tokens by these examples (paired test"
    ) in said
    assert "it is not shown that influence and icp do better" in said
    assert "Number of response tokens (0.92 [0.71, 0.98])" in said
    assert "Of the methods" not in told([("random", 0.42, 0.24, 0.63)], [])
    alone = told([aucs[0], aucs[-1]], [("influence", "response tokens", -0.04, 0.6)])
    assert "influence is not shown to differ from number of response tokens by these examples (paired test" in alone
    assert "Of the methods" not in alone
    # By a difference that is significant, a method does better than length; by its AUC alone none does.
    clear = told(aucs, [("influence", "response tokens", 0.2, 0.01), ("icp", "response tokens", 0.1, 0.2)])
    assert "it is not shown that icp does better" in clear
    # Good examples are the shorter ones: length tells them apart as well as influence, whatever the difference.
    shorter = [("influence", 0.88, 0.71, 0.96), ("response tokens", 0.1, 0.02, 0.3)]
    said = told(shorter, [("influence", "response tokens", 0.78, 1e-4)])
    assert "with the shortest first, length alone has an AUC of 0.90, and it is not shown that influence does" in said
    assert "better than" not in said
    ahead = told([("influence", 1.0, 0.9, 1.0), shorter[1]], [("influence", "response tokens", 0.9, 1e-4)])
    assert "length alone has an AUC of 0.90. A method may see no more than that" in ahead


def test_the_best_method_is_that_of_the_highest_auc_and_what_it_loses_to_is_said():
    # The highest AUC is not shown to be above chance: none is called the best.
    unsure = [("a", 0.94, 0.49, 1.0), ("b", 0.92, 0.51, 0.99)]
    assert "highest AUC" not in told(unsure, [("a", "b", 0.02, 0.9)])
    # On the examples that both have evaluated another may be better.
    partly = [("a", 0.9, 0.8, 0.95), ("b", 0.85, 0.7, 0.9), ("c", 0.5, 0.4, 0.6)]
    said = told(partly, [("a", "b", -0.2, 0.03), ("a", "c", 0.4, 0.001)])
    assert "is better than c, but is worse than b on the examples that both have evaluated" in said


def test_methods_that_tie_share_the_highest_auc():
    aucs = [("a", 1.0, 0.8, 1.0), ("b", 1.0, 0.8, 1.0), ("c", 0.9, 0.7, 0.97)]
    said = told(aucs, [("a", "b", 0.0, np.nan), ("a", "c", 0.1, 0.4)])
    assert "Of the methods, a and b share the highest AUC. a is not shown to differ from c by these examples" in said


def test_a_method_that_prefers_the_wrong_ones_is_not_said_to_see_length_alone():
    aucs = [("icp", 0.9, 0.7, 0.95), ("reversed", 0.0, 0.0, 0.2), ("response tokens", 0.85, 0.7, 0.9)]
    said = told(aucs, [("icp", "response tokens", 0.05, 0.5), ("reversed", "response tokens", -0.85, 1e-6)])
    assert "not shown that icp does better" in said


def test_a_difference_that_varies_by_its_last_bit_alone_does_not_vary():
    n = 6
    labels = pd.DataFrame({"id": IDS[:n], "planted": ["sound", "cut"] * 3})
    positive = (labels["planted"] == "sound").to_numpy()
    a = -np.arange(float(n))
    scores = {"a": pd.Series(a, index=IDS[:n]), "b": pd.Series(a - 1.5 * positive, index=IDS[:n])}
    (row,) = auc_differences(scores, labels, {"planted": ["sound"]}).itertuples()
    assert row.difference == pytest.approx(1 / 3)
    assert np.isnan([row.low, row.high, row.p_value, row.p_value_holm]).all()
