"""A quantised model is, in every number, the one with the weights that its bits say; and where models are put."""

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matrices import assert_close, assert_influence_log, matrices
from naive import gradient, icp, influence, one_step
from test_finetuning import LORA, ROWS, SETTINGS
from test_plan import LOCAL, RANDOM, with_models

from icprobe import artifacts
from icprobe.attribution import icp as icp_engine
from icprobe.attribution import influence as influence_engine
from icprobe.attribution import influence_mean as influence_mean_engine
from icprobe.attribution import one_step as one_step_engine
from icprobe.config.types import slice_of
from icprobe.engine import placing
from icprobe.engine.admission import admit
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.models import linear_layers, load_model, prepare
from icprobe.engine.quantization import quantised_layers
from icprobe.errors import ConfigError, ModelError
from icprobe.workflow.checks import check_libraries

KINDS = [(architecture, load) for architecture in ("llama", "gpt2") for load in ("8bit", "4bit")]
ETA = 1e-3


@pytest.fixture
def in_the_repository(monkeypatch):
    from conftest import ROOT

    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def prepared(tiny_model, tokenizer, tmp_path_factory):
    """(architecture, quantization, device map) → the directory of the prepared tiny model."""
    made = {}

    def make(architecture, quantization="none", device_map="none"):
        if quantization != "none":
            pytest.importorskip("bitsandbytes", reason="pip install '.[test]'")
        key = (architecture, quantization, device_map)
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(key))
            tiny_model(architecture).save_pretrained(folder / "source")
            tokenizer.save_pretrained(folder / "source")
            source = {"source": "local", "path": str(folder / "source"), "trust_remote_code": False}
            source |= {"load": {"quantization": quantization, "device_map": device_map}}
            prepare(source, folder / "base", admit)
            made[key] = folder / "base"
        return made[key]

    return make


