"""The differences between win rates: against a naive bootstrap, and scipy's test by sign flips."""

import numpy as np
import pandas as pd
import pytest
from judged import judgements
from scipy.stats import kstest, permutation_test
from statsmodels.stats.proportion import proportion_confint

from icprobe.evaluation.win_rates import paired_differences, sign_flip_p_values


def test_differences_are_those_of_a_naive_paired_bootstrap():
    rng = np.random.default_rng(2)
    a, b = 1 + rng.random(30), 1 + 0.7 * rng.random(30)
    table = paired_differences(pd.concat([judgements(a), judgements(b, method="random")]), resamples=500, seed=4)
    row = table.iloc[0]
    in_order = np.argsort([f"p{i}" for i in range(30)])
    counts = np.random.default_rng(4).multinomial(30, np.full(30, 1 / 30), 500)
    draws = np.array([100 * (a - b)[np.repeat(in_order, drawn)].mean() for drawn in counts])
    assert np.isclose(row["difference"], 100 * (a.mean() - b.mean()))
    assert np.allclose([row["low"], row["high"]], np.percentile(draws, [2.5, 97.5]))


@pytest.mark.parametrize(("n", "within"), [(2, 0), (9, 0), (13, 0), (14, 0.02), (40, 0.02)])
def test_p_values_are_those_of_scipys_sign_flip_test(n, within):
    rng = np.random.default_rng(n)
    differences = rng.choice([-50.0, 0.0, 25.0, 50.0, 100 / 3], (n, 4))
    found = sign_flip_p_values(differences, 40_000)
    exact = permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=20_000 if within else np.inf, rng=rng
    )
    assert np.abs(found - exact.pvalue).max() <= max(within, 1e-12), (found, exact.pvalue)


def test_no_p_value_is_below_what_flipping_the_signs_of_so_few_prompts_can_give():
    for n in (2, 3, 5, 6, 9):
        row = paired_differences(pd.concat([judgements([2.0] * n), judgements([1.0] * n, method="random")])).iloc[0]
        assert row["p_value"] == 2 / 2**n
        assert (row["low"] > 0) == (row["p_value"] < 0.05)
    over_seeds = [judgements([2.0, 2.0, 1.5], seed=seed) for seed in (0, 1)]
    row = paired_differences(pd.concat([*over_seeds, judgements([1.0, 1.0, 1.0], method="random")])).iloc[0]
    assert row["p_value"] >= 0.25
    assert -100 <= row["low"] <= row["high"] <= 100


def test_a_plain_difference_is_significant_among_hundreds_of_pairs():
    rng = np.random.default_rng(9)
    prompts = rng.random(60)
    parts = [judgements(1 + prompts, method="best")]
    parts += [judgements(1 + rng.permutation(prompts) / 2, method=f"m{k}") for k in range(23)]
    table = paired_differences(pd.concat(parts), resamples=1000)
    assert len(table) == 276
    assert (table["p_value_holm"] < 0.05).sum() >= 10
    assert set(table.loc[table["p_value_holm"] < 0.05, "method_a"]) == {"best"}


def test_p_values_of_methods_that_are_the_same_are_uniform():
    rng = np.random.default_rng(10)
    p = sign_flip_p_values(rng.standard_t(3, (30, 400)), 4_000)
    assert p.min() > 0
    assert kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("seeds", "of_seed", "tables", "most"), [(2, 0.03, 200, 14), (3, 0.1, 60, 6)])
def test_methods_that_depend_on_their_seeds_alone_seldom_differ(seeds, of_seed, tables, most):
    rng = np.random.default_rng(11)
    parts = []
    for number in range(tables):
        common = 0.2 * rng.random((60, 1))
        for method in ("icp", "random"):
            values = 1.4 + common + of_seed * rng.normal(size=seeds) + 0.3 * rng.random((60, seeds))
            parts += [judgements(values[:, k].clip(1, 2), method, f"bin-{number}", seed=k) for k in range(seeds)]
    table = paired_differences(pd.concat(parts), resamples=200)
    assert len(table) == tables
    assert (table["p_value"] < 0.05).sum() <= most
    assert ((table["low"] > 0) | (table["high"] < 0)).sum() <= most


