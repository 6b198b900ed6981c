"""Mixtures of experts: every method's numbers are a naive loop's over all experts, and training reaches them."""

import copy

import naive
import numpy as np
import pytest
import torch
import transformers
from loud import loud_model
from matrices import assert_close, assert_influence_log, matrices

from icprobe import value
from icprobe.attribution import fisher, icp, influence, influence_ekfac, influence_mean, one_step
from icprobe.attribution.matrix import Inputs
from icprobe.engine import stepping
from icprobe.engine.admission import admit, capabilities_of
from icprobe.engine.batching import batches
from icprobe.engine.checkpoints import load_fine_tuned
from icprobe.engine.experts import expert_layers, routers, stack, unstack
from icprobe.engine.gradients import layers_of
from icprobe.engine.models import linear_layers, load_model, prepare
from icprobe.engine.network import Network
from icprobe.texts.prompts import Encoded
from icprobe.training.fine_tune import fine_tune

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "num_local_experts": 5,
    "num_experts": 5,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
KINDS = {
    "mixtral": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 24},  # an expert that all tokens go to beside the others
    # Matrices transposed, with biases and interleaved; attention with a sink.
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512},
}


@pytest.fixture(scope="module")
def mixtures(tokenizer):
    sizes = {**SIZES, "vocab_size": len(tokenizer)}
    return {kind: loud_model(kind, **{**sizes, **KINDS[kind]}).requires_grad_(False) for kind in KINDS}


@pytest.fixture
def given(mixtures, few, prompts, tokenizer):
    """kind → what a method is given, with a model whose experts stand apart, and the model as transformers has it."""

    def make(kind):
        train, tasks, lengths = few
        model = copy.deepcopy(mixtures[kind])
        capabilities = capabilities_of(model)
        return Inputs(train, tasks, lengths, prompts, model, tokenizer, capabilities, seed=3), mixtures[kind]

    return make


@pytest.fixture(scope="module")
def naive_gradients(mixtures, tokenizer, few):
    train, tasks, _ = few
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tuple(
                [naive.gradient(mixtures[kind], tokenizer, row, whole) for row in table.to_dict("records")]
                for table, whole in ((train, True), (tasks, False))
            )
        return made[kind]

    return make


def pairs(few, function):
    train, tasks, _ = few
    return np.array([[function(z, t) for t in tasks.to_dict("records")] for z in train.to_dict("records")])


@pytest.mark.parametrize("kind", KINDS)
def test_icp_of_a_mixture_equals_the_naive_loop(kind, given, few, tokenizer):
    inputs, model = given(kind)
    slow = pairs(few, lambda z, t: naive.icp(model, tokenizer, z, t))
    assert np.abs(slow).max() > 0.05
    assert_close(matrices(icp, inputs, "icp")["icp"], slow, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [3.0, 1e-9])  # all at once, and batch by batch
def test_influence_takes_every_expert(kind, budget, given, naive_gradients):
    inputs, _ = given(kind)
    examples, tasks = naive_gradients(kind)
    slow = np.array([[naive.influence(z, t) for t in tasks] for z in examples])
    without = np.array(
        [[naive.influence({n: g for n, g in z.items() if "experts" not in n}, t) for t in tasks] for z in examples]
    )
    assert np.abs(slow - without).max() > 0.01 * np.abs(slow).max(), "experts must count"
    alone = matrices(influence, inputs, "influence", methods=["influence"], memory_budget_gb=budget)["influence"]
    both = matrices(influence, inputs, "influence", memory_budget_gb=budget)
    assert_close(alone, slow, 1e-4, np.abs(slow).max())
    assert_close(both["influence"], slow, 1e-4, np.abs(slow).max())
    assert_influence_log(both["influence_log"], examples, tasks)
    mean = np.concatenate([block for _, _, block in influence_mean.attribute(inputs, "influence_mean", [np.arange(7)])])
    assert_close(mean[:, 0], slow.mean(1), 1e-4, np.abs(slow).max())


