"""Whatever is held, in tiles or in step, influence is the same to the bit; no pair of batches is computed twice."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matrices import ARCHITECTURES, assert_close, matrices

from icprobe.attribution import gradient_cache, influence, memory_plan
from icprobe.attribution.matrix import encode_tasks
from icprobe.engine import gradients, stepping
from icprobe.engine.admission import capabilities_of
from icprobe.engine.batching import packs
from icprobe.engine.gradients import Layer
from icprobe.engine.network import Network
from icprobe.texts.prompts import Encoded


def plan_of(hold, dense, together=False):
    """In place of `Plan.cheapest`: a tile for each held batch, and all others in step or one after another."""

    def plan(examples, tasks, *_):
        held, streamed = (tasks, examples) if hold == "tasks" else (examples, tasks)
        tiles, alone = ([[i] for i in range(len(side.batches))] for side in (held, streamed))
        return memory_plan.Plan(hold, dense, tiles, [list(range(len(alone)))] if together else alone, 0, 0, True)

    return plan


@pytest.mark.parametrize("hold", ["tasks", "examples"])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_influence_by_gram_matrices_is_that_by_gradients(architecture, hold, dense, inputs, monkeypatch):
    monkeypatch.setattr(memory_plan.Plan, "cheapest", plan_of(hold, dense))
    reference = matrices(influence, inputs(architecture), "influence")["influence"]
    monkeypatch.setattr(gradient_cache.GradientCache, "_by_grams", lambda held, *_: held.all_tasks is not None)
    monkeypatch.setattr(gradient_cache.GradientCache, "_gradients", None)
    by_grams = matrices(influence, inputs(architecture), "influence", methods=["influence"])["influence"]
    assert_close(by_grams, reference, 1e-5, np.abs(reference).max())


def test_gram_matrices_pay_for_short_sequences_alone():
    layer = gradients.Layer("mlp", None, 576, 1536, False)
    held = SimpleNamespace(all_tasks=100)

    def pays(length):
        batch = [slice(i * length, (i + 1) * length) for i in range(1000 // length)]
        return gradient_cache.GradientCache._by_grams(held, layer, batch, batch, held_first=False)

    assert pays(20)
    assert pays(30)
    assert not pays(60)


@pytest.mark.parametrize("budget_gb", [1e-9, 1e-4, 2e-4])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_memory_budget_changes_no_bit_of_influence(architecture, budget_gb, inputs, monkeypatch):
    plans = []
    original = memory_plan.Plan.cheapest
    monkeypatch.setattr(memory_plan.Plan, "cheapest", lambda *a: plans.append(original(*a)) or plans[-1])
    reference = matrices(influence, inputs(architecture), "influence", memory_budget_gb=10)
    tight = matrices(influence, inputs(architecture), "influence", memory_budget_gb=budget_gb)
    assert len(plans[0].tiles) == 1
    assert plans[0] != plans[1], "the budget was to change the plan"
    for method in ("influence", "influence_log"):
        assert (tight[method] == reference[method]).all()


@pytest.mark.parametrize(("before", "after"), [(10, 1e-4), (1e-4, 10)])
def test_a_killed_pass_goes_on_within_another_budget(before, after, inputs):
    class Killed(dict):
        def __setitem__(self, name, piece):
            super().__setitem__(name, piece)
            if len(self) == 5:
                raise KeyboardInterrupt

    ours, pieces = inputs("llama"), Killed()
    reference = matrices(influence, ours, "influence")
    with pytest.raises(KeyboardInterrupt):
        matrices(influence, replace(ours, pieces=pieces), "influence", memory_budget_gb=before)
    left = dict(pieces)
    resumed = matrices(influence, replace(ours, pieces=left), "influence", memory_budget_gb=after)
    assert all((resumed[method] == reference[method]).all() for method in reference)
    assert not left, "a piece that the other budget does not know"


@pytest.mark.parametrize("hold", ["tasks", "examples"])
@pytest.mark.parametrize(("dense", "together"), [(True, False), (False, False), (False, True), (True, True)])
@pytest.mark.parametrize("methods", [["influence"], ["influence", "influence_log"]])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_plan_gives_the_same_bits(architecture, hold, dense, together, methods, inputs, monkeypatch):
    reference = matrices(influence, inputs(architecture), "influence", methods=methods)
    monkeypatch.setattr(memory_plan.Plan, "cheapest", plan_of(hold, dense, together))
    other = matrices(influence, inputs(architecture), "influence", methods=methods)
    assert all((other[method] == reference[method]).all() for method in reference)


@pytest.mark.parametrize("hold", ["tasks", "examples"])
@pytest.mark.parametrize("together", [True, False])
def test_an_interrupted_influence_computes_no_pair_of_batches_twice(hold, together, inputs, monkeypatch):
    ours = inputs("llama")
    reference = matrices(influence, ours, "influence")
    monkeypatch.setattr(memory_plan.Plan, "cheapest", plan_of(hold, False, together))
    monkeypatch.setattr(influence, "GROUP_SECONDS", 1e-9)  # a group for each batch
    computed, stop_after, original = [], [2], gradient_cache.GradientCache.stream

    def stream(held, batches, *arguments):
        if stop_after and len(computed) == stop_after[0]:
            raise KeyboardInterrupt
        computed.append((held.where, batches))
        return original(held, batches, *arguments)

    monkeypatch.setattr(gradient_cache.GradientCache, "stream", stream)
    with pytest.raises(KeyboardInterrupt):
        matrices(influence, ours, "influence")
    stop_after.clear()
    resumed = matrices(influence, ours, "influence")
    assert all((resumed[method] == reference[method]).all() for method in reference)
    assert len(computed) == len({repr(pair) for pair in computed})
    assert not ours.pieces


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_in_step_show_their_hooks_what_a_backward_pass_shows(architecture, inputs):
    ours = inputs(architecture)
    network = Network(ours.model, ours.capabilities)
    layers = gradients.layers_of(network)
    batches = [[Encoded((5, 6, 7, 8, 9), 2)], [Encoded((9, 8, 7), 1), Encoded((4, 4, 5, 6), 3)]]
    alone = [{}, {}]
    for seen, batch in zip(alone, batches, strict=True):
        with gradients.collect_gradients(layers, lambda index, *row, seen=seen: seen.update({index: row})):
            gradients.loss_backward(network, batch)
    together = {}
    stepping.backward_in_step(network, layers, batches, lambda index, rows: together.update({index: rows}))
    assert list(together) == list(alone[0])  # the order of layers, too
    for index, rows in together.items():
        for seen, row in zip(alone, rows, strict=True):
            (factors,) = seen[index]
            assert torch.equal(factors.a, row.a)
            assert torch.equal(factors.delta, row.delta)


def test_a_token_keeps_its_blocks_inputs_and_one_blocks_factors(inputs):
    ours = inputs("llama")
    network = Network(ours.model, ours.capabilities)
    layers = gradients.layers_of(network)
    sharing = [layer.name.rsplit(".", 1)[1] for layer in layers if layer.shares_input]
    assert sharing == ["k_proj", "v_proj", "up_proj"] * 2
    factors = (48 + 48 + 24 + 24) + (48 + 48) + (48 + 80 + 80) + (80 + 48)  # each input once, and all outputs
    assert stepping.activations_per_token(network, layers) == 48 * 3 + factors


def test_a_model_with_something_between_its_blocks_goes_one_row_at_a_time(inputs):
    ours = inputs("llama")
    ours.model.model.layers[1].register_forward_pre_hook(lambda _block, args: (args[0] * 2, *args[1:]))
    ours.capabilities = capabilities_of(ours.model)
    network = Network(ours.model, ours.capabilities)
    assert stepping.activations_per_token(network, gradients.layers_of(network)) is None
    reference = matrices(influence, ours, "influence", memory_budget_gb=10)
    tight = matrices(influence, ours, "influence", memory_budget_gb=2e-4)
    assert (tight["influence"] == reference["influence"]).all()


def test_a_plan_passes_over_the_examples_no_oftener_than_the_budget_forces():
    def side(batches, sequences, tokens):
        return memory_plan.SequenceBatches([[Encoded(tuple(range(tokens)), 1)] * sequences for _ in range(batches)])

    layers = [Layer("x", None, 600, 1500, False)] * 100
    examples, tasks = side(1000, 10, 100), side(10, 10, 100)
    dense_bytes = 100 * 90_000_000 * 4
    rich = memory_plan.Plan.cheapest(examples, tasks, layers, 2 * dense_bytes, 4)
    assert (rich.hold, rich.dense, len(rich.tiles)) == ("tasks", True, 1)
    # Not the gradients, but their factors fit: still one pass.
    poor = memory_plan.Plan.cheapest(examples, tasks, layers, 0.3 * dense_bytes, 4)
    assert (poor.hold, poor.dense, len(poor.tiles)) == ("tasks", False, 1)
    assert poor.held_bytes <= 0.3 * dense_bytes
    # In step, dozens of batches share the tasks' gradients, for one forward pass more: cheaper than to form them anew.
    steps = memory_plan.Plan.cheapest(examples, tasks, layers, 12e9, 4, per_token=12_000)
    assert (steps.hold, steps.dense, len(steps.tiles)) == ("tasks", False, 1)
    assert 20 < len(steps.groups) < 50
    assert f"1000 batches in {len(steps.groups)} groups" in steps.sentence(12.0)
    assert steps.cost < memory_plan.Plan.cheapest(examples, tasks, layers, 12e9, 4).cost / 2
    # Nothing fits: the least memory, whatever it costs, and the log says so.
    none = memory_plan.Plan.cheapest(examples, tasks, layers, 1.0, 4)
    assert not none.fits
    assert "lower attribution.batch_tokens" in none.sentence(1e-9)


def test_tasks_of_a_padded_model_count_as_long_as_the_longest_beside_them(inputs):
    lengths = [300] + [10] * 70
    assert [(p.stop - p.start) * max(lengths[p]) <= 1024 for p in packs(lengths, 1024, padded=True)] == [True, True]
    assert [n for p in packs(lengths, 1024, padded=True) for n in lengths[p]] == lengths
    assert packs([], 10, padded=True) == []
    assert packs([20, 3], 10, padded=True) == [slice(0, 1), slice(1, 2)], "one alone may be longer"
    given = inputs("llama")
    wanted = matrices(influence, given, "influence")["influence"]
    padded = replace(given, capabilities=replace(given.capabilities, packs=False))
    seen = []

    def hook(_, args):
        seen.append(args[0].shape[0] * args[0].shape[1])

    handle = padded.model.model.layers[0].register_forward_pre_hook(hook)
    longest = int(given.lengths[["n_query", "n_target"]].sum(axis=1).max())
    found = matrices(influence, padded, "influence", batch_tokens=longest)["influence"]
    handle.remove()
    tasks = max(len(task.ids) for task in encode_tasks(given))
    assert max(seen) <= max(longest, tasks)
    assert_close(found, wanted, 1e-5, np.abs(wanted).max())
    side = memory_plan.SequenceBatches([[Encoded((0,) * 9, 1), Encoded((0,) * 2, 1)]], padded=True)
    assert (side.tokens(0), side.computed(0)) == (11, 18)
