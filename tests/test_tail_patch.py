"""The tail patch: one step's effects of what a method ranks first, last, and of what chance takes."""

import dag
import numpy as np
import pandas as pd

from icprobe.analysis.tail_patch import tail_patch
from icprobe.attribution import METHODS, methods_of
from icprobe.config import load
from icprobe.workflow.plan import Plan


def made(n=50, seed=0):
    rng = np.random.default_rng(seed)
    ids = [f"e{i:02d}" for i in range(n)]
    matrix = pd.DataFrame(rng.normal(size=(n, 4)), columns=list("wxyz"))
    effects = matrix.mean(axis=1)
    matrix.insert(0, "id", ids)
    icp = pd.DataFrame({"id": ids, "score": rng.random(n).round(1)})
    good = pd.DataFrame({"id": ids, "score": effects + rng.normal(0, 0.05, n)})
    return matrix, {"icp": icp, "good": good}, effects.to_numpy()


def test_effects_are_those_of_the_examples_at_either_end():
    matrix, scores, effects = made()
    table = tail_patch(scores, matrix, ["top 20%", ">0.8"])
    assert set(table["method"]) == {"icp", "good"}, "one_step would judge itself"
    order = np.argsort(-scores["good"]["score"].to_numpy(), kind="stable")
    sizes = {"10": 10, "10%": 5, "top 20%": 10, ">0.8": int((scores["icp"]["score"] > 0.8).sum())}
    rows = table[table["method"] == "good"].set_index(["k", "which"])
    for k, n in sizes.items():
        assert (rows.loc[k, "n"] == n).all()
        assert np.isclose(rows.loc[(k, "best"), "effect"], effects[order[:n]].mean())
        assert np.isclose(rows.loc[(k, "worst"), "effect"], effects[order[::-1][:n]].mean())
        assert np.isclose(rows.loc[(k, "random"), "effect"], effects.mean())
    assert rows.loc[("10", "best"), "low"] > rows.loc[("10", "random"), "high"]
    assert rows.loc[("10", "worst"), "high"] < rows.loc[("10", "random"), "low"]


def test_effects_are_in_one_steps_unit():
    matrix, scores, _ = made()
    assert set(tail_patch(scores, matrix)["unit"]) == {"nats"}
    assert set(tail_patch(scores, matrix, unit="nats per token")["unit"]) == {"nats per token"}


def test_what_is_random_lies_where_draws_of_that_many_do():
    matrix, scores, effects = made()
    row = tail_patch(scores, matrix).query("method == 'good' and k == '10' and which == 'random'").iloc[0]
    rng = np.random.default_rng(7)
    draws = rng.choice(effects, (20_000, 10)).mean(axis=1)
    assert np.allclose([row.low, row.high], np.percentile(draws, [2.5, 97.5]), atol=0.02)


def test_of_many_examples_the_normal_limit_is_what_draws_give(monkeypatch):
    matrix, scores, _ = made(n=400)
    drawn = tail_patch(scores, matrix, ["top 50%"])
    monkeypatch.setattr("icprobe.analysis.tail_patch.DRAWN", 50)
    normal = tail_patch(scores, matrix, ["top 50%"])
    assert np.allclose(drawn[["low", "high"]], normal[["low", "high"]], atol=0.01)
    many = normal["n"] > 50
    assert many.any()
    assert (drawn.loc[many, "low"] != normal.loc[many, "low"]).all()


def test_few_examples_and_budgets_show_their_smaller_n():
    matrix, scores, _ = made(n=7)
    partial = scores["good"].assign(score=scores["good"]["score"].where(np.arange(7) < 3))
    table = tail_patch({"icp": scores["icp"], "part": partial}, matrix).set_index(["method", "k", "which"])
    assert table.loc[("icp", "10", "best"), "n"] == 7
    assert table.loc[("part", "10", "best"), "n"] == 3
    assert table.loc[("icp", "10%", "best"), "n"] == 1
    assert np.isnan(table.loc[("icp", "10%", "best"), "low"])


def test_the_experiment_has_it_where_one_step_is_computed(tmp_path_factory):
    project = dag.finished(tmp_path_factory.getbasetemp())
    table = pd.read_csv(project.path / dag.RESULTS / "tables/tail_patch.csv", dtype={"k": str})
    matrix = pd.read_parquet(project.path / dag.RESULTS / "attributions/one_step.parquet").set_index("id")
    influence = pd.read_parquet(project.path / dag.RESULTS / "scores/influence.parquet").set_index("id")["score"]
    row = table.query("method == 'influence' and k == '10' and which == 'best'").iloc[0]
    assert np.isclose(row.effect, matrix.loc[influence.nlargest(10).index].to_numpy(float).mean(), rtol=1e-5)
    assert set(table["method"]) == {"icp", "influence", "influence_log", "length", "random"}
    page = (project.path / "results/tiny/report.html").read_text(encoding="utf-8")
    assert "it would judge itself" in page
    config = dag.configuration("config.yaml", "configs/tiny.yaml")
    without = config.model_copy(update={"attribution": config.attribution.model_copy(update={"methods": ["icp"]})})
    plans = [Plan(one, dag.METHODS) for one in (config, without)]
    assert ["tail_patch.csv" in plan.tables for plan in plans] == [True, False]


def test_what_is_combined_of_one_step_is_not_judged_by_it():
    config = dag.configuration("config.yaml", "configs/tiny.yaml")
    combined = {
        "one": {"mean_rank": ["one_step"]},
        "deep": {"mean_rank": ["icp", "one"]},
        "other": {"mean_rank": ["icp"]},
    }
    asked = ["icp", "influence", "one_step", "one", "deep", "other"]
    raw = config.model_dump(mode="json")
    raw["attribution"] |= {"methods": asked, "combined": combined, "aggregators": {}}
    changed = load({**raw, "bins": ["top 20%"], "finetune": None, "truth": {}}, METHODS)
    plan = Plan(changed, methods_of(changed))
    assert plan.tail_patch == ["icp", "influence", "other"]