def joint_factors(inputs, layers, row, whole):
    """{layer: (a [n, d_in (+ 1)], δ [n, d_out])} of the tokens that it sees of one row, by itself in the model."""
    model = copy.deepcopy(inputs.model).requires_grad_(True)
    seen = {}
    for layer in layers:

        def keep(module, args, output, name=layer.name):
            output.retain_grad()
            seen[name] = (args[0].detach().flatten(0, -2), output)

        model.get_submodule(layer.name).register_forward_hook(keep)
    context, text = ("" if whole else naive.query(row)), naive.query(row) + naive.target(row)
    ids, before = (inputs.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, context))
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    (-sum(log_p[i - 1, ids[i]] for i in range(max(len(before), 1), len(ids)))).backward()
    return {
        layer.name: (
            torch.cat([a, a.new_ones(len(a), int(layer.bias))], dim=1).double(),
            output.grad.flatten(0, -2).double(),
        )
        for layer in layers
        if layer.name in seen
        for a, output in [seen[layer.name]]
    }


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_each_expert_has_a_fisher_matrix_of_its_own_tokens(kind, given, few, tmp_path):
    inputs, _ = given(kind)
    layers = [layer for layer in layers_of(Network(inputs.model, inputs.capabilities)) if layer.experts]
    examples, tasks = (
        [joint_factors(inputs, layers, row, whole) for row in table.to_dict("records")]
        for table, whole in zip(few[:2], (True, False), strict=True)
    )
    slow = np.zeros((len(examples), len(tasks)))
    for layer in layers:
        pairs = {i: of[layer.name] for i, of in enumerate(examples) if layer.name in of}
        if not pairs:
            continue
        q_a = torch.linalg.eigh(sum(a.T @ a for a, _ in pairs.values())).eigenvectors
        q_s = torch.linalg.eigh(sum(d.T @ d for _, d in pairs.values())).eigenvectors
        rotated = {i: q_s.T @ (d.T @ a) @ q_a for i, (a, d) in pairs.items()}
        eigenvalues = sum(g**2 for g in rotated.values()) / len(examples)
        for j, of in enumerate(tasks):
            if layer.name in of:
                a, d = of[layer.name]
                scaled = (q_s.T @ (d.T @ a) @ q_a) / (eigenvalues + 0.1 * eigenvalues.mean())
                for i, g in rotated.items():
                    slow[i, j] += (g * scaled).sum().item()
    runs, chosen = batches(inputs.lengths, 200), r"experts.*\.\d+$"
    found = fisher.fit(inputs, runs, tmp_path, labels="empirical", parameters=chosen)
    fast = matrices(influence_ekfac, inputs, "influence_ekfac", fisher=found, parameters=chosen)["influence_ekfac"]
    assert_close(fast, slow, 1e-3, np.abs(slow).max())


def test_an_expert_that_no_example_goes_to_adds_nothing(given, tmp_path):
    inputs, _ = given("mixtral")
    # Whatever the sign of a token's product with the first row, two rows are above 0, where the last one stays.
    slopes = torch.tensor([1.0, -1.0, 0.9, -0.9, 0.0])
    with torch.no_grad():
        for name, gate in inputs.model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                gate.copy_(slopes[:, None] * gate[:1].clone())
    network = Network(inputs.model, inputs.capabilities)
    layers, runs = layers_of(network), batches(inputs.lengths, 200)
    found = fisher.fit(inputs, runs, tmp_path, labels="empirical")
    tokens = [int(fisher.read(fisher.layer_file(found[1], i))["tokens"]) for i in range(len(layers))]
    assert any(n == 0 for n, layer in zip(tokens, layers, strict=True) if layer.experts)
    values = matrices(influence_ekfac, inputs, "influence_ekfac", fisher=found)["influence_ekfac"]
    assert np.isfinite(values).all()


def test_an_expert_through_which_no_loss_flows_back_adds_nothing(given, tmp_path):
    inputs, _ = given("mixtral")
    layers, runs = layers_of(Network(inputs.model, inputs.capabilities)), batches(inputs.lengths, 200)
    last = [layer for layer in layers if layer.experts][-1]
    of_expert = [n for n, layer in enumerate(layers) if (layer.experts, layer.expert) == (last.experts, last.expert)]
    with torch.no_grad():
        last.module.weight.zero_()  # its down projection: what stands before it moves nothing
    found = fisher.fit(inputs, runs, tmp_path, labels="empirical")
    tokens = [int(fisher.read(fisher.layer_file(found[1], n))["tokens"]) for n in of_expert]
    assert tokens[-1] > 0 == max(tokens[:-1])
    values = matrices(influence_ekfac, inputs, "influence_ekfac", fisher=found)["influence_ekfac"]
    others = "|".join(layer.name.replace(".", r"\.") + "$" for n, layer in enumerate(layers) if n not in of_expert[:-1])
    rest = fisher.fit(inputs, runs, tmp_path / "rest", labels="empirical", parameters=others)
    without = matrices(influence_ekfac, inputs, "influence_ekfac", fisher=rest, parameters=others)["influence_ekfac"]
    assert_close(values, without, 1e-5, np.abs(without).max())


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_a_mixture_equals_the_naive_loop(kind, given, few, tokenizer):
    inputs, model = given(kind)
    rate = 1e-2
    slow = pairs(few, lambda z, t: naive.one_step(model, tokenizer, z, t, rate))
    assert np.abs(slow).max() > 0.05
    assert_close(matrices(one_step, inputs, "one_step", learning_rate=rate)["one_step"], slow, 1e-4)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_no_bit_of_a_mixtures_influence_depends_on_the_plan(kind, given):
    inputs, _ = given(kind)
    assert inputs.capabilities.in_step
    found = [
        matrices(influence, inputs, "influence", batch_tokens=120, memory_budget_gb=gigabytes)
        for gigabytes in (3.0, 2e-3, 1e-3, 1e-9)
    ]
    for other in found[1:]:
        assert all((other[method] == found[0][method]).all() for method in other)


