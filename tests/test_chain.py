"""The chain icp ~ one_step ~ influence: its numbers against naive loops, and the sentence made from them."""

import copy

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from icprobe.analysis import correlations as correlations_module
from icprobe.analysis.chain import DIFFERENCE, ENDS, FIRST, SECOND, chain, weak_link
from icprobe.analysis.correlations import resample_counts
from icprobe.errors import ScoreError

AGGREGATORS = {"icp": "fraction_positive", "one_step": "fraction_positive", "influence": "mean"}
ETAS = (1e-3, 1e-2)
LINKS = "Of the two links between icp and influence"


def matrices(n=12, m=3, seed=0, noise=1.0):
    """icp, influence, {η: one_step}: influence is the cause of icp, one_step departs from η·influence with η²."""
    rng = np.random.default_rng(seed)
    influence = rng.standard_normal((n, m)) + rng.standard_normal(n)[:, None]
    icp = influence + noise * rng.standard_normal((n, m))
    curve = rng.standard_normal((n, m))
    steps = {eta: eta * influence + 40 * eta**2 * curve for eta in ETAS}

    def table(values):
        ids = [f"e{i}" for i in range(len(values))]
        return pd.DataFrame(np.float32(values), columns=[f"t{j}" for j in range(m)]).assign(id=ids)

    return table(icp), table(influence), {eta: table(values) for eta, values in steps.items()}


def values_of(table):
    return table.drop(columns="id").to_numpy(np.float64)


def naive_links(icp, influence, steps, draw, statistic):
    """{(level, link, η): value} of the examples `draw`, one by one, by the definitions."""
    function = {"spearman": spearmanr, "pearson": pearsonr}[statistic]
    found = {}

    def add(link, eta, a, b, score_a, score_b):
        a, b = a[draw], b[draw]
        found["element", link, eta] = function(a.ravel(), b.ravel()).statistic
        found["task_mean", link, eta] = np.mean([function(x, y).statistic for x, y in zip(a.T, b.T, strict=True)])
        found["example", link, eta] = function(score_a(a), score_b(b)).statistic
        found["example_mean", link, eta] = function(a.mean(axis=1), b.mean(axis=1)).statistic

    def share(x):
        return (x > 0).mean(axis=1)

    def mean(x):
        return x.mean(axis=1)

    a, b = values_of(icp), values_of(influence)
    add(ENDS, None, a, b, share, mean)
    for eta, step in steps.items():
        add(FIRST, eta, a, values_of(step), share, share)
        add(SECOND, eta, values_of(step), b, share, mean)
    return found


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
@pytest.mark.parametrize("statistic", ["spearman", "pearson"])
def test_values_and_intervals_are_those_of_a_naive_bootstrap_over_examples(statistic):
    icp, influence, steps = matrices()
    table = chain(icp, influence, steps, AGGREGATORS, resamples=40, seed=5)
    rows = table[table["statistic"] == statistic]
    counts = resample_counts(12, 40, 5).astype(int)
    every = naive_links(icp, influence, steps, np.arange(12), statistic)
    draws = [naive_links(icp, influence, steps, np.repeat(np.arange(12), row), statistic) for row in counts]
    compared = 0
    for row in rows[rows["level"] != "task"].itertuples():
        key = (row.level, row.link, None if np.isnan(row.learning_rate) else row.learning_rate)
        values = np.array([draw[key] for draw in draws])
        expected = [every[key], *np.percentile(values[~np.isnan(values)], [2.5, 97.5])]
        gap = np.abs(np.array([row.value, row.low, row.high]) - expected).max()
        assert gap < 1e-9, (row, expected)
        compared += 1
    assert compared == 4 * 5
    assert set(rows["n"][rows["level"] == "element"]) == {36}
    assert set(rows["interval"]) == {"bootstrap"}


