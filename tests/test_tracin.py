"""tracin: the naive loop's numbers over the checkpoints of a training, its own or given, whatever the shard or kill."""

import copy
import json
import re
from dataclasses import replace

import naive
import numpy as np
import pytest
import torch
from matrices import assert_close, in_shards, matrices
from peft import PeftModel
from test_plan import ROOT, plan
from transformers import AutoModelForCausalLM

from icprobe import artifacts
from icprobe.attribution import influence, tracin
from icprobe.attribution.matrix import Trajectory
from icprobe.engine.adapters import STATE
from icprobe.errors import ConfigError, ModelError
from icprobe.training.fine_tune import fine_tune
from icprobe.training.trajectory import steps_kept, train

SETTINGS = {
    "learning_rate": 3e-3,
    "epochs": 2,
    "batch_size": 2,
    "accumulation": 1,
    "scheduler": "cosine",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_length": 256,
    "dtype": "float32",
    "device": "cpu",
    "checkpoint_minutes": 60,
}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "init_seed": None}
TRAININGS = {"adapters": ("llama", LORA), "all weights": ("gpt2", None)}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tiny_model, tokenizer, tmp_path_factory):
    """architecture → a directory of its tiny model."""
    made = {}

    def make(architecture):
        if architecture not in made:
            made[architecture] = folder = tmp_path_factory.mktemp("base") / architecture
            tiny_model(architecture).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            artifacts.write_manifest(folder)
        return made[architecture]

    return make


@pytest.fixture(scope="module")
def trained(base, few, prompts, tmp_path_factory):
    """kind of training → (base, directory of its 3 checkpoints of 8 steps, what it said step by step)."""
    made = {}

    def make(kind):
        if kind not in made:
            architecture, lora = TRAININGS[kind]
            folder, said = tmp_path_factory.mktemp("trained"), {}
            settings, rows = {**SETTINGS, "lora": lora}, few[0].to_dict("records")
            numbers = train(
                base(architecture), rows, prompts, folder / "out", settings, 0, folder / "partial", 3,
                lambda metrics, step: said.update({step: metrics["train/learning_rate"]}),
            )  # fmt: skip
            assert numbers["steps"] == 8
            made[kind] = base(architecture), folder / "out", said
        return made[kind]

    return make


def along(directory, base, dtype="float32"):
    listed = artifacts.read_manifest(directory)["checkpoints"]
    return Trajectory.of(listed, str(directory), str(base), dtype, "cpu")


def with_trajectory(inputs, architecture, trajectory):
    return replace(inputs(architecture), model=None, trajectory=trajectory)


def merged(directory, base):
    """A checkpoint as transformers and peft load it."""
    if not (directory / "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(directory)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory).merge_and_unload()


@pytest.mark.parametrize("kind", TRAININGS)
def test_tracin_equals_the_naive_loop_over_the_checkpoints(kind, trained, inputs, few, tokenizer):
    base, directory, said = trained(kind)
    listed = artifacts.read_manifest(directory)["checkpoints"]
    assert [one["step"] for one in listed] == [3, 6, 8]
    slow, parts = 0.0, []
    for one in listed:
        assert one["learning_rate"] == said[one["step"]] > 0
        model = merged(directory / one["directory"], base)
        examples, tasks = (
            [naive.gradient(model, tokenizer, row, whole) for row in table.to_dict("records")]
            for table, whole in zip(few[:2], (True, False), strict=True)
        )
        parts.append(np.array([[naive.influence(z, t) for t in tasks] for z in examples]))
        slow = slow + said[one["step"]] * parts[-1]
    assert np.abs(parts[1] - parts[0]).max() > 0.01 * np.abs(parts[0]).max(), "the checkpoints hardly differ"
    ours = with_trajectory(inputs, TRAININGS[kind][0], along(directory, base))
    assert_close(matrices(tracin, ours, "tracin")["tracin"], slow, 1e-5, np.abs(slow).max())


@pytest.mark.parametrize("kind", TRAININGS)
def test_the_last_checkpoint_is_what_fine_tuning_makes_and_a_kill_changes_nothing(
    kind, trained, few, prompts, tmp_path
):
    base, directory, _ = trained(kind)
    rows, settings = few[0].to_dict("records"), {**SETTINGS, "lora": TRAININGS[kind][1]}

    def weights(folder):
        files = artifacts.verify(folder)["files"]
        return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}

    fine_tune(base, rows, prompts, tmp_path / "tuned", settings, 0, tmp_path / "partial")
    last = weights(directory / "step-000008")
    assert (STATE in last) == (kind == "adapters")
    assert weights(tmp_path / "tuned") == {name: digest for name, digest in last.items() if name != STATE}

    def killed(metrics, step):
        if step == 5:
            raise KeyboardInterrupt

    settings = {**settings, "checkpoint_minutes": 1e-6}
    with pytest.raises(KeyboardInterrupt):
        train(base, rows, prompts, tmp_path / "killed", settings, 0, tmp_path / "again", 3, killed)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    numbers = train(base, rows, prompts, tmp_path / "out", settings, 0, tmp_path / "again", 3)
    assert numbers["resumed_from_step"] >= 4, "the checkpoint at step 3 is of the training that was killed"
    found, whole = (artifacts.verify(folder) for folder in (tmp_path / "out", directory))
    assert found["checkpoints"] == whole["checkpoints"]
    assert weights(tmp_path / "out") == weights(directory)


