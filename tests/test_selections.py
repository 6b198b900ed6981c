"""Rules that choose examples, each against a naive loop, on random scores with ties and examples not evaluated."""

import numpy as np
import pandas as pd
import pytest
import yaml

from icprobe.analysis import selecting
from icprobe.attribution import METHODS, methods_of
from icprobe.config import load
from icprobe.config.selections import Selection, in_words
from icprobe.errors import ConfigError, DataError, ScoreError
from icprobe.workflow.checks import check_selections
from icprobe.workflow.plan import Plan

SEEDS = range(8)
SIZES = ({"top": 9}, {"top": "30%"}, {"bottom": 7}, {"tokens": 60})


def rule(**keys):
    return Selection(method="icp", **keys).model_dump(mode="json", exclude={"method", "baselines"})


class Case:
    """Random scores with ties; some are not evaluated, ids are in no order."""

    def __init__(self, seed, n=40, missing=True):
        draw = np.random.default_rng(seed)
        self.ids = [f"x{i}" for i in draw.permutation(n)]
        self.effects = draw.integers(-3, 4, size=(n, 3)).astype(np.float32)
        self.score = (self.effects > 0).mean(axis=1)
        self.lengths = draw.integers(1, 12, size=n)
        self.values = draw.choice(np.array(["code", "prose", "maths", None], dtype=object), size=n)
        self.score[draw.choice(n, 4, replace=False) if missing else []] = np.nan
        self.mean = self.effects.mean(axis=1, dtype=np.float64)
        self.table = pd.DataFrame({"id": self.ids, "score": self.score, "mean_effect": self.mean})

    def select(self, **keys):
        given = (self.lengths, self.values, self.effects.T)
        return selecting.select("mine", rule(**keys), self.table, *given).tolist()

    def ranked(self, key=None, best=True):
        """Evaluated examples in order, by a loop's key: (value, mean effect, id)."""
        sign = -1 if best else 1
        known = [i for i in range(len(self.ids)) if self.score[i] == self.score[i]]
        value = self.score if key is None else key
        return sorted(known, key=lambda i: (sign * value[i], sign * self.mean[i], self.ids[i]))

    def size(self, keys):
        asked = str(keys.get("top") or keys.get("bottom"))
        return round(len(self.ids) * int(asked[:-1]) / 100) if asked.endswith("%") else int(asked)

    def first(self, order, keys):
        if "tokens" not in keys:
            return order[: self.size(keys)]
        taken, total = [], 0
        for i in order:
            total += self.lengths[i]
            if total > keys["tokens"]:
                break
            taken.append(i)
        return taken