def test_each_tasks_row_is_the_correlation_within_it():
    icp, influence, steps = matrices()
    table = chain(icp, influence, steps, AGGREGATORS, resamples=2)
    rows = table[(table["level"] == "task") & (table["statistic"] == "spearman") & (table["link"] == ENDS)]
    assert rows["task"].tolist() == ["t0", "t1", "t2"]
    naive = [spearmanr(icp[task], influence[task]).statistic for task in rows["task"]]
    assert np.abs(rows["value"] - naive).max() < 1e-12


def test_the_relative_error_and_its_interval_are_those_of_a_naive_loop():
    icp, influence, steps = matrices()
    table = chain(icp, influence, steps, AGGREGATORS, resamples=30, seed=1)
    rows = table[table["statistic"] == "relative_error"].set_index("learning_rate")
    for eta, step in steps.items():

        def error(draw, eta=eta, step=step):
            g = values_of(influence)[draw]
            return np.linalg.norm(values_of(step)[draw] / eta - g) / np.linalg.norm(g)

        draws = [error(np.repeat(np.arange(12), row)) for row in resample_counts(12, 30, 1).astype(int)]
        expected = [error(np.arange(12)), *np.percentile(draws, [2.5, 97.5])]
        assert np.allclose(rows.loc[eta, ["value", "low", "high"]].astype(float), expected, rtol=1e-6)
    # Made to depart with η²: a tenth of the step is a tenth of the error.
    assert np.isclose(rows.loc[1e-2, "value"] / rows.loc[1e-3, "value"], 10, rtol=1e-4)


def test_examples_are_resampled_and_not_their_cells():
    """Cells that repeat within an example add nothing: the interval is as wide as that of one cell each."""
    icp, influence, steps = matrices(n=40, m=1)

    def repeated(table):
        return pd.concat([table, *(table["t0"].rename(f"copy{i}") for i in range(5))], axis=1)

    def interval(*arguments):
        table = chain(*arguments, AGGREGATORS, resamples=200)
        return table[(table["level"] == "element") & (table["link"] == ENDS) & (table["statistic"] == "spearman")].iloc[
            0
        ]

    one = interval(icp, influence, steps)
    six = interval(repeated(icp), repeated(influence), {eta: repeated(step) for eta, step in steps.items()})
    assert np.allclose([one["low"], one["high"]], [six["low"], six["high"]], atol=0.02)
    assert (one["n"], six["n"]) == (40, 240)


def test_the_jackknife_agrees_with_the_bootstrap():
    arguments = matrices(n=400, m=4)
    tables = [chain(*arguments, AGGREGATORS, resamples=400, analytic_above=above) for above in (1000, 399)]
    assert [set(table["interval"]) for table in tables] == [{"bootstrap"}, {"jackknife"}]
    few = [table[(table["level"] != "task") & (table["level"] != "example")] for table in tables]
    widths = [table["high"] - table["low"] for table in few]
    assert np.allclose(few[0]["value"], few[1]["value"], atol=1e-12)
    ratio = widths[1] / widths[0]
    assert ratio.between(0.6, 1.7).all(), ratio.describe()


def test_numbers_do_not_depend_on_the_order_of_examples_nor_on_how_resamples_are_cut(monkeypatch):
    icp, influence, steps = matrices()
    whole = chain(icp, influence, steps, AGGREGATORS, resamples=20)
    monkeypatch.setattr(correlations_module, "ELEMENTS_AT_ONCE", 500)
    shuffled = {eta: step.sample(frac=1, random_state=2)[step.columns[::-1]] for eta, step in steps.items()}
    cut = chain(icp, influence.sample(frac=1, random_state=1), shuffled, AGGREGATORS, resamples=20)
    pd.testing.assert_frame_equal(whole, cut, rtol=0, atol=1e-12)


def test_matrices_of_other_examples_are_refused():
    icp, influence, steps = matrices()
    with pytest.raises(ScoreError, match="same examples and tasks; one is 11 × 3, that of icp 12 × 3"):
        chain(icp, influence[1:], steps, AGGREGATORS)


def with_difference(table, low, high):
    rows = table["link"] == DIFFERENCE
    return table.assign(low=table["low"].where(~rows, low), high=table["high"].where(~rows, high))


