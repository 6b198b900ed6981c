"""Estimates of work: of the right size, known before anything runs, and blind to what changes nothing."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from icprobe import artifacts, config
from icprobe.attribution import METHODS
from icprobe.tables import parquet
from icprobe.workflow import work
from icprobe.workflow.resources import LEAST_MB, Needs, Sizes, directives

ROOT = Path(__file__).parents[1]
DEVICES = ("cpu", "auto", "cuda")


def merged(base, other):
    """The mapping `other` laid over `base`, as Snakemake lays configuration files."""
    if not isinstance(base, dict) or not isinstance(other, dict):
        return other
    return {**base, **{key: merged(base.get(key), value) for key, value in other.items()}}


def loaded(*names, **sections):
    raw = {}
    for name in ("config.yaml", *names):
        raw = merged(raw, yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))
    return config.load(merged(raw, sections), METHODS)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


# --- what is known before -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "tasks", "eval"])
def test_rows_of_a_file_are_estimated_within_a_factor_of_two(name):
    path = ROOT / f"resources/demo/{name}.jsonl"
    true = len(path.read_text(encoding="utf-8").splitlines())
    assert true / 2 <= work.file_rows([str(path)]) <= 2 * true


def test_rows_of_parquet_are_estimated_within_a_factor_of_three(tmp_path):
    rows = [json.loads(line) for line in (ROOT / "resources/demo/train.jsonl").read_text().splitlines()] * 20
    parquet.write_parquet(pd.DataFrame(rows).assign(id=[str(i) for i in range(len(rows))]), tmp_path / "rows.parquet")
    # The same texts twenty times over compress better than others would.
    assert work.file_rows([str(tmp_path / "rows.parquet")]) <= 3 * len(rows)


def test_what_the_configuration_chooses_is_known_exactly():
    chosen = loaded(data={"train": {"sample": {"n": 24}}, "tasks": {"select": "random:7"}})
    found = Sizes.of(chosen)
    assert (found.examples, found.tasks) == (24, 7)
    assert Sizes.of(loaded(data={"tasks": {"select": ["a", "b", "c"]}})).tasks == 3
    assert Sizes.of(loaded(data={"eval": {"sample": {"n": 5}}})).prompts == 5


@pytest.mark.parametrize(
    ("source", "billions"),
    [
        ({"source": "hub", "id": "EleutherAI/pythia-1b-deduped"}, 1),
        ({"source": "hub", "id": "meta-llama/Llama-2-7b-hf"}, 7),
        ({"source": "hub", "id": "Qwen/Qwen2.5-0.5B"}, 0.5),
        ({"source": "hub", "id": "mistralai/Mixtral-8x7B-v0.1"}, 56),
        ({"source": "hub", "id": "a/model-of-no-size"}, 1),
        ({"source": "local", "path": "/none/SmolLM2-135M-Instruct"}, 0.135),
        ({"source": "external"}, 0),
    ],
)
def test_a_models_size_is_read_from_its_name(source, billions):
    base = loaded()
    known = loaded(model_sources={"mine": source})
    assert work.parameters(known, "mine") == billions * 1e9
    assert work.parameters(base, base.models[0]) == 135e6


def test_a_local_models_size_is_that_of_its_files_whatever_it_is_called(tmp_path, tokenizer):
    from icprobe.engine.random_models import random_model

    for name, dtype in (("model-7b", "float32"), ("other", "bfloat16")):
        model = random_model("llama", {"hidden_size": 32}, 0, tokenizer)
        model.to(getattr(__import__("torch"), dtype)).save_pretrained(tmp_path / name)
        config = loaded(model_sources={"mine": {"source": "local", "path": str(tmp_path / name)}})
        assert work.parameters(config, "mine") == sum(p.numel() for p in model.parameters())
    (tmp_path / "other" / "model.safetensors").write_bytes(b"\x07\x00\x00\x00\x00\x00\x00\x00not it")
    assert work.known_parameters(config, "mine") is None
    assert work.parameters(config, "mine") == 1e9


def test_the_size_of_a_random_model_is_that_of_its_layers(tmp_path, tokenizer):
    from icprobe.engine.random_models import random_model

    tiny = loaded("configs/tiny.yaml")
    source = tiny.model_sources["tiny-llama"]
    true = sum(p.numel() for p in random_model("llama", source.sizes, 0, tokenizer).parameters())
    assert true / 2 <= work.parameters(tiny, "tiny-llama") <= 2 * true


# --- shards -------------------------------------------------------------------------------------------------------


def test_a_number_that_is_given_is_taken():
    found = Sizes.of(loaded("configs/tiny.yaml"))
    assert found.shards == {"tiny-llama": 2}


def test_small_experiments_are_one_shard():
    assert set(Sizes.of(loaded()).shards.values()) == {1}
    assert set(Sizes.of(loaded("configs/tiny.yaml", attribution={"shards": "auto"})).shards.values()) == {1}


def paper(**attribution):
    return loaded("configs/paper.yaml", attribution={"shards": "auto", **attribution})


def test_the_papers_shards_take_about_half_an_hour_each():
    found = Sizes.of(paper(device="cuda"))
    tokens = work.ROW_TOKENS
    seconds = work.operations(1e9, found.examples, tokens * found.examples, tokens * found.tasks) / work.SPEED["cuda"]
    (shards,) = found.shards.values()
    assert shards == 16
    assert 1800 / 2**0.5 <= seconds / shards <= 1800 * 2**0.5


def test_more_work_is_never_cut_into_fewer_shards_nor_into_more_than_a_cluster_takes():
    base = paper(device="cuda")
    for grown in ("examples", "tasks"):
        found = []
        for factor in (1, 2, 10, 100, 1e6):
            examples, tasks = (1000 * factor, 100) if grown == "examples" else (1000, 100 * factor)
            found.append(work.shards(base, base.models[0], examples, tasks))
        assert found == sorted(found)
        assert found[0] == 1
        assert found[-1] <= work.MOST_SHARDS
    assert work.shards(base, base.models[0], 3, 1e9) <= 3, "a shard holds an example at least"
    slower, faster = (work.shards(paper(device=device), base.models[0], 5e3, 100) for device in ("cpu", "cuda"))
    assert slower > faster
    # What `auto` finds is known on the node that finds it; the number has to be the same on all of them.
    assert work.shards(paper(device="auto"), base.models[0], 5e3, 100) == slower


def test_shards_do_not_move_with_what_attributions_do_not_read(tmp_path, monkeypatch):
    before = Sizes.of(paper()).shards
    others = {
        "methods": paper(methods=["icp", "influence", "influence_log", "random"]),
        "budget": paper(memory_budget_gb=1),
        "bins": loaded(
            "configs/paper.yaml",
            attribution={"shards": "auto"},
            bins=["<=0.5", ">0.5", ">0.8", ">0.85", ">0.9", ">0.7"],
        ),
    }
    for name, other in others.items():
        assert Sizes.of(other).shards == before, name
    two = loaded(
        "configs/paper.yaml",
        attribution={"shards": "auto"},
        models=["pythia-1b-deduped", "large"],
        model_sources={"large": {"source": "hub", "id": "x/y-70b"}},
    )
    assert Sizes.of(two).shards["pythia-1b-deduped"] == before["pythia-1b-deduped"]
    # Nor with what the experiment has made: nothing but the configured files is looked at.
    monkeypatch.chdir(tmp_path)
    artifacts.write_text(tmp_path / "results/paper/data/train.parquet", "x" * 1000)
    assert Sizes.of(paper()).shards == before


def test_chunks_of_retraining_do_not_move_once_the_model_is_there(monkeypatch):
    """Their number is in the jobs' paths, which each job of the running experiment works out again."""
    config = loaded()
    (model,) = config.models
    before = Sizes.of(config).retraining_chunks(model, "subsets", 64)
    assert before > 1
    monkeypatch.setattr(artifacts, "known_manifest", lambda directory: {"parameters": 7_000_000_000})
    assert Sizes.of(config).parameters(model) == 7e9
    assert Sizes.of(config).retraining_chunks(model, "subsets", 64) == before


