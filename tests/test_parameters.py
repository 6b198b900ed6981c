"""Gradients over some layers alone: the naive loop's numbers for each method, and refused where no name tells."""

import logging
import re

import naive
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from matrices import ARCHITECTURES, assert_close, assert_influence_log, matrices
from test_attribution import pairs
from test_experts import given, mixtures  # noqa: F401
from test_from_python import TASKS, TRAIN, by_the_dag, prepared  # noqa: F401
from test_memory_plan import plan_of

import icprobe
from icprobe.attribution import influence, influence_mean, memory_plan, one_step, self_influence
from icprobe.engine.admission import admit
from icprobe.engine.batching import batches
from icprobe.engine.gradients import coverage, layers_of
from icprobe.engine.models import linear_layers, load_model, prepare
from icprobe.engine.network import Network
from icprobe.engine.parameters import chosen, kinds
from icprobe.engine.skeleton import skeleton
from icprobe.errors import ModelError
from icprobe.texts.prompts import Encoded
from icprobe.texts.tokenizing import load_tokenizer

# parameters -> the naive loop's parameters that it means.
MEANT = {"attention": r"attn|attention", "mlp": r"mlp", r"(layers|h)\.0\.": r"(layers|h)\.0\."}
METHODS = ["influence", "influence_log", "cosine"]


@pytest.fixture(scope="module")
def naive_gradients(tiny_model, tokenizer, few):
    """(architecture, parameters) → the gradients of all examples and of all tasks."""
    made = {}

    def make(architecture, parameters):
        if architecture not in made:
            model = tiny_model(architecture)
            made[architecture] = tuple(
                [naive.gradient(model, tokenizer, row, whole) for row in table.to_dict("records")]
                for table, whole in zip(few[:2], (True, False), strict=True)
            )
        return [[only(MEANT[parameters], g) for g in side] for side in made[architecture]]

    return make


def only(pattern, gradients):
    return {name: g for name, g in gradients.items() if re.search(pattern, name)}


def column(module, inputs, **settings):
    """The scores of a method with one column, in the order of the examples."""
    out = np.empty(len(inputs.train))
    for _, rows, values in module.attribute(inputs, "", batches(inputs.lengths, 200), 200, **settings):
        out[rows] = values[:, 0]
    return out


