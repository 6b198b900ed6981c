"""Methods that are computed from the matrices of others: held against a naive loop, and what is refused."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import rankdata
from snakemake.utils import update_config

from icprobe.analysis.statistics import aggregate
from icprobe.attribution import METHODS, methods_of
from icprobe.attribution.combined import combine
from icprobe.config import load
from icprobe.errors import ArtifactError, ConfigError, ScoreError
from icprobe.workflow.plan import Plan

ROOT = Path(__file__).parents[1]
TASKS = ["a", "b", "c"]
IDS = [f"e{i}" for i in range(23)]


def matrix(seed, columns, values=9):
    """A matrix of few different values, so that many are equal."""
    drawn = np.random.default_rng(seed).integers(-values, values, (len(IDS), len(columns))) / 4
    return pd.DataFrame({"id": IDS}).join(pd.DataFrame(drawn.astype(np.float32), columns=columns))


LENGTHS = pd.Series(np.random.default_rng(7).integers(1, 12, len(IDS)), index=IDS, name="n_target")


def naive_mean_rank(matrices, columns):
    """Entry by entry; a single score stands for every task."""
    found = np.zeros((len(IDS), len(columns)))
    for t, task in enumerate(columns):
        ranks = [rankdata(m["score" if "score" in m else task]) / len(IDS) for m in matrices]
        for z in range(len(IDS)):
            found[z, t] = sum(one[z] for one in ranks) / len(ranks)
    return found


def naive_given_length(matrix, columns, lengths):
    """The residuals of numpy's least squares, column by column."""
    along = np.stack([np.ones(len(IDS)), rankdata(lengths.loc[IDS])], axis=1)
    found = np.zeros((len(IDS), len(columns)))
    for t, task in enumerate(columns):
        ranks = rankdata(matrix[task])
        found[:, t] = ranks - along @ np.linalg.lstsq(along, ranks, rcond=None)[0]
    return found


def assert_close(found, expected):
    values = found.drop(columns="id").to_numpy()
    assert values.dtype == np.float64
    assert found["id"].tolist() == IDS
    assert np.abs(values - expected).max() < 1e-12, f"largest difference {np.abs(values - expected).max():.2e}"


@pytest.mark.parametrize(
    "kinds", ["".join(kinds) for n in (1, 2, 3) for kinds in itertools.combinations_with_replacement("tsb", n)]
)
def test_mean_ranks_are_those_of_a_naive_loop(kinds):
    """t: a column per task; s: one score; b: one score, and how many tasks it is from, as icp_budget has it."""
    given = {"t": TASKS, "s": ["score"], "b": ["score", "n_tasks"]}
    matrices = [matrix(seed, given[kind]) for seed, kind in enumerate(kinds)]
    columns = TASKS if "t" in kinds else ["score"]
    found = combine({"mean_rank": [*kinds]}, zip(kinds, matrices, strict=True))
    assert found.columns.tolist() == ["id", *columns]
    assert_close(found, naive_mean_rank(matrices, columns))
    assert found[columns].min(axis=None) > 0
    assert found[columns].max(axis=None) <= 1


def test_equal_sums_of_ranks_are_equal_to_the_bit():
    opposite = pd.DataFrame({"id": IDS, "score": np.arange(len(IDS))})
    found = combine({"mean_rank": ["x", "y"]}, [("x", opposite), ("y", opposite.assign(score=-opposite["score"]))])
    assert found["score"].nunique() == 1


@pytest.mark.parametrize("rule", ["mean_rank", "given_length"])
def test_equal_sums_over_tasks_are_equal_to_the_bit_in_whichever_order(rule):
    """Of 1,000 examples: sums over tasks and, given length, its rank say which scores are one."""
    ids, tasks, rng = [f"e{i}" for i in range(1000)], [f"t{i}" for i in range(12)], np.random.default_rng(3)
    given = [pd.DataFrame(rng.integers(0, 40, (1000, 12)), columns=tasks).assign(id=ids) for _ in range(3)]
    lengths = pd.Series(rng.integers(1, 4, 1000), index=ids)
    names = ["x", "y", "z"] if rule == "mean_rank" else ["x"]
    found = combine({rule: names if rule == "mean_rank" else "x"}, zip(names, given, strict=False), lengths)
    sums = sum(one[tasks].rank().to_numpy().sum(axis=1) for one in given[: len(names)])
    scores = aggregate(found, "mean")["score"]
    keys = [sums] if rule == "mean_rank" else [sums, lengths.to_numpy()]
    of_sums = scores.groupby(keys)
    assert of_sums.ngroups < 1000
    assert (of_sums.nunique() == 1).all()
    assert aggregate(found[["id", *tasks[::-1]]], "mean")["score"].tolist() == scores.tolist()