def test_a_further_damping_costs_its_products_alone():
    def job(method, methods, sweep):
        asked = {"methods": [*loaded().attribution.methods, *methods], "influence_ekfac": {"sweep": sweep}}
        found = Sizes.of(loaded("configs/tiny.yaml", attribution=asked))
        return found.attribute("tiny-llama", method, "1-of-2")

    one = job("influence_ekfac", ["influence_ekfac"], [])
    three = job("influence_ekfac", ["influence_ekfac"], [0.01, 1.0])
    alone = job("influence_ekfac_1", ["influence_ekfac_1"], [0.01, 1.0])
    assert (alone.seconds, alone.megabytes) == (one.seconds, one.megabytes)
    assert one.seconds < three.seconds < 2 * one.seconds


# --- resources ----------------------------------------------------------------------------------------------------


def asked(found):
    """{what: Needs} of every kind of job."""
    (model,) = found.config.models
    return {
        "prepare_model": found.prepare_model(model),
        "tables": found.tables(found.examples),
        "select_tasks": found.select_tasks(found.tasks),
        **{method: found.attribute(model, method, "1-of-4") for method in ("icp", "influence", "one_step")},
        "matrix": found.matrix(),
        "report": found.report(),
        "correlate": found.correlate(),
        "chain": found.chain(),
        "fine_tune": found.fine_tune(model, found.examples),
        "generate": found.generate(model),
        "measure_outcomes": found.measure_outcomes(model, 8),
        "retrain": found.retrain(model, "subsets", 64),
        "train_regressor": found.train_regressor(),
        "correlate_points": found.correlate_points(),
    }