def test_one_checkpoint_of_rate_1_at_the_base_is_influence_to_the_bit(base, inputs):
    for architecture in ("llama", "gpt_neox"):
        given = Trajectory([(str(base(architecture)), 1.0)], True, str(base(architecture)), "float32", "cpu")
        ours = with_trajectory(inputs, architecture, given)
        plain = matrices(influence, inputs(architecture), "influence", methods=["influence"])["influence"]
        assert (matrices(tracin, ours, "tracin")["tracin"] == plain).all()


def test_given_directories_are_those_of_the_training(trained, inputs):
    for kind, (architecture, _) in TRAININGS.items():
        base, directory, _ = trained(kind)
        own = along(directory, base)
        given = replace(own, given=True)
        found = [matrices(tracin, with_trajectory(inputs, architecture, one), "tracin") for one in (own, given)]
        assert (found[0]["tracin"] == found[1]["tracin"]).all()


def test_the_memory_budget_changes_no_bit_and_a_kill_neither(trained, inputs):
    class Killed(dict):
        def __setitem__(self, name, piece):
            super().__setitem__(name, piece)
            if len(self) == 7 and any(name.startswith("checkpoint-1/") for name in self):
                raise KeyboardInterrupt

    base, directory, _ = trained("adapters")
    ours, pieces = with_trajectory(inputs, "llama", along(directory, base)), Killed()
    reference = matrices(tracin, ours, "tracin")["tracin"]
    with pytest.raises(KeyboardInterrupt):
        matrices(tracin, replace(ours, pieces=pieces), "tracin", memory_budget_gb=1e-4)
    missing = replace(
        ours.trajectory, checkpoints=[("gone", ours.trajectory.checkpoints[0][1]), *ours.trajectory.checkpoints[1:]]
    )
    resumed = matrices(tracin, replace(ours, trajectory=missing, pieces=dict(pieces)), "tracin")["tracin"]
    assert (resumed == reference).all()


def test_shards_and_batches_change_nothing_but_rounding(trained, inputs, tmp_path):
    base, directory, _ = trained("all weights")
    ours, settings = with_trajectory(inputs, "gpt2", along(directory, base)), {"batch_tokens": 200}
    whole = in_shards(tracin, ours, settings, 1, 200, tmp_path)
    assert_close(in_shards(tracin, ours, settings, 2, 100, tmp_path), whole, 1e-5, np.abs(whole).max())


def test_checkpoints_are_evenly_spaced_and_no_more_than_steps():
    assert steps_kept(10, 3) == [4, 7, 10]
    assert steps_kept(3, 3) == [1, 2, 3]
    assert steps_kept(9, 1) == [9]
    with pytest.raises(
        ConfigError, match=r"tracin\.checkpoints: 3 checkpoints of a training of 2 steps; take at most 2"
    ):
        steps_kept(2, 3)


