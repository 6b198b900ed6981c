"""cosine and self_influence: the naive loop's numbers, whatever the memory plan, shard or kill."""

import copy
import re
from dataclasses import replace

import naive
import numpy as np
import pandas as pd
import pytest
import torch
from matrices import ARCHITECTURES, assert_close, matrices
from test_memory_plan import plan_of

from icprobe.attribution import influence, memory_plan, self_influence
from icprobe.attribution.shards import compute
from icprobe.engine import gradients
from icprobe.errors import ScoreError

METHODS = ["influence", "influence_log", "cosine"]


@pytest.fixture(scope="module")
def naive_gradients(tiny_model, tokenizer, few):
    """architecture → the gradients of all examples and of all tasks."""
    made = {}

    def make(architecture):
        if architecture not in made:
            model = tiny_model(architecture)
            made[architecture] = tuple(
                [naive.gradient(model, tokenizer, row, whole) for row in table.to_dict("records")]
                for table, whole in zip(few[:2], (True, False), strict=True)
            )
        return made[architecture]

    return make


def norm(gradients):
    return np.sqrt(naive.influence(gradients, gradients))


@pytest.mark.parametrize("methods", [["cosine"], METHODS])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cosine_equals_the_naive_loop(architecture, methods, inputs, naive_gradients):
    examples, tasks = naive_gradients(architecture)
    slow = np.array([[naive.influence(z, t) / norm(z) / norm(t) for t in tasks] for z in examples])
    found = matrices(influence, inputs(architecture), "influence", methods=methods)
    assert_close(found["cosine"], slow, 1e-5)
    assert set(found) == set(methods)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_self_influence_equals_the_naive_loop(architecture, inputs, naive_gradients):
    slow = -np.array([norm(z) ** 2 for z in naive_gradients(architecture)[0]])
    rows = [np.arange(4), np.arange(4, 7)]
    found = {
        place: value
        for _, of_batch, values in self_influence.attribute(inputs(architecture), "self_influence", rows)
        for place, value in zip(of_batch, values[:, 0], strict=True)
    }
    assert_close(np.array([found[i] for i in range(7)]), slow, 1e-5, np.abs(slow).max())


def test_norms_of_long_sequences_are_summed_from_some_tokens_at_a_time(inputs, monkeypatch):
    def norms():
        found = self_influence.attribute(inputs("gpt2"), "self_influence", [np.arange(7)])
        return next(found)[2]

    whole = norms()
    shapes = []
    multiply = gradients.matmul_float32
    monkeypatch.setattr(gradients, "NORM_TOKENS", 3)
    monkeypatch.setattr(gradients, "matmul_float32", lambda a, b: shapes.append(len(a)) or multiply(a, b))
    assert_close(norms(), whole, 1e-5, np.abs(whole).max())
    assert max(shapes) == 3
    assert min(shapes) < 3


def test_a_mean_loss_leaves_the_cosine_and_divides_self_influence_twice(inputs, few):
    ours, tokens = inputs("llama"), (few[2]["n_query"] + few[2]["n_target"] - 1).to_numpy()
    plain, mean = (
        matrices(influence, ours, "influence", methods=["cosine"], reduction=reduction)["cosine"]
        for reduction in ("sum", "mean")
    )
    assert_close(plain, mean, 1e-6)
    rows = [np.arange(7)]
    (whole,), (divided,) = (
        [values[:, 0] for *_, values in self_influence.attribute(ours, "self_influence", rows, reduction=reduction)]
        for reduction in ("sum", "mean")
    )
    assert_close(divided, whole / tokens**2, 1e-5, np.abs(divided).max())


@pytest.mark.parametrize("hold", ["tasks", "examples"])
@pytest.mark.parametrize("together", [True, False])
def test_the_memory_plan_changes_no_bit_of_cosine(hold, together, inputs, monkeypatch):
    reference = matrices(influence, inputs("gpt2"), "influence", methods=METHODS)
    monkeypatch.setattr(memory_plan.Plan, "cheapest", plan_of(hold, False, together))
    other = matrices(influence, inputs("gpt2"), "influence", methods=METHODS)
    assert all((other[method] == reference[method]).all() for method in METHODS)


def test_cosine_goes_on_where_it_was_killed(inputs):
    class Killed(dict):
        def __setitem__(self, name, piece):
            super().__setitem__(name, piece)
            if len(self) == 6:
                raise KeyboardInterrupt

    ours, pieces = inputs("llama"), Killed()
    reference = matrices(influence, ours, "influence", methods=["cosine"])
    with pytest.raises(KeyboardInterrupt):
        matrices(influence, replace(ours, pieces=pieces), "influence", methods=["cosine"], memory_budget_gb=1e-4)
    resumed = matrices(influence, replace(ours, pieces=dict(pieces)), "influence", methods=["cosine"])
    assert (resumed["cosine"] == reference["cosine"]).all()


@pytest.mark.parametrize("method", ["cosine", "self_influence"])
def test_shards_and_batches_change_nothing_but_rounding(method, inputs, tmp_path):
    ours = inputs("llama")
    module = influence if method == "cosine" else self_influence
    settings = {"batch_tokens": 200}

    def table(shards, batch_tokens, name):
        parts = [
            compute(
                module.__name__,
                [method],
                ours,
                settings,
                shard,
                shards,
                batch_tokens,
                tmp_path / f"{name}-{shard}",
                method == "cosine",
            )[method]
            for shard in range(1, shards + 1)
        ]
        return pd.concat(parts).set_index("id").sort_index().to_numpy()

    whole = table(1, 200, "one")
    assert_close(table(2, 100, "two"), whole, 1e-5, np.abs(whole).max())


@pytest.mark.parametrize("hold", ["tasks", "examples"])
def test_a_gradient_of_zero_has_no_direction_and_its_rows_are_named(hold, inputs, few, tmp_path, monkeypatch):
    ours = inputs("llama")
    ours.model = copy.deepcopy(ours.model)
    with torch.no_grad():
        ours.model.lm_head.weight.zero_()  # every token is as likely whatever the blocks say
    monkeypatch.setattr(memory_plan.Plan, "cheapest", plan_of(hold, False))
    ids, noun = set(few[1 if hold == "tasks" else 0]["id"]), hold.removesuffix("s")
    with pytest.raises(
        ScoreError, match=rf"cosine: \d {noun}s? with a gradient of zero, .* leave (it|them) out"
    ) as error:
        compute(influence.__name__, ["cosine"], ours, {"batch_tokens": 200}, 1, 1, 200, tmp_path, True)
    named = re.search("no direction: (.*);", str(error.value))[1].split(", ")
    assert named
    assert ids.issuperset(named)


def test_both_are_valued_from_python(tiny_model, tokenizer, few):
    import icprobe

    train, tasks, _ = few
    model = copy.deepcopy(tiny_model("llama"))
    scores = icprobe.value(
        train, tasks, model=model, tokenizer=tokenizer, methods=["influence", "cosine", "self_influence"]
    )
    assert scores["score_cosine"].between(-1, 1).all()
    assert (scores["score_self_influence"] < 0).all()