@pytest.mark.parametrize("columns", [TASKS, ["score"]])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_given_length_are_residuals_of_least_squares(columns, seed):
    found = combine({"given_length": "x"}, [("x", matrix(seed, columns))], LENGTHS.sample(frac=1, random_state=seed))
    assert_close(found, naive_given_length(matrix(seed, columns), columns, LENGTHS))
    values = found[columns].to_numpy()
    assert np.abs(values.sum(axis=0)).max() < 1e-9
    assert np.abs(rankdata(LENGTHS) @ values).max() < 1e-9, "length explains nothing more of them"


def test_constant_columns_lengths_and_ties_are_exact():
    own = LENGTHS.loc[IDS].to_numpy()
    columns = {"constant": 3.0, "length": own, "as_length": own**3, "against": -own, "other": matrix(1, ["o"])["o"]}
    given = pd.DataFrame({"id": IDS, **columns})
    found = combine({"given_length": "x"}, [("x", given)], LENGTHS)
    assert (found[["constant", "length", "as_length", "against"]] == 0).all(axis=None)
    pairs = pd.DataFrame({"own": given["other"], "length": own, "left": found["other"]})
    grouped = pairs.groupby(["own", "length"])["left"].nunique()
    assert (grouped == 1).all()
    assert len(grouped) < len(IDS)
    equal = combine({"given_length": "x"}, [("x", given)], LENGTHS * 0 + 5)
    assert_close(equal[["id", "other"]], naive_given_length(given, ["other"], LENGTHS * 0 + 5))
    assert equal["other"].tolist() == (rankdata(given["other"]) - (len(IDS) + 1) / 2).tolist()


def test_many_examples_overflow_nothing():
    n = 3_000_001
    values = np.arange(n)
    given = pd.DataFrame({"id": values.astype(str), "same": values, "back": -values})
    found = combine({"given_length": "x"}, [("x", given)], pd.Series(values, index=given["id"]))
    assert not found[["same", "back"]].any(axis=None)


def test_what_has_no_rank_or_is_of_others_is_refused():
    first, second = matrix(0, TASKS), matrix(1, TASKS)
    for wrong in (np.nan, np.inf):
        holed = second.assign(b=second["b"].where(second["id"] != "e4", wrong))
        with pytest.raises(ScoreError, match="two has a value of 'e4' that is NaN or infinite"):
            combine({"mean_rank": ["one", "two"]}, [("one", first), ("two", holed)])
    for strange in (second.iloc[::-1], second[["id", "b", "a", "c"]], second.assign(id=lambda t: t["id"] + "x")):
        with pytest.raises(ArtifactError, match="matrix of two has other examples or tasks"):
            combine({"mean_rank": ["one", "two"]}, [("one", first), ("two", strange.reset_index(drop=True))])
    with pytest.raises(ScoreError, match="'e3' has no response length"):
        combine({"given_length": "one"}, [("one", first)], LENGTHS.drop("e3"))


# --- as the configuration says it -------------------------------------------------------------------------------

GIVEN = {"path": "given.npz", "orientation": "scores"}


def configured(methods, combined, **sections):
    raw = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    update_config(raw, {"finetune": {"methods": [], "all_data": False}, "bins": ["top 20%"], "figures": {}, **sections})
    raw["attribution"] |= {"methods": methods, "combined": combined}
    return load(raw, METHODS)


def plan(*arguments, **sections):
    config = configured(*arguments, **sections)
    return Plan(config, methods_of(config))