@pytest.mark.parametrize("parameters", MEANT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_method_by_products_takes_the_chosen_layers_alone(architecture, parameters, inputs, naive_gradients):
    examples, tasks = naive_gradients(architecture, parameters)
    slow = np.array([[naive.influence(z, t) for t in tasks] for z in examples])
    found = matrices(influence, inputs(architecture), "influence", methods=METHODS, parameters=parameters)
    alone = matrices(influence, inputs(architecture), "influence", methods=["influence"], parameters=parameters)
    for matrix in (found, alone):
        assert_close(matrix["influence"], slow, 1e-4, np.abs(slow).max())
    assert_influence_log(found["influence_log"], examples, tasks)
    norms = [np.array([naive.influence(g, g) for g in side]) for side in (examples, tasks)]
    assert_close(found["cosine"], slow / np.sqrt(np.outer(*norms)), 1e-5)
    own = column(self_influence, inputs(architecture), parameters=parameters)
    assert_close(own, -norms[0], 1e-5, norms[0].max())
    mean = column(influence_mean, inputs(architecture), parameters=parameters)
    assert_close(mean, slow.mean(axis=1), 1e-4, np.abs(slow).max())


@pytest.mark.parametrize("parameters", MEANT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_step_updates_the_chosen_layers_alone(architecture, parameters, inputs, few, tiny_model, tokenizer):
    model = tiny_model(architecture)
    slow = pairs(few, lambda z, t: naive.one_step(model, tokenizer, z, t, 1e-3, pattern=MEANT[parameters]))
    whole = pairs(few, lambda z, t: naive.one_step(model, tokenizer, z, t, 1e-3))
    found = matrices(one_step, inputs(architecture), "one_step", learning_rate=1e-3, parameters=parameters)["one_step"]
    assert_close(found, slow, 1e-4)
    assert np.abs(whole - slow).max() > 1e-3, "the others were to matter"


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_attention_and_mlps_with_all_experts_make_up_the_whole(kind, given):  # noqa: F811
    ours, _ = given(kind)
    whole, attention, mlp = (
        matrices(influence, ours, "influence", methods=["influence"], parameters=p)["influence"]
        for p in ("all", "attention", "mlp")
    )
    assert np.abs(mlp).max() > 1e-3 * np.abs(whole).max()
    assert_close(attention + mlp, whole, 1e-5, np.abs(whole).max())
    one = matrices(influence, ours, "influence", methods=["influence"], parameters=r"experts.*\.3$")["influence"]
    assert_close(one + matrices_but(ours, r"experts.*\.3$"), whole, 1e-5, np.abs(whole).max())


def matrices_but(ours, pattern):
    """Influence over all layers whose names do not match."""
    return matrices(influence, ours, "influence", methods=["influence"], parameters=rf"^(?!.*{pattern})")["influence"]


@pytest.mark.parametrize("hold", ["tasks", "examples"])
@pytest.mark.parametrize(("dense", "together"), [(True, False), (False, False), (False, True)])
def test_the_memory_plan_changes_no_bit(hold, dense, together, inputs, monkeypatch):
    reference = matrices(influence, inputs("llama"), "influence", methods=METHODS, parameters="v_proj|down_proj")
    monkeypatch.setattr(memory_plan.Plan, "cheapest", plan_of(hold, dense, together))
    other = matrices(influence, inputs("llama"), "influence", methods=METHODS, parameters="v_proj|down_proj")
    assert all((other[method] == reference[method]).all() for method in METHODS)


def test_a_layer_shares_its_input_with_a_chosen_one_alone(inputs):
    ours = inputs("llama")
    network = Network(ours.model, ours.capabilities)

    def sharing(parameters):
        found = [layer for layer in layers_of(network, parameters) if ".0." in layer.name]
        return {layer.name.rpartition(".")[2]: layer.shares_input for layer in found}

    assert sharing("attention") == {"q_proj": False, "k_proj": True, "v_proj": True, "o_proj": False}
    assert sharing("[qv]_proj") == {"q_proj": False, "v_proj": True}
    assert sharing("v_proj|up_proj") == {"v_proj": False, "up_proj": False}
    assert layers_of(network, "all") == layers_of(network)


def test_memory_is_counted_for_what_a_pass_keeps_of_all_layers(inputs):
    ours = inputs("llama")
    network = Network(ours.model, ours.capabilities)
    side = memory_plan.SequenceBatches([[Encoded(tuple(range(100)), 1)]])
    every, few = layers_of(network), layers_of(network, r"0\.self_attn\.v_proj")
    activations = memory_plan.ACTIVATIONS_PER_FACTORS * 100 * sum(layer.width for layer in every) * 4
    plans = [memory_plan.Plan.cheapest(side, side, few, activations, 4, passed=every)]
    plans += [memory_plan.Plan.cheapest(side, side, few, 1.5 * activations, 4, passed=every)]
    assert [plan.fits for plan in plans] == [False, True]


# --- which layers these are ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj", {"attention"}),
        ("transformer.h.0.attn.c_attn", {"attention"}),
        ("gpt_neox.layers.11.attention.dense", {"attention"}),
        ("model.layers.3.linear_attn.in_proj_qkvz", {"attention"}),
        ("model.decoder.layers.0.fc1", {"mlp"}),
        ("model.layers.0.mlp.experts.gate_up_proj.17", {"mlp"}),
        ("model.layers.0.block_sparse_moe.experts.down_proj.0", {"mlp"}),
        ("model.layers.0.feed_forward.w1", {"mlp"}),
        ("bert.encoder.layer.0.output.dense", set()),
        ("model.layers.0.mamba.in_proj", set()),
        ("model.layers.0.self_attention.experts.router.layer", {"attention", "mlp"}),
    ],
)
def test_a_name_tells_attention_from_mlp_or_is_not_understood(name, expected):
    assert kinds(name) == expected


