"""The linear datamodeling score: naive loops, and experiments whose truth numpy knows exactly."""

import logging
import time

import numpy as np
import pandas as pd
import pytest
from retrained import experiment, noisy
from scipy.stats import spearmanr

from icprobe.analysis.agreement import Jackknife, ceiling, of_mean, spearman, tied
from icprobe.analysis.lds import COLUMNS, DIFFERENCE_COLUMNS, lds, tabulate
from icprobe.analysis.predictions import DOCUMENT_TOKENS, RESPONSE_TOKENS, Members, outcomes_of
from icprobe.errors import DataError, ScoreError


def naive(predictions, outcomes):
    """Spearman of each answer by scipy, then the mean: predictions [R, M], outcomes [R, M]."""
    return np.mean([spearmanr(predictions[:, t], outcomes[:, t]).statistic for t in range(outcomes.shape[1])])


def values(rows=20, tasks=6, seeds=2, seed=0):
    rng = np.random.default_rng(seed)
    predictions = {
        "a": rng.normal(size=(rows, tasks)),
        "tied": rng.integers(0, 3, size=(rows, tasks)).astype(float),
        "one": rng.normal(size=(rows, 1)),
    }
    return predictions, predictions["a"][:, None] + rng.normal(size=(rows, seeds, tasks))


# --- rank correlations and intervals ------------------------------------------------------------------------------


def test_correlations_without_a_row_are_scipys():
    predictions, outcomes = values()
    rows = Jackknife.over(20)
    for of_method in predictions.values():
        found = rows.correlations(of_method, outcomes[:, 0])
        assert found.shape == (21, 6)
        wide = np.broadcast_to(of_method, (20, 6))
        for left_out in (None, 0, 13):
            kept = np.arange(20) != (-1 if left_out is None else left_out)
            expected = [spearmanr(wide[kept, t], outcomes[kept, 0, t]).statistic for t in range(6)]
            assert np.allclose(found[0 if left_out is None else 1 + left_out], expected, atol=1e-12)


def test_many_rows_are_left_out_in_groups_each_once():
    rows = Jackknife.over(250, seed=3)
    assert rows.kept.shape == (101, 250)
    assert rows.kept[0].all()
    assert ((~rows.kept[1:]).sum(axis=0) == 1).all()
    assert set((~rows.kept[1:]).sum(axis=1)) == {2, 3}


def test_equal_outcomes_are_undefined_and_equal_predictions_predict_nothing():
    varied, equal = np.arange(5.0)[:, None], np.ones((5, 1))
    assert np.isnan(spearman(varied, equal)).all()
    assert (spearman(equal, varied) == 0).all()


def test_sums_that_differ_by_rounding_alone_are_tied():
    sums = np.array([[0.1 + 0.2], [0.3], [0.3 + 1e-9], [-4.0]])
    assert len(np.unique(tied(sums))) == 3
    assert np.allclose(tied(sums), sums, atol=1e-11)
    assert (tied(np.zeros((3, 1))) == 0).all()
    # So are their means over tasks of other sizes.
    rows = np.random.default_rng(0).integers(-40, 40, (200, 3)) * [1.0, 7.0, 0.25]
    means = tied(rows + 1e-14).mean(axis=1)
    assert len(np.unique(means)) == len(np.unique(rows.mean(axis=1).round(6)))


@pytest.mark.parametrize(("rows", "correlation"), [(24, 0.0), (24, 0.9), (64, 0.5)])
def test_intervals_cover_the_truth(rows, correlation):
    """The mean over 12 tasks whose predictions and outcomes share a common part; truth: that of normal variables."""
    rng = np.random.default_rng(rows)
    truth = 6 / np.pi * np.arcsin(correlation / 2)
    covered = []
    for _ in range(200):
        a, b = (
            np.sqrt(0.3) * rng.normal(size=(rows, 1)) + np.sqrt(0.7) * rng.normal(size=(rows, 12)) for _ in range(2)
        )
        sample = Jackknife.over(rows)
        draws = sample.correlations(a, correlation * a + np.sqrt(1 - correlation**2) * b)
        _, low, high = sample.interval(draws.mean(axis=1))
        covered.append(low <= truth <= high)
    assert 0.9 <= np.mean(covered) <= 0.995, np.mean(covered)


