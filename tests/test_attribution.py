"""Every method's matrix against a naive loop over pairs, and against itself under another cut of the work."""

import copy
from dataclasses import replace

import naive
import numpy as np
import pandas as pd
import pytest
import torch
from matrices import ARCHITECTURES, assert_close, assert_influence_log, matrices

from icprobe.attribution import baselines, icp, icp_budget, influence, influence_mean, one_step
from icprobe.attribution.gathering import gather
from icprobe.attribution.shards import Saved, compute
from icprobe.engine import likelihood
from icprobe.engine import network as engine
from icprobe.engine.admission import capabilities_of
from icprobe.engine.batching import batches, shard_of
from icprobe.engine.execution import visible_blocks
from icprobe.engine.rows import PrefixCache, Row
from icprobe.errors import DataError, ScoreError
from icprobe.tables import parquet


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_icp_equals_the_naive_loop(architecture, inputs, few, tiny_model, tokenizer):
    slow = pairs(few, lambda z, t: naive.icp(tiny_model(architecture), tokenizer, z, t))
    fast = matrices(icp, inputs(architecture), "icp")["icp"]
    assert np.abs(slow).max() > 0.1, "a test on vanishing effects proves nothing"
    assert_close(fast, slow, 1e-4)


@pytest.mark.parametrize(("module", "method"), [(icp, "icp"), (influence, "influence"), (one_step, "one_step")])
def test_another_number_of_threads_changes_last_bits_alone(module, method, inputs):
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(matrices(module, inputs("llama"), method)[method])
    finally:
        torch.set_num_threads(before)
    # one_step's effects are differences of likelihoods, at η = 1e-4.
    assert_close(*found, 1e-5, np.abs(found[0]).max() if method != "one_step" else 1)


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
    assert_influence_log(fast, examples, tasks)


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
def test_models_that_cannot_be_packed_give_the_same_matrices_by_padding(module, method, inputs):
    reference = matrices(module, inputs("llama"), method)[method]
    ours = inputs("llama")
    ours.capabilities = replace(ours.capabilities, packs=False, in_step=False)
    assert_close(matrices(module, ours, method)[method], reference, 2e-5, np.abs(reference).max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_influence_mean_equals_the_mean_of_the_matrix(architecture, inputs):
    matrix = matrices(influence, inputs(architecture), "influence", methods=["influence"])["influence"]
    runs = batches(inputs(architecture).lengths, 200)
    mean = np.empty(len(matrix))
    for _, rows, block in influence_mean.attribute(inputs(architecture), "influence_mean", runs, batch_tokens=200):
        mean[rows] = block[:, 0]
    slow = matrix.mean(axis=1, dtype=np.float64)
    assert_close(mean, slow, 1e-4, np.abs(slow).max())


@pytest.mark.parametrize("way", ["flex", "mask"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as it is on a CPU
@torch.no_grad()
def test_one_attention_call_for_a_whole_row_gives_what_its_segments_give(way, architecture, inputs):
    ours = inputs(architecture)
    network = engine.Network(ours.model, ours.capabilities)
    row = Row(network.cache_prefix([3, 4, 5]))
    root = row.add([5, 6, 7, 8])
    row.add_tree([[9, 10, 11, 12, 13, 14], [9, 10, 11, 12, 20], [21] * 150], root)
    row.add([4, 4])
    by_segments = network.hidden(row)
    network.attention = way
    torch.testing.assert_close(network.hidden(row), by_segments, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_a_rounding_of_bfloat16_is_no_reason_to_pad(seed):
    """Where products of a processor round by their shapes, single elements of large states lie far apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_attention_heads=4, num_key_value_heads=2, **sizes))
    for parameter in model.parameters():
        parameter.data.mul_(4)
    assert capabilities_of(model.to(torch.bfloat16).eval().requires_grad_(False)).packs


@pytest.mark.parametrize("window", [None, 1, 3, 129, 200])
@pytest.mark.parametrize("offset", [0, 5, 130])
def test_the_mask_of_a_row_is_its_tree(offset, window):
    base = PrefixCache((1,) * offset, [], []) if offset else None
    row = Row(base)
    root = row.add([5] * 140)
    row.add_tree([[9, 10, 11, 12, 13, 14], [9, 10, 11, 12, 20], [21] * 300], root)
    row.add([4, 4])
    expected = torch.zeros(len(row.ids), offset + len(row.ids), dtype=torch.bool)
    expected[:, :offset] = True
    for s in row.segments:
        for token in range(s.start, s.end):
            expected[token, offset + s.start : offset + token + 1] = True
            for above in (row.segments[a] for a in s.ancestors):
                expected[token, offset + above.start : offset + above.end] = True
    if window is not None:
        places = torch.tensor([*range(offset), *row.positions()])
        expected &= places[offset:, None] - places < window
    assert torch.equal(row.mask(window=window), expected)
    blocks = visible_blocks(row, torch.device("cpu"), window)
    some = torch.zeros(len(row.ids), offset + len(row.ids), dtype=torch.bool)
    for query in range(len(row.ids)):
        seen = [blocks.kv_indices, blocks.kv_num_blocks], [blocks.full_kv_indices, blocks.full_kv_num_blocks]
        for full, (indices, counts) in enumerate(seen):
            for block in indices[0, 0, query // 128, : counts[0, 0, query // 128]].tolist():
                keys = torch.arange(block * 128, min((block + 1) * 128, some.shape[1]))
                where = (
                    torch.ones(len(keys), dtype=torch.bool)
                    if full
                    else blocks.mask_mod(0, 0, torch.tensor(query), keys)
                )
                some[query, keys] = where
    assert torch.equal(some, expected), "what FlexAttention computes: whole blocks, and parts of others"


@pytest.mark.parametrize("kind", ["packed", "one call", "padded"])
@torch.no_grad()
def test_a_prefix_whose_suffixes_fill_several_rows_gives_what_one_row_gives(kind, inputs, monkeypatch):
    ours = inputs("llama")
    ours.capabilities = replace(ours.capabilities, packs=kind != "padded")
    network = engine.Network(ours.model, ours.capabilities)
    if kind == "one call":
        network.attention = "mask"
    suffixes = [likelihood.Suffix((7, 8, *range(20, 25 + n)), 2) for n in range(9)]
    base = network.cache_prefix([9, 9, 9])
    behind = (11, 12, 13) if base else (9, 9, 9, 11, 12, 13)
    whole = likelihood.log_likelihoods(network, behind, suffixes, base)
    rows, original = [], likelihood.packed_log_likelihoods

    def counted(network, groups, base=None):
        rows.append(likelihood.size(network, *groups[0]))
        return original(network, groups, base)

    monkeypatch.setattr(likelihood, "packed_log_likelihoods", counted)
    monkeypatch.setattr(likelihood, "HEAD_LOGITS", 3 * 512)
    found = likelihood.log_likelihoods(network, behind, suffixes, base, limit=30)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    assert len(rows) > 2
    assert max(rows) <= (30 if kind != "one call" else 8 * len(behind) + len(behind))


def test_a_segment_behind_one_that_has_been_left_is_refused():
    row = Row()
    first = row.add([5, 6])
    row.add([7], row.add([8], first))
    with pytest.raises(ValueError, match="preorder"):
        row.add([9], row.add([4]) - 2)


def test_what_suffixes_begin_with_alike_stands_in_the_row_once():
    sequences = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7], [9, 8], [1, 2, 3, 4], [1, 2, 3, 4, 6, 9, 9]]
    row = Row()
    root = row.add([5, 5])
    places = row.add_tree(sequences, root)
    assert [[row.ids[i] for i in place] for place in places] == sequences
    assert len(row.ids) < 2 + sum(map(len, sequences))
    positions = row.positions()
    assert all([positions[i] for i in place] == list(range(2, 2 + len(place))) for place in places)


def test_icp_does_not_depend_on_what_is_shared(inputs, monkeypatch):
    reference = matrices(icp, inputs("llama"), "icp")["icp"]
    monkeypatch.setattr("icprobe.engine.rows.WORTH_SHARING", 10**9)
    monkeypatch.setattr(engine.Network, "cache_prefix", lambda self, ids: None)
    assert_close(matrices(icp, inputs("llama"), "icp")["icp"], reference, 2e-5, np.abs(reference).max())


def test_icp_budget_with_nothing_to_save_gives_the_full_score(inputs):
    ours = inputs("llama")
    full = (matrices(icp, ours, "icp")["icp"] > 0).mean(axis=1)
    runs = batches(ours.lengths, 200)
    for _, rows, block in icp_budget.attribute(ours, "icp_budget", runs, 200, share=0.5, round_tasks=3):
        assert np.allclose(block[:, 0], full[rows])
        assert (block[:, 1] == 3).all()


def test_icp_budget_that_is_killed_at_its_end_goes_on(inputs, monkeypatch, tmp_path):
    """What of its matrix is saved it does not yield again by itself: it compares all examples with one another."""
    ours, kept, keep = inputs("llama"), [], Saved.__setitem__

    def killed(saved, key, piece):
        keep(saved, key, piece)
        kept.append(key)
        if [one.count("/") for one in kept].count(1) == 2:  # two batches of the matrix
            saved.write()
            raise KeyboardInterrupt

    def computed(folder):
        settings = {"batch_tokens": 200, "round_tasks": 1, "share": 0.2}
        arguments = ("icprobe.attribution.icp_budget", ["icp_budget"], ours, settings)
        return compute(*arguments, 1, 1, 200, tmp_path / folder, per_task=False)["icp_budget"]

    whole = computed("whole")
    with monkeypatch.context() as patched:
        patched.setattr(Saved, "__setitem__", killed)
        with pytest.raises(KeyboardInterrupt):
            computed("killed")
    pd.testing.assert_frame_equal(computed("killed"), whole)


def test_a_pair_that_is_longer_than_the_model_takes_is_refused(inputs, monkeypatch):
    ours = inputs("llama")
    monkeypatch.setattr("icprobe.attribution.icp.max_positions", lambda config: 60)
    with pytest.raises(
        DataError, match=r"row \S+: with a task behind it there are \d+ tokens where the model takes 60; "
    ):
        matrices(icp, ours, "icp")


def test_icp_budget_refuses_an_effect_that_is_no_number_and_does_not_count_it_as_no_help(inputs, monkeypatch):
    def effects(self, rows, name, tasks):
        return np.where(np.arange(len(rows))[:, None] == 2, np.nan, np.ones((len(rows), len(tasks)), dtype=np.float32))

    monkeypatch.setattr(icp_budget.Probe, "effects", effects)
    ours = inputs("llama")
    with pytest.raises(ScoreError, match=r"icp_budget: 1 example with attributions that are NaN or infinite: "):
        list(icp_budget.attribute(ours, "icp_budget", batches(ours.lengths, 200)))


def test_elimination_finds_the_best_and_the_worst_for_less():
    generator = np.random.default_rng(0)
    skill = generator.beta(4, 2, size=400)
    effects = generator.random((400, 100)) < skill[:, None]
    asked = np.zeros_like(effects, dtype=int)

    def reveal(rows, tasks):
        asked[np.ix_(rows, tasks)] += 1
        return effects[np.ix_(rows, tasks)].astype(float)

    scores, tried = icp_budget.eliminate(400, 100, reveal, share=0.1, round_tasks=10)
    assert asked.max() == 1, "no pair is paid for twice"
    assert (asked.sum(axis=1) == tried).all()
    assert tried.sum() < 0.8 * effects.size
    full = effects.mean(axis=1)
    top = set(np.argsort(-full, kind="stable")[:40])
    assert len(top & set(np.argsort(-scores, kind="stable")[:40])) >= 36


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


def test_the_gathered_file_is_the_same_to_the_byte_for_any_number_of_shards(inputs, tmp_path):
    """Down to more shards than batches, where some are empty."""
    ours = inputs("llama")
    parquet.write_parquet(ours.train, tmp_path / "train.parquet")
    found = []
    for of in (1, 2, 5, 64):
        paths = []
        for number in range(1, of + 1):
            folder = tmp_path / f"{number}-of-{of}"
            folder.mkdir()
            (table,) = compute(
                icp.__name__, ["icp"], inputs("llama"), {"batch_tokens": 200}, number, of, 200, folder
            ).values()
            paths.append(folder / "shard.parquet")
            parquet.write_parquet(table, paths[-1])
        gather(paths, tmp_path / "train.parquet", tmp_path / "matrix.parquet")
        found.append((tmp_path / "matrix.parquet").read_bytes())
    assert len(set(found)) == 1


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
    probe = icp.Probe(ours, 200)
    train, tasks, _ = few
    for example in train.to_dict("records"):
        example["output"] = example["output"] + " un"
        prefix, suffixes = probe.one_shots.encode(example, range(len(tasks)))
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