@pytest.mark.parametrize(
    ("names", "parameters", "words"),
    [
        (
            ["h.0.attn.q", "h.0.mamba.in", "h.0.mlp.up"],
            "mlp",
            "do not say whether .* or to an MLP, first h.0.mamba.in;",
        ),
        (["h.0.attn.q", "h.1.attn.q"], "mlp", "mlp: no linear layer of Net is chosen; .* as h.0.attn.q and h.1.attn.q"),
        (["h.0.attn.q", "h.1.attn.q"], "Attn", "'Attn': no linear layer of Net is chosen"),
    ],
)
def test_a_choice_that_names_cannot_answer_is_refused(names, parameters, words):
    with pytest.raises(ModelError, match=f"attribution.parameters: .*{words}"):
        chosen(names, parameters, "Net")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_share_is_that_of_the_blocks_weights(architecture, inputs, caplog):
    caplog.set_level(logging.INFO)
    ours = inputs(architecture)
    inside = {n: p.numel() for n, p in ours.model.named_parameters() if ".layers." in n or ".h." in n}
    part = sum(size for name, size in inside.items() if re.search(MEANT["mlp"], name)) / sum(inside.values())
    found = coverage(ours.model, ours.capabilities, "mlp")
    assert found.share == pytest.approx(part)
    column(self_influence, ours, parameters="mlp")
    said = f"over {found.layers} of {found.of_layers} linear layers, {100 * part:.1f}% of the weights of the blocks"
    assert said in caplog.text


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_a_model_without_weights_has_the_layers_of_the_model(kind, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    corpus = str(ROOT / "resources/demo/train.jsonl")
    source = {"source": "random", "architecture": kind, "sizes": sizes, "seed": 0, "vocabulary": 300, "corpus": corpus}
    prepare(source, tmp_path / "out", admit)
    own, bare = (linear_layers(model) for model in (load_model(tmp_path / "out"), skeleton(tmp_path / "out")))
    shapes = [{n: [p.shape for p in m.parameters()] for n, m in layers.items()} for layers in (own, bare)]
    assert shapes[0] == shapes[1]
    assert list(own) == list(bare)
    assert all(p.device == torch.device("meta") for layer in bare.values() for p in layer.parameters())


# --- from Python --------------------------------------------------------------------------------------------------


def test_from_python_the_numbers_are_those_of_the_dag(prepared, prompts, tmp_path):  # noqa: F811
    settings = {"methods": ["one_step", "influence", "self_influence"], "dtype": "float32", "parameters": "attention"}
    _, found = icprobe.value(TRAIN, TASKS, model=prepared, matrices=True, **settings)
    for method in settings["methods"]:
        more = {"learning_rate": 1e-4} if method == "one_step" else {}
        expected = by_the_dag(prepared, method, 0, 2, tmp_path, prompts, parameters="attention", **more)
        pd.testing.assert_frame_equal(found[method], expected, check_exact=True)


@pytest.mark.parametrize("in_memory", [True, False])
def test_from_python_a_pattern_without_a_layer_is_refused_before_any_work(in_memory, prepared, monkeypatch):  # noqa: F811
    monkeypatch.setattr("icprobe.notebook.valuing.compute", None)
    monkeypatch.setattr("icprobe.notebook.models.load_model", None)
    model = {"model": prepared}
    if in_memory:
        model = {"model": load_model(prepared), "tokenizer": load_tokenizer(prepared)}
    with pytest.raises(ModelError, match=r"attribution\.parameters: 'moe': no linear layer of LlamaForCausalLM"):
        icprobe.value(TRAIN, TASKS, methods=["influence"], dtype="float32", parameters="moe", **model)
