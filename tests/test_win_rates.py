"""Win rates against AlpacaEval's published row, and their differences against a naive bootstrap."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icprobe.errors import DataError
from icprobe.win_rates import paired_differences, win_rate, win_rate_table

PUBLISHED = Path("/work/shared/data/annotations/OpenHermes-2.5-Mistral-7B.jsonl")


def judgements(preferences, method="icp", bin_="gt-0.90", subset="koala", seed=0):
    return pd.DataFrame(
        {
            "method": method,
            "bin": bin_,
            "subset": subset,
            "seed": seed,
            "id": [f"p{i}" for i in range(len(preferences))],
            "preference": preferences,
        }
    )


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is absent")
def test_win_rate_is_alpaca_evals_published_row():
    rows = [json.loads(line) for line in PUBLISHED.read_text().splitlines()]
    found = win_rate([row["preference"] for row in rows])
    published = {
        "win_rate": 10.340415705751552,
        "standard_error": 0.935655389929366,
        "discrete_win_rate": 9.503105590062113,
        "n_wins": 75,
        "n_wins_base": 727,
        "n_draws": 3,
        "n": 805,
    }
    for name, value in published.items():
        assert abs(found[name] - value) < 1e-10, (name, found[name], value)


def test_the_win_rate_of_a_few_judgements_by_hand():
    found = win_rate([1.0, 2.0, 1.5, 1.75, np.nan])
    assert found["n"] == 4
    assert found["win_rate"] == 56.25
    assert np.isclose(found["standard_error"], 100 * np.std([0, 1, 0.5, 0.75], ddof=1) / 2)
    assert np.isclose(found["high"], min(100, 56.25 + 1.96 * found["standard_error"]))
    assert (found["n_wins"], found["n_draws"], found["n_wins_base"]) == (2, 1, 1)
    assert found["discrete_win_rate"] == 62.5


@pytest.mark.filterwarnings("error")
def test_no_judgements_and_one_judgement_have_no_error():
    nothing, one = win_rate([]), win_rate([2.0])
    assert {nothing[name] for name in ("n", "n_wins", "n_wins_base", "n_draws")} == {0}
    rates = ["win_rate", "standard_error", "low", "high", "discrete_win_rate"]
    assert all(np.isnan(nothing[name]) for name in rates)
    assert one["win_rate"] == 100
    assert np.isnan(one["standard_error"])
    assert np.isnan(one["low"])


@given(st.lists(st.floats(1, 2), min_size=2, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_win_rate_lies_in_its_interval_and_the_interval_in_0_to_100(preferences):
    found = win_rate(preferences)
    assert 0 <= found["low"] <= found["win_rate"] + 1e-9
    assert found["win_rate"] - 1e-9 <= found["high"] <= 100


def test_a_preference_outside_of_1_to_2_is_refused():
    with pytest.raises(DataError, match=r"first is 0\.5"):
        win_rate([1.0, 0.5])


def test_overall_holds_all_subsets_and_one_seed_speaks_for_all():
    both = pd.concat([judgements([2.0, 1.0, 2.0]), judgements([1.0], subset="vicuna").assign(id="q0")])
    table = win_rate_table(both).set_index(["subset", "seed"])
    assert list(table.index) == [(s, seed) for s in ("koala", "vicuna", "overall") for seed in ("0", "all")]
    assert table["n"].tolist() == [3, 3, 1, 1, 4, 4]
    assert table.loc[("overall", "all"), "win_rate"] == 50
    for subset in ("koala", "vicuna", "overall"):
        pd.testing.assert_series_equal(
            table.loc[(subset, "0")], table.loc[(subset, "all")], check_names=False, check_index=True
        )


def test_over_seeds_the_error_is_that_of_the_seed_means():
    seeds = {0: [2.0, 1.0, 1.5], 2: [2.0, 2.0, 2.0], 10: [1.0, 2.0, 2.0]}
    table = win_rate_table(pd.concat([judgements(values, seed=seed) for seed, values in seeds.items()]))
    overall = table[table["subset"] == "overall"].set_index("seed")
    assert list(overall.index) == ["0", "2", "10", "all"]
    means = overall["win_rate"].iloc[:3]
    error = means.std(ddof=1) / np.sqrt(3)
    everything = overall.loc["all"]
    assert np.isclose(everything["win_rate"], means.mean())
    assert np.isclose(everything["standard_error"], error)
    assert np.isclose(everything["low"], means.mean() - 4.302652729911275 * error)  # t of 2 degrees of freedom
    assert everything["n"] == 9 == everything[["n_wins", "n_wins_base", "n_draws"]].sum()


def test_an_empty_bin_is_a_row_that_says_zero():
    table = win_rate_table(judgements([2.0, 1.5]), conditions=[("icp", "gt-0.95", 0), ("icp", "gt-0.90", 0)])
    empty = table[table["bin"] == "gt-0.95"]
    assert list(zip(empty["subset"], empty["seed"], strict=True)) == [
        ("koala", "0"),
        ("koala", "all"),
        ("overall", "0"),
        ("overall", "all"),
    ]
    assert empty["n"].tolist() == [0] * 4
    assert empty["win_rate"].isna().all()
    assert (table.loc[table["bin"] == "gt-0.90", "n"] == 2).all()


def test_the_columns_are_those_of_the_contract():
    keys = ["method", "bin", "subset", "seed", "n"]
    rates = ["win_rate", "standard_error", "low", "high", "discrete_win_rate"]
    counts = ["n_wins", "n_wins_base", "n_draws"]
    for preferences in ([2.0, 1.0], []):
        assert list(win_rate_table(judgements(preferences)).columns) == keys + rates + counts


def test_prompts_without_a_subset_count_overall():
    table = win_rate_table(judgements([2.0, 1.0], subset=None))
    assert table["subset"].tolist() == ["overall", "overall"]


def test_a_prompt_judged_twice_is_refused():
    twice = pd.concat([judgements([2.0]), judgements([1.0]).assign(seed="0")])
    with pytest.raises(DataError, match="twice"):
        win_rate_table(twice)


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
    assert np.isclose(row["p_value"], 2 * (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / 501)
    assert 0.01 < row["p_value"] < 0.9


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
    assert (row["n"], row["difference"], row["p_value"], row["low"], row["high"]) == (2, 0, 1, 0, 0)


def test_too_few_shared_prompts_are_no_difference():
    table = paired_differences(pd.concat([judgements([2.0]), judgements([1.0], method="other")]), resamples=50)
    assert table["n"].tolist() == [1]
    assert table[["difference", "low", "high", "p_value", "p_value_holm"]].isna().all(axis=None)