def test_the_sentence_names_the_link_whose_interval_says_so():
    table = chain(*matrices(n=60, noise=2.0), AGGREGATORS, resamples=200)
    text = weak_link(table)
    row = table[(table["level"] == "element") & (table["learning_rate"] == 1e-3) & (table["statistic"] == "spearman")]
    first, second = row.set_index("link").loc[[FIRST, SECOND], "value"]
    assert text.startswith(
        f"{LINKS}, icp – one_step is the weaker one: element by element (60 examples × 3 tasks, η = 0.001)"
    )
    assert f"{first:.2f} [" in text
    assert f"{second:.2f} [" in text
    assert "This holds at every step size." in text
    assert weak_link(with_difference(table, -0.4, -0.2)).startswith(f"{LINKS}, one_step – influence is the weaker one")
    assert weak_link(with_difference(table, -0.4, 0.2)).startswith("These data do not show which of the two links")


def test_the_sentence_tells_the_step_sizes_at_which_it_is_otherwise():
    table = chain(*matrices(n=60, noise=2.0), AGGREGATORS, resamples=100)
    large = (table["link"] == DIFFERENCE) & (table["learning_rate"] == 1e-2)
    table.loc[large, ["low", "high"]] = -0.3, -0.1
    assert "At η = 0.01 it is one_step – influence." in weak_link(table)


def test_the_sentence_says_where_rounding_takes_over():
    table = chain(*matrices(), AGGREGATORS, resamples=20)
    assert "η = 0.001, the smallest step" in weak_link(table)
    errors = table["statistic"] == "relative_error"
    table.loc[errors, "value"] = [0.5, 0.02]
    assert "2% off influence at η = 0.01; at η = 0.001 it is 50%, because effects drown in float32" in weak_link(table)


@pytest.mark.filterwarnings("error")
def test_a_chain_of_nothing_has_no_weak_link_and_no_warning():
    icp, influence, steps = matrices()
    nothing = influence.assign(**dict.fromkeys(["t0", "t1", "t2"], np.float32(0)))
    assert "cannot be determined" in weak_link(chain(icp, nothing, steps, AGGREGATORS, resamples=5))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_as_the_step_shrinks_one_step_approaches_influence_until_rounding(
    architecture, few, prompts, tokenizer, tiny_model, capabilities
):
    from icprobe.attribution import influence, one_step
    from icprobe.attribution.matrix import Inputs, to_table
    from icprobe.engine.batching import batches

    train, tasks, lengths = few
    model = copy.deepcopy(tiny_model(architecture))
    inputs = Inputs(train, tasks, lengths, prompts, model, tokenizer, capabilities(architecture))
    runs = batches(lengths, 200)

    def matrix(module, method, **settings):
        values = np.empty((len(train), len(tasks)), np.float32)
        for name, rows, block in module.attribute(inputs, method, runs, batch_tokens=200, **settings):
            if name == method:
                values[rows] = block
        return to_table(train["id"], tasks["id"], values)

    steps = {eta: matrix(one_step, "one_step", learning_rate=eta) for eta in (1e-3, 1e-4, 1e-5, 1e-10)}
    exact = matrix(influence, "influence", methods=["influence"])
    table = chain(exact, exact, steps, AGGREGATORS, resamples=5)
    error = table[table["statistic"] == "relative_error"].set_index("learning_rate")["value"]
    # First order: a tenth of the step is about a tenth of the error, as long as rounding is far.
    assert 5 < error[1e-3] / error[1e-4] < 20
    assert error[1e-5] < error[1e-4]
    assert error[1e-10] > 10 * error[1e-5]


def test_a_mean_over_tasks_counts_those_that_have_a_correlation():
    icp, influence, steps = matrices()
    steps[max(steps)]["t1"] = 0.0  # a step so small that nothing of it is left in float32
    rows = chain(icp, influence, steps, AGGREGATORS, resamples=2).query("level == 'task_mean'")
    assert set(rows.query("link == @ENDS")["n"]) == {36}
    assert set(rows[(rows["link"] != ENDS) & (rows["learning_rate"] == max(steps))]["n"]) == {24}
