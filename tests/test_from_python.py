"""What `snakemake` computes, a notebook can: `icprobe.value`, `correlate`, `select` and `load`."""

import copy
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
import transformers
import yaml
from conftest import ROOT, demo_rows

import icprobe
from icprobe import artifacts
from icprobe.analysis.correlations import correlations
from icprobe.analysis.statistics import aggregate
from icprobe.attribution import METHODS
from icprobe.attribution.combined import combine
from icprobe.attribution.matrix import Inputs
from icprobe.attribution.shards import compute
from icprobe.engine.admission import capabilities_of
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.models import load_model
from icprobe.errors import ArtifactError, ConfigError, DataError, IcprobeError, ModelError, ScoreError
from icprobe.tables import parquet
from icprobe.tables.fitting import lengths
from icprobe.texts.tokenizing import reader

TRAIN, TASKS = demo_rows("train")[:7], demo_rows("tasks")[:3]
RANDOM = {
    "source": "random",
    "sizes": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2},
    "corpus": str(ROOT / "resources" / "demo" / "train.jsonl"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A random model, prepared as the DAG prepares it."""
    from icprobe.engine.admission import admit
    from icprobe.engine.models import prepare

    directory = tmp_path_factory.mktemp("models") / "tiny"
    source = {"architecture": "llama", "seed": 0, "vocabulary": 512, **RANDOM}
    prepare(source, directory, admit)
    return directory


@pytest.fixture(scope="module")
def valued(prepared):
    """(scores, matrices) of all methods that share an arithmetic, by `value`."""
    methods = ["icp", "influence", "one_step", "length", "random"]
    return icprobe.value(TRAIN, TASKS, model=prepared, methods=methods, dtype="float32", matrices=True, seed=4)


def by_the_dag(directory, method, seed, shards, folder, prompts, **settings):
    """A method's matrix as its jobs compute it, shard by shard, in the order of the examples."""
    train, tasks = (pd.DataFrame(rows)[["id", "instruction", "input", "output"]] for rows in (TRAIN, TASKS))
    inputs = Inputs(train, tasks, lengths(train, prompts, reader(directory)), prompts, seed=seed)
    if METHODS[method].needs_model:
        inputs.model, inputs.tokenizer = load_model(directory, "float32", "cpu"), reader(directory).tokenizer
        inputs.capabilities = Capabilities.of(directory)
    pieces = []
    for number in range(1, shards + 1):
        partial = folder / f"{method}-{number}"
        partial.mkdir()
        known = METHODS[method]
        cut = number, shards, 1024, partial, known.per_task
        pieces.append(compute(known.module, [method], inputs, settings, *cut)[method])
    return pd.concat(pieces).set_index("id").loc[train["id"]].reset_index()


def test_duplicates_are_dropped_as_the_dag_drops_them():
    rows = [*TRAIN, {**TRAIN[2], "id": "again"}]
    for how in ("exact", "near"):
        table = icprobe.value(rows, TASKS, model=RANDOM, methods="length", data={"deduplicate": how})
        assert table["id"].tolist() == [row["id"] for row in TRAIN]


@pytest.mark.parametrize("method", ["icp", "influence", "one_step", "length", "random"])
def test_numbers_are_those_of_the_dag_to_the_bit(method, valued, prepared, prompts, tmp_path):
    scores, matrices = valued
    settings = {"learning_rate": 1e-4} if method == "one_step" else {}
    shards = 1 if METHODS[method].whole else 2
    expected = by_the_dag(prepared, method, 4, shards, tmp_path, prompts, **settings)
    pd.testing.assert_frame_equal(matrices[method], expected, check_exact=True)
    how = "fraction_positive" if method in ("icp", "one_step") else "mean"
    assert scores[f"score_{method}"].tolist() == aggregate(expected, how)["score"].tolist()


def test_methods_without_gradients_are_those_of_the_dag_to_the_bit(prepared, prompts, tmp_path):
    methods = ["bm25", "embedding", "perplexity", "ifd"]
    scores, matrices = icprobe.value(TRAIN, TASKS, model=prepared, methods=methods, dtype="float32", matrices=True)
    assert [*matrices] == methods
    for method in methods:
        expected = by_the_dag(prepared, method, 0, 1 if METHODS[method].whole else 2, tmp_path, prompts)
        pd.testing.assert_frame_equal(matrices[method], expected, check_exact=True)
        assert scores[f"score_{method}"].tolist() == aggregate(expected, "mean")["score"].tolist()


def test_combined_methods_are_computed_from_the_matrices_of_the_others(prepared):
    combined = {"given": {"given_length": "best"}, "best": {"mean_rank": ["bm25", "length", "embedding"]}}
    methods = ["given", "length", "bm25", "best", "embedding"]
    scores, found = icprobe.value(
        TRAIN, TASKS, model=prepared, methods=methods, dtype="float32", matrices=True, combined=combined
    )
    assert [*found] == methods
    best = combine(combined["best"], ((m, found[m]) for m in combined["best"]["mean_rank"]))
    pd.testing.assert_frame_equal(found["best"], best, check_exact=True)
    given = combine(combined["given"], [("best", best)], scores.set_index("id")["n_target"])
    pd.testing.assert_frame_equal(found["given"], given, check_exact=True)
    assert scores["score_best"].tolist() == aggregate(best, "mean")["score"].tolist()
    with pytest.raises(ConfigError, match=r"^combined\.best: 'length' is not in attribution\.methods"):
        icprobe.value(TRAIN, TASKS, model=prepared, methods=["best", "bm25", "embedding"], combined=combined)


def test_the_objective_is_that_of_the_dag(prepared, prompts, tmp_path):
    objective = {"train_loss": "response", "reduction": "mean", "task_likelihood": "mean"}
    settings = {"methods": ["icp", "influence"], "dtype": "float32", "finetune": {"max_length": 100}}
    _, found = icprobe.value(TRAIN, TASKS, model=prepared, matrices=True, **settings, **objective)
    of_influence = by_the_dag(prepared, "influence", 0, 2, tmp_path, prompts, max_length=100, **objective)
    pd.testing.assert_frame_equal(found["influence"], of_influence, check_exact=True)
    of_icp = by_the_dag(prepared, "icp", 0, 2, tmp_path, prompts, task_likelihood="mean")
    pd.testing.assert_frame_equal(found["icp"], of_icp, check_exact=True)


def test_an_example_without_a_loss_is_told_before_any_work(prepared, monkeypatch):
    monkeypatch.setattr("icprobe.notebook.valuing.compute", None)
    with pytest.raises(DataError, match=r"7 examples without a loss: .*Raise finetune\.max_length"):
        icprobe.value(TRAIN, TASKS, model=prepared, train_loss="response", finetune={"max_length": 3})


def test_one_table_holds_texts_lengths_and_every_score_in_the_order_of_the_rows(valued):
    scores, _ = valued
    columns = ["id", "instruction", "input", "output", "n_query", "n_target"]
    methods = ("icp", "influence", "one_step", "length", "random")
    of_methods = [f"{kind}_{method}" for method in methods for kind in ("score", "rank")]
    assert scores.columns[:6].tolist() == columns
    assert [name for name in scores if name.startswith(("score_", "rank_"))] == of_methods
    assert scores["id"].tolist() == [row["id"] for row in TRAIN]
    assert scores["score_length"].tolist() == scores["n_target"].tolist()
    best = scores["score_influence"].idxmax()
    assert scores["rank_influence"].tolist().index(1) == best


def test_rows_may_be_a_table_mappings_or_a_file(valued, prepared, tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in TRAIN), encoding="utf-8")
    # An id that is a number where another column has gaps: what pandas makes of rows is not what scores depend on.
    frame = pd.DataFrame(TRAIN).assign(note=[1, *[None] * 6])
    renamed = {"path": file, "columns": {"output": "output"}}
    for rows in (frame, file, str(file), renamed, iter(TRAIN)):
        found = icprobe.value(rows, pd.DataFrame(TASKS), model=prepared, methods=["icp"], dtype="float32")
        assert found["score_icp"].tolist() == valued[0]["score_icp"].tolist()


