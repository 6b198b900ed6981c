"""In bfloat16 what is rounded is what is kept, never a sum under way: engines against loops in float64."""

from dataclasses import replace
from types import SimpleNamespace

import naive
import numpy as np
import pytest
import torch
from matrices import matrices
from torch import nn

from icprobe.attribution import contraction, icp, influence, influence_mean
from icprobe.attribution.matrix import encode_tasks
from icprobe.engine import gradients, likelihood, matmul, models
from icprobe.engine.batching import batches
from icprobe.engine.head import Shape

BFLOAT16 = 2.0**-8  # relative rounding
FLOAT32 = 1e-5


def noise(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mean_scores(ours, batch_tokens):
    blocks = influence_mean.attribute(ours, "influence_mean", batches(ours.lengths, 200), batch_tokens=batch_tokens)
    scores = np.empty(len(ours.train))
    for _, rows, block in blocks:
        scores[rows] = block[:, 0]
    return scores


def test_the_mean_over_equal_tasks_is_that_of_one_however_many_packs_hold_them(inputs, monkeypatch):
    ours = inputs("gpt2", torch.bfloat16)
    ours.tasks = ours.tasks.iloc[:1]
    one = mean_scores(ours, 1)
    ours.tasks = ours.tasks.iloc[[0] * 1000]
    # The pass through a task is made once, and handed over as often as there are tasks.
    (task,), taken, consumers = encode_tasks(replace(ours, tasks=ours.tasks.iloc[:1])), [], []
    collect_gradients, loss_backward = influence_mean.collect_gradients, influence_mean.loss_backward

    def tap(layers, consume):
        consumers.append(consume)

        def noted(*of_layer):
            taken.append(of_layer)
            consume(*of_layer)

        return collect_gradients(layers, noted)

    def backward(network, sequences):
        if list(sequences) == [task] and taken:
            for of_layer in taken:
                consumers[-1](*of_layer)
        else:
            loss_backward(network, sequences)

    monkeypatch.setattr(influence_mean, "collect_gradients", tap)
    monkeypatch.setattr(influence_mean, "loss_backward", backward)
    many = mean_scores(ours, 1)
    assert np.abs(many - one).max() <= BFLOAT16 * np.abs(one).max(), many / one


def test_a_mean_over_tasks_does_not_depend_on_how_many_packs_hold_them(inputs):
    ours = inputs("gpt2", torch.bfloat16)
    alone, together = mean_scores(ours, 1), mean_scores(ours, 10**6)
    assert np.abs(alone - together).max() <= 4 * BFLOAT16 * np.abs(together).max()


@pytest.mark.parametrize("length", [64, 1000, 3 * contraction.CHUNK_ELEMENTS + 16, 5001])
@pytest.mark.parametrize("name", ["influence", "influence_log"])
def test_terms_of_bfloat16_gradients_are_rounded_as_float32(name, length):
    x, y = noise(3, length) + 0.5, noise(2, length, seed=1) + 0.5
    found = contraction.contract({name: contraction.CONTRACTIONS[name]}, {0: x}, {0: y}, [(0, 0)])[name][0, 0]
    x, y = (g.double() if name == "influence" else naive.clamp(g.double()) for g in (x, y))
    exact = x @ y.T
    exact = exact if name == "influence" else exact.sign() * exact.abs().log()
    torch.testing.assert_close(found.double(), exact, rtol=FLOAT32, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_gram_matrices_of_bfloat16_factors_are_rounded_as_float32(bias):
    layer = gradients.Layer("x", None, 40, 30, bias)
    where = [slice(0, 50), slice(50, 90)]
    factors = [noise(90, width, seed=seed) + 0.25 for seed, width in enumerate((40, 30, 40, 30))]
    found = gradients.grams(layer, *factors[:2], where, *factors[2:], where)
    a, delta, a2, delta2 = (factor.double() for factor in factors)
    for i, one in enumerate(where):
        for j, two in enumerate(where):
            weights = (delta[one].T @ a[one] * (delta2[two].T @ a2[two])).sum()
            biases = (delta[one].sum(0) * delta2[two].sum(0)).sum() if bias else 0
            assert found[i, j].item() == pytest.approx((weights + biases).item(), rel=FLOAT32)


@pytest.mark.parametrize("bias", [True, False])
def test_a_formed_gradient_is_summed_over_tokens_before_it_is_rounded(bias):
    layer = gradients.Layer("x", None, 8, 6, bias)
    a, delta = noise(3000, 8) + 1, noise(3000, 6, seed=1) + 1
    out = torch.empty(1, layer.size, dtype=torch.bfloat16)
    found = torch.cat(gradients.per_example_gradients(layer, a, delta, [slice(0, 3000)], out), dim=1)[0]
    exact = (delta.double().T @ a.double()).flatten()
    exact = torch.cat([exact, delta.double().sum(0)]) if bias else exact
    torch.testing.assert_close(found.double(), exact, rtol=BFLOAT16, atol=0)


def head(states, words, confident, seed=2):
    """A network that is a head alone, and targets whose words have logits higher than all others by `confident`."""
    weight = noise(words, states.shape[1], seed=seed) * 0.05
    targets = list(range(0, words, words // len(states)))[: len(states)]
    weight[targets] = (confident * states / states.float().square().sum(1, keepdim=True)).to(weight.dtype)
    return SimpleNamespace(head=nn.Linear(states.shape[1], words, bias=False), logit_shape=Shape()), weight, targets


@pytest.mark.parametrize("confident", [1.0, 8.0, 16.0, 24.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_loss_gradient_of_a_confident_token_is_as_exact_as_any(confident, dtype):
    states = noise(6, 64)
    network, weight, targets = head(states, 5000, confident)
    network.head.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    found = likelihood.loss_gradient(network, states.to(dtype), targets).double()
    w = weight.double()
    p = (states.double() @ w.T).softmax(-1)
    if confident > 8:
        assert p[range(6), targets].min() > 0.99
    p[range(6), targets] = 0
    exact = p @ w - p.sum(1, keepdim=True) * w[targets]
    error = (found - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() <= (BFLOAT16 if dtype is torch.bfloat16 else FLOAT32), error


def test_log_probabilities_of_bfloat16_states_are_rounded_as_float32():
    states = noise(6, 64)
    network, weight, targets = head(states, 5000, 12.0)
    network.head.weight = nn.Parameter(weight, requires_grad=False)
    found = likelihood.target_log_probabilities(network, states, targets)
    exact = (states.double() @ weight.double().T).log_softmax(-1)[range(6), targets]
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_icp_in_bfloat16_is_that_of_the_same_weights_in_float32_by_bfloat16s_rounding(
    architecture, inputs, few, tokenizer
):
    ours = inputs(architecture, torch.bfloat16)
    widened = inputs(architecture, torch.bfloat16).model.float()
    train, tasks, _ = few
    exact = np.array(
        [
            [naive.icp(widened, tokenizer, z, t) for t in tasks.to_dict("records")]
            for z in train.iloc[:3].to_dict("records")
        ]
    )
    found = matrices(icp, ours, "icp")["icp"][:3]
    assert np.abs(found - exact).max() <= 8 * BFLOAT16 * np.abs(exact).max()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_influence_in_bfloat16_is_that_of_the_same_weights_in_float32_by_bfloat16s_rounding(architecture, inputs):
    ours, exact = inputs(architecture, torch.bfloat16), inputs(architecture, torch.bfloat16)
    exact.model.float()
    expected = matrices(influence, exact, "influence", methods=["influence"])["influence"]
    found = matrices(influence, ours, "influence", methods=["influence"])["influence"]
    assert np.abs(found - expected).max() <= 8 * BFLOAT16 * np.abs(expected).max()
    np.testing.assert_allclose(
        mean_scores(ours, 200), found.mean(1, dtype=np.float64), rtol=0, atol=2 * BFLOAT16 * np.abs(found).max()
    )


def test_sums_of_16_bit_products_are_never_held_in_16_bits():
    options = torch.backends.cuda.matmul
    options.allow_bf16_reduced_precision_reduction = options.allow_fp16_reduced_precision_reduction = True
    models.set_precision(tf32=False)
    assert not options.allow_bf16_reduced_precision_reduction
    assert not options.allow_fp16_reduced_precision_reduction


@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_bfloat16_matrices_in_float32_are_exact_and_leave_no_setting_behind(transposed):
    x, weight, bias = noise(33, 500), noise(70, 500, seed=1), noise(70, seed=2, dtype=torch.float32)
    if transposed:
        x, weight = x.T.contiguous().T, weight.T.contiguous().T
    before = torch.backends.mkldnn.matmul.fp32_precision
    found = matmul.matmul_float32(x, weight, bias)
    exact = x.double() @ weight.double().T + bias.double()
    scale = x.double().norm(dim=1, keepdim=True) * weight.double().norm(dim=1)
    assert found.dtype == torch.float32
    assert ((found - exact).abs() / scale).max() < 1e-6
    # A float32 matrix beside one of bfloat16 is not rounded.
    fine = noise(70, 500, seed=1, dtype=torch.float32)
    exact = x.double() @ fine.double().T
    assert ((matmul.matmul_float32(x, fine) - exact).abs() / scale).max() < 1e-6
    assert torch.backends.mkldnn.matmul.fp32_precision == before