def test_differences_of_equal_methods_are_seldom_significant():
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(200):
        truth = rng.normal(size=(32, 8))
        a, b = (truth + rng.normal(size=(32, 8)) for _ in range(2))
        sample = Jackknife.over(32)
        outcome = truth + 0.5 * rng.normal(size=(32, 8))
        p_values.append(
            sample.difference((sample.correlations(a, outcome) - sample.correlations(b, outcome)).mean(1))[3]
        )
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.09


def test_few_rows_and_rows_that_all_agree_have_no_interval():
    four, six = Jackknife.over(4), Jackknife.over(6)
    varied = np.random.default_rng(0).normal(size=(4, 3))
    assert np.isnan(four.interval(four.correlations(varied, varied[::-1])[:, 0])[1:]).all()
    line = np.arange(6.0)[:, None]
    same = six.correlations(line, line)[:, 0]
    assert six.interval(same)[0] == 1
    assert np.isnan(six.interval(same)[1:]).all()
    assert six.difference(same - same) == (0, 0, 0, 1)
    assert np.isnan(six.difference(same + same)[1:]).all()


# --- tables -------------------------------------------------------------------------------------------------------


def test_scores_are_the_naive_loop_and_say_what_they_are_of():
    predictions, outcomes = values(seeds=3)
    table, differences = lds(predictions | {"partial": None}, outcomes, {"odd": [1, 3, 5]}, "tasks")
    assert list(table) == COLUMNS
    assert list(differences) == DIFFERENCE_COLUMNS
    mean = outcomes.mean(axis=1)
    rows = table.set_index(["domain", "method"])
    for domain, places in {"all": range(6), "odd": [1, 3, 5]}.items():
        for method, of_method in predictions.items():
            row = rows.loc[domain, method]
            wide = np.broadcast_to(of_method, mean.shape)
            assert np.isclose(row.lds, naive(wide[:, places], mean[:, places]))
            assert row.low < row.lds < row.high
            assert (row.n_subsets, row.n_seeds, row.n_tasks) == (20, 3, len(places))
        pairs = [(0, 1), (0, 2), (1, 2)]
        trusted = np.mean([naive(outcomes[:, a][:, places], outcomes[:, b][:, places]) for a, b in pairs])
        assert np.isclose(rows.loc[domain, "a"].reliability, trusted)
        assert np.isclose(rows.loc[domain, "a"].ceiling, np.sqrt(3 * trusted / (1 + 2 * trusted)))
        assert np.isclose(rows.loc[domain, "a"].spread, np.mean([np.std(mean[:, m], ddof=1) for m in places]))
    assert np.isnan(rows.loc[("all", "partial"), ["lds", "low", "high"]].to_numpy(float)).all()
    assert (rows.loc[("all", "partial"), ["n_subsets", "n_tasks"]] == 0).all()
    row = differences.query("domain == 'odd' and method_a == 'a' and method_b == 'one'").iloc[0]
    assert np.isclose(row.difference, rows.loc[("odd", "a"), "lds"] - rows.loc[("odd", "one"), "lds"])
    assert row.p_value <= row.p_value_holm <= 1
    assert len(differences) == 6, "what predicts nothing is compared with nothing"


def test_a_method_that_lacks_examples_is_named_in_the_log(caplog):
    predictions, outcomes = values()
    with caplog.at_level(logging.WARNING):
        lds(predictions | {"icp_budget": None}, outcomes, {}, "tasks")
    assert "icp_budget has not evaluated all examples" in caplog.text


def test_an_answer_with_equal_outcomes_is_in_no_mean():
    predictions, outcomes = values()
    outcomes[:, :, 2] = -3.0
    table, _ = lds(predictions, outcomes, {"dull": [2]}, "tasks")
    rows = table.set_index(["domain", "method"])
    others = [0, 1, 3, 4, 5]
    assert np.isclose(rows.loc[("all", "a"), "lds"], naive(predictions["a"][:, others], outcomes.mean(1)[:, others]))
    assert rows.loc[("all", "a"), "n_tasks"] == 5
    assert np.isnan(rows.loc[("dull", "a"), "lds"])
    assert rows.loc[("dull", "a"), "n_tasks"] == 0


