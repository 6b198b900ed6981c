"""Every method's matrix against a naive loop over pairs, and against itself under another cut of the work."""

import copy

import naive
import numpy as np
import pytest

from icprobe.attribution import baselines, icp, influence, one_step
from icprobe.attribution.matrix import Inputs, batches, shard_of

ARCHITECTURES = ["llama", "gpt_neox", "gpt2"]


def matrices(module, inputs, method, batch_tokens=200, order=None, **settings):
    """{method: [N, M]} with the rows in the order of inputs.train."""
    runs = batches(inputs.lengths, batch_tokens)
    out = {}
    for name, rows, block in module.attribute(inputs, method, runs, batch_tokens=batch_tokens, **settings):
        out.setdefault(name, np.full((len(inputs.train), len(inputs.tasks)), np.nan, np.float32))[rows] = block
    return out


@pytest.fixture
def inputs(few, prompts, tokenizer, tiny_model):
    def make(architecture, dtype=None):
        train, tasks, lengths = few
        model = copy.deepcopy(tiny_model(architecture))
        return Inputs(train, tasks, lengths, prompts, model.to(dtype) if dtype else model, tokenizer, seed=3)

    return make


@pytest.fixture(scope="module")
def naive_gradients(tiny_model, tokenizer, few):
    made = {}

    def make(architecture):
        if architecture not in made:
            model, (train, tasks, _) = tiny_model(architecture), few
            made[architecture] = tuple(
                [naive.gradient(model, tokenizer, row, whole) for row in table.to_dict("records")]
                for table, whole in ((train, True), (tasks, False))
            )
        return made[architecture]

    return make


def pairs(few, function):
    train, tasks, _ = few
    return np.array([[function(z, t) for t in tasks.to_dict("records")] for z in train.to_dict("records")])


