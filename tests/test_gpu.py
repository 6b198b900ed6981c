"""What a CUDA device computes is what a CPU does. Only where there is one: `pytest -m gpu`."""

import numpy as np
import pytest
import torch
from matrices import assert_close, matrices

from icprobe.attribution import difficulty, embedding, icp, influence, influence_mean, one_step
from icprobe.engine import likelihood, matmul, models
from icprobe.engine import network as engine
from icprobe.engine.batching import batches
from icprobe.engine.gradients import Layer, per_example_gradients
from icprobe.engine.random_models import random_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BFLOAT16 = torch.finfo(torch.bfloat16).eps
# Heads of 16: FlexAttention takes none that are smaller.
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
KINDS = {"llama": {"intermediate_size": 96, "num_key_value_heads": 2}, "gpt_neox": {"intermediate_size": 96}}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 16 * BFLOAT16}


@pytest.fixture(scope="session")
def wide(tokenizer):
    """architecture → a random model whose predictions differ from uniform."""

    def make(architecture):
        model = random_model(architecture, SIZES | KINDS[architecture], 1, tokenizer)
        for parameter in model.parameters():
            parameter.data.mul_(4) if parameter.ndim > 1 else parameter.data.add_(0.05)
        return model.requires_grad_(False)

    return make


@pytest.fixture
def both(inputs, wide, monkeypatch):
    """(architecture, dtype) → the same inputs for a CPU, in float32, and for a CUDA device; the weights are alike."""

    def make(architecture, dtype):
        ours, exact = inputs("llama"), inputs("llama")
        for each in (ours, exact):
            each.model = wide(architecture).to(dtype)
            each.capabilities = each.capabilities.__class__(1.0, True, True, {})
        exact.model.float()
        ours.model.to("cuda")
        models.set_precision(tf32=False)
        return exact, ours

    return make


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("architecture", KINDS)
def test_matrices_are_those_of_a_cpu(architecture, dtype, both):
    exact, ours = both(architecture, dtype)
    assert engine.Network(ours.model, ours.capabilities).attention == "flex"
    for module, method, settings in (
        (icp, "icp", {}),
        (embedding, "embedding", {}),
        (influence, "influence", {"methods": ["influence"]}),
        (influence, "influence_log", {"methods": ["influence", "influence_log"]}),
        *([(one_step, "one_step", {})] if dtype == torch.float32 else []),
    ):
        reference = matrices(module, exact, method, **settings)[method]
        found = matrices(module, ours, method, **settings)[method]
        assert_close(found, reference, TOLERANCE[dtype], np.abs(reference).max())
    runs = batches(ours.lengths, 200)
    for module, method in ((influence_mean, "influence_mean"), (difficulty, "perplexity"), (difficulty, "ifd")):
        columns = [
            np.concatenate([block for *_, block in module.attribute(each, method, runs, batch_tokens=200)])
            for each in (exact, ours)
        ]
        assert_close(columns[1], columns[0], TOLERANCE[dtype], np.abs(columns[0]).max())


@pytest.mark.parametrize("limit", [60, 4096])
def test_a_dense_mask_and_small_rows_give_the_same(limit, both, monkeypatch):
    exact, ours = both("llama", torch.float32)
    reference = matrices(icp, exact, "icp")["icp"]
    monkeypatch.setattr(engine.Network, "_way_on_cuda", lambda self: "mask")
    monkeypatch.setitem(icp.ROW_TOKENS, "cuda", limit)
    monkeypatch.setattr(likelihood, "HEAD_LOGITS", 512 * limit)
    assert_close(matrices(icp, ours, "icp", batch_tokens=limit)["icp"], reference, 1e-3, np.abs(reference).max())


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [40, 44])  # one kernel for all sequences, and one for each
def test_gradients_of_many_sequences_are_those_of_each(width, bias):
    layer, lengths = Layer("x", None, width, 24, bias), [3, 1, 17, 300, 2]
    a, delta = noise(sum(lengths), width).bfloat16(), noise(sum(lengths), 24, seed=1).bfloat16()
    ends = np.cumsum(lengths).tolist()
    where = [slice(end - n, end) for n, end in zip(lengths, ends, strict=True)]
    found = torch.cat(per_example_gradients(layer, a.cuda(), delta.cuda(), where), dim=1).double().cpu()
    for row, span in zip(found, where, strict=True):
        exact = (delta[span].double().T @ a[span].double()).flatten()
        exact = torch.cat([exact, delta[span].double().sum(0)]) if bias else exact
        assert (row - exact).norm() <= 2 * BFLOAT16 * exact.norm()


@pytest.mark.parametrize("shape", [(1, 1, 5001), (3, 5, 4096), (64, 300, 20_000)])
def test_products_of_bfloat16_matrices_come_out_as_float32s(shape):
    n, m, k = shape
    models.set_precision(tf32=False)
    x, y, bias = noise(n, k).bfloat16() + 0.5, noise(m, k, seed=1).bfloat16() + 0.5, noise(m, seed=2).bfloat16()
    exact = x.double() @ y.double().T + bias.double()
    for left, right in ((x, y), (x.T.contiguous().T, y.T.contiguous().T)):
        found = matmul.matmul_float32(left.cuda(), right.cuda(), bias.cuda())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double().cpu(), exact, rtol=1e-5, atol=0)