def test_one_seed_has_no_ceiling():
    predictions, outcomes = values(seeds=1)
    table, _ = lds(predictions, outcomes, {}, "tasks")
    assert table[["reliability", "reliability_of_mean", "ceiling", "ceiling_low", "ceiling_high"]].isna().all(axis=None)
    assert np.isnan(ceiling(0.5, 1))
    assert ceiling(-0.1, 2) == 0
    assert np.isclose(of_mean(0.5, 2), 2 / 3)


# --- sums over members --------------------------------------------------------------------------------------------


def test_sums_are_the_naive_loop_whatever_the_order_and_the_pieces(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"e{i}" for i in range(30)]
    matrix = pd.DataFrame(rng.normal(size=(30, 3)).astype(np.float32), columns=list("xyz"), index=ids)
    members = pd.DataFrame(
        [(f"s{r}", e) for r in range(4) for e in rng.permutation(ids)[:15]], columns=["subset", "id"]
    )
    names = [f"s{r}" for r in (2, 0, 3, 1)]
    expected = [matrix.loc[members.loc[members["subset"] == name, "id"]].astype(float).sum() for name in names]
    shuffled = matrix.sample(frac=1, random_state=1).reset_index(names="id")
    for size in (1, 7, 30):
        pieces = [shuffled[start : start + size] for start in range(0, 30, size)]
        assert np.allclose(Members(members, names, ids).sums(pieces, "icp", ["z", "x"]), np.array(expected)[:, [2, 0]])


def test_other_examples_are_refused_and_missing_values_are_no_sum():
    members = pd.DataFrame({"subset": ["s", "s"], "id": ["a", "b"]})
    known = Members(members, ["s"], ["a", "b", "c"])
    table = pd.DataFrame({"id": ["a", "b", "c"], "score": [1.0, 2.0, 3.0]})
    assert known.sums([table], "icp", ["score"]) == 3
    assert known.sums([table.assign(score=[1.0, 2.0, np.nan])], "icp", ["score"]) is None
    for wrong in (table[:2], pd.concat([table, table[:1]]), table.assign(id=["a", "b", "d"])):
        with pytest.raises(ScoreError, match="icp"):
            known.sums([wrong], "icp", ["score"])
    with pytest.raises(DataError, match="'b'"):
        Members(members, ["s"], ["a", "c"])


def test_outcomes_that_are_not_all_there_are_refused():
    rows = [(s, n, "tasks", t, float(n)) for s in ("s0", "s1") for n in (0, 1) for t in ("t0", "t1", "t2")]
    table = pd.DataFrame(rows, columns=["subset", "seed", "set", "id", "log_likelihood"])
    values, ids = outcomes_of(table.sample(frac=1, random_state=0), "tasks", ["s0", "s1"])
    assert values.shape == (2, 2, 3)
    assert (values[:, 1] == 1).all()
    assert sorted(ids) == ["t0", "t1", "t2"]
    twice = pd.concat([table[1:], table[-1:]])
    for wrong in (table[1:], twice, table.assign(log_likelihood=np.nan), table.assign(subset="s0")):
        with pytest.raises(DataError, match="Measure the outcomes again"):
            outcomes_of(wrong, "tasks", ["s0", "s1"])


# --- experiments whose truth is known -----------------------------------------------------------------------------


def scored(known, **changes):
    """lds.csv of an experiment, from its files."""
    files = known._replace(**changes)
    methods = {**files.matrices, **files.scores}
    table, _ = tabulate(files.subsets, files.outcomes, methods, set(files.matrices), files.lengths, {}, files.reference)
    return table.set_index("method")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return experiment(tmp_path_factory.mktemp("known"))


def test_exact_influence_predicts_one_step_of_training_and_chance_does_not(known):
    table = scored(known)
    assert table.loc["influence", "lds"] >= 0.95
    assert abs(table.loc["random", "lds"]) <= 0.1
    assert table.loc["random", "low"] < 0 < table.loc["random", "high"]
    assert set(table.index) == {"influence", "random", "length", DOCUMENT_TOKENS, RESPONSE_TOKENS}


def test_influence_functions_predict_ridge_regression(tmp_path):
    table = scored(experiment(tmp_path, train="ridge"))
    assert table.loc["influence", "lds"] >= 0.8
    assert abs(table.loc["random", "lds"]) <= 0.1


