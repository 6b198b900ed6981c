"""The length-controlled win rate: against maximum likelihood, and a search of the penalised loss."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judged import judgements, lengths_and_preferences
from reports import experiment
from scipy.optimize import minimize
from sklearn.model_selection import GroupKFold

from icprobe.evaluation.length_control import (
    _fitted,
    length_control,
    length_controlled_win_rate,
    with_length_control,
)
from icprobe.evaluation.tabulation import latex, markdown
from icprobe.evaluation.win_rates import paired_differences, win_rate, win_rate_table
from icprobe.report.build import build

PUBLISHED = Path(__file__).parents[2] / "shared/data/annotations/OpenHermes-2.5-Mistral-7B.jsonl"


def naive_length_controlled(preferences, length_base, length_response):
    """Unpenalised maximum likelihood of logit(p) = θ + φ·tanh(d); logistic(θ) in percent."""
    wins, difference = np.array(preferences) - 1, np.array(length_base, float) - np.array(length_response)
    feature = np.tanh(difference / np.sqrt(((difference - difference.mean()) ** 2).sum() / (len(difference) - 1)))

    def loss(parameters):
        p = 1 / (1 + np.exp(-parameters[0] - parameters[1] * feature))
        return -np.mean(wins * np.log(p) + (1 - wins) * np.log(1 - p))

    return 100 / (1 + np.exp(-minimize(loss, [0.0, 0.0]).x[0]))


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


def always_longer(n, spread, seed=0):
    """Judgements that do not look at length, of a base model that writes `spread` standard deviations more."""
    rng = np.random.default_rng(seed)
    preferences = np.where(rng.random(n) < 0.8, 2.0, 1.0)
    return preferences, np.maximum(0, np.round(300 * (spread + rng.standard_normal(n)))) + 1, np.ones(n)


@pytest.mark.parametrize(("n", "spread"), [(60, 2), (200, 2.5), (805, 3), (805, 4), (60, 12), (200, 12), (805, 15)])
def test_where_hardly_two_responses_are_of_like_length_nothing_is_said_of_equal_lengths(n, spread):
    for seed in range(5):
        found = length_control(*always_longer(n, spread, seed))
        assert np.isnan(found.rate)
        assert found.note == "nearly all differences in length are on one side of 0"


@pytest.mark.parametrize(("n", "spread"), [(60, 0.5), (200, 1), (805, 1), (805, 2)])
def test_where_some_are_the_rate_is_that_of_the_judge(n, spread):
    rates = [length_controlled_win_rate(*always_longer(n, spread, seed)) for seed in range(20)]
    assert np.mean(rates) == pytest.approx(80, abs=5)
    assert 55 < min(rates) < max(rates) < 95


def test_one_bin_of_very_short_responses_costs_no_other_its_win_rate():
    names = ("preference", "length_base", "length_response")
    parts = []
    for bin_, made in (("top 20%", always_longer(60, 12)), ("bottom 20%", lengths_and_preferences(60, 0.5, 1.0))):
        rows = pd.DataFrame(dict(zip(names, made, strict=True)))
        parts.append(rows.assign(method="icp", bin=bin_, subset=None, seed=0, id=[*map(str, range(60))]))
    judged = pd.concat(parts, ignore_index=True)
    table = with_length_control(win_rate_table(judged), judged)
    assert table["win_rate"].notna().all()
    of_bins = table[table["subset"] == "overall"].groupby("bin")["length_controlled_win_rate"].max()
    assert np.isnan(of_bins["top 20%"])
    assert of_bins["bottom 20%"] > 50


def test_ten_judgements_of_like_lengths_are_enough():
    differences = np.array([-300, -200, -120, -40, 10, 60, 90, 180, 260, 410.0])
    assert not np.isnan(length_controlled_win_rate(np.r_[np.full(9, 2.0), 1.0], 1000 + differences, np.full(10, 1000)))


def test_a_fold_whose_lengths_all_differ_alike_is_fitted():
    """Its two features are one: no Newton step can be solved for."""
    wins = np.r_[np.ones(15), np.zeros(5)]
    coefficients = _fitted(np.ones((20, 2)), wins, 1e4)
    assert coefficients.sum() == pytest.approx(np.log(3), abs=1e-3)


def few_wins(wins, n):
    """n judgements, the first `wins` of them won, by a judge that knows no draws; lengths of both responses."""
    rng = np.random.default_rng(n)
    return 1.0 + (np.arange(n) < wins), rng.integers(100, 900, n), rng.integers(300, 1500, n)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [20, 24, 50, 805])
def test_a_length_controlled_win_rate_of_all_lost_is_zero_and_of_all_won_a_hundred(n, capfd):
    assert length_controlled_win_rate(*few_wins(0, n)) == pytest.approx(0, abs=1e-3)
    assert length_controlled_win_rate(*few_wins(n, n)) == pytest.approx(100, abs=1e-3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("wins", [0, 1, 12])
def test_length_control_is_that_of_a_plain_search_of_the_penalised_loss(wins):
    """The fit, the penalty and the choice of its strength, by a search that knows no slope."""
    preferences, base, response = few_wins(wins, 40)
    y, difference = preferences - 1, base - response
    x = np.stack([np.tanh(difference / difference.std(ddof=1)), np.ones(40)], axis=1)

    def loss(b, rows):
        return np.sum(np.logaddexp(0, x[rows] @ b) - y[rows] * (x[rows] @ b))

    def fit(rows, strength):
        def penalised(b):
            return loss(b, rows) + np.abs(b).sum() / strength

        return min((minimize(penalised, [0, z], method="Powell", tol=1e-9) for z in (0, -3)), key=lambda f: f.fun).x

    folds = [test for _, test in GroupKFold(5).split(x, groups=np.arange(40))]
    strengths = np.logspace(-4, 4, 10)
    held = [sum(loss(fit(np.setdiff1d(np.arange(40), fold), c), fold) for fold in folds) for c in strengths]
    theta = fit(np.arange(40), strengths[np.argmin(held)])[1]
    expected = 100 / (1 + np.exp(-theta))
    assert length_controlled_win_rate(preferences, base, response) == pytest.approx(expected, abs=2e-3)


def test_a_length_controlled_win_rate_that_the_penalty_alone_makes_is_left_out_with_the_reason():
    rng = np.random.default_rng(3)
    lengths = rng.integers(100, 900, 1000), rng.integers(300, 1500, 1000)

    def of(n, spread):
        even = 1.47 + spread * np.where(np.arange(n) % 2, 1, -1)
        return length_control(even, *(values[:n] for values in lengths))

    few = of(50, 0.33)
    assert np.isnan(few.rate)
    needed = int(
        re.fullmatch(r"the penalty alone makes it 50; there are 50 judgements, and some (\d+) are needed", few.note)[1]
    )
    assert 300 < needed < 400
    # From so many on there is a number, whatever they say; of AlpacaEval's 805 for any judge.
    for n, spread in ((needed + 4, 0.33), (805, 0.33), (805, 0.47)):
        assert of(n, spread).rate == pytest.approx(50, abs=5), (n, spread)


def test_a_mean_over_seeds_is_left_out_where_that_of_a_seed_is():
    preferences, base, response = lengths_and_preferences(30, -2.0, 1.0)
    even = 1.5 + 0.4 * np.where(np.arange(30) % 2, 1, -1)
    told = judgements(preferences).assign(length_base=base, length_response=response)
    both = pd.concat([told, told.assign(seed=1, preference=even)])
    table = with_length_control(win_rate_table(both), both)
    found = table[table["subset"] == "overall"].set_index("seed")
    assert found.loc["0", "length_controlled_win_rate"] < 40
    assert found.loc[["1", "all"], "length_controlled_win_rate"].isna().all()
    assert found.loc["all", "length_control_note"] == found.loc["1", "length_control_note"] != ""
    assert not found.loc["0", "length_control_note"]
    assert "icp, > 0.9: the penalty alone makes it 50; there are 30 judgements" in markdown(
        table, paired_differences(both)
    )
    assert "% Without a length-controlled win rate: icp" in latex(table, paired_differences(both))


def test_length_control_is_a_column_behind_the_others_and_changes_none_of_them():
    preferences, base, response = lengths_and_preferences(30, 0.5, 1.0)
    rows = judgements(preferences).assign(length_base=base, length_response=response)
    both = pd.concat([rows, rows.assign(seed=1, preference=rows["preference"].clip(1.2))])
    table = win_rate_table(both, [("random", "gt-0.90", 0)])
    with_column = with_length_control(table, both)
    pd.testing.assert_frame_equal(with_column[list(table)], table)
    assert list(with_column)[len(list(table)) :] == ["length_controlled_win_rate", "length_control_note"]
    found = with_column.set_index(["method", "subset", "seed"])["length_controlled_win_rate"].sort_index()
    assert found["icp", "overall", "0"] == length_controlled_win_rate(preferences, base, response)
    assert found["icp", "overall", "all"] == pytest.approx(found["icp", "overall"][["0", "1"]].mean())
    assert found.drop([("icp", "overall", seed) for seed in ("0", "1", "all")]).isna().all()


def test_the_report_says_why_a_length_controlled_win_rate_is_left_out(tmp_path):
    arguments = experiment(tmp_path)
    name, inputs = next(iter(arguments["models"].items()))
    reason = "the penalty alone makes it 50; there are 50 judgements, and some 348 are needed"
    table = inputs.win_rates.assign(length_controlled_win_rate=np.nan, length_control_note=None)
    first = table.index[(table["subset"] == "overall") & (table["seed"].astype(str) == "all")][0]
    table.loc[first, "length_control_note"] = reason  # as read from a CSV file: nothing is NaN
    build(tmp_path / "report.html", **arguments | {"models": {name: replace(inputs, win_rates=table)}})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count(reason) == 1
    assert f"{table.loc[first, 'method']}, " in text
