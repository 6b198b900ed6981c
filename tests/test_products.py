"""Products through oneDNN against PyTorch's own, in value and in gradient."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from icprobe.engine.matmul import matmul, onednn_forwards, use_forwards


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7)])
@pytest.mark.parametrize("biased", [True, False])
def test_product_is_linear(dtype, shape, biased):
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(4, 7, dtype=dtype)
    bias = torch.randn(4, dtype=dtype) if biased else None
    torch.testing.assert_close(matmul(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


def test_product_of_views():
    a, b, c = torch.randn(30, 8), torch.randn(30, 6), torch.randn(9, 40)
    out = torch.empty(8, 6)
    assert matmul(a[3:20].T, b[3:20].T, out=out) is out  # transposed rows of a longer matrix
    torch.testing.assert_close(out, a[3:20].T @ b[3:20])
    torch.testing.assert_close(matmul(c[:, 5:13], a), c[:, 5:13] @ a.T)  # columns: neither matrix nor transpose


@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 6), lambda: nn.Linear(8, 6, bias=False), lambda: Conv1D(6, 8)])
@pytest.mark.parametrize("packed", [True, False])
def test_layers_compute_as_before(make, packed):
    layer = make().requires_grad_(False)
    nn.init.normal_(layer.weight)
    x, delta = torch.randn(1, 9, 8, requires_grad=True), torch.randn(1, 9, 6)
    before = layer(x)
    (gradient,) = torch.autograd.grad(before, x, delta)
    with use_forwards(onednn_forwards([layer], packed)):
        torch.testing.assert_close(layer(x), before)
        torch.testing.assert_close(torch.autograd.grad(layer(x), x, delta)[0], gradient)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), before)


def test_a_changed_weight_counts_unless_it_is_packed():
    layer, x = nn.Linear(8, 6).requires_grad_(False), torch.randn(3, 8)
    with use_forwards(onednn_forwards([layer])):
        before = layer(x)
        layer.weight = nn.Parameter(2 * layer.weight, requires_grad=False)
        with torch.no_grad():
            torch.testing.assert_close(layer(x) - layer.bias, 2 * (before - layer.bias))


def test_a_layer_with_a_forward_pass_of_its_own_keeps_it():
    layer, other, x = nn.Linear(8, 6).requires_grad_(False), nn.Linear(8, 6), torch.randn(3, 8)
    layer.forward = own = lambda x: other(x) + 1
    with use_forwards(onednn_forwards([layer, other.requires_grad_(False)])):
        torch.testing.assert_close(layer(x), other(x) + 1)
    assert layer.forward is own
    assert "forward" not in vars(other)
