"""Win rates against AlpacaEval's published row, and the tables that people read."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import judgements
from scipy.stats import binom
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

from icprobe.errors import DataError
from icprobe.evaluation.tabulation import latex, markdown, readable, significantly_best
from icprobe.evaluation.win_rates import (
    crossed_half_width,
    paired_differences,
    win_rate,
    win_rate_table,
)

PUBLISHED = Path(__file__).parents[2] / "shared/data/annotations/OpenHermes-2.5-Mistral-7B.jsonl"


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
    # Student's t of three degrees of freedom: the standard error is of these four alone.
    assert np.isclose(found["low"], max(0, 56.25 - 3.1824463 * found["standard_error"]))
    assert found["high"] == 100
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


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("n", [2, 12, 50])
def test_prompts_that_all_end_alike_leave_open_how_others_would(n, seeds):
    def interval(*preferences):
        parts = [judgements(np.resize(preferences, n), seed=seed) for seed in range(seeds)]
        row = win_rate_table(pd.concat(parts)).set_index(["subset", "seed"]).loc[("overall", "all")]
        return [row["low"], row["high"]]

    # Clopper and Pearson's, of none that n prompts have shown.
    unseen = 100 * proportion_confint(0, n, method="beta")[1]
    assert interval(1.0) == pytest.approx([0, unseen])
    assert interval(2.0) == pytest.approx([100 - unseen, 100])
    assert interval(1.5) == pytest.approx([50 - unseen / 2, 50 + unseen / 2])
    # A judge that never is quite sure.
    low, high = interval(1.0, 1.0 + 1e-6)
    assert (low, high) == pytest.approx((0, unseen), abs=1e-3)


@pytest.mark.parametrize("truth", [0.005, 0.02, 0.98])
def test_a_win_rate_near_a_border_lies_in_its_interval_as_often_as_it_says(truth):
    n = 50
    held = 0.0
    for wins in range(n + 1):
        found = win_rate(np.where(np.arange(n) < wins, 2.0, 1.0))
        held += binom.pmf(wins, n, truth) * (found["low"] <= 100 * truth <= found["high"])
    assert held > 0.9


@given(st.lists(st.floats(1, 2), min_size=2, max_size=20))
@settings(max_examples=50)
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


def naive_crossed_interval(values):
    """Mean ± half-width of values [prompts, seeds], both random: sums of squares cell by cell."""
    prompts, seeds = len(values), len(values[0])
    mean = sum(map(sum, values)) / (prompts * seeds)
    of_prompt = [sum(row) / seeds for row in values]
    of_seed = [sum(row[s] for row in values) / prompts for s in range(seeds)]
    p = seeds * sum((m - mean) ** 2 for m in of_prompt) / (prompts - 1)
    s = prompts * sum((m - mean) ** 2 for m in of_seed) / (seeds - 1)
    variance = (p + s) / (prompts * seeds)
    degrees = (p + s) ** 2 / (p**2 / (prompts - 1) + s**2 / (seeds - 1))
    half = student.ppf(0.975, degrees) * variance**0.5
    return mean - half, mean + half


def test_over_seeds_the_mean_is_that_of_the_seeds_and_counts_are_summed():
    seeds = {0: [2.0, 1.0, 1.5], 2: [2.0, 2.0, 2.0], 10: [1.0, 2.0, 2.0]}
    table = win_rate_table(pd.concat([judgements(values, seed=seed) for seed, values in seeds.items()]))
    overall = table[table["subset"] == "overall"].set_index("seed")
    assert list(overall.index) == ["0", "2", "10", "all"]
    means = overall["win_rate"].iloc[:3]
    everything = overall.loc["all"]
    assert np.isclose(everything["win_rate"], means.mean())
    assert everything["n"] == 9 == everything[["n_wins", "n_wins_base", "n_draws"]].sum()


def test_the_error_over_seeds_is_the_one_that_the_interval_is_made_of():
    rng = np.random.default_rng(1)
    prompts = rng.choice([1.0, 2.0], 40)
    # Two seeds with the same mean: their own error is 0, that of the prompts is not.
    table = win_rate_table(pd.concat([judgements(prompts, seed=0), judgements(prompts[::-1], seed=1)]))
    found = table.set_index(["subset", "seed"]).loc[("overall", "all")]
    half = (found["high"] - found["low"]) / 2
    assert half > 5
    assert half / found["standard_error"] == pytest.approx(student.ppf(0.975, 39), rel=1e-6)
    same = win_rate_table(pd.concat([judgements(prompts, seed=0), judgements(prompts, seed=1)]))
    same = same.set_index(["subset", "seed"])["standard_error"]
    assert same["overall", "all"] == pytest.approx(same["overall", "0"])


def test_the_interval_over_seeds_is_that_of_crossed_random_effects():
    rng = np.random.default_rng(4)
    values = 40 + 12 * rng.normal(size=(30, 1)) + 5 * rng.normal(size=(1, 4)) + 6 * rng.normal(size=(30, 4))
    parts = [judgements(1 + values[:, seed] / 100, seed=seed) for seed in range(4)]
    found = win_rate_table(pd.concat(parts)).set_index(["subset", "seed"]).loc[("overall", "all")]
    assert np.allclose([found["low"], found["high"]], naive_crossed_interval(values.tolist()), atol=1e-9)


def test_the_interval_over_seeds_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    held = {}
    for seeds, of_seed in ((2, 0.0), (3, 3.0), (3, 20.0)):
        inside = 0
        for _ in range(400):
            prompt, seed = 20 * rng.normal(size=(40, 1)), of_seed * rng.normal(size=(1, seeds))
            values = prompt + seed + 10 * rng.normal(size=(40, seeds))
            inside += abs(values.mean()) <= crossed_half_width(values)
        held[seeds, of_seed] = inside / 400
    assert all(0.92 <= share <= 0.99 for share in held.values()), held


def test_where_seeds_judge_different_prompts_the_interval_is_of_all_prompts_that_the_rate_is_made_of():
    flips = np.random.default_rng(6).integers(1, 3, 50).astype(float)
    parts = [judgements(np.append(flips, [2.0, 2.0]), seed=0), judgements(np.append(flips[::-1], [2.0, 2.0]), seed=1)]
    parts[1] = parts[1].assign(id=[f"other {n}" for n in range(50)] + parts[0]["id"].tolist()[50:])
    found = win_rate_table(pd.concat(parts)).set_index(["subset", "seed"]).loc["overall"]
    assert found.loc["all", "standard_error"] > found.loc["0", "standard_error"] / 2
    assert found.loc["all", "high"] - found.loc["all", "low"] > 10

    apart = [judgements([2.0, 1.0], seed=0), judgements([2.0, 2.0], seed=1).assign(id=["q0", "q1"])]
    found = win_rate_table(pd.concat(apart)).set_index(["subset", "seed"]).loc[("overall", "all")]
    of_prompts, of_seeds = 4 / 3 * 2 * (50 / (2 * 2)) ** 2, np.var([50, 100], ddof=1) / 2
    assert np.isclose(found["standard_error"], np.sqrt(of_prompts + of_seeds))


@pytest.mark.parametrize("judged", [0.9, 0.5])
def test_the_interval_over_seeds_holds_the_truth_where_judgements_are_missing(judged):
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(400):
        values = 20 * rng.normal(size=(40, 1)) + 3 * rng.normal(size=(1, 3)) + 10 * rng.normal(size=(40, 3))
        values = np.where(rng.random(values.shape) < judged, values, np.nan)
        values = values[~np.isnan(values).all(axis=1)]
        inside += abs(np.nanmean(values, axis=0).mean()) <= crossed_half_width(values)
    assert inside / 400 >= 0.93


def test_prompts_that_nobody_could_read_do_not_narrow_the_interval_of_those_that_all_end_alike():
    read = [2.0] * 8
    found, readable = (
        win_rate_table(pd.concat([judgements(values, seed=seed) for seed in (0, 1)])).set_index(["subset", "seed"])
        for values in ([*read, *[np.nan] * 92], read)
    )
    assert found.loc[("overall", "all"), "low"] == readable.loc[("overall", "all"), "low"] < 80


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


# --- the tables that people read


def two_methods(lead):
    rng = np.random.default_rng(7)
    prompts = 1.2 + 0.3 * rng.random(80)
    parts = [judgements(prompts + lead, method="icp_a"), judgements(prompts + 0.02 * rng.normal(size=80), method="b&c")]
    everything = pd.concat(parts)
    return win_rate_table(everything), paired_differences(everything, resamples=500)


def test_bold_is_the_best_only_where_its_lead_is_significant():
    for lead, best in ((0.2, {("icp_a", "gt-0.90")}), (-0.1, {("b&c", "gt-0.90")}), (0.0, set())):
        table, differences = two_methods(lead)
        assert significantly_best(table, differences) == best
        assert markdown(table, differences).count("**") == 2 * len(best)
        assert latex(table, differences).count(r"\textbf{") == len(best)


def test_a_lead_that_holm_takes_back_is_not_bold():
    table, differences = two_methods(0.2)
    assert not significantly_best(table, differences.assign(p_value_holm=0.06))


def test_one_method_alone_is_not_the_best_of_its_bin():
    rows = judgements([2.0] * 20)
    assert not significantly_best(win_rate_table(rows), paired_differences(rows))


def test_the_latex_table_is_well_formed_and_escapes_names():
    table, differences = two_methods(0.2)
    lines = latex(table, differences).splitlines()
    columns = len(lines[1].split("{")[2].rstrip("}"))
    assert {line.replace(r"\&", "").count("&") for line in lines if line.endswith(r" \\")} == {columns - 1}
    assert r"icp\_a" in lines[5]
    assert r"b\&c" in lines[6]
    assert [line for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]


@pytest.mark.parametrize(("n", "cautious"), [(40, True), (100, False)])
def test_length_controlled_rates_of_few_prompts_carry_a_caution(n, cautious):
    lengths = {"length_base": np.arange(n) % 7 + 5, "length_response": np.arange(n) % 5 + 4}
    rows = pd.concat([judgements([2.0, 1.0] * (n // 2), seed=seed).assign(**lengths) for seed in (0, 1)])
    # Judged at two seeds: the prompts are as few.
    table = win_rate_table(rows).assign(length_controlled_win_rate=61.0)
    nothing = paired_differences(rows, resamples=50)
    assert ("61.0†" in markdown(table, nothing)) == ("† Caution: this uses fewer than" in markdown(table, nothing))
    assert (r"61.0$^\dagger$" in latex(table, nothing)) == ("% † Caution" in latex(table, nothing)) == cautious
    assert ("†" in markdown(table, nothing)) == cautious


def test_a_subset_called_as_another_column_takes_no_number_of_it():
    names = ["method", "n", "win rate", "bin", "plain"]
    rows = pd.concat(
        [judgements([2.0, 1.0, 1.0], subset=name).assign(id=[f"{name}{i}" for i in range(3)]) for name in names]
    )
    table = readable(win_rate_table(rows), paired_differences(rows), str)
    subsets = [f"{name} (subset)" for name in names[:4]] + ["plain"]
    assert list(table.columns[-6:]) == [*subsets, "n"]
    assert table.loc[0, subsets].tolist() == ["33.3"] * 5
    assert table.loc[0, ["method", "n", "win rate"]].tolist() == ["icp", "15", "33.3"]


def test_an_empty_bin_says_so_in_both_tables():
    table = win_rate_table(judgements([2.0, 1.0]), [("icp", ">0.9", 0), ("random", ">0.9", 0)])
    nothing = paired_differences(judgements([2.0, 1.0]))
    assert "| random" in markdown(table, nothing)
    assert "none judged" in markdown(table, nothing)
    assert r"$\leq$" not in latex(table, nothing)
    assert r"\textgreater{} 0.9" in latex(table, nothing)