@pytest.mark.parametrize("keys", SIZES, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_plain_rule_takes_the_first_of_the_ranking(seed, keys):
    case = Case(seed)
    assert case.select(**keys) == case.first(case.ranked(best="bottom" not in keys), keys)


@pytest.mark.parametrize("keys", SIZES, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_tasks_in_turn_take_what_is_best_for_each_of_those_left(seed, keys):
    case = Case(seed)
    best, chosen = "bottom" not in keys, []
    while len(chosen) < len(case.ranked()):
        order = case.ranked(case.effects[:, len(chosen) % 3].astype(float), best)
        chosen.append(next(i for i in order if i not in chosen))
    assert case.select(per_task="round_robin", **keys) == case.first(chosen, keys)


def test_a_task_that_has_evaluated_nothing_more_passes():
    effects = np.array([[3.0, np.nan], [2.0, 9.0], [1.0, np.nan], [0.0, np.nan]], dtype=np.float32)
    table = pd.DataFrame({"id": list("abcd"), "score": 0.0})
    chosen = selecting.select("mine", rule(top=4, per_task="round_robin"), table, effects=effects.T)
    assert chosen.tolist() == [0, 1, 2, 3]
    with pytest.raises(ScoreError, match=r"selections.mine: it asks for 3 examples, but there are only 1 with"):
        selecting.select("mine", rule(top=3, per_task="round_robin"), table, effects=effects.T[1:])


@pytest.mark.parametrize("seed", SEEDS)
def test_match_takes_the_same_share_of_each_stratum_of_length(seed):
    case = Case(seed, n=200)
    strata = selecting.length_strata(case.lengths, 10)
    # Equal lengths are in one stratum, and no stratum has longer responses than a later one.
    for i, j in zip(*[range(len(strata))] * 2, strict=True):
        assert (case.lengths[i] < case.lengths[j]) <= (strata[i] <= strata[j])
    assert all(len({*strata[case.lengths == length]}) == 1 for length in {*case.lengths})
    counts, k = np.bincount(strata), 50
    exact = counts * k / counts.sum()
    whole = np.floor(exact).astype(int)
    for place in sorted(range(len(counts)), key=lambda i: (whole[i] - exact[i], i))[: k - whole.sum()]:
        whole[place] += 1
    wanted = []
    for i in case.ranked():
        if whole[strata[i]]:
            whole[strata[i]] -= 1
            wanted.append(i)
    assert case.select(top=k, match="length") == wanted


@pytest.mark.parametrize("seed", SEEDS)
def test_a_quota_is_filled_from_the_best_of_each_value_and_the_rest_from_all_others(seed):
    case = Case(seed, n=80)
    shares = {"code": 0.3, "maths": 0.2}
    left, wanted = {"code": 6, "maths": 4, "others": 10}, []
    for i in case.ranked():
        value = case.values[i] if case.values[i] in shares else "others"
        if left[value]:
            left[value] -= 1
            wanted.append(i)
    assert case.select(top=20, quota={"column": "domain", "shares": shares}) == wanted


@pytest.mark.parametrize("seed", SEEDS)
def test_a_quota_of_tokens_is_kept_in_each_value(seed):
    case = Case(seed, n=80)
    shares, budgets = {"code": 0.5, "maths": 0.25}, {"code": 30, "maths": 15, "others": 15}
    wanted = set()
    for name, budget in budgets.items():
        own = [i for i in case.ranked() if (case.values[i] if case.values[i] in shares else "others") == name]
        wanted |= {*case.first(own, {"tokens": budget})}
    chosen = case.select(tokens=60, quota={"column": "domain", "shares": shares})
    assert chosen == [i for i in case.ranked() if i in wanted]


def test_shares_that_make_one_take_nothing_from_the_others():
    case = Case(0, n=80)
    chosen = case.select(top=10, quota={"column": "domain", "shares": {"code": 0.1, "prose": 0.2, "maths": 0.7}})
    assert {*case.values[chosen]} == {"code", "prose", "maths"}
    thirds = {"column": "domain", "shares": dict.fromkeys(("code", "prose", "maths"), 1 / 3)}
    for size in ({"top": 9}, {"tokens": 60}):
        assert {*case.values[case.select(**size, quota=thirds)]} == {"code", "prose", "maths"}


@pytest.mark.parametrize("keys", [*({**size, "match": "length"} for size in SIZES[:3]), {"tokens": 60}], ids=str)
def test_what_is_chosen_depends_on_the_rows_and_not_on_their_order(keys):
    case = Case(1, n=200)
    order = np.random.default_rng(0).permutation(200)
    given = (case.table.iloc[order], case.lengths[order], case.values[order], case.effects[order].T)
    shuffled = selecting.select("mine", rule(**keys), *given)
    assert [case.ids[order[i]] for i in shuffled] == [case.ids[i] for i in case.select(**keys)]


# --- fewer than asked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"top": 37}, "it asks for 37 examples, but there are only 36 with a score. Take fewer, or a share of them."),
        ({"top": "100%", "match": "length"}, "it asks for 40 examples, but there are only 36"),
        ({"tokens": 1e6}, "it asks for 1,000,000 tokens, but the examples with a score have only"),
        (
            {"tokens": 1e6, "per_task": "round_robin"},
            "it asks for 1,000,000 tokens, but the examples with",
        ),
        ({"tokens": 1e6, "match": "length"}, "tokens of length stratum 1, but the examples with a score have only"),
        (
            {"top": 30, "quota": {"column": "domain", "shares": {"code": 0.9}}},
            "it asks for 27 examples in which domain",
        ),
    ],
    ids=str,
)
def test_fewer_examples_than_asked_for_are_one_clear_sentence(keys, said):
    with pytest.raises(ScoreError, match=r"^selections\.mine: ") as error:
        Case(0).select(**keys)
    assert said in str(error.value)