def assert_close(fast, slow, tolerance, relative_to=1.0):
    difference = np.abs(fast - slow).max() / relative_to
    assert difference <= tolerance, f"largest difference {difference:.2e}, allowed {tolerance:.0e}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_icp_equals_the_naive_loop(architecture, inputs, few, tiny_model, tokenizer):
    slow = pairs(few, lambda z, t: naive.icp(tiny_model(architecture), tokenizer, z, t))
    fast = matrices(icp, inputs(architecture), "icp")["icp"]
    assert np.abs(slow).max() > 0.1, "a test on vanishing effects proves nothing"
    assert_close(fast, slow, 1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_influence_equals_the_naive_loop(architecture, inputs, naive_gradients):
    examples, tasks = naive_gradients(architecture)
    slow = np.array([[naive.influence(z, t) for t in tasks] for z in examples])
    fast = matrices(influence, inputs(architecture), "influence", methods=["influence"])["influence"]
    assert_close(fast, slow, 1e-4, np.abs(slow).max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_influence_log_equals_the_naive_loop_where_no_term_is_near_its_jump(architecture, inputs, naive_gradients):
    examples, tasks = naive_gradients(architecture)
    fast = matrices(influence, inputs(architecture), "influence_log")["influence_log"]
    compared = 0
    for i, z in enumerate(examples):
        for j, t in enumerate(tasks):
            terms = naive.signed_log_terms(z, t)
            if all(abs(d) >= 1e-6 * total for d, total in terms):
                compared += 1
                slow = naive.influence_log(z, t)
                # Each d_p may be off by 1e-4 of its absolute terms, which its logarithm magnifies.
                allowed = sum(1e-4 * total / abs(d) for d, total in terms) + 1e-4 * abs(slow)
                assert abs(fast[i, j] - slow) <= allowed, f"pair {i},{j}: {fast[i, j]} against {slow}"
    assert compared >= 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_step_equals_the_naive_loop(architecture, inputs, few, tiny_model, tokenizer):
    slow = pairs(few, lambda z, t: naive.one_step(tiny_model(architecture), tokenizer, z, t, 1e-3))
    fast = matrices(one_step, inputs(architecture), "one_step", learning_rate=1e-3)["one_step"]
    assert np.abs(slow).max() > 1e-3
    assert_close(fast, slow, 1e-4)


@pytest.mark.parametrize("tokens", [1, 10**6])
def test_one_step_is_the_same_by_low_rank_terms_and_by_materialised_weights(
    tokens, inputs, few, tiny_model, tokenizer, monkeypatch
):
    original = one_step.updated
    monkeypatch.setattr(
        one_step, "updated", lambda layers, factors, rate, _tokens: original(layers, factors, rate, tokens)
    )
    for architecture in ARCHITECTURES:
        slow = pairs(few, lambda z, t, a=architecture: naive.one_step(tiny_model(a), tokenizer, z, t, 1e-3))
        assert_close(matrices(one_step, inputs(architecture), "one_step", learning_rate=1e-3)["one_step"], slow, 1e-4)


def test_one_step_leaves_the_weights_as_they_were(inputs):
    ours = inputs("gpt2")
    before = copy.deepcopy(ours.model.state_dict())
    matrices(one_step, ours, "one_step", learning_rate=1.0)
    assert all((value == before[name]).all() for name, value in ours.model.state_dict().items())


@pytest.mark.parametrize(("module", "method"), [(icp, "icp"), (influence, "influence"), (one_step, "one_step")])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_matrices_do_not_depend_on_batch_size_order_or_padding(module, method, architecture, inputs):
    reference = matrices(module, inputs(architecture), method)[method]
    scale = np.abs(reference).max()
    assert_close(matrices(module, inputs(architecture), method, batch_tokens=2000)[method], reference, 2e-5, scale)
    assert_close(matrices(module, inputs(architecture), method, batch_tokens=1)[method], reference, 2e-5, scale)
    shuffled = inputs(architecture)
    order = np.random.default_rng(0).permutation(len(shuffled.train))
    shuffled.train = shuffled.train.iloc[order].reset_index(drop=True)
    shuffled.lengths = shuffled.lengths.iloc[order].reset_index(drop=True)
    assert_close(matrices(module, shuffled, method)[method], reference[order], 2e-5, scale)


@pytest.mark.parametrize(("module", "method"), [(icp, "icp"), (influence, "influence"), (one_step, "one_step")])
def test_models_that_cannot_be_packed_give_the_same_matrices_by_padding(module, method, inputs, monkeypatch):
    from icprobe.packing import Network

    reference = matrices(module, inputs("llama"), method)[method]
    monkeypatch.setattr(Network, "_try_packing", lambda self: False)
    assert_close(matrices(module, inputs("llama"), method)[method], reference, 2e-5, np.abs(reference).max())


def test_influence_does_not_depend_on_the_memory_budget(inputs):
    reference = matrices(influence, inputs("llama"), "influence")
    tight = matrices(influence, inputs("llama"), "influence", memory_budget_gb=1e-6)
    for method in ("influence", "influence_log"):
        assert_close(tight[method], reference[method], 1e-5, np.abs(reference[method]).max())


@pytest.mark.parametrize(("module", "method"), [(icp, "icp"), (influence, "influence"), (one_step, "one_step")])
@pytest.mark.parametrize("shards", [2, 3])
def test_a_matrix_is_bit_equal_for_any_number_of_shards(module, method, shards, inputs):
    ours = inputs("llama")
    runs = batches(ours.lengths, 200)
    whole = matrices(module, inputs("llama"), method)[method]
    seen = []
    for number in range(1, shards + 1):
        mine = [runs[i] for i in shard_of(runs, ours.lengths, number, shards)]
        for name, rows, block in module.attribute(inputs("llama"), method, mine, batch_tokens=200):
            if name == method:
                seen += rows.tolist()
                assert (block == whole[rows]).all()
    assert sorted(seen) == list(range(len(ours.train)))


@pytest.mark.parametrize(("module", "method"), [(icp, "icp"), (influence, "influence")])
def test_bfloat16_agrees_with_float32_in_rank(module, method, inputs):
    import torch
    from scipy.stats import spearmanr

    exact = matrices(module, inputs("llama"), method)[method]
    rough = matrices(module, inputs("llama", torch.bfloat16), method)[method]
    assert spearmanr(exact.ravel(), rough.ravel()).statistic > 0.9


def test_a_prefix_that_merges_with_what_follows_still_gives_the_joint_tokens(inputs, few, tiny_model, tokenizer):
    # Without the blank line the last word of the prefix and the first of the suffix are tokenised together.
    ours = inputs("llama")
    ours.prompts = copy.copy(ours.prompts)
    ours.prompts.separator = ""
    probe = icp.Probe(ours)
    train, tasks, _ = few
    for example in train.to_dict("records"):
        example["output"] = example["output"] + " un"
        prefix, suffixes = probe.one_shot(example)
        for task, suffix in zip(tasks.to_dict("records"), suffixes, strict=True):
            text = ours.prompts.one_shot(example, task) + ours.prompts.target(task)
            assert list(prefix + suffix.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_random_depends_on_the_seed_alone_and_length_is_the_response_length(inputs):
    ours = inputs("llama")
    runs = batches(ours.lengths, 200)
    first = np.concatenate([block for _, _, block in baselines.attribute(ours, "random", runs)])
    ours.seed = 4
    second = np.concatenate([block for _, _, block in baselines.attribute(ours, "random", runs)])
    assert not np.array_equal(first, second)
    for _, rows, block in baselines.attribute(ours, "length", runs):
        assert (block[:, 0] == ours.lengths["n_target"].to_numpy()[rows]).all()