def test_layers_of_experts_come_back_in_one_order_whichever_of_them_a_row_goes_to(given):
    inputs, _ = given("mixtral")
    network = Network(inputs.model, inputs.capabilities)
    layers = layers_of(network)
    orders = []
    tasks = [[Encoded(ids, 1)] for ids in ((5, 6), (90, 41), (300, 17))]
    for batch in tasks:
        seen = []
        stepping.backward_in_step(network, layers, [batch], lambda index, _rows, seen=seen: seen.append(index))
        orders.append(seen)
    together = []
    stepping.backward_in_step(network, layers, tasks, lambda index, _rows: together.append(index))
    for order in orders:
        assert [index for index in together if index in set(order)] == order
    assert len({tuple(order) for order in orders}) > 1, "rows that go to the same experts prove nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_experts_apart_share_memory_and_can_be_put_back(kind, mixtures):
    model = copy.deepcopy(mixtures[kind])
    before, ids = {n: p.data_ptr() for n, p in model.named_parameters()}, torch.arange(3, 40)[None]
    logits = model(input_ids=ids).logits
    assert unstack(model)
    assert not unstack(model)
    apart = expert_layers(model)
    assert len(apart) == 2 * 2 * 5
    assert apart.keys() <= linear_layers(model).keys()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in mixtures[kind].parameters())
    assert all(p.data_ptr() in range(min(before.values()), 2**63) for p in model.parameters())
    torch.testing.assert_close(model(input_ids=ids).logits, logits, rtol=1e-5, atol=1e-5)
    stack(model)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == before
    assert torch.equal(model(input_ids=ids).logits, logits)


@pytest.mark.parametrize("kind", KINDS)
def test_theta_covers_all_but_norms_and_routers(kind, mixtures):
    model = copy.deepcopy(mixtures[kind])
    capabilities = capabilities_of(model)
    assert capabilities.expert_share == 2 / 5
    left = sum(p.numel() for p in routers(model).values())
    assert sum(capabilities.left_out.values()) == pytest.approx(
        left / sum(p.numel() for p in model.model.layers.parameters())
    )
    assert all("router" in name or "gate" in name for name in capabilities.left_out)
    assert capabilities.attributed_share + sum(capabilities.left_out.values()) > 0.97


@pytest.fixture(scope="module")
def base(mixtures, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    mixtures["mixtral"].save_pretrained(folder / "source")
    tokenizer.save_pretrained(folder / "source")
    prepare({"source": "local", "path": str(folder / "source"), "trust_remote_code": False}, folder / "base", admit)
    return folder / "base"


SETTINGS = {
    "learning_rate": 1e-2,
    "epochs": 1,
    "batch_size": 2,
    "accumulation": 1,
    "scheduler": "constant",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_length": 128,
    "dtype": "float32",
    "device": "cpu",
    "checkpoint_minutes": 10,
}


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4, "dropout": 0.0}])
def test_training_a_mixture_reaches_its_experts_and_the_checkpoint_has_them(lora, base, few, prompts, tmp_path):
    train, _, _ = few
    out = tmp_path / "out"
    fine_tune(base, train.to_dict("records"), prompts, out, {**SETTINGS, "lora": lora}, 0, tmp_path / "partial")
    tuned, before = load_fine_tuned(out, base, device="cpu"), load_model(base, device="cpu")
    changed = {
        name
        for name, layer in linear_layers(tuned).items()
        if not torch.equal(layer.weight, before.get_submodule(name).weight)
    }
    experts = expert_layers(before).keys()
    assert len(changed & experts) > len(experts) / 2
    if lora is None:  # what is saved is transformers' own
        own = transformers.AutoModelForCausalLM.from_pretrained(out)
        ids = torch.arange(3, 30)[None]
        torch.testing.assert_close(own(input_ids=ids).logits, tuned(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4, "dropout": 0.0}])
def test_a_training_of_a_mixture_that_is_stopped_goes_on_to_the_same_weights(lora, base, few, prompts, tmp_path):
    """transformers saves experts by other names than they have in memory, and takes no others up again."""
    train, _, _ = few

    class Stopped(Exception):
        pass

    def stop(_metrics, step):
        if step == 3:
            raise Stopped

    def run(name, log=lambda metrics, step: None, **changes):
        settings, partial = {**SETTINGS, "epochs": 2, "lora": lora, **changes}, tmp_path / f"partial {name}"
        return fine_tune(base, train.to_dict("records"), prompts, tmp_path / name, settings, 0, partial, log)

    with pytest.raises(Stopped):
        run("stopped", stop, checkpoint_minutes=1e-9)
    assert run("stopped")["resumed_from_step"] == 2
    run("whole")
    one, two = (load_fine_tuned(tmp_path / name, base, device="cpu") for name in ("stopped", "whole"))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_mixture_in_memory_is_afterwards_as_it_was(mixtures, few, tokenizer):
    model, (train, tasks, _) = copy.deepcopy(mixtures["mixtral"]), few
    names = [name for name, _ in model.named_parameters()]
    found = value(train, tasks, model=model, tokenizer=tokenizer, methods=["influence"])
    assert found["score_influence"].notna().all()
    assert [name for name, _ in model.named_parameters()] == names