def test_a_model_in_memory_gives_what_its_directory_gives_and_is_left_as_it_was(valued, prepared):
    model = load_model(prepared, "float32", "cpu").train()
    for parameter in [*model.parameters()][::2]:
        parameter.requires_grad_(True)
    model.base_model.layers[0].eval()
    tokenizer = reader(prepared).tokenizer
    before = copy.deepcopy(model)
    precision = torch.get_float32_matmul_precision()
    with torch.no_grad():
        found = icprobe.value(TRAIN, TASKS, model=model, tokenizer=tokenizer, methods=["icp", "influence"])
        assert not torch.is_grad_enabled()
    both = ["score_icp", "score_influence"]
    pd.testing.assert_frame_equal(found[both], valued[0][both], check_exact=True)
    assert torch.get_float32_matmul_precision() == precision
    assert model.config.to_dict() == before.config.to_dict()
    for now, then in zip(model.modules(), before.modules(), strict=True):
        assert now.training == then.training
        assert now.__dict__.keys() == then.__dict__.keys(), "nothing hangs on a module that did not before"
        assert [len(now._forward_hooks), len(now._forward_pre_hooks), len(now._backward_hooks)] == [0, 0, 0]
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert (now.requires_grad, now.grad) == (then.requires_grad, None)
        assert torch.equal(now, then)


