"""The engine takes a model's capabilities as given, and leaves the model as it was."""

import copy
from dataclasses import asdict, replace

import pytest
import torch
from matrices import ARCHITECTURES, matrices

from icprobe import artifacts
from icprobe.attribution import icp, influence, one_step
from icprobe.engine import admission, attention, gradients, stepping
from icprobe.engine.admission import admit, capabilities_of
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.likelihood import Suffix, log_likelihoods
from icprobe.engine.models import linear_layers, load_model, prepare
from icprobe.engine.network import Network
from icprobe.engine.random_models import random_model
from icprobe.engine.rows import Row
from icprobe.errors import ArtifactError, ModelError
from icprobe.texts.prompts import Encoded

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
BATCHES = [[Encoded((5, 6, 7, 8, 9), 2)], [Encoded((9, 8, 7), 1), Encoded((4, 4, 5, 6), 3)]]


@pytest.fixture
def model(tiny_model):
    """architecture → a model of its own."""
    return lambda architecture="llama": copy.deepcopy(tiny_model(architecture))


A_AND_B = ([5, 6, 7, 8, 9], [5, 6, 7, 7, 5, 6])


def row():
    """Of the sequences A_AND_B."""
    made = Row()
    root = made.add([5, 6, 7])
    made.add([8, 9], root), made.add([7, 5, 6], root)
    return made


def refused(attempt, kind=ModelError):
    with pytest.raises(kind) as caught:
        attempt()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- the caller's model -----------------------------------------------------------------------------------------


def state_of(model):
    """What a plain call gives, and what it depends on beside the weights."""
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    own = {name: sorted(vars(module)) for name, module in model.named_modules()}
    return logits, model.config._attn_implementation, own, [p.requires_grad for p in model.parameters()]