def test_another_sign_or_other_ids_would_be_seen(known, tmp_path):
    matrix = pd.read_parquet(known.matrices["influence"])
    tasks = [column for column in matrix if column != "id"]
    wrong = {
        "sign": matrix.assign(**{task: -matrix[task] for task in tasks}),
        "ids": matrix.assign(id=np.random.default_rng(0).permutation(matrix["id"])),
        "tasks": matrix.rename(columns=dict(zip(tasks, tasks[1:] + tasks[:1], strict=True))),
    }
    found = {}
    for name, table in wrong.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
        found[name] = scored(known, matrices={"influence": tmp_path / f"{name}.parquet"}).loc["influence", "lds"]
    assert found["sign"] <= -0.95
    assert abs(found["ids"]) <= 0.2
    assert found["tasks"] <= 0.5
    shuffled = matrix.sample(frac=1, random_state=0)[["id", *reversed(tasks)]]
    shuffled.to_parquet(tmp_path / "shuffled.parquet")
    assert scored(known, matrices={"influence": tmp_path / "shuffled.parquet"}).loc["influence", "lds"] >= 0.95


@pytest.mark.parametrize(("noise", "seeds"), [(0.5, 2), (1.0, 2), (1.0, 4)])
def test_the_ceiling_of_noisy_seeds_is_what_exact_predictions_reach(noise, seeds, tmp_path):
    """noise: standard deviation of each seed's, in those of the outcome over subsets."""
    known = experiment(tmp_path, subsets=300)
    table = scored(known, outcomes=noisy(known.outcomes, noise, seeds))
    row = table.loc["influence"]
    of_one = 1 / (1 + noise**2)
    assert np.isclose(row.reliability, 6 / np.pi * np.arcsin(of_one / 2), atol=0.03)
    assert np.isclose(row.reliability_of_mean, seeds * of_one / (1 + (seeds - 1) * of_one), atol=0.03)
    assert row.ceiling_low < np.sqrt(row.reliability_of_mean) < row.ceiling_high
    assert np.isclose(row.lds, row.ceiling, atol=0.03)


def test_leaving_examples_out_tells_influence_from_chance(tmp_path):
    table = scored(experiment(tmp_path, subsets=60, train="ridge", left_out=True))
    assert table.loc["influence", "lds"] >= 0.9
    assert abs(table.loc["random", "lds"]) <= 0.15
    assert table.loc["influence", "n_subsets"] == 60


def test_answers_that_are_no_tasks_are_held_against_the_mean_over_tasks(known):
    tasks = sorted(known.outcomes["id"].unique())
    wide = known.outcomes.pivot(index="subset", columns="id", values="log_likelihood")
    prompts = pd.concat(
        [known.outcomes[known.outcomes["id"] == task].assign(set="eval", id=f"p-{task}") for task in tasks[:3]]
    )
    table, differences = tabulate(
        known.subsets,
        pd.concat([known.outcomes, prompts]),
        {**known.matrices, **known.scores},
        set(known.matrices),
        known.lengths,
        {"first": tasks[:5]},
    )
    rows = table.set_index(["set", "domain", "method"])
    matrix = pd.read_parquet(known.matrices["influence"]).set_index("id").mean(axis=1)
    sums = {subset: matrix.loc[ids].sum() for subset, ids in known.subsets.groupby("subset")["id"]}
    expected = np.mean([spearmanr(wide.index.map(sums), wide[task]).statistic for task in tasks[:3]])
    assert np.isclose(rows.loc[("eval", "all", "influence"), "lds"], expected)
    assert rows.loc[("eval", "all", "influence"), "n_tasks"] == 3
    assert set(rows.index.droplevel("method")) == {("tasks", "all"), ("tasks", "first"), ("eval", "all")}
    assert set(differences["set"]) == {"tasks", "eval"}


def test_many_subsets_tasks_and_methods_take_seconds():
    rng = np.random.default_rng(0)
    outcomes = rng.normal(size=(64, 2, 100))
    predictions = {f"m{k}": rng.normal(size=(64, 100)) for k in range(15)}
    started = time.process_time()
    lds(predictions, outcomes, {f"d{k}": range(k, 100, 4) for k in range(4)}, "tasks")
    assert time.process_time() - started < 20