def test_a_model_in_memory_is_left_as_it_was_also_where_a_row_is_refused(prepared):
    model = load_model(prepared, "float32", "cpu").train().requires_grad_(True)
    long = [{**TRAIN[0], "output": "word " * 5000}]
    with pytest.raises(DataError, match=r"data\.train: 1 row too long"):
        icprobe.value(long, TASKS, model=model, tokenizer=reader(prepared).tokenizer, methods=["icp"])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_built_in_model_is_that_of_the_demo():
    from icprobe.notebook.models import BUILT_IN

    sources = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["model_sources"]
    assert {name: sources[name] for name in BUILT_IN} == BUILT_IN


def test_a_script_without_a_terminal_hears_how_far_it_is(prepared):
    code = (
        "import icprobe, icprobe.progress as p; p.LOG_SECONDS = 0.0; import sys; sys.path.insert(0, 'tests');"
        "from conftest import demo_rows;"
        f"icprobe.value(demo_rows('train')[:7], demo_rows('tasks')[:3], model={str(prepared)!r}, methods=['icp'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert re.search(r"icp: 21/21 pairs", ended.stderr), ended.stderr


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"dtpye": "float32"}, ConfigError, 'dtpye: unknown key; did you mean "dtype"?'),
        ({"dtype": "float8"}, ConfigError, "dtype: "),
        ({"memory_budget_gb": -1}, ConfigError, "memory_budget_gb: "),
        ({"methods": ["inflence"]}, ConfigError, "methods: 'inflence' is not a method; use one of icp, influence"),
        ({"methods": "icp", "templates": {"qeury": "x"}}, ConfigError, 'did you mean "query"?'),
        ({"data": {"on_empty": "skip"}}, ConfigError, "data.on_empty: "),
        ({"model": 7}, ModelError, "type int is no model of transformers"),
        ({"model": "./no/such/directory"}, ModelError, "./no/such/directory: no such directory"),
        ({"model": {"source": "external"}}, ModelError, "is not here"),
        ({"tokenizer": object()}, ModelError, "tokenizer: a model that is not in memory brings its own"),
        ({"train": 5}, DataError, "train: rows are needed"),
        ({"train": []}, DataError, "train: holds no rows"),
        ({"train": ["a text"]}, DataError, "train[0]: a row must be a mapping, not str"),
        ({"train": [*TRAIN, {"instruction": "a"}]}, DataError, 'train[7]: "id" is missing'),
        ({"tasks": [{"instruction": "a", "output": " "}]}, DataError, 'tasks[0]: "output" is empty'),
        ({"train": pd.DataFrame({"prompt": ["a"]})}, DataError, "train: has no column 'instruction'"),
        ({"train": "nowhere.csv"}, DataError, "nowhere.csv: no such file"),
        ({"train": pd.DataFrame([TRAIN[0], {"id": "z", "instruction": 3}])}, DataError, "train.iloc[1]: "),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, kind, said, prepared):
    arguments = {"train": TRAIN, "tasks": TASKS, "model": prepared, "methods": ["icp"], **arguments}
    with pytest.raises(kind) as caught:
        icprobe.value(arguments.pop("train"), arguments.pop("tasks"), **arguments)
    assert isinstance(caught.value, IcprobeError)
    assert said in str(caught.value)
    assert not re.search(r"config: |attribution\.", str(caught.value))