def test_a_budget_below_the_first_response_is_refused():
    table = pd.DataFrame({"id": ["a", "b"], "score": [1.0, 0.0]})
    with pytest.raises(ScoreError, match=r"the first example has 4 tokens, and 3 tokens may be taken\. Take more"):
        selecting.select("mine", rule(tokens=3), table, np.array([4, 1]))
    quota = {"column": "domain", "shares": {"law": 0.2}}
    with pytest.raises(
        ScoreError, match="first example in which domain is law has 1 token, and less than one token may"
    ):
        selecting.select("mine", rule(tokens=4, quota=quota), table, np.array([4, 1]), ["code", "law"])


@pytest.mark.parametrize("keys", [{"top": 10}, {"tokens": 100}], ids=str)
def test_examples_of_which_none_has_a_score_are_said_to_have_none(keys):
    case = Case(0)
    case.table.loc[case.values == "code", "score"] = np.nan
    with pytest.raises(ScoreError, match=r"in which domain is code, but no such example has a score\. Take none of"):
        case.select(**keys, quota={"column": "domain", "shares": {"code": 0.5}})


def test_shares_of_all_values_must_sum_to_one():
    quota = {"column": "domain", "shares": {"a": 0.3, "b": 0.5}}
    with pytest.raises(DataError, match=r"no example has another value in the column 'domain'.* sum to 0\.8\. "):
        selecting.check("mine", rule(top=2, quota=quota), list("xyz"), None, list("aba"))


def test_a_value_that_no_example_has_is_refused():
    with pytest.raises(DataError, match=r"selections\.mine\.quota: no example has the value 'law' in the column"):
        Case(0).select(top=10, quota={"column": "domain", "shares": {"law": 0.1}})


@pytest.mark.parametrize("keys", [{"tokens": 1e6}, {"top": 41}, {"tokens": 1e6, "match": "length"}], ids=str)
def test_what_is_too_much_whatever_the_scores_is_known_before_them(keys):
    case = Case(0)
    with pytest.raises(ScoreError, match="it asks for"):
        selecting.check("mine", rule(**keys), pd.Series(case.ids), case.lengths, case.values)
    assert selecting.check("mine", rule(top=40), pd.Series(case.ids), None, None) == 40
    # Of what may fit by some scores nothing is said: the shortest could be the best.
    assert selecting.check("mine", rule(tokens=1), pd.Series(case.ids), case.lengths, None) == 1


def test_the_table_says_how_long_each_data_set_is_and_what_a_baseline_shares():
    lengths = pd.Series([1.0, 2.0, 6.0], index=["a", "b", "c"])
    chosen = {"best": ("best", "", ["c", "b"]), "best-random": ("best", "random", ["a", "c"])}
    rows = selecting.tabulate(chosen, lengths, "selected").set_index("method")
    assert rows["n_tokens"].tolist() == [8, 7, 9]
    assert rows["mean_tokens"].tolist() == [4, 3.5, 3]
    assert rows["shared"].fillna(-1).tolist() == [1, 0.5, -1]
    unknown = selecting.tabulate(chosen, lengths * np.nan, "selected")
    assert unknown["n"].tolist() == [2, 2, 3]
    assert unknown["n_tokens"].isna().all()


