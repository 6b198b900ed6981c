"""What a configuration may say, what is told of one that says something else, and that its documentation is true."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from icprobe.attribution import METHODS
from icprobe.config import SMOLLM2, Config, load, schema, stands_alone
from icprobe.config.files import check_keys
from icprobe.errors import ConfigError

ROOT = Path(__file__).parents[1]


def raw(path="config.yaml"):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def laid_over(base, other):
    """As Snakemake does: mappings merge, everything else replaces."""
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = laid_over(base[key], value) if both else value
    return base


def changed(key, value):
    """The default configuration with one dotted key set."""
    whole = raw()
    *above, last = key.split(".")
    place = whole
    for part in above:
        place = place.setdefault(part, {})
    place[last] = value
    return whole


def message(key, value):
    with pytest.raises(ConfigError) as caught:
        load(changed(key, value), METHODS)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_null_leaves_a_parameter_of_a_request_out_and_takes_other_keys_away():
    judge = {"base_url": "http://x/v1", "model": "m", "temperature": None, "json_schema": None, "top_logprobs": None}
    given = load(changed("evaluation", {"judge": "llm", "llm": judge}), METHODS).evaluation.llm
    assert (given.temperature, given.json_schema, given.top_logprobs) == (None, None, 20)
    absent = load(changed("evaluation", {"judge": "llm", "llm": {"base_url": "http://x/v1", "model": "m"}}), METHODS)
    assert (absent.evaluation.llm.temperature, absent.evaluation.llm.json_schema) == (0.0, True)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_is_valid_as_it_is_run_and_trains_what_it_trains(path):
    """Over the demo, or without it where it brings its own data: then settings that it leaves out are the defaults."""
    other, under = yaml.safe_load(path.read_text(encoding="utf-8")), raw()
    if path.stem == "paper-small":
        under = yaml.safe_load(path.with_stem("paper").read_text(encoding="utf-8"))
    elif stands_alone(other):
        under = {}
    config = load(laid_over(under, other), METHODS)
    assert config.experiment == other.get("experiment", "demo")
    assert config.finetune.lora is None or config.finetune.learning_rate >= 1e-5
    trains = config.truth.subsets or config.finetune_selections
    assert not trains or config.finetune.batch_size * config.finetune.accumulation <= 8


@pytest.mark.parametrize(
    ("given", "alone"),
    [
        ({}, False),
        ({"data": {"train": {"sample": {"n": 5}}, "tasks": {"select": "first:4"}}}, False),
        ({"data": {"eval": {"subsets": {"mine": "my_prompts.jsonl"}}}}, True),
        ({"data": {"train": {"path": "mine.csv"}}}, True),
        ({"data": {"tasks": {"path": None, "hub": "me/mine"}}}, True),
        ({"data": {"train": {"url": "https://example.org/mine.csv"}}}, True),
        ({"attribution": {"external": {"theirs": {"path": "scores.csv", "orientation": "scores"}}}}, True),
        ({"data": ["mine.csv"], "attribution": None}, False),
    ],
)
def test_the_demo_lies_under_what_brings_no_data_of_its_own(given, alone):
    assert stands_alone(given) == alone


def test_an_experiment_of_ones_own_holds_nothing_of_the_demo():
    own = {"experiment": "mine", "data": {"train": {"path": "mine.csv"}, "tasks": {"path": "tasks.jsonl"}}}
    config = load(own, METHODS)
    assert (config.data.labels, config.data.eval, config.finetune.methods, config.finetune.all_data) == (
        [],
        None,
        [],
        False,
    )
    assert config.models == [SMOLLM2] == list(config.model_sources)
    assert config.model_sources[SMOLLM2].model_dump() == raw()["model_sources"][SMOLLM2]


@pytest.mark.parametrize("section", ["finetune", "evaluation"])
def test_null_means_none_of_it(section):
    config = load(changed(section, None), METHODS)
    if section == "finetune":
        assert (config.finetune.methods, config.finetune.all_data) == ([], False)
    else:
        assert config.evaluation.judge == "none"


def test_config_yaml_spells_out_the_defaults_that_change_results():
    spelled = raw()
    assert spelled["templates"] == Config.model_fields["templates"].default.model_dump(exclude_none=True)
    assert spelled["bins"] == load(changed("bins", None), METHODS).bins
    # As it is written; the default is those of these three that are scored.
    assert spelled["finetune"]["methods"] == load(changed("finetune.methods", None), METHODS).finetune_methods


def test_null_takes_a_key_away_before_anything_is_validated():
    without = changed("model_sources.smollm2-135m-instruct", None)
    without["model_sources"]["other"] = {"source": "local", "path": "somewhere"}
    without["models"] = ["other"]
    without["finetune"]["lora"] = None
    config = load(without, METHODS)
    assert list(config.model_sources) == ["other"]
    assert config.finetune.lora is None


def test_the_configuration_given_is_left_as_it_was():
    given = changed("finetune.lora", None)
    before = copy.deepcopy(given)
    load(given, METHODS)
    assert given == before


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("experimnet", "x", 'config: experimnet: unknown key; did you mean "experiment"?'),
        ("finetune.learning_rat", 1, 'config: finetune.learning_rat: unknown key; did you mean "learning_rate"?'),
        ("finetune.lora.rnak", 3, 'config: finetune.lora.rnak: unknown key; did you mean "rank"?'),
        ("experiment", None, "config: experiment: this key is missing"),
        ("model_sources.x", {"source": "local"}, "config: model_sources.x.path: this key is missing"),
        ("seed", "many", "config: seed: Input should be a valid integer"),
        ("data.sound_labels", {"ok": [True]}, "config: data.sound_labels.ok.0: YAML reads yes, no, on, off, true and"),
        ("experiment", "../x", "config: experiment: use a plain name"),
        ("experiment", "a\nb", "config: experiment: use a plain name"),
        ("models", ["smollm"], "config: models: 'smollm' is not defined in model_sources"),
        (
            "attribution.methods",
            ["icp", "influence", "random", "icpp"],
            "config: attribution.methods: 'icpp' is not a method",
        ),
        (
            "attribution.aggregators.icp",
            "mean_per_token",
            "config: attribution.aggregators.icp: write mean here, and attribution.task_likelihood: mean",
        ),
        ("attribution.aggregators.icpp", "mean", "config: attribution.aggregators: 'icpp' is not a method"),
        ("attribution.methods", ["icp", "icp"], "config: attribution.methods: 'icp' appears twice"),
        ("finetune.methods", ["length", "nuggets"], "config: finetune.methods: 'nuggets' is not scored"),
        ("finetune.bins", [">0.7"], "config: finetune.bins: '>0.7' is not among bins"),
        ("figures.scatter", [["icp", "x"]], "config: figures.scatter: 'x' is not in attribution.methods"),
        (
            "analysis.chain.learning_rates",
            [1e-5, 1e-5],
            "config: analysis.chain: learning_rates: 1e-05 appears twice",
        ),
        ("attribution.aggregators.icp", "mean", "config: bins: '<=0.5' is a threshold on the icp score"),
        ("data.train", {}, 'config: data.train: give exactly one of "path", '),
        ("data.train.path", "a/{x}.jsonl", "config: data.train.path: use a path without braces"),
        ("data.labels", ["output"], "config: data: labels: 'output' cannot be a label because the scorers see it"),
        ("data.tasks.select", "kmeans:0", 'config: data.tasks: select: use all, "first:n"'),
        ("evaluation.judge", "llm", "config: evaluation: the judge llm needs a mapping llm"),
        ("bins", [">1.5"], 'config: bins.0: a bin is "<=x" or ">x"'),
        ("bins", [">0.٨"], 'config: bins.0: a bin is "<=x" or ">x"'),
        ("bins", ["top 0%"], 'config: bins.0: a bin is "<=x" or ">x"'),
        ("bins", ["top 200%"], 'config: bins.0: a bin is "<=x" or ">x"'),
        ("bins", ["top 1.5"], 'config: bins.0: a bin is "<=x" or ">x"'),
        ("bins", [">0.875"], 'config: bins.0: a bin is "<=x" or ">x"'),
        ("bins", ["top 20%", "top 20.0%"], "config: bins: 'top 20%' appears twice"),
    ],
)
def test_a_mistake_is_named_by_its_key_and_what_to_do(key, value, said):
    assert message(key, value).startswith(said)


@pytest.mark.parametrize(
    ("table", "columns", "said"),
    [
        ("train", {"response": "output"}, "'response' is not one of our columns .*write {output: response}"),
        ("train", {"OUTPUT": "output"}, "'OUTPUT' is not one of our columns .*write {output: OUTPUT}"),
        (
            "train",
            {"quality": "stars"},
            "'quality' is not one of our columns .*, planted.*; if it is a label, list it in data.labels",
        ),
        ("eval", {"instructon": "prompt"}, "'instructon' is not one .*subset, generator.*did you mean \"instruction\""),
        ("tasks", {"planted": "quality"}, "'planted' is not one of our columns"),
    ],
)
def test_a_mapping_of_columns_names_ours_first(table, columns, said):
    assert re.search(rf"{table}\.columns: {said}", message(f"data.{table}.columns", columns))


@pytest.mark.parametrize("label", ["row_number", "n_target", "score_icp", "rank_mine"])
def test_a_label_is_called_as_no_other_column_of_the_table_of_scores(label):
    assert f"labels: '{label}' is a column of our own" in message("data.labels", [label])


def test_thresholds_need_icp_and_the_message_is_what_to_write():
    whole = changed("attribution.methods", ["influence", "random"])
    with pytest.raises(ConfigError) as error:
        load(whole, METHODS)
    assert str(error.value) == (
        "config: bins: '<=0.5' is a threshold on the icp score; add icp to attribution.methods and "
        'icp: fraction_positive to attribution.aggregators, or write bins: ["bottom 20%", "top 20%"] and finetune: '
        "{methods: null, bins: null}"
    )
    whole["bins"] = ["bottom 20%", "top 20%"]
    whole["finetune"].update(methods=None, bins=None)
    assert load(whole, METHODS).finetune_bins == ["bottom 20%", "top 20%"]
    assert load({**whole, "bins": []}, METHODS).finetune_bins == []


@pytest.mark.parametrize(
    ("attribution", "bins", "fine_tuned"),
    [
        ({}, ["<=0.5", ">0.5", ">0.8", ">0.85", ">0.9"], ["icp", "influence", "random"]),
        ({"methods": ["random", "influence"]}, ["bottom 20%", "top 20%"], ["influence", "random"]),
        ({"methods": ["one_step", "length"]}, ["bottom 20%", "top 20%"], ["one_step", "length"]),
        ({"methods": ["icp"], "aggregators": {"icp": "mean"}}, ["bottom 20%", "top 20%"], ["icp"]),
    ],
)
def test_what_is_not_said_names_no_method_that_is_not_scored(attribution, bins, fine_tuned):
    whole = laid_over(raw(), {"attribution": attribution, "bins": None, "finetune": {"methods": None, "bins": None}})
    config = load(whole, METHODS)
    assert (config.bins, config.finetune_bins, config.finetune_methods) == (bins, bins, fine_tuned)


def test_a_sweep_needs_the_two_methods_that_it_shows():
    whole = changed("attribution.methods", ["icp", "random"])
    whole["finetune"]["methods"] = []
    assert load(whole, METHODS).figures.sweep is None
    with pytest.raises(ConfigError, match=r"config: figures\.sweep: add icp and influence"):
        load({**whole, "figures": {"sweep": True}}, METHODS)


def test_the_other_mistakes_are_counted():
    assert message("finetune", {"a": 1, "b": 2, "c": 3}).endswith("unknown key (2 more mistakes)")


OWN = {"experiment": "mine", "data": {"train": {"path": "a.csv"}, "tasks": {"path": "b.csv"}}}


def test_a_default_that_follows_from_a_mistake_is_none():
    with pytest.raises(ConfigError, match=r'attribution\.dtyp: unknown key; did you mean "dtype"\?$'):
        load({**OWN, "attribution": {"dtyp": "float32"}}, METHODS)


def test_a_label_with_good_values_is_a_label_unless_others_are_named():
    good = {"quality": ["good"]}
    assert load({**OWN, "data": {**OWN["data"], "sound_labels": good}}, METHODS).data.labels == ["quality"]
    for named in ([], ["source"]):
        data = {**OWN["data"], "sound_labels": good, "labels": named}
        assert load({**OWN, "data": data}, METHODS).data.labels == named


@pytest.mark.parametrize("value", [True, -1, 2**31, 10**30, 0.5, float("nan"), "0x1"])
def test_a_seed_is_a_whole_number_that_every_generator_takes(value):
    for key in ("seed", "finetune.seeds", "data.train.sample"):
        wrapped = {"finetune.seeds": [value], "data.train.sample": {"n": 1, "seed": value}}.get(key, value)
        assert "seed" in message(key, wrapped)


@pytest.mark.parametrize("key", ["finetune.weight_decay", "attribution.memory_budget_gb", "evaluation.draw_margin"])
@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), -1.0])
def test_a_number_is_finite_and_no_truth_value(key, value):
    assert message(key, value).startswith(f"config: {key}: ")


def test_a_number_that_yaml_takes_for_a_text_is_a_number():
    assert load(changed("finetune.learning_rate", yaml.safe_load("2e-7")), METHODS).finetune.learning_rate == 2e-7


def test_what_yaml_alone_knows_is_refused_by_name():
    assert "YAML's type date; put quotation marks" in message("experiment", yaml.safe_load("2024-01-01"))
    assert "YAML's type set" in message("attribution.methods", yaml.safe_load("!!set {icp, length}"))
    assert "YAML's type bytes" in message("experiment", yaml.safe_load("!!binary aGVsbG8="))
    assert "the key '1' must be a string" in message("data.train.columns", {1: "a"})


@pytest.mark.timeout(20)
def test_a_value_that_contains_itself_or_grows_without_bound_is_refused_at_once():
    loop = yaml.safe_load("&a [*a]")
    assert "contains itself" in message("data.labels", loop)
    laughs = "a0: &a0 [lol]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 25))
    value = yaml.safe_load(laughs)
    assert "100000 are enough" in message("data.labels", value["a9"])
    assert "100000 are enough" in message("model_sources.x", {"source": value["a24"]})
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert "nested too deeply" in message("data.labels", deep)


def test_a_text_shared_by_an_alias_is_the_same_text_in_both_places():
    whole = raw()
    whole["finetune"]["bins"] = whole["bins"]
    config = load(whole, METHODS)
    assert config.finetune.bins == config.bins


# --- schema and documentation -----------------------------------------------------------------------------------


def test_schema_and_documentation_are_those_of_the_models():
    for name, text in schema.files().items():
        written = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).is_file() else None
        assert written == text, f"{name} is stale; run: make schema"


def test_check_fails_for_a_stale_file_and_names_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(schema, "ROOT", tmp_path)
    assert schema.main([]) == 0
    assert schema.main(["--check"]) == 0
    (tmp_path / "config.schema.json").write_text("{}")
    assert schema.main(["--check"]) == 1
    assert "config.schema.json do not fit" in (error := capsys.readouterr().err)
    assert "make schema" in error


def test_the_schema_accepts_config_yaml_and_refuses_an_unknown_key():
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema.json_schema())
    assert list(validator.iter_errors(raw())) == []
    assert [error.validator for error in validator.iter_errors(changed("finetune.lerning_rate", 1))] == [
        "additionalProperties"
    ]
    assert list(validator.iter_errors(changed("attribution.shards", 0)))


def test_every_key_is_described():
    described = schema.json_schema()
    for name, section in described["$defs"].items():
        for key, field in section["properties"].items():
            leads = "$ref" in field or "const" in field
            assert leads or field.get("description"), f"{name}.{key} has no description"
    text = schema.markdown(described)
    for name in described["$defs"]:
        for key in described["$defs"][name]["properties"]:
            assert f"`{key}`" in text


def test_the_module_is_a_command():
    done = subprocess.run([sys.executable, "-m", "icprobe.config.schema", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data:\n  train: a\nbins: []\ndata:\n  eval: b\n", "the key data appears twice, in lines 1 and 4"),
        ("data: {train: {path: a, path: b}}", "the key data.train.path appears twice, in lines 1 and 1"),
        ("bins:\n- {a: 1, a: 2}\n", "the key bins.a appears twice"),
        ("a: &x {b: 1}\nc: *x\nd: *x\ne: {<<: *x, b: 2}\n", None),
        ("", None),
        ("a: [broken", None),
    ],
)
def test_a_key_that_stands_twice_in_a_file_is_refused(text, said, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    if said is None:
        check_keys([tmp_path / "mine.yaml", tmp_path / "absent.yaml"])
        return
    with pytest.raises(ConfigError) as refused:
        check_keys([tmp_path / "mine.yaml"])
    assert f"config: {tmp_path}/mine.yaml: {said}" in str(refused.value)


def test_a_source_of_several_distributions_has_a_file_for_each():
    part = {"source": "pypi", "version": "1.0", "sha256": "0" * 64}
    for package, file in (("a", ["x"]), (["a"], "x"), (["a", "b"], ["x"]), ([], [])):
        with pytest.raises(ConfigError, match="name one of each, or as many files as packages"):
            load({**OWN, "model_sources": {"mine": {**part, "package": package, "file": file}}}, METHODS)