def test_a_mistake_in_the_rows_is_told_before_a_model_is_fetched(monkeypatch):
    monkeypatch.setattr("icprobe.notebook.models.prepare", None)
    with pytest.raises(DataError, match=r'train\[0\]: "output" is empty'):
        icprobe.value([{"instruction": "a", "output": ""}], TASKS, model="no/such-model")


def test_a_model_in_memory_that_would_have_to_compute_otherwise_is_refused_before_any_work(prepared, monkeypatch):
    model, tokenizer = load_model(prepared, "bfloat16", "cpu"), reader(prepared).tokenizer
    monkeypatch.setattr("icprobe.notebook.models.capabilities_of", None)
    with pytest.raises(ModelError, match="one_step computes in float32, and a LlamaForCausalLM in bfloat16 is"):
        icprobe.value(TRAIN, TASKS, model=model, tokenizer=tokenizer, methods=["icp", "one_step"])
    with pytest.raises(ModelError, match="icp computes in float32"):
        icprobe.value(TRAIN, TASKS, model=model, tokenizer=tokenizer, methods=["icp"], dtype="float32")
    with pytest.raises(ModelError, match="is on cpu, not on cuda"):
        icprobe.value(TRAIN, TASKS, model=model, tokenizer=tokenizer, methods=["icp"], device="cuda")
    with pytest.raises(ModelError, match="needs its tokenizer"):
        icprobe.value(TRAIN, TASKS, model=model, methods=["icp"])


def test_a_model_in_memory_keeps_its_gradients_and_they_change_nothing(valued, prepared):
    model, tokenizer = load_model(prepared, "float32", "cpu").requires_grad_(True), reader(prepared).tokenizer
    model(input_ids=torch.arange(3, 20)[None]).logits.logsumexp(-1).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert before
    found = icprobe.value(TRAIN, TASKS, model=model, tokenizer=tokenizer, methods=["icp"])
    assert found["score_icp"].tolist() == valued[0]["score_icp"].tolist()
    after = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["train", "tasks"])
def test_a_table_that_is_described_in_two_places_is_refused(name):
    with pytest.raises(ConfigError, match=rf"data\.{name}: pass it as the argument {name}, a mapping"):
        icprobe.value(TRAIN, TASKS, model=RANDOM, data={name: {"sample": {"n": 1}}})


def test_a_composite_model_in_memory_is_refused_in_a_sentence(prepared):
    text = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={**text, "num_key_value_heads": 2, "intermediate_size": 64},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    with pytest.raises(ModelError, match="in memory is composed of several models; pass its directory or hub id"):
        icprobe.value(TRAIN, TASKS, model=model, tokenizer=reader(prepared).tokenizer, methods=["icp"])