# --- the configuration ------------------------------------------------------------------------------------------


def config(selections, **sections):
    raw = yaml.safe_load(open("config.yaml", encoding="utf-8")) | sections  # noqa: SIM115
    return load({**raw, "selections": selections}, METHODS)


@pytest.mark.parametrize(
    ("selections", "said"),
    [
        ({"icp": {"method": "icp", "top": 3}}, "selections: 'icp' is the name of a method or of all data"),
        ({"all": {"method": "icp", "top": 3}}, "selections: 'all' is the name of a method or of all data"),
        ({"random": {"method": "icp", "top": 3}}, "selections: 'random' is the name of a method"),
        ({"a": {"method": "inflence", "top": 3}}, 'did you mean "influence"?'),
        ({"a": {"method": "icp"}}, "selections.a: write one of top, bottom and tokens, not none"),
        ({"a": {"method": "icp", "top": 3, "tokens": 9}}, "write one of top, bottom and tokens, not top and tokens"),
        ({"a": {"method": "icp", "top": "110%"}}, "selections.a.top: write a share of the examples, such as 10%"),
        ({"a": {"method": "icp", "top": 0}}, "selections.a.top: write a share of the examples, such as 10%"),
        ({"a": {"method": "icp", "tokens": 1.5}}, "selections.a.tokens: a whole number of tokens is needed"),
        (
            {"a": {"method": "icp", "top": 3, "match": "length", "per_task": "round_robin"}},
            "selections.a: per_task and match cannot be combined; choose one",
        ),
        (
            {"a": {"method": "icp", "top": 3, "quota": {"column": "planted", "shares": {"x": 0.7, "y": 0.4}}}},
            "shares: they sum to 1.1, which is more than 1",
        ),
        (
            {"a": {"method": "icp", "top": 3, "quota": {"column": "plnted", "shares": {"x": 0.7}}}},
            "selections.a.quota.column: 'plnted' is no column that is kept; list it in data.labels",
        ),
        ({"a": {"method": "icp", "top": 3, "baselines": ["random"] * 2}}, "baselines: random appears twice"),
        (
            {"a": {"method": "icp", "top": 3, "baselines": ["random"]}, "a-random": {"method": "icp", "top": 3}},
            "selections: two data sets would be called 'a-random'",
        ),
        (
            {"a": {"method": "icp", "top": 3, "match": "length", "diverse": {"by": "embedding"}}},
            "selections.a: diverse and match cannot be combined; choose one",
        ),
        (
            {"a": {"method": "icp", "top": 3, "diverse": {"by": "embedding", "weight": 0}}},
            "selections.a.diverse.weight",
        ),
        ({"a/b": {"method": "icp", "top": 3}}, "use a plain name"),
    ],
)
def test_a_mistake_is_one_sentence_when_the_configuration_is_read(selections, said):
    with pytest.raises(ConfigError) as error:
        config(selections)
    assert said in str(error.value)


def test_what_the_configuration_knows_of_the_data_is_used():
    tiny = {"train": {"path": "resources/demo/train.jsonl", "sample": {"n": 24}}}
    tiny |= {"tasks": {"path": "resources/demo/tasks.jsonl"}, "eval": {"path": "resources/demo/eval.jsonl"}}
    with pytest.raises(ConfigError, match=r"selections\.a: it asks for 25 examples, but data\.train\.sample takes 24"):
        config({"a": {"method": "icp", "top": 25}}, data=tiny)
    with pytest.raises(ConfigError, match=r"finetune\.selections: 'b' is no selection"):
        config({"a": {"method": "icp", "top": 2}}, finetune={"selections": ["b"]})
    away = {"models": ["m"], "model_sources": {"m": {"source": "external"}}, "finetune": None, "evaluation": None}
    with pytest.raises(ConfigError, match=r"selections\.a: it needs the lengths of responses, which nobody knows"):
        config({"a": {"method": "icp", "tokens": 25}}, **away)
    with pytest.raises(ConfigError, match=r"selections\.a\.diverse: it needs the examples' embeddings, and 'm' is ext"):
        config({"a": {"method": "icp", "top": 2, "diverse": {"by": "embedding"}}}, **away)


