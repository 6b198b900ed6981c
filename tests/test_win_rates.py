"""Win rates against AlpacaEval's published row, and their differences against a naive bootstrap."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import t as student

from icprobe.errors import DataError
from icprobe.length_control import length_controlled_win_rate, with_length_control
from icprobe.tabulation import latex, markdown, significantly_best
from icprobe.win_rates import crossed_half_width, paired_differences, win_rate, win_rate_table

PUBLISHED = Path(__file__).parents[2] / "shared/data/annotations/OpenHermes-2.5-Mistral-7B.jsonl"


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
    cells = [(values[i][j] - of_prompt[i] - of_seed[j] + mean) ** 2 for i in range(prompts) for j in range(seeds)]
    r = sum(cells) / ((prompts - 1) * (seeds - 1))
    variance = (p + s - r) / (prompts * seeds)
    of_mean = [p, s, r], [prompts - 1, seeds - 1, (prompts - 1) * (seeds - 1)]
    degrees = (p + s - r) ** 2 / sum(square**2 / freedom for square, freedom in zip(*of_mean, strict=True))
    assert p > r
    assert s > r
    half = student.ppf(0.975, degrees) * variance**0.5
    return mean - half, mean + half


def test_over_seeds_the_error_is_that_of_the_seed_means_and_prompts_widen_the_interval():
    seeds = {0: [2.0, 1.0, 1.5], 2: [2.0, 2.0, 2.0], 10: [1.0, 2.0, 2.0]}
    table = win_rate_table(pd.concat([judgements(values, seed=seed) for seed, values in seeds.items()]))
    overall = table[table["subset"] == "overall"].set_index("seed")
    assert list(overall.index) == ["0", "2", "10", "all"]
    means = overall["win_rate"].iloc[:3]
    error = means.std(ddof=1) / np.sqrt(3)
    everything = overall.loc["all"]
    assert np.isclose(everything["win_rate"], means.mean())
    assert np.isclose(everything["standard_error"], error)
    assert everything["n"] == 9 == everything[["n_wins", "n_wins_base", "n_draws"]].sum()


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


def test_seeds_without_shared_prompts_keep_the_interval_of_their_means():
    parts = [judgements([2.0, 1.0], seed=0), judgements([2.0, 2.0], seed=1).assign(id=["q0", "q1"])]
    found = win_rate_table(pd.concat(parts)).set_index(["subset", "seed"]).loc[("overall", "all")]
    assert found["low"] == 0
    assert found["high"] == 100
    assert np.isclose(found["standard_error"], 25)


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


# --- length control


def naive_length_controlled(preferences, length_base, length_response):
    """Unpenalised maximum likelihood of logit(p) = θ + φ·tanh(d); logistic(θ) in percent."""
    wins, difference = np.array(preferences) - 1, np.array(length_base, float) - np.array(length_response)
    feature = np.tanh(difference / np.sqrt(((difference - difference.mean()) ** 2).sum() / (len(difference) - 1)))

    def loss(parameters):
        p = 1 / (1 + np.exp(-parameters[0] - parameters[1] * feature))
        return -np.mean(wins * np.log(p) + (1 - wins) * np.log(1 - p))

    return 100 / (1 + np.exp(-minimize(loss, [0.0, 0.0]).x[0]))


def lengths_and_preferences(n, quality, taste, seed=0):
    rng = np.random.default_rng(seed)
    base, response = rng.integers(100, 900, n), rng.integers(300, 1500, n)
    feature = np.tanh((base - response) / (base - response).std(ddof=1))
    return 1 + 1 / (1 + np.exp(-quality + taste * feature + 0.3 * rng.normal(size=n))), base, response


def test_length_control_is_the_maximum_likelihood_where_the_penalty_is_weak():
    made = lengths_and_preferences(600, -0.7, 1.5)
    assert length_controlled_win_rate(*made) == pytest.approx(naive_length_controlled(*made), abs=0.5)


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is absent")
def test_length_control_of_the_published_annotations_is_the_maximum_likelihood():
    rows = [json.loads(line) for line in PUBLISHED.read_text().splitlines()]
    columns = [[row[name] for row in rows] for name in ("preference", "len_1", "len_2")]
    assert length_controlled_win_rate(*columns) == pytest.approx(naive_length_controlled(*columns), abs=0.1)


def test_length_control_takes_a_pure_taste_for_length_away():
    preferences, base, response = lengths_and_preferences(400, 0.0, 2.0)
    assert win_rate(preferences)["win_rate"] > 60
    assert length_controlled_win_rate(preferences, base, response) == pytest.approx(50, abs=3)


def test_length_control_does_not_depend_on_the_unit_of_length():
    made = lengths_and_preferences(50, 0.5, 1.0)
    scaled = length_controlled_win_rate(made[0], 7 * made[1], 7 * made[2])
    assert scaled == pytest.approx(length_controlled_win_rate(*made), abs=1e-9)


def test_length_control_is_not_a_number_where_it_cannot_be_known():
    preferences, base, response = lengths_and_preferences(30, 0.5, 1.0)
    few = length_controlled_win_rate(preferences[:9], base[:9], response[:9])
    unknown = length_controlled_win_rate(preferences, base, np.where(response > 1000, np.nan, response))
    equal = length_controlled_win_rate(preferences, base, base + 5)
    assert np.isnan([few, unknown, equal]).all()


def test_length_control_is_a_column_behind_the_others_and_changes_none_of_them():
    preferences, base, response = lengths_and_preferences(30, 0.5, 1.0)
    rows = judgements(preferences).assign(length_base=base, length_response=response)
    both = pd.concat([rows, rows.assign(seed=1, preference=rows["preference"].clip(1.2))])
    table = win_rate_table(both, [("random", "gt-0.90", 0)])
    with_column = with_length_control(table, both)
    pd.testing.assert_frame_equal(with_column[list(table)], table)
    assert list(with_column)[len(list(table)) :] == ["length_controlled_win_rate"]
    found = with_column.set_index(["method", "subset", "seed"])["length_controlled_win_rate"].sort_index()
    assert found["icp", "overall", "0"] == length_controlled_win_rate(preferences, base, response)
    assert found["icp", "overall", "all"] == pytest.approx(found["icp", "overall"][["0", "1"]].mean())
    assert found.drop([("icp", "overall", seed) for seed in ("0", "1", "all")]).isna().all()


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


def test_an_empty_bin_says_so_in_both_tables():
    table = win_rate_table(judgements([2.0, 1.0]), [("icp", ">0.9", 0), ("random", ">0.9", 0)])
    nothing = paired_differences(judgements([2.0, 1.0]))
    assert "| random" in markdown(table, nothing)
    assert "empty" in markdown(table, nothing)
    assert r"$\leq$" not in latex(table, nothing)
    assert r"\textgreater{} 0.9" in latex(table, nothing)