def test_what_is_no_checkpoint_of_the_model_is_refused(trained, base, inputs, tmp_path):
    model, directory, _ = trained("adapters")
    adapter = directory / "step-000003"

    def refused(folder, said):
        given = Trajectory([(str(folder), 1.0)], True, str(model), "float32", "cpu")
        with pytest.raises(ModelError, match=said):
            matrices(tracin, with_trajectory(inputs, "llama", given), "tracin")

    refused(base("gpt2"), r"no checkpoint of llama, .*weight is None there, \(512, 48\) here")
    for name in ("other", "lacking"):
        (tmp_path / name).mkdir()
        for file in adapter.iterdir():
            if file.name != "manifest.json":
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "other/adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    refused(tmp_path / "other", "other: no checkpoint of llama, or none that can be merged")
    layers = [name for name in config["target_modules"] if ".0." not in name]
    (tmp_path / "lacking/adapter_config.json").write_text(json.dumps(config | {"target_modules": layers}))
    refused(tmp_path / "lacking", "lacking: .*its weights are not those of its configuration, first base_model")


def test_a_training_from_python_is_the_workflows_and_leaves_chance_as_it_was(
    trained, few, inputs, tmp_path, monkeypatch
):
    import icprobe

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, directory, _ = trained("adapters")
    finetune = {key: value for key, value in SETTINGS.items() if key not in ("device", "checkpoint_minutes")}
    finetune["lora"] = {key: LORA[key] for key in ("rank", "alpha")}
    arguments = {"methods": ["tracin"], "dtype": "float32", "device": "cpu", "batch_tokens": 200, "matrices": True}
    prepared = {"source": "local", "path": str(model)}
    icprobe.value(few[0], few[1], model=prepared, **{**arguments, "methods": ["length"]})  # prepares the model
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _, found = icprobe.value(few[0], few[1], model=prepared, finetune=finetune, **arguments)
    assert (torch.rand(3) == expected).all()
    ours = with_trajectory(inputs, "llama", along(directory, model))
    assert (found["tracin"].drop(columns="id").to_numpy() == matrices(tracin, ours, "tracin")["tracin"]).all()
    with pytest.raises(ConfigError, match="methods: tracin takes gradients along a training as finetune says; write"):
        icprobe.value(few[0], few[1], model=prepared, **arguments)


def test_given_checkpoints_are_valued_from_python_and_absent_ones_refused(trained, few, inputs, tmp_path, monkeypatch):
    import icprobe

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, directory, _ = trained("adapters")
    own = along(directory, model)
    directories, rates = map(list, zip(*own.checkpoints, strict=True))
    arguments = {"model": str(model), "methods": "tracin", "dtype": "float32", "device": "cpu", "batch_tokens": 200}
    said = {"directories": directories, "learning_rates": rates}
    scores = icprobe.value(few[0], few[1], tracin=said, **arguments)["score_tracin"]
    matrix = matrices(tracin, with_trajectory(inputs, "llama", own), "tracin")["tracin"]
    assert scores.tolist() == pytest.approx(matrix.mean(axis=1).tolist(), rel=1e-6)
    with pytest.raises(ConfigError, match=r"directories: .*gone: neither adapter_config\.json nor config\.json"):
        icprobe.value(
            few[0], few[1], tracin={"directories": [str(tmp_path / "gone")], "learning_rates": [1]}, **arguments
        )


def test_a_model_in_memory_is_refused(tiny_model, tokenizer, few):
    import icprobe

    model = copy.deepcopy(tiny_model("llama"))
    with pytest.raises(
        ModelError, match=re.escape("tracin loads checkpoints of a training, and a LlamaForCausalLM in")
    ):
        icprobe.value(few[0], few[1], model=model, tokenizer=tokenizer, methods=["tracin"], finetune={"epochs": 1})


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"model_sources": {"a": {"source": "local", "path": "here", "load": {"quantization": "4bit"}}}},
            "finetune.lora: tracin trains a, whose weights are quantised and not trained",
        ),
        ({"model_sources": {"a": {"source": "external"}}}, "tracin reads texts with a, a model that is not here"),
        (
            {
                "models": ["a", "b"],
                "model_sources": {"a": {"source": "random"}, "b": {"source": "random"}},
                "attribution": {"tracin": {"directories": ["here"], "learning_rates": [1]}},
            },
            "directories: they are checkpoints of one model, and there are 2 models",
        ),
    ],
)
def test_models_that_cannot_be_trained_or_merged_are_refused_by_the_configuration(sections, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    attribution = {"methods": ["tracin"], **sections.get("attribution", {})}
    with pytest.raises(ConfigError, match=re.escape(said)):
        plan(finetune={"lora": None}, bins=["top 20%"], **{"models": ["a"], **sections, "attribution": attribution})