def test_tasks_take_turns_only_by_methods_that_have_values_for_each():
    asked = config({"a": {"method": "length", "top": 2, "per_task": "round_robin"}})
    with pytest.raises(
        ConfigError, match=r"selections\.a\.per_task: length has no value for each task; methods that do:"
    ):
        check_selections(Plan(asked, methods_of(asked)))


def test_selections_are_conditions_and_null_means_all_of_them():
    selections = {"a": {"method": "icp", "top": 2, "baselines": ["random"]}, "b": {"method": "influence", "bottom": 2}}
    few = {"methods": [], "all_data": False}
    asked = {None: ["a", "a-random", "b"], ("b",): ["b"], (): []}
    for chosen, names in asked.items():
        made = config(selections, finetune={**few, "selections": None if chosen is None else [*chosen]})
        plan = Plan(made, methods_of(made))
        assert plan.fine_tuned == [(name, "selected", 0) for name in names]
        assert plan.subsets[-3:] == [(name, "selected") for name in ("a", "a-random", "b")]
    # Without `finetune` nothing is trained.
    without = config(selections, finetune=None)
    assert Plan(without, methods_of(without)).fine_tuned == []


def test_only_the_best_by_a_method_that_is_no_baseline_may_be_advised():
    selections = {
        "good": {"method": "icp", "tokens": 100, "baselines": ["random"]},
        "worst": {"method": "icp", "bottom": 2, "baselines": ["random"]},
        "chance": {"method": "random", "top": 2},
        "long": {"method": "length", "top": 2},
    }
    made = config(selections, attribution={"methods": ["icp", "influence", "random", "length"]})
    assert list(Plan(made, methods_of(made)).advisable) == ["good", "good-random"]


def test_without_selections_nothing_is_planned_of_them():
    without = config({})
    plan = Plan(without, methods_of(without))
    assert (plan.data_sets, without.finetune_selections) == ({}, [])
    assert "selections.csv" not in plan.tables
    assert {bin for _, bin in plan.subsets} == {*without.bins}
    assert "selected" not in {bin for _, bin, _ in plan.fine_tuned}


def test_what_was_asked_for_is_said_in_words():
    shares = {"column": "domain", "shares": {"code": 0.3, "maths": 0.25}}
    asked = config(
        {
            "best": {"method": "influence", "top": "10%", "baselines": ["random", "random_length"]},
            "worst": {"method": "icp", "bottom": 5, "per_task": "round_robin"},
            "few": {"method": "icp", "tokens": 2e6, "quota": shares},
            "even": {"method": "icp", "top": 20, "match": "length"},
        },
    )
    assert in_words(asked.selections) == {
        "best": "the best 10% by influence",
        "best-random": "as many examples as best, at random",
        "best-random_length": "as many examples as best from each range of response lengths, at random",
        "worst": "the worst 5 by icp, tasks in turn",
        "few": "the best by icp, up to 2,000,000 tokens, domain: 30% code, 25% maths",
        "even": "the best 20 by icp, as much from each tenth of the response lengths",
    }


def test_a_quota_of_a_value_that_a_small_file_lacks_is_refused_when_planning():
    def planned(share):
        asked = {"a": {"method": "icp", "top": 3, "quota": {"column": "planted", "shares": {share: 0.5}}}}
        loaded = config(asked)
        check_selections(Plan(loaded, methods_of(loaded)))

    planned("sound")
    said = r"selections\.a\.quota\.shares: no row of data\.train has 'sond'; the column 'planted' holds .*\"sound\""
    with pytest.raises(ConfigError, match=said):
        planned("sond")