@pytest.fixture(scope="module")
def dequantised(prepared):
    """The same as plain transformers makes it: quantised, and dequantised again, by its own functions."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    made = {}

    def make(architecture, quantization):
        key = (architecture, quantization)
        if key not in made:
            bits = {"load_in_8bit": True} if quantization == "8bit" else {"load_in_4bit": True}
            config = BitsAndBytesConfig(**bits, bnb_4bit_quant_type="nf4")
            directory = prepared(*key)
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, quantization_config=config)
            made[key] = model.dequantize(dtype=torch.float32).eval().requires_grad_(False)
        return made[key]

    return make


@pytest.fixture(scope="module")
def inputs_of(prepared, few, prompts, tokenizer):
    from icprobe.attribution.matrix import Inputs

    def make(*key, dtype="float32"):
        train, tasks, lengths = few
        directory = prepared(*key)
        model = load_model(directory, dtype, "cpu")
        return Inputs(train, tasks, lengths, prompts, model, tokenizer, Capabilities.of(directory), seed=3)

    return make


def pairs(few, function):
    train, tasks, _ = few
    return np.array([[function(z, t) for t in tasks.to_dict("records")] for z in train.to_dict("records")])


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_icp_influence_and_one_step_equal_the_naive_loop_on_dequantised_weights(
    kind, inputs_of, dequantised, prepared, few, tokenizer, monkeypatch
):
    model, full = dequantised(*kind), linear_layers(load_model(prepared(kind[0]), device="cpu"))
    both = [(m.weight.T if kind[0] == "gpt2" else m.weight, model.get_submodule(n).weight) for n, m in full.items()]
    moved = max((own - rounded).abs().max() for own, rounded in both)
    assert moved > 1e-3, "weights that no quantisation has moved prove nothing"
    assert quantised_layers(inputs_of(*kind).model).keys() == full.keys()

    slow = pairs(few, lambda z, t: icp(model, tokenizer, z, t))
    assert np.abs(slow).max() > 0.1
    assert_close(matrices(icp_engine, inputs_of(*kind), "icp")["icp"], slow, 1e-4)

    examples, tasks = (
        [gradient(model, tokenizer, row, whole) for row in table.to_dict("records")]
        for table, whole in ((few[0], True), (few[1], False))
    )
    slow = np.array([[influence(z, t) for t in tasks] for z in examples])
    found = matrices(influence_engine, inputs_of(*kind), "influence")
    assert_close(found["influence"], slow, 1e-4, np.abs(slow).max())
    assert_influence_log(found["influence_log"], examples, tasks)
    ours = inputs_of(*kind)
    mean = np.full(len(few[0]), np.nan)
    for _, rows, block in influence_mean_engine.attribute(ours, "influence_mean", [np.arange(len(few[0]))]):
        mean[rows] = block[:, 0]
    assert_close(mean, slow.mean(axis=1), 1e-4, np.abs(slow).max())

    slow = pairs(few, lambda z, t: one_step(model, tokenizer, z, t, ETA))
    assert np.abs(slow).max() > 1e-2
    original = one_step_engine.updated
    for tokens in (1, 10**6):  # by low-rank terms, and by weights that are formed
        updated = lambda layers, factors, rate, _, n=tokens: original(layers, factors, rate, n)  # noqa: E731
        monkeypatch.setattr(one_step_engine, "updated", updated)
        found = matrices(one_step_engine, inputs_of(*kind), "one_step", learning_rate=ETA)["one_step"]
        assert_close(found, slow, 1e-4)


def test_one_step_leaves_quantised_weights_as_they_were(inputs_of):
    ours = inputs_of("llama", "4bit")
    before = {name: m.weight for name, m in quantised_layers(ours.model).items()}
    bits = {name: weight.clone() for name, weight in before.items()}
    matrices(one_step_engine, ours, "one_step", learning_rate=1.0)
    after = quantised_layers(ours.model)
    assert all(after[name].weight is before[name] and after[name].weight.equal(bits[name]) for name in before)
    assert after.keys() == before.keys()


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_model_computes_in_bfloat16_near_what_it_does_in_float32(quantization, prepared, inputs_of):
    assert not Capabilities.of(prepared("llama", quantization)).refused_dtypes
    exact, found = (
        matrices(influence_engine, inputs_of("llama", quantization, dtype=dtype), "influence")["influence"]
        for dtype in ("float32", "bfloat16")
    )
    assert_close(found, exact, 0.1, np.abs(exact).max())


def test_what_gradients_come_from_is_what_likelihoods_are_of(prepared):
    """bitsandbytes itself rounds 4-bit layers to bfloat16 on some CPUs, where no gradient is wanted."""
    model = load_model(prepared("llama", "4bit"), device="cpu")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        without = model(input_ids=ids).logits
    embedded = model.get_input_embeddings()(ids).requires_grad_()
    with torch.enable_grad():
        assert_close(model(inputs_embeds=embedded).logits.detach().numpy(), without.numpy(), 1e-5)


@pytest.mark.parametrize("kind", [("llama", "4bit"), ("gpt2", "8bit")], ids="-".join)
def test_tracin_merges_adapters_into_the_dequantised_weights(
    kind, inputs_of, dequantised, prepared, few, tokenizer, prompts, tmp_path
):
    from peft import PeftModel

    from icprobe.attribution import tracin
    from icprobe.attribution.matrix import Trajectory
    from icprobe.training.trajectory import train

    settings = SETTINGS | {"lora": LORA | {"dropout": 0.0}, "learning_rate": 1e-2}
    base, out = prepared(*kind), tmp_path / "out"
    train(base, few[0].to_dict("records"), prompts, out, settings, 0, tmp_path / "partial", 1)
    (one,) = artifacts.read_manifest(out)["checkpoints"]
    own = PeftModel.from_pretrained(copy.deepcopy(dequantised(*kind)), out / one["directory"]).merge_and_unload()
    of_task, of_example = (lambda row, whole=whole: gradient(own, tokenizer, row, whole) for whole in (False, True))
    slow = one["learning_rate"] * pairs(few, lambda z, t: influence(of_example(z), of_task(t)))
    ours = replace(inputs_of(*kind), model=None)
    ours.trajectory = Trajectory.of([one], str(out), str(base), "float32", "cpu")
    assert_close(matrices(tracin, ours, "tracin")["tracin"], slow, 1e-4, np.abs(slow).max())


# --- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_adapters_on_a_quantised_base_are_trained_and_asked_as_on_its_dequantised_weights(
    kind, prepared, dequantised, tokenizer, prompts, tmp_path
):
    from peft import PeftModel

    from icprobe.engine.checkpoints import load_fine_tuned, merged
    from icprobe.texts.tokenizing import load_tokenizer
    from icprobe.training.fine_tune import fine_tune, tokenize, trainer_of

    settings = SETTINGS | {"lora": LORA | {"dropout": 0.0}, "learning_rate": 1e-2}
    plain = tmp_path / "plain"
    dequantised(*kind).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    artifacts.write_manifest(plain)
    if kind[0] == "gpt2":  # its files hold weights transposed, and these do not
        plain = None
    losses, outs = [], []
    for base in filter(None, (prepared(*kind), plain)):
        out = tmp_path / f"out-{len(outs)}"
        numbers = fine_tune(base, ROWS, prompts, out, settings, 0, tmp_path / f"partial-{len(outs)}")
        losses.append((numbers["first_loss"], numbers["final_loss"]))
        outs.append(out)
    assert losses[0][1] < losses[0][0]
    if plain:
        np.testing.assert_allclose(*losses, rtol=1e-5)

    ids = torch.arange(5, 25)[None]
    found = load_fine_tuned(outs[0], prepared(*kind), device="cpu")
    assert not quantised_layers(found)
    found = found(input_ids=ids).logits
    own = PeftModel.from_pretrained(dequantised(*kind), outs[0]).eval()
    with torch.no_grad(), own.disable_adapter():
        untrained = own(input_ids=ids).logits
    with torch.no_grad():
        expected = own(input_ids=ids).logits
    own.unload()
    assert (expected - untrained).abs().max() > 1e-2
    assert_close(found.numpy(), expected.numpy(), 1e-4)

    examples, _ = tokenize(load_tokenizer(prepared(*kind)), ROWS, prompts, 256)
    trainer = trainer_of(prepared(*kind), tokenizer, examples, settings, 0, tmp_path / "trainer")
    adapters = [p for p in trainer.model.parameters() if p.requires_grad]
    assert {p.dtype for p in adapters} == {torch.float32}
    trainer.train()
    with torch.no_grad():
        assert_close(merged(trainer.model, prepared(*kind), "cpu")(input_ids=ids).logits.numpy(), found.numpy(), 1e-4)


# --- identity and refusals --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_the_repository")
def test_only_another_quantization_makes_another_model():
    default = {"quantization": "none", "device_map": "none"}
    without, said, few_bits = (
        with_models(LOCAL | load).config for load in ({}, {"load": default}, {"load": {"quantization": "8bit"}})
    )
    assert without.model_directory("a") == said.model_directory("a") != few_bits.model_directory("a")
    assert slice_of(without.model_sources["a"]) == slice_of(said.model_sources["a"])
    assert "load" not in slice_of(said.model_sources["a"])
    assert slice_of(few_bits.model_sources["a"])["load"] == default | {"quantization": "8bit"}


@pytest.mark.usefixtures("in_the_repository")
@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"finetune": {"all_data": True, "lora": None}}, "finetune.lora: .*4bit, .*adapters"),
        ({"truth": {"subsets": 8}, "finetune": {"lora": None}}, "finetune.lora: .*4bit"),
        ({"finetune": {"all_data": True, "processes": 2, "batch_size": 2}}, "finetune.processes: .*one process"),
    ],
)
def test_a_training_that_a_quantised_model_has_not_is_refused_when_it_is_planned(sections, said):
    with pytest.raises(ConfigError, match=said):
        with_models(RANDOM | {"load": {"quantization": "4bit"}}, **sections)
    with_models(RANDOM, **sections)


@pytest.mark.usefixtures("in_the_repository")
def test_without_bitsandbytes_a_quantised_model_is_refused_when_it_is_planned(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_libraries(with_models(RANDOM))
    with pytest.raises(ConfigError, match=r"model_sources\.a\.load\.quantization: .*pip install"):
        check_libraries(with_models(RANDOM | {"load": {"quantization": "4bit"}}))


def test_a_mixture_of_experts_is_refused_because_bitsandbytes_would_leave_it_whole(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install '.[test]'")
    from icprobe.engine.random_models import random_model

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_local_experts": 3}
    random_model("mixtral", sizes | {"num_attention_heads": 4}, 0, tokenizer).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    source = {"source": "local", "path": str(tmp_path / "source"), "trust_remote_code": False}
    with pytest.raises(ModelError, match="experts as they are"):
        prepare(source | {"load": {"quantization": "8bit"}}, tmp_path / "out", admit)


# --- where it is put --------------------------------------------------------------------------------------------


def test_device_map_auto_changes_no_bit_where_there_is_one_device(inputs_of):
    for kind in ("none", "4bit"):
        by_default, auto = (inputs_of("llama", kind, device_map) for device_map in ("none", "auto"))
        for engine, method in ((icp_engine, "icp"), (influence_engine, "influence")):
            assert np.array_equal(matrices(engine, by_default, method)[method], matrices(engine, auto, method)[method])


def test_a_model_that_does_not_fit_on_one_device_is_refused_in_a_sentence(prepared, monkeypatch):
    directory = prepared("llama", "none", "auto")
    monkeypatch.setattr(placing, "get_max_memory", lambda: {"cpu": 100_000})
    with pytest.raises(ModelError, match=r"load\.device_map: .* one device: set load\.quantization") as caught:
        load_model(directory, device="cpu")
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_kept_of_one_quantization_is_not_taken_for_another(prepared):
    kept = {artifacts.content_digest(prepared("llama", how)) for how in ("none", "8bit", "4bit")}
    assert len(kept) == 3


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_layers_bits_do_not_depend_on_the_arithmetic(quantization, prepared):
    from icprobe.engine.quantization import weight_of

    models = [load_model(prepared("llama", quantization), dtype, "cpu") for dtype in ("float32", "bfloat16")]
    assert models[1].dtype == torch.bfloat16
    layers = [quantised_layers(model) for model in models]
    for name in layers[0]:
        assert (weight_of(layers[0][name], torch.float32) == weight_of(layers[1][name], torch.float32)).all()


def test_a_quantised_base_is_served_as_its_bits_say(prepared, dequantised):
    from transformers import AutoModelForCausalLM

    from icprobe.evaluation.engines.weights import served_folder

    with served_folder(prepared("llama", "4bit"), None, "float32") as folder:
        served = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    wanted = dequantised("llama", "4bit").state_dict()
    assert all(torch.equal(served[name], weight) for name, weight in wanted.items())


def test_a_model_whose_layers_bitsandbytes_leaves_whole_is_refused(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install '.[test]'")
    from icprobe.engine.random_models import random_model

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    random_model("falcon", sizes, 1, tokenizer).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    source = {"source": "local", "path": str(tmp_path / "source"), "trust_remote_code": False}
    source |= {"load": {"quantization": "4bit", "device_map": "none"}}
    with pytest.raises(
        ModelError, match=r"bitsandbytes leaves 8 linear layers whole, first .*leave load\.quantization out"
    ):
        prepare(source, tmp_path / "base", admit)