@pytest.mark.parametrize("attempt", [1, 2, 3])
@pytest.mark.parametrize("names", [(), ("configs/tiny.yaml",), ("configs/paper.yaml",)])
def test_no_job_asks_for_less_than_snakemake_itself_needs(names, attempt):
    for rule, needs in asked(Sizes.of(loaded(*names))).items():
        assert needs.memory(attempt) >= LEAST_MB, rule
        assert needs.minutes(attempt) >= 10, rule


@pytest.mark.parametrize("names", [(), ("configs/paper.yaml",)])
def test_each_attempt_asks_for_more(names):
    for rule, needs in asked(Sizes.of(loaded(*names))).items():
        for attempt in (1, 2):
            assert needs.memory(attempt + 1) > needs.memory(attempt), rule
            assert needs.minutes(attempt + 1) > needs.minutes(attempt), rule


def test_more_work_asks_for_more():
    large_check = {"width": 256, "dimensions": list(range(1, 9)), "functions": 4000, "steps": 20_000}
    small, large = asked(Sizes.of(loaded())), asked(Sizes.of(loaded("configs/paper.yaml", synthetic=large_check)))
    for rule in small:
        assert large[rule].memory(1) > small[rule].memory(1), rule
    for rule in set(small) - {"matrix", "report", "correlate", "select_tasks"}:
        assert large[rule].minutes(1) > small[rule].minutes(1), rule
    for change, method in (({"memory_budget_gb": 30}, "influence"), ({"batch_tokens": 8192}, "one_step")):
        assert asked(Sizes.of(loaded(attribution=change)))[method].memory(1) > small[method].memory(1)


def test_what_was_measured_fits_into_what_is_asked_for():
    """docs/performance.md: SmolLM2-135M, batches of 1,024 tokens, a budget of 3 GB; peak of the script alone, in MB."""
    found = asked(Sizes.of(loaded()))
    for method, measured in {"icp": 1130, "influence": 3770, "one_step": 2130}.items():
        assert measured + 350 <= found[method].memory(1) <= 3 * measured, method


def test_a_gpu_is_asked_for_where_the_configuration_says_cuda_and_nowhere_else():
    assert "gpu" not in directives(lambda w, input: Needs(), "cpu")
    assert "gpu" not in directives(lambda w, input: Needs(), "auto")
    assert directives(lambda w, input: Needs(), "cuda")["gpu"] == 1
    assert directives(lambda w, input: Needs(), "cuda", 4)["gpu"] == 4


def test_a_job_takes_its_turn_on_gpus_wherever_it_may_compute_on_one():
    takes = {device: directives(lambda w, input: Needs(), device, 2).get("gpus_if_any") for device in DEVICES}
    assert takes == {"cpu": None, "auto": 2, "cuda": 2}


def test_a_shard_of_short_examples_has_more_rows_and_more_time(tmp_path, monkeypatch):
    from icprobe.engine.batching import batches, shard_of

    configuration = loaded("configs/paper.yaml")
    found = Sizes.of(configuration)
    monkeypatch.chdir(tmp_path)
    lengths = pd.DataFrame({"id": [f"z{i:05d}" for i in range(2000)], "n_query": 5, "n_target": range(1, 2001)})
    before = found.shard("pythia-1b-deduped", "1-of-8")
    assert before == (found.examples / 8, work.ROW_TOKENS * found.examples / 8)
    parquet.write_parquet(lengths, tmp_path / "results/paper/pythia-1b-deduped/data/lengths.parquet")
    runs = batches(lengths, 4000)
    for number in (1, 4, 8):
        rows, tokens = found.shard("pythia-1b-deduped", f"{number}-of-8")
        true = sum(len(runs[index]) for index in shard_of(runs, lengths, number, 8))
        assert abs(rows - true) <= 0.02 * 2000
        assert tokens == pytest.approx((lengths["n_query"] + lengths["n_target"]).sum() / 8)
    needs = [found.attribute("pythia-1b-deduped", "icp", f"{number}-of-8") for number in (1, 8)]
    assert needs[0].seconds > needs[1].seconds


def test_the_trainings_of_truth_and_trajectories_ask_for_one_process():
    one, four = (Sizes.of(loaded(finetune={"processes": n, "batch_size": 8}, truth={"subsets": 8})) for n in (1, 4))
    model = "smollm2-135m-instruct"
    assert four.retrain(model, "subsets", 8) == one.retrain(model, "subsets", 8)
    assert four.fine_tune(model, 50) == one.fine_tune(model, 50)
    assert four.fine_tune(model, 50, 4).megabytes > one.fine_tune(model, 50).megabytes + 3000
