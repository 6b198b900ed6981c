"""Attention with windows, sinks and caps is exact in packed rows, whichever way a row goes through it."""

import copy

import naive
import numpy as np
import pytest
import torch
import transformers
from matrices import assert_close, matrices

from icprobe.attribution import icp, influence
from icprobe.attribution.matrix import Inputs
from icprobe.engine.admission import capabilities_of
from icprobe.engine.network import Network
from icprobe.engine.rows import Row

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "sliding_window": 6,
}
MIXED = ["sliding_attention", "full_attention"]
KINDS = {
    "mistral": {"sliding_window": 40},  # wide enough for a task to see some of the example through two layers
    "gemma2": {"layer_types": MIXED, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"layer_types": MIXED, "query_pre_attn_scalar": 8},
    "gpt_oss": {"layer_types": MIXED, "num_local_experts": 3, "num_experts_per_tok": 1},
}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tokenizer):
    config = transformers.AutoConfig.for_model(
        request.param, **{**SIZES, **KINDS[request.param], "vocab_size": len(tokenizer)}
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 or "sinks" in name:
                parameter.normal_(0, (0.6 / parameter.shape[-1]) ** 0.5 if parameter.ndim > 1 else 1)
    return made.requires_grad_(False)


@pytest.fixture
def ours(model, few, prompts, tokenizer):
    train, tasks, lengths = few
    own = copy.deepcopy(model)
    return Inputs(train, tasks, lengths, prompts, own, tokenizer, capabilities_of(own), seed=3)


def test_the_window_matters_in_what_is_compared(model):
    window = model.config.sliding_window
    ids, wide = torch.arange(3, 3 + 4 * window)[None], copy.deepcopy(model)
    for owner in (wide.config, *wide.modules()):
        if getattr(owner, "sliding_window", None):
            owner.sliding_window = 500
    assert (wide(input_ids=ids).logits - model(input_ids=ids).logits)[0, -1].abs().max() > 1e-3
    assert torch.equal(wide(input_ids=ids[:, :window]).logits, model(input_ids=ids[:, :window]).logits)


def test_icp_and_influence_equal_the_naive_loop_in_packed_rows(ours, model, few, tokenizer):
    assert ours.capabilities.packs
    train, tasks = (table.to_dict("records") for table in few[:2])
    slow = np.array([[naive.icp(model, tokenizer, z, t) for t in tasks] for z in train])
    assert np.abs(slow).max() > 0.005
    assert_close(matrices(icp, ours, "icp")["icp"], slow, 1e-4)
    of_examples, of_tasks = (
        [naive.gradient(model, tokenizer, row, whole) for row in rows]
        for rows, whole in ((train, True), (tasks, False))
    )
    slow = np.array([[naive.influence(z, t) for t in of_tasks] for z in of_examples])
    for budget in (3.0, 1e-9):
        fast = matrices(influence, ours, "influence", methods=["influence"], memory_budget_gb=budget)["influence"]
        assert_close(fast, slow, 1e-4, np.abs(slow).max())


# On a CPU FlexAttention has no backward pass.
@pytest.mark.parametrize(("way", "gradients"), [("mask", False), ("mask", True), ("flex", False)])
def test_every_way_through_a_row_gives_the_same(way, gradients, ours):
    if way == "flex" and ours.model.config.model_type == "gpt_oss":
        pytest.skip("FlexAttention has no sinks: such rows are packed with a dense mask")
    network = Network(ours.model, ours.capabilities)
    row = Row()
    root = row.add([5, 6, 7, 8, 9])
    row.add_tree([[9, 10, 11, 12, 13, 14, 15, 16], [9, 10, 11, 12, 20], [21] * 40], root)
    row.add([4] * 9)
    with torch.set_grad_enabled(gradients):
        by_segments = network.hidden(row)
        network.attention = way
        torch.testing.assert_close(network.hidden(row), by_segments, rtol=1e-4, atol=1e-5)