def test_a_quantised_model_in_memory_is_refused_in_a_sentence_and_its_source_is_not(prepared):
    pytest.importorskip("bitsandbytes", reason="pip install '.[test]'")
    bits = transformers.BitsAndBytesConfig(load_in_4bit=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(prepared, dtype="float32", quantization_config=bits)
    options = {"tokenizer": reader(prepared).tokenizer, "methods": ["influence"], "dtype": "float32"}
    with pytest.raises(ModelError, match="in memory multiplies in bitsandbytes' own way; pass its source"):
        icprobe.value(TRAIN, TASKS, model=model, **options)
    options["tokenizer"] = None
    source = {"source": "local", "path": str(prepared)}
    whole, bits = (
        icprobe.value(TRAIN, TASKS, model=source | load, **options)["score_influence"]
        for load in ({}, {"load": {"quantization": "4bit"}})
    )
    assert whole.corr(bits) > 0.9
    assert (whole - bits).abs().max() > 1e-3 * whole.abs().max()


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("gemma2", {"final_logit_softcapping": 30.0}),
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.3}),
    ],
)
def test_a_capped_or_scaled_model_in_bfloat16_in_memory_is_admitted(kind, sizes, prepared):
    tokenizer = reader(prepared).tokenizer
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(
        kind, **small, num_key_value_heads=2, head_dim=8, vocab_size=len(tokenizer), **sizes
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    found = capabilities_of(model.eval().requires_grad_(False))
    expected = (1 / 3 if kind == "granite" else sizes.get("logit_scale", 1), sizes.get("final_logit_softcapping", 0))
    assert (found.logit_scale, found.logit_cap) == expected


# --- what is asked of scores ------------------------------------------------------------------------------------


def test_correlations_are_those_of_the_dag(valued):
    scores, _ = valued
    by_id = scores.set_index("id")
    found = icprobe.correlate(scores, ["icp", "influence"], resamples=50, seed=2)
    sets = {name: by_id[f"score_{name}"] for name in ("icp", "influence")}
    pd.testing.assert_frame_equal(found, correlations(sets, by_id["n_target"], resamples=50, seed=2))
    assert set(found["statistic"]) == {"spearman", "pearson", "kendall", "spearman_partial_length"}
    pairs = icprobe.correlate(scores, resamples=10).drop_duplicates(["method_a", "method_b"])
    assert len(pairs) == 10, "all pairs of five methods"
    with pytest.raises(ScoreError, match="no scores of 'ipc'; the table has those of icp, influence"):
        icprobe.correlate(scores, ["ipc", "icp"])
    with pytest.raises(ConfigError, match=r"^resample: unknown key"):
        icprobe.correlate(scores, resample=3)


# --- what the DAG made ------------------------------------------------------------------------------------------


@pytest.fixture
def results(valued, tmp_path):
    """The directory of an experiment with two models, as the DAG leaves it."""
    scores, matrices = valued
    parquet.write_parquet(scores[["id", "instruction", "input", "output"]], tmp_path / "data/train.parquet")
    parquet.write_parquet(pd.DataFrame(TASKS), tmp_path / "data/tasks.parquet")
    for model in ("one", "two"):
        parquet.write_parquet(scores[["id", "n_query", "n_target"]], tmp_path / model / "data/lengths.parquet")
        for method in ("length", "icp"):
            names = {f"score_{method}": "score", f"mean_effect_{method}": "mean_effect"}
            of_method = scores[["id", *(name for name in names if name in scores)]].rename(columns=names)
            parquet.write_parquet(of_method, tmp_path / model / f"scores/{method}.parquet")
            parquet.write_parquet(matrices[method], tmp_path / model / f"attributions/{method}.parquet")
    artifacts.write_csv(tmp_path / "one/tables/overlaps.csv", pd.DataFrame({"method": ["007"], "n": [3]}))
    return tmp_path


def test_results_of_the_dag_are_those_of_value(results, valued):
    scores, matrices = valued
    found = icprobe.load(results)
    assert found.models == ["one", "two"]
    assert found.methods("one") == ["icp", "length"]
    of_others = [name for name in scores if name.endswith(("influence", "one_step", "random"))]
    pd.testing.assert_frame_equal(found.scores("two"), scores.drop(columns=of_others), check_dtype=False)
    pd.testing.assert_frame_equal(found.matrix("icp", "two"), matrices["icp"])
    assert (found.tables("one"), found.tables("two")) == (["overlaps"], [])
    assert found.table("overlaps", "one")["method"].tolist() == ["007"]
    assert icprobe.correlate(found.scores("one"), resamples=10)["method_b"].unique().tolist() == ["length"]
    assert len(found.tasks) == 3


def test_what_results_lack_is_said(results, tmp_path):
    found = icprobe.load(str(results))
    with pytest.raises(ArtifactError, match="name the model; there are one, two"):
        found.scores()
    with pytest.raises(ArtifactError, match="no model 'three'; there are one, two"):
        found.matrix("icp", "three")
    with pytest.raises(ArtifactError, match="there is no 'influence', only icp, length"):
        found.matrix("influence", "one")
    with pytest.raises(ArtifactError, match="holds no scores of an experiment"):
        icprobe.load(tmp_path / "one")
    parquet.write_parquet(pd.DataFrame({"id": ["x"], "score": [1.0]}), results / "one/scores/icp.parquet")
    with pytest.raises(ScoreError, match=r"icp \(1 examples\) are not of the 7 training examples"):
        found.scores("one")
