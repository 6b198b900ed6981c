"""A bias that no loss moves, as that of keys without rotary positions, adds nothing to influence_log but rounding."""

import copy
from dataclasses import replace

import naive
import numpy as np
import pytest
import torch
import transformers
from matrices import assert_influence_log, matrices

from icprobe.attribution import influence
from icprobe.attribution.matrix import Inputs
from icprobe.engine.admission import capabilities_of

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 1024}
# Types with a bias of keys alone, and the layers in which it is without a gradient.
KINDS = {
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, "k_proj"),
    "biogpt": ({"intermediate_size": 48}, "k_proj"),
    "qwen2": ({"intermediate_size": 48, "num_key_value_heads": 2}, None),  # with rotary positions
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, tokenizer):
    sizes = {**SIZES, **KINDS[kind][0], "vocab_size": len(tokenizer)}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in made.parameters():
            parameter.normal_(0, 0.3 / parameter.shape[-1] ** 0.25) if parameter.ndim > 1 else parameter.add_(0.05)
    return made.requires_grad_(False)


@pytest.fixture
def ours(model, few, prompts, tokenizer):
    own = copy.deepcopy(model)
    return Inputs(*few, prompts, own, tokenizer, capabilities_of(own), seed=3)


def test_they_are_found_in_either_dtype(ours, model, kind):
    name, found = KINDS[kind][1], ours.capabilities.still_biases
    assert len(found) == (2 if name else 0)
    assert all(layer.endswith(f".{name}") for layer in found)
    assert capabilities_of(copy.deepcopy(model).to(torch.bfloat16)).still_biases == found


def test_influence_log_is_the_naive_loop_without_them_whatever_lies_beside(ours, model, few, tokenizer):
    still = {f"{name}.bias" for name in ours.capabilities.still_biases}
    of_examples, of_tasks = (
        [
            {
                name: gradient
                for name, gradient in naive.gradient(model, tokenizer, row, whole).items()
                if name not in still
            }
            for row in table.to_dict("records")
        ]
        for table, whole in ((few[0], True), (few[1], False))
    )
    found = {tokens: matrices(influence, ours, "influence_log", tokens)["influence_log"] for tokens in (30, 2000)}
    for matrix in found.values():
        assert_influence_log(matrix, of_examples, of_tasks)
    if still:  # they would decide it
        ours.capabilities = replace(ours.capabilities, still_biases=())
        with_them = matrices(influence, ours, "influence_log")["influence_log"]
        assert np.abs(with_them - found[30]).max() > 10
