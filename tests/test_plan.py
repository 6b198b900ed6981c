"""What a configuration decides before anything runs: which jobs there are, and what they read of it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from icprobe.attribution import METHODS, methods_of
from icprobe.config import load
from icprobe.errors import ConfigError, DataError
from icprobe.workflow.checks import check_columns, check_files
from icprobe.workflow.plan import LABEL_TABLES, Plan

ROOT = Path(__file__).parents[1]
GIVEN = {"path": "given.npz", "orientation": "scores"}
MATRIX = {"path": "given.npz", "orientation": "examples_by_tasks"}
# What would need certain methods to be chosen.
LESS = {"finetune": {"methods": [], "all_data": False}, "figures": {"scatter": "all"}}
AWAY = {
    "models": ["theirs"],
    "model_sources": {"theirs": {"source": "external"}},
    "data": {"train": None, "tasks": None, "eval": None, "labels": []},
}


def plan(**sections):
    """Of config.yaml, with LESS and these sections laid over it, as Snakemake lays them."""
    raw = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    update_config(raw, LESS)
    update_config(raw, sections)
    config = load(raw, METHODS)
    return Plan(config, methods_of(config))


def with_models(*sources, **sections):
    """A plan of models "a", "b", … from these sources."""
    names = "abc"[: len(sources)]
    return plan(models=list(names), model_sources=dict(zip(names, sources, strict=True)), **sections)


RANDOM, LOCAL = {"source": "random"}, {"source": "local", "path": "here"}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


# --- models and tables --------------------------------------------------------------------------------------------


def test_the_parameters_reach_the_methods_by_gradients_and_the_default_no_job():
    methods = [*METHODS]
    chosen, every = (plan(attribution={"methods": methods, "parameters": p}) for p in ("mlp", "all"))
    by_gradients = ["influence", "influence_log", "cosine", "influence_ekfac", "one_step", "influence_mean"]
    by_gradients += ["self_influence", "tracin", "less"]
    assert [m for m in methods if chosen.method_settings(m).get("parameters") == "mlp"] == by_gradients
    assert not any("parameters" in every.method_settings(method) for method in methods)
    assert "of the MLPs, with a mixture's experts alone (parameters: mlp)" in " ".join(chosen.objective)
    assert not plan(attribution={"methods": ["icp"], "parameters": "mlp"}).parameters_chosen


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", ""])
def test_what_is_no_pattern_is_refused_when_the_configuration_is_read(pattern):
    with pytest.raises(ConfigError, match=r"attribution\.parameters: (no regular expression: |an empty pattern)"):
        plan(attribution={"parameters": pattern})


@pytest.mark.parametrize(
    ("data", "read"),
    [
        ({}, {"train": [], "tasks": [], "eval": []}),
        ({"tasks": {"select": "kmeans:4"}}, {"train": [], "tasks": ["a"], "eval": []}),
        ({"tasks": {"select": "random:4"}}, {"train": [], "tasks": [], "eval": []}),
        ({"train": {"sample": {"n": 9}}}, {"train": [], "tasks": [], "eval": []}),
        ({"train": {"sample": {"n": 9, "max_tokens": 99}}}, {"train": ["a"], "tasks": [], "eval": []}),
        ({"eval": {"sample": {"n": 9, "max_tokens": 99}}}, {"train": [], "tasks": [], "eval": ["a"]}),
        ({"on_too_long": "drop"}, {"train": ["a", "b"], "tasks": ["a", "b"], "eval": []}),
    ],
)
def test_only_models_that_decide_which_rows_there_are_are_read_for_a_table(data, read):
    found = with_models(RANDOM, RANDOM, data=data)
    assert {table: found.readers(table) for table in read} == read


def test_a_model_that_is_not_here_is_read_for_nothing():
    found = plan(**AWAY, attribution={"methods": ["icp"], "external": {"icp": GIVEN}})
    assert found.models_here == []
    assert [found.readers(table) for table in ("train", "tasks", "eval")] == [[], [], []]


def test_a_model_is_made_from_its_own_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "folder").mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "here" / name).touch()
    found = with_models(LOCAL, RANDOM | {"corpus": "corpus.jsonl"}, {"source": "hub", "id": "x/y"})
    assert [found.model_files(model) for model in "abc"] == [
        ["here/config.json", "here/model.safetensors"],
        ["corpus.jsonl"],
        [],
    ]


def test_rows_without_texts_are_numbered_by_the_first_scores_that_have_them():
    external = {"icp": GIVEN, "influence": MATRIX}
    found = plan(**AWAY, attribution={"methods": ["icp", "influence"], "external": external})
    assert found.named_by == {"train": "icp", "tasks": "influence"}
    found = plan(**AWAY, attribution={"methods": ["icp", "random"], "external": {"icp": GIVEN}})
    assert found.named_by == {"train": "icp", "tasks": None}, "one number for each example names no task"
    assert plan().named_by == {}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"data": {"train": {"path": "none.jsonl"}}}, "data.train.path: none.jsonl"),
        ({"data": {"eval": {"path": ["resources/demo/eval.jsonl", "none.json"]}}}, "data.eval.path: none.json"),
        ({"attribution": {"external": {"icp": GIVEN}}}, "attribution.external.icp.path: given.npz"),
        (
            {"evaluation": {"judge": "annotations", "annotations": {"a": {"path": "none.json"}}}},
            "evaluation.annotations.a.path: none.json",
        ),
    ],
)
def test_a_file_that_is_named_and_not_there_is_said(sections, key):
    with pytest.raises(ConfigError, match=f"config: {key}: no such file; correct the path"):
        check_files(plan(**sections))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"train": {"columns": {"output": "respons"}}},
            "train.jsonl: has no column 'respons', .*our 'output'; it has 'id'",
        ),
        (
            {"tasks": {"path": "mine.csv"}},
            "mine.csv: has no column 'instruction' .*data.tasks.columns: {instruction: question, output: answer}",
        ),
        (
            {"eval": {"path": ["mine.csv", "resources/demo/eval.jsonl"], "columns": {"instruction": "q"}}},
            "no column 'q'",
        ),
        (
            {"sound_labels": {"planted": ["sond"]}},
            "data.sound_labels.planted: no row of data.train has 'sond'; .*did you mean \"sound\"",
        ),
        (
            {"in_domain": ["knowledge", "poetics"]},
            "data.in_domain: no row of data.tasks or data.train has 'poetics'; the column 'domain' holds .*'knowledge'",
        ),
        ({"labels": ["plantd"]}, 'data.labels: no row of resources/demo/train.jsonl .*did you mean "planted"'),
    ],
)
def test_columns_that_local_files_lack_are_told_before_any_job(data, said, tmp_path, monkeypatch):
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("question,answer\na,b\n")
    with pytest.raises((DataError, ConfigError), match=said):
        check_columns(plan(data=data))


def test_columns_that_are_there_or_cannot_be_known_yet_are_no_mistake(tmp_path):
    check_columns(plan())
    check_columns(plan(data={"train": {"path": None, "hub": "tatsu-lab/alpaca"}, "labels": ["unknown"]}))
    check_columns(plan(data={"train": {"path": None, "hub": "x/y"}, "in_domain": ["knowledge", "of examples"]}))
    rows = [{"instruction": f"Question {n}?", "output": "a" * 60} for n in range(9000)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_columns(plan(data={"train": {"path": str(tmp_path / "long.jsonl")}, "labels": ["late"]}))


def test_files_that_nothing_reads_need_not_be_there():
    unread = {"evaluation": {"annotations": {"a": {"path": "none.json"}}}}
    check_files(plan(attribution={"external": {"unused": GIVEN}}, **unread))
    check_files(plan(data={"train": {"path": None, "hub": "tatsu-lab/alpaca"}}))


# --- attributions -------------------------------------------------------------------------------------------------


def test_every_computed_method_has_one_kind_of_job():
    methods = [*METHODS, "mine"]
    found = plan(attribution={"methods": methods, "external": {"mine": MATRIX}})
    assert found.together == ["influence", "influence_log", "cosine"]
    assert found.alone(needs_model=False) == ["bm25", "length", "random"]
    alone = [*found.alone(needs_model=True), *found.alone(needs_model=False)]
    assert sorted([*found.together, *alone, *found.external]) == sorted(methods)


def test_an_external_method_of_a_computed_ones_name_takes_its_place():
    found = plan(attribution={"methods": ["icp", "influence"], "external": {"influence": MATRIX}})
    assert found.computed == ["icp"]
    assert found.together == []
    assert [found.external_files(method) for method in ("icp", "influence")] == [[], ["given.npz"]]


def test_a_methods_job_sees_its_own_settings_alone():
    found = plan(attribution={"dtype": "bfloat16", "one_step": {"learning_rate": 3e-4}})
    assert found.method_settings("icp")["dtype"] == "bfloat16"
    assert "learning_rate" not in found.method_settings("icp")
    assert found.method_settings("one_step") == {
        "device": "auto",
        "tf32": False,
        "batch_tokens": 1024,
        "learning_rate": 3e-4,
        "dtype": "float32",
        "train_loss": "document",
        "reduction": "sum",
        "task_likelihood": "sum",
    }
    assert found.method_settings("random") == {}
    assert found.method_settings("icp_k_shot").items() >= {"k": 4, "draws": 4}.items()
    assert found.method_settings("icp_reverse")["tasks"] == "all"


def test_the_loss_reaches_the_methods_by_gradients_and_where_training_cuts_only_with_its_loss():
    methods = [*METHODS]
    document = plan(attribution={"methods": methods}, finetune={"max_length": 99})
    assert not any("max_length" in document.method_settings(method) for method in methods)
    assert not any(map(document.takes_loss, methods))
    assert "as in the paper" in document.objective[0]
    response = plan(attribution={"methods": methods, "train_loss": "response"}, finetune={"max_length": 99})
    of_pairs = ["influence", "influence_log", "cosine", "influence_ekfac", "one_step", "influence_mean"]
    taking = [*of_pairs, "self_influence", "tracin", "less"]
    assert [method for method in methods if response.takes_loss(method)] == taking
    assert [m for m in methods if response.method_settings(m).get("max_length") == 99] == taking
    assert "after 99 tokens" in response.objective[0]
    reads_likelihood = [m for m in methods if "task_likelihood" in response.method_settings(m)]
    assert reads_likelihood == ["icp", *of_pairs, "tracin", "icp_k_shot"]
    assert len(plan(attribution={"methods": ["icp"], "train_loss": "response"}).objective) == 1
    assert plan(attribution={"methods": ["random"]}, bins=["top 20%"]).objective == []


@pytest.mark.parametrize(
    ("attribution", "units"),
    [
        ({}, {"icp": "nats", "one_step": "nats", "influence": "nats²", "influence_mean": "nats²"}),
        (
            {"task_likelihood": "mean"},
            {"icp": "nats per token", "one_step": "nats per token", "influence": "nats² per token"},
        ),
        ({"reduction": "mean"}, {"icp": "nats", "one_step": "nats", "influence_mean": "nats² per token"}),
        ({"reduction": "mean"}, {"icp_reverse": "nats per token", "icp_k_shot": "nats"}),
        ({"reduction": "mean"}, {"cosine": "cosine", "self_influence": "nats² per token²"}),
        (
            {"reduction": "mean", "task_likelihood": "mean"},
            {"influence": "nats² per token²", "influence_log": "signed log", "icp_budget": "share of tasks helped"},
        ),
    ],
)
def test_units_and_questions_say_per_token_where_it_is_so(attribution, units):
    known = plan(attribution=attribution).methods
    assert {method: known[method].unit for method in units} == units
    for method, unit in units.items():
        if "nats" in unit:
            assert re.findall(r"nats²?(?: per token²?)?", known[method].asks) == [unit]


# --- analysis -----------------------------------------------------------------------------------------------------

CHAIN = ["icp", "one_step", "influence"]


@pytest.mark.parametrize(
    ("attribution", "looked_at"),
    [
        ({"methods": CHAIN}, True),
        ({"methods": CHAIN[:2]}, False),
        ({"methods": CHAIN, "external": {"influence": MATRIX}}, False),
    ],
)
def test_the_chain_is_looked_at_where_all_of_it_is_computed_here(attribution, looked_at):
    found = plan(
        attribution=attribution,
        analysis={"chain": {"learning_rates": [1e-4, 1e-5]}},
    )
    assert found.chain is looked_at
    assert found.step_sizes == ({"1e-05": 1e-5} if looked_at else {}), "one_step's own matrix is there already"
    assert ("chain.csv" in found.tables, "weak_link.txt" in found.tables) == (looked_at, looked_at)


def test_scores_by_domain_are_taken_from_methods_with_a_value_for_each_task():
    methods = ["icp", "icp_budget", "bm25", "perplexity", "length", "mine", "one_number"]
    mine, number = {**MATRIX, "allow_missing": True}, {**GIVEN, "allow_missing": True}
    found = plan(
        attribution={"methods": methods, "external": {"mine": mine, "one_number": number}},
    )
    assert found.domains == {
        "aggregators": {"icp": "fraction_positive", "bm25": "mean", "mine": "mean"},
        "without_tasks": ["perplexity", "length"],
        "may_skip": ["mine"],
    }


def test_labels_without_good_values_or_columns_have_no_auc():
    found = plan(data={"labels": ["planted", "source"], "sound_labels": {"planted": ["sound"], "other": ["x"]}})
    assert found.sound_labels == {"planted": ["sound"]}


def test_a_sweep_is_drawn_where_there_is_something_to_compare(tmp_path):
    def tasks(*domains):
        path = tmp_path / f"{'-'.join(domains)}.jsonl"
        rows = [{"instruction": "i", "output": "o", "field": domain} for domain in domains]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"tasks": {"path": str(path), "columns": {"domain": "field"}}}

    assert not plan(data=tasks("math", "math")).sweep
    assert plan(data=tasks("math", "code")).sweep
    assert with_models(RANDOM, RANDOM, data=tasks("math")).sweep
    assert not with_models(RANDOM, RANDOM, figures={"sweep": False}).sweep
    assert plan(data=tasks("math"), figures={"sweep": True}).sweep
    assert not with_models(RANDOM, RANDOM, attribution={"methods": ["icp"]}).sweep
    elsewhere = {"tasks": {"path": None, "hub": "x/y"}}
    assert not plan(data=elsewhere).sweep, "what lies elsewhere is not known yet"


@pytest.mark.parametrize(
    ("methods", "tables"),
    [
        (["influence"], set()),
        (["icp"], set()),
        (["influence", "length"], {"correlations.csv"}),
        (["icp", "length"], {"correlations.csv", "overlaps.csv"}),
    ],
)
def test_no_table_is_made_that_would_be_empty(methods, tables):
    plain = plan(attribution={"methods": methods}, bins=["top 20%"], data={"labels": []}).tables
    assert set(plain) == {"bins.csv"} | tables
    labelled = plan(attribution={"methods": methods}, bins=["top 20%"], data={"labels": ["source"]}).tables
    assert set(labelled) == {*LABEL_TABLES, "bins.csv"} | tables


def test_only_thresholds_read_the_icp_scores():
    found = plan()
    assert [found.by_icp(name) for name in ("gt-0.80", "le-0.50", "top-20pct", "bottom-10", "all")] == [
        *(True, True, False, False, False),
    ]


# --- fine-tuned models --------------------------------------------------------------------------------------------


def test_a_model_is_fine_tuned_for_each_method_bin_and_seed_and_for_all_data():
    finetune = {"methods": ["icp", "random"], "bins": ["<=0.5", ">0.8"], "seeds": [0, 3], "all_data": True}
    found = plan(finetune=finetune)
    bins = [("icp", "<=0.5"), ("icp", ">0.8"), ("random", "<=0.5"), ("random", ">0.8"), ("all", "all")]
    assert found.fine_tuned == [(method, threshold, seed) for method, threshold in bins for seed in (0, 3)]
    assert found.judged == found.fine_tuned
    assert plan().fine_tuned == []
    assert plan().judged_tables == []


def test_held_out_answers_are_those_of_tasks_and_gold_answers():
    of = {"finetune": {"methods": ["icp"], "bins": [">0.8"]}}
    found = plan(**of)
    assert found.held_out_sets == ["tasks", "eval"]
    assert found.held_out == found.fine_tuned == found.judged
    assert found.held_out_tables == ["held_out.csv", "held_out_differences.csv"]
    # The outputs of the eval table are then what the base model said.
    llm = {"base_url": "http://localhost/v1", "model": "j"}
    assert plan(**of, evaluation={"judge": "llm", "llm": llm, "base_responses": "given"}).held_out_sets == ["tasks"]
    assert plan().held_out == []
    assert plan().held_out_tables == []


def test_without_responses_the_held_out_gain_is_left():
    found = plan(finetune={"methods": ["icp"], "bins": [">0.8"], "generate": False})
    assert found.judged == []
    assert found.judged_tables == []
    assert found.held_out == found.fine_tuned == found.unjudged
    assert found.reads_eval
    # Nothing is asked of prompts, so that there need be none.
    data = {"eval": None}
    found = plan(finetune={"methods": ["icp"], "bins": [">0.8"], "generate": False}, data=data)
    assert found.held_out_sets == ["tasks"]
    assert not found.reads_eval


def test_annotations_stand_in_the_table_in_place_of_fine_tuned_models():
    notes = {
        "icp": {"path": "a.json", "bin": ">0.9"},
        "second": {"path": ["b.json", "c.json"], "method": "theirs", "seed": 2},
    }
    found = plan(evaluation={"judge": "annotations", "annotations": notes})
    assert found.judged == [("icp", ">0.9", 0), ("theirs", "all", 2)]
    assert found.judged_tables == ["win_rates.csv", "differences.csv"]
    assert found.held_out == [], "what others have judged was not trained here"
    assert found.annotation("icp", "gt-0.90", "0").files == ["a.json"]
    assert found.annotation("theirs", "all", "2").files == ["b.json", "c.json"]
    with pytest.raises(ConfigError, match=r"there are no annotations of icp, gt-0\.90, seed 1"):
        found.annotation("icp", "gt-0.90", "1")
    assert {"icp", "all", "theirs"} <= set(found.names_of_methods)
    assert len(found.names_of_methods) == len(set(found.names_of_methods))