def assert_as_before(model, before):
    after = state_of(model)
    assert torch.equal(after[0], before[0])
    assert after[1:] == before[1:]


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("forward_only", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_is_as_it_was_between_and_after_its_passes(architecture, forward_only, packs, model, capabilities):
    ours = model(architecture)
    before = state_of(ours)
    able = replace(capabilities(architecture), packs=packs)
    network = Network(ours, able, forward_only)
    assert_as_before(ours, before)
    with torch.no_grad():
        network.hidden(row())
        network.cache_prefix([5, 6])
    assert_as_before(ours, before)
    layers = gradients.layers_of(network)
    with gradients.collect_gradients(layers, lambda *_: None):
        gradients.loss_backward(network, BATCHES[0])
    assert_as_before(ours, before)
    if packs:
        stepping.backward_in_step(network, layers, BATCHES, lambda *_: None)
        assert_as_before(ours, before)


@pytest.mark.parametrize(("module", "method"), [(icp, "icp"), (influence, "influence"), (one_step, "one_step")])
def test_a_method_leaves_its_model_as_it_was(module, method, inputs):
    ours = inputs("llama")
    before = state_of(ours.model)
    matrices(module, ours, method)
    assert_as_before(ours.model, before)


def test_a_copy_made_afterwards_computes_with_its_own_weights(model, capabilities):
    ours = model()
    network = Network(ours, capabilities("llama"), forward_only=True)
    with torch.no_grad():
        network.hidden(row())
        copied = copy.deepcopy(ours)
        fresh = model()
        for one in (copied, fresh):
            one.model.layers[0].mlp.up_proj.weight.mul_(3)
        assert torch.equal(copied(input_ids=IDS).logits, fresh(input_ids=IDS).logits)


def test_what_fails_in_a_pass_leaves_the_model_as_it_was(model, capabilities):
    ours = model()
    before = state_of(ours)
    network = Network(ours, capabilities("llama"))

    def fail(*_):
        raise KeyboardInterrupt

    for way in (lambda: network.hidden(row()), lambda: gradients.loss_backward(network, BATCHES[0])):
        handle = ours.model.layers[1].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            way()
        handle.remove()
        assert_as_before(ours, before)
    assert network.hidden(row()).isfinite().all()


@torch.no_grad()
def test_networks_of_one_model_take_turns(model, capabilities):
    ours, able = model(), capabilities("llama")
    padded = replace(able, packs=False)
    reference = Network(model(), able).hidden(row())
    networks = [Network(ours, able), Network(ours, padded), Network(ours, able, forward_only=True)]
    for network in networks * 2:
        torch.testing.assert_close(network.hidden(row()), reference, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_pass_within_a_pass_is_right_or_refused(model, capabilities):
    ours, able = model(), capabilities("llama")
    outer, inner, padded = Network(ours, able), Network(ours, able), Network(ours, replace(able, packs=False))
    alone = outer.hidden(row())
    seen = []

    def within(network):
        def hook(*_):
            handle.remove()
            other = Row()
            other.add([4, 4, 5])
            seen.append(network.hidden(other))

        handle = ours.model.layers[1].register_forward_hook(hook)
        return outer.hidden(row())

    assert torch.equal(within(inner), alone)
    other = Row()
    other.add([4, 4, 5])
    assert torch.equal(seen[0], inner.hidden(other))
    message = refused(lambda: within(padded))
    assert message == "LlamaForCausalLM: a packed row of another Network is on its way through it; let that end first."
    assert torch.equal(outer.hidden(row()), alone)


def test_gradients_of_a_padded_row_are_those_of_its_own_tokens_whatever_ran_since(model, capabilities):
    able = replace(capabilities("llama"), packs=False)
    network = Network(model(), able)
    layers = gradients.layers_of(network)

    def collected(between):
        seen = {}
        with gradients.collect_gradients(
            layers, lambda index, factors: seen.update({index: (factors.a, factors.delta)})
        ):
            _, states, delta = gradients.loss(network, BATCHES[1])
            between()
            states.backward(delta)
        return seen

    alone, interrupted = collected(lambda: None), collected(lambda: network.hidden(row()))
    assert len(alone[0][0]) == 7
    assert all(torch.equal(x, y) for index in alone for x, y in zip(alone[index], interrupted[index], strict=True))


# --- its capabilities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_manifest_keeps_what_is_found_of_the_model_in_memory(architecture, tiny_model, tokenizer, tmp_path):
    tiny_model(architecture).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    source = {"source": "local", "path": str(tmp_path / "source"), "trust_remote_code": False}
    manifest = prepare(source, tmp_path / "out", admit)
    assert Capabilities.of(tmp_path / "out") == capabilities_of(load_model(tmp_path / "out", device="cpu"))
    assert manifest["causal"]
    assert (manifest["logit_scale"], manifest["logit_cap"], manifest["expert_share"]) == (1, 0, 1)
    shared = {"llama": ["k_proj", "v_proj", "up_proj"] * 2, "gpt2": [], "gpt_neox": []}[architecture]
    assert [name.rpartition(".")[2] for name in manifest["shares_input"]] == shared


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_model_can_do_does_not_depend_on_the_dtype_that_it_is_in(architecture, model, capabilities):
    assert capabilities_of(model(architecture).to(torch.bfloat16)) == capabilities(architecture)


def test_a_manifest_of_another_version_is_refused_in_one_sentence(capabilities, tmp_path):
    kept = asdict(capabilities("llama"))
    artifacts.write_manifest(tmp_path, **kept)
    assert Capabilities.of(tmp_path) == capabilities("llama")
    for absent in ("shares_input", "packs", "refused_dtypes"):
        artifacts.write_manifest(tmp_path, **{name: value for name, value in kept.items() if name != absent})
        assert refused(lambda: Capabilities.of(tmp_path), ArtifactError) == (
            f"{tmp_path}/manifest.json: has no entry for {absent}: another version of icprobe prepared this model. "
            f"Remove {tmp_path}, and it will be prepared again."
        )


@pytest.mark.parametrize("packs", [True, False])
def test_the_engine_tries_nothing_of_what_it_is_told(packs, model, capabilities):
    ours, calls = model(), []
    able = replace(capabilities("llama"), packs=packs, in_step=packs)
    ours.model.register_forward_pre_hook(lambda *_: calls.append("a pass"))
    network = Network(ours, able)
    layers = gradients.layers_of(network)
    assert (stepping.activations_per_token(network, layers) is not None) == packs
    assert not calls


@pytest.mark.parametrize("packs", [True, False])
def test_a_model_with_embeddings_for_each_layer_is_told_the_tokens_and_does_not_look_for_them(packs, tokenizer):
    ours = random_model("gemma4_text", {}, 0, tokenizer).eval().requires_grad_(False)
    found = replace(capabilities_of(ours), packs=packs)
    with torch.no_grad():
        weight = ours.get_input_embeddings().weight
        weight[20] = weight[9]  # two tokens whose embeddings are one
        first, second = (ours.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in A_AND_B)
        states = Network(ours, found).hidden(row())
    assert ours.config.hidden_size_per_layer_input
    torch.testing.assert_close(states, torch.cat([first, second[3:]]), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as it is on a CPU
def test_flex_attention_is_taken_unless_it_fails_and_the_log_says_so(model, capabilities, monkeypatch, caplog):
    caplog.set_level("INFO")
    network = Network(model(), capabilities("llama"), forward_only=True)  # on a CPU it has no backward pass
    assert network._way_on_cuda() == "flex"
    assert caplog.messages == ["LlamaForCausalLM: its rows are packed by FlexAttention"]

    def fails(_compiled):
        raise RuntimeError("no kernel\nfor these heads")

    monkeypatch.setattr(attention, "flexible", fails)
    assert network._way_on_cuda() == "mask"
    assert caplog.messages[1] == "LlamaForCausalLM: its rows are packed by a dense mask (no kernel for these heads)"
    monkeypatch.setattr(attention, "flexible", lambda _compiled: lambda query, *_, **__: query * 2)
    assert network._way_on_cuda() == "mask"
    assert caplog.messages[2].endswith("a dense mask (the two differ)")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_without_a_backward_pass_serves_forward_passes_alone(model, capabilities, caplog):
    """As it is on a CPU, and was on CUDA for heads that share their keys."""
    caplog.set_level("INFO")
    assert Network(model(), capabilities("llama"), forward_only=True)._way_on_cuda() == "flex"
    assert Network(model(), capabilities("llama"))._way_on_cuda() == "mask"
    assert "does not support backward" in caplog.messages[-1]


def test_capabilities_of_another_model_are_refused_where_its_attention_cannot_be_replaced(tokenizer, capabilities):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    falcon = random_model("falcon", {**sizes, "alibi": False}, 0, tokenizer).requires_grad_(False)
    before = state_of(falcon)
    message = refused(lambda: Network(falcon, capabilities("gpt2")).hidden(row()))
    assert message == (
        "FalconForCausalLM: its attention cannot be replaced, whatever its capabilities say; "
        "they are another model's, or of another version of transformers."
    )
    assert_as_before(falcon, before)


def test_a_model_in_memory_is_as_it_was_after_it_was_tried_out(model):
    ours = model("gpt2")
    next(iter(linear_layers(ours).values())).bias.requires_grad_(True)
    before = state_of(ours)
    found = capabilities_of(ours)
    assert found.packs
    assert found.in_step
    assert_as_before(ours, before)
    assert all(p.grad is None for p in ours.parameters())


def test_memory_that_is_short_is_no_fault_of_the_model(model, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(admission, "theta_of", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        capabilities_of(model())


def test_a_target_right_behind_a_prefix_that_is_kept_is_predicted_by_its_last_token(tiny_model, capabilities):
    network = Network(tiny_model("llama"), capabilities("llama"))
    prefix, suffixes = [*range(5, 45)], [Suffix((7, 8, 9), 0), Suffix((6, 3), 0), Suffix((4, 3), 1)]
    with network.in_use():
        wanted = log_likelihoods(network, prefix, suffixes)
        found = log_likelihoods(network, prefix, suffixes, limit=len(prefix))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
