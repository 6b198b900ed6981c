"""influence_ekfac: sums of products, factors in the Fisher matrix's basis, and several dampings of one pass."""

import numpy as np
import pytest
import torch
from matrices import assert_close, matrices
from test_ekfac import Killed, fitted, from_python, scores
from test_memory_plan import plan_of

from icprobe.attribution import fisher, fisher_basis, gradient_cache, influence_ekfac, memory_plan
from icprobe.engine.gradients import Factors, layers_of
from icprobe.engine.network import Network


@pytest.mark.parametrize("block", [2, 5, 100])
def test_products_of_columns_are_right_on_and_below_the_diagonal(block, monkeypatch):
    monkeypatch.setattr(fisher, "BLOCK", block)
    x = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.ones(11, 11, dtype=torch.float64)
    fisher.add_products(total, x)
    assert torch.allclose(total.tril(), (x.T @ x + 1).tril(), atol=1e-12)


def test_layers_that_share_their_input_rotate_it_once_and_batches_are_not_mixed_up(inputs, tmp_path):
    ours = inputs("llama")
    (bases, _), network = fitted(ours, tmp_path), Network(ours.model, ours.capabilities)
    layers = layers_of(network)
    rotation = fisher_basis.Rotation(layers, bases, network.device, 0)
    query, key = (next(i for i, one in enumerate(layers) if one.name.endswith(name)) for name in ("q_proj", "k_proj"))
    of_batches = [torch.randn(5, layers[query].d_in) for _ in range(2)]

    def rotated(index, given):
        return [one.a for one in rotation(index, [Factors(a, torch.ones(len(a), layers[index].d_out)) for a in given])]

    first, same = rotated(query, of_batches[:1]), rotated(key, of_batches[:1])
    assert same[0] is first[0]
    q_a = fisher_basis.bases_of(bases, fisher_basis.leaders(layers), key, network.device)[0]
    for index in (query, key):
        for given in (of_batches, of_batches[1:], of_batches[::-1]):
            for a, found in zip(given, rotated(index, given), strict=True):
                assert_close(found, a @ q_a, 1e-5)


@pytest.mark.parametrize("budget", [3, 1e-4])
@pytest.mark.parametrize("hold", ["tasks", "examples"])
def test_dampings_of_one_pass_have_the_bits_of_each_by_itself(hold, budget, inputs, tmp_path, monkeypatch):
    ours, dampings = inputs("gpt2"), {"influence_ekfac": 0.1, "influence_ekfac_0.01": 0.01, "influence_ekfac_1": 1.0}
    found = fitted(ours, tmp_path)
    alone = {
        name: matrices(influence_ekfac, ours, name, fisher=found, damping=damping)[name]
        for name, damping in dampings.items()
    }
    monkeypatch.setattr(memory_plan.Plan, "cheapest", plan_of(hold, False, False))
    counted = Killed(10**6)
    monkeypatch.setattr(gradient_cache, "loss_backward", counted)

    def passes(**settings):
        counted.left = 10**6
        made = matrices(influence_ekfac, ours, "influence_ekfac", fisher=found, memory_budget_gb=budget, **settings)
        return made, 10**6 - counted.left

    together, taken = passes(damping=dampings, methods=[*dampings])
    assert [*together] == [*dampings]
    assert all((together[name] == alone[name]).all() for name in dampings)
    assert not np.allclose(alone["influence_ekfac"], alone["influence_ekfac_1"])
    assert taken == passes()[1]


def test_a_sweep_is_valued_from_python(tiny_model, tokenizer, few, inputs, tmp_path):
    sweep = {"methods": ["influence_ekfac"], "influence_ekfac": {"sweep": [1]}}
    matrix = from_python(tiny_model, tokenizer, few, **sweep)
    expected = scores(inputs("llama"), tmp_path, batch_tokens=1024, damping=1.0)
    assert [*matrix] == ["influence_ekfac", "influence_ekfac_1"]
    assert (matrix["influence_ekfac_1"].drop(columns="id").to_numpy() == expected).all()