BEST = {"mean_rank": ["icp", "influence"]}
REFUSED = {
    "a name that nothing has": (
        {"best": {"mean_rank": ["icp", "influense"]}},
        "'influense' is not a method; .*mean .inf",
    ),
    "a name that is taken": ({"cosine": BEST}, "'cosine' is a method already"),
    "a name that means something else": ({"all": BEST}, '"all" means all data'),
    "an empty list": ({"best": {"mean_rank": []}}, "best: .*the list of methods is empty"),
    "nothing": ({"best": {}}, "best: .*write one of mean_rank"),
    "both": ({"best": {**BEST, "given_length": "icp"}}, "best: .*write one of mean_rank"),
    "a method twice": ({"best": {"mean_rank": ["icp", "icp"]}}, "'icp' appears twice"),
    "itself": ({"best": {"mean_rank": ["icp", "best"]}}, r"computed from itself \(best of best\)"),
    "a circle": (
        {"best": {"given_length": "next"}, "next": {"mean_rank": ["icp", "best"]}},
        r"computed from itself \((best of next of best|next of best of next)\)",
    ),
    "a method that is not computed": (
        {"best": {"mean_rank": ["icp", "cosine"]}},
        r"'cosine' is not in attribution\.me",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_is_refused_in_one_sentence(case):
    combined, sentence = REFUSED[case]
    with pytest.raises(ConfigError, match=rf"^config: attribution[^\n]*{sentence}[^\n]*$"):
        configured(["icp", "influence", "best"], combined)


def test_missing_values_have_no_rank():
    holes = {"mine": {**GIVEN, "allow_missing": True}}
    attribution = {"attribution": {"external": holes}}
    with pytest.raises(ConfigError, match=r"combined\.best: 'mine' may have missing values"):
        configured(["icp", "mine", "best"], {"best": {"mean_rank": ["icp", "mine"]}}, **attribution)
    assert configured(["icp", "mine"], {"best": {"mean_rank": ["icp", "mine"]}}, **attribution), "it is not asked for"


def test_a_share_of_mean_ranks_above_0_and_a_length_that_nobody_counts_are_refused():
    with pytest.raises(ConfigError, match="mean ranks are all above 0"):
        configured(
            ["icp", "best"],
            {"best": {"mean_rank": ["icp"]}},
            attribution={"aggregators": {"best": "fraction_positive"}},
        )
    with pytest.raises(ConfigError, match="ranks given length are no effects"):
        configured(
            ["icp", "best"],
            {"best": {"given_length": "icp"}},
            attribution={"aggregators": {"best": "fraction_positive"}},
        )
    away = {
        "models": ["theirs"],
        "model_sources": {"theirs": {"source": "external"}},
        "data": {"train": None, "tasks": None, "eval": None, "labels": []},
        "attribution": {"external": {"icp": GIVEN, "mine": GIVEN}},
    }
    assert plan(["icp", "mine", "best"], {"best": {"mean_rank": ["icp", "mine"]}}, **away).methods["best"]
    with pytest.raises(ConfigError, match=r"combined\.best: given_length needs the lengths"):
        plan(["icp", "best"], {"best": {"given_length": "icp"}}, **away)


NESTED = {
    "all_in_all": {"mean_rank": ["best", "length", "influence"]},
    "best": {"mean_rank": ["icp", "influence", "cosine"]},
    "cheap": {"mean_rank": ["perplexity", "length"]},
    "unasked": {"given_length": "icp"},
    "budget": {"mean_rank": ["icp_budget", "length"]},
    "theirs_too": {"mean_rank": ["mine", "length"]},
}


def test_what_is_known_of_them_follows_from_those_they_are_computed_from():
    alone = ["icp", "influence", "cosine", "length", "perplexity", "icp_budget", "mine"]
    asked = ["all_in_all", "best", "cheap", "budget", "theirs_too"]
    found = plan([*asked, *alone], NESTED, attribution={"external": {"mine": GIVEN}})
    order = [*found.combined]
    assert sorted(order) == sorted(asked)
    assert order.index("best") < order.index("all_in_all")
    assert found.computed == alone[:-1]
    known = {name: found.methods[name] for name in asked}
    assert {name: method.per_task for name, method in known.items()} == {
        **dict.fromkeys(["all_in_all", "best"], True),
        **dict.fromkeys(["cheap", "budget", "theirs_too"], False),
    }
    assert not any(method.needs_model for method in known.values())
    assert "Its score is" in known["cheap"].asks
    assert "The effect on a task is" in known["best"].asks
    # By domain: what looks at no task stands in each, and of one number over all tasks nothing can be said.
    assert found.domains["without_tasks"] == ["cheap", "length", "perplexity"]
    assert set(found.domains["aggregators"]) == {"all_in_all", "best", "icp", "influence", "cosine"}
    assert found.made_of("all_in_all") == ["icp", "influence", "cosine", "best", "length", "all_in_all"]
    assert found.paid_for("all_in_all") == ["icp", "influence", "length"], "cosine comes out of influence's pass"
    assert found.methods.keys() == {*METHODS, "mine", *asked}


def test_a_mapping_that_nobody_asks_for_leaves_every_job_as_it_was():
    methods = ["icp", "influence"]
    before, after = plan(methods, {}), plan(methods, {"best": BEST})
    assert before.methods == after.methods
    assert before.domains == after.domains
    assert [*map(before.method_settings, methods)] == [*map(after.method_settings, methods)]
    assert plan([*methods, "best"], {"best": BEST}).method_settings("icp") == before.method_settings("icp")