def test_pairing_takes_out_what_prompts_have_in_common():
    rng = np.random.default_rng(3)
    prompts = 1.1 + 0.8 * rng.random(200)
    better = prompts + 0.02 * rng.random(200)
    row = paired_differences(pd.concat([judgements(better), judgements(prompts, method="random")])).iloc[0]
    assert 0 < row["low"] < 1 < row["high"] < 2
    assert row["p_value"] < 0.001


def test_differences_stay_within_a_bin_and_average_over_seeds():
    everything = pd.concat(
        [
            judgements([2.0, 1.0], seed=0),
            judgements([1.0, 1.0], seed=1),
            judgements([1.0, 1.0], method="random"),
            judgements([2.0, 2.0], method="all", bin_="all"),
        ]
    )
    table = paired_differences(everything, resamples=100)
    assert table[["bin", "method_a", "method_b", "n"]].values.tolist() == [["gt-0.90", "icp", "random", 2]]
    assert table["difference"][0] == 25


def test_holm_corrects_over_the_whole_table():
    rng = np.random.default_rng(0)
    parts = [judgements(1 + rng.random(40) * share, method=m) for m, share in (("a", 1), ("b", 0.8), ("c", 0.5))]
    table = paired_differences(pd.concat(parts), resamples=2000)
    p = table["p_value"].to_numpy()
    order = np.argsort(p)
    naive = np.minimum(1, np.maximum.accumulate(p[order] * [3, 2, 1]))
    assert np.allclose(table["p_value_holm"].to_numpy()[order], naive)
    assert p.min() < 0.01


def test_equal_methods_do_not_differ_and_unreadable_judgements_are_left_out():
    a, b = [2.0, 1.5, np.nan, 1.0], [2.0, 1.5, 1.0, np.nan]
    row = paired_differences(pd.concat([judgements(a), judgements(b, method="same")]), resamples=50).iloc[0]
    assert (row["n"], row["difference"], row["p_value"]) == (2, 0, 1)


@pytest.mark.parametrize("seeds", [1, 2])
def test_prompts_that_all_differ_alike_leave_open_how_others_would(seeds):
    def interval(a, b, n):
        parts = [judgements([a] * n, seed=seed) for seed in range(seeds)]
        row = paired_differences(pd.concat([*parts, judgements([b] * n, method="other")]), resamples=50).iloc[0]
        return [row["low"], row["high"]]

    for n in (2, 6, 40):
        unseen = 100 * proportion_confint(0, n, method="beta")[1]
        assert interval(1.5, 1.5, n) == pytest.approx([-unseen, unseen])
        assert interval(2.0, 1.0, n) == pytest.approx([100 - 2 * unseen, 100])


def test_too_few_shared_prompts_are_no_difference():
    table = paired_differences(pd.concat([judgements([2.0]), judgements([1.0], method="other")]), resamples=50)
    assert table["n"].tolist() == [1]
    assert table[["difference", "low", "high", "p_value", "p_value_holm"]].isna().all(axis=None)


def test_a_method_that_depends_on_the_seed_differs_less_surely():
    rng = np.random.default_rng(6)
    prompts = 1.3 + 0.3 * rng.random(100)
    other = judgements(prompts - 0.08, method="random")

    def difference(spread):
        parts = [judgements(prompts + s * spread + 0.02 * rng.random(100), seed=i) for i, s in enumerate((-1, 0, 1))]
        return paired_differences(pd.concat([*parts, other]), resamples=2000).iloc[0]

    steady, moody = difference(0.0), difference(0.1)
    assert abs(steady["difference"] - moody["difference"]) < 1
    assert steady["p_value"] < 0.01
    assert moody["p_value"] > 0.05
    assert moody["high"] - moody["low"] > 5 * (steady["high"] - steady["low"])
