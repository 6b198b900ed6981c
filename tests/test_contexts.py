"""icp_reverse and icp_k_shot: the naive loop's numbers, whatever the batch, shard or kill; too long is is refused."""

import copy
from dataclasses import replace

import dag
import naive
import numpy as np
import pandas as pd
import pytest
from matrices import ARCHITECTURES, assert_close, matrices

from icprobe.attribution import METHODS, icp, icp_k_shot, icp_reverse, methods_of, shards
from icprobe.attribution.contexts import Draws, check, task_groups
from icprobe.attribution.one_shots import OneShots
from icprobe.config import load
from icprobe.engine.batching import batches
from icprobe.errors import ConfigError, DataError
from icprobe.texts.readers import Reader
from icprobe.workflow import checks
from icprobe.workflow.plan import Plan

K_SHOT = {"k": 3, "draws": 2}


def scores(inputs, batch_tokens=200, runs=None, **settings):
    """Scores of icp_reverse in the order of the examples."""
    found = np.full(len(inputs.train), np.nan)
    for _, rows, block in icp_reverse.attribute(
        inputs, "icp_reverse", runs or batches(inputs.lengths, batch_tokens), batch_tokens, **settings
    ):
        found[rows] = block[:, 0]
    return found


def limited(inputs, positions):
    """The same inputs, of a model that reads so many tokens."""
    ours = replace(inputs, model=copy.copy(inputs.model))
    ours.model.config = copy.deepcopy(ours.model.config)
    ours.model.config.max_position_embeddings = positions
    return ours


def groups_of(inputs, positions, wanted="all"):
    reader = Reader("tiny", inputs.tokenizer, positions)
    tasks = inputs.tasks.to_dict("records")
    return task_groups(tasks, inputs.lengths, inputs.prompts, reader, inputs.seed, wanted)


def naive_reverse(inputs, model, groups, mean=False):
    tasks, tokenizer = inputs.tasks.to_dict("records"), inputs.tokenizer
    found = []
    for row in inputs.train.to_dict("records"):
        alone = naive.few_shot(model, tokenizer, [], row)
        behind = [naive.few_shot(model, tokenizer, [tasks[number] for number in group], row) for group in groups]
        found.append((np.mean(behind) - alone) / (naive.n_target(tokenizer, row) if mean else 1))
    return np.array(found)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_icp_reverse_equals_the_naive_loop(architecture, reduction, inputs, tiny_model):
    ours = inputs(architecture)
    groups = groups_of(ours, 1024)
    assert sorted(groups[0]) == [0, 1, 2], "all tasks in one context"
    slow = naive_reverse(ours, tiny_model(architecture), groups, reduction == "mean")
    assert np.abs(slow).max() > (0.1 if reduction == "sum" else 0.01)
    assert_close(scores(ours, reduction=reduction), slow, 1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_icp_reverse_is_the_mean_over_contexts_where_one_does_not_hold_all_tasks(architecture, inputs, tiny_model):
    whole = groups_of(inputs(architecture), 1024)[0]
    positions = next(n for n in range(1024, 0, -1) if len(groups_of(inputs(architecture), n)) == 2)
    groups = groups_of(inputs(architecture), positions)
    assert [*groups[0], *groups[1]] == whole
    assert [*map(len, groups)] == [2, 1]
    slow = naive_reverse(inputs(architecture), tiny_model(architecture), groups)
    assert_close(scores(limited(inputs(architecture), positions)), slow, 1e-4)


def test_as_many_tasks_stand_in_the_context_as_are_wanted(inputs, tiny_model):
    groups = groups_of(inputs("llama"), 1024, 2)
    assert groups == [groups_of(inputs("llama"), 1024)[0][:2]]
    slow = naive_reverse(inputs("llama"), tiny_model("llama"), groups)
    assert_close(scores(inputs("llama"), tasks=2), slow, 1e-4)


def naive_k_shot(inputs, model, drawn):
    train, tasks, tokenizer = inputs.train.to_dict("records"), inputs.tasks.to_dict("records"), inputs.tokenizer
    found = np.zeros((len(train), len(tasks)))
    for row in range(len(train)):
        for draw in range(drawn.draws):
            others = drawn.others(row, draw)
            assert len({*others, row}) == drawn.k
            for t, task in enumerate(tasks):
                with_it, without = (
                    naive.few_shot(model, tokenizer, [train[i] for i in rows], task)
                    for rows in ([*others, row], others)
                )
                found[row, t] += (with_it - without) / drawn.draws
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_icp_k_shot_equals_the_naive_loop(architecture, inputs, tiny_model):
    ours = inputs(architecture)
    slow = naive_k_shot(ours, tiny_model(architecture), Draws(ours.train["id"].tolist(), ours.seed, **K_SHOT))
    assert np.abs(slow).max() > 0.1
    found = matrices(icp_k_shot, ours, "icp_k_shot", **K_SHOT)["icp_k_shot"]
    assert_close(found, slow, 1e-4)
    per_token = slow / [naive.n_target(ours.tokenizer, task) for task in ours.tasks.to_dict("records")]
    found = matrices(icp_k_shot, ours, "icp_k_shot", task_likelihood="mean", **K_SHOT)["icp_k_shot"]
    assert_close(found, per_token, 1e-5)


def test_one_example_in_a_context_is_icp(inputs):
    reference = matrices(icp, inputs("llama"), "icp")["icp"]
    found = matrices(icp_k_shot, inputs("llama"), "icp_k_shot", k=1, draws=1)["icp_k_shot"]
    assert (found == reference).all()


def test_draws_depend_on_seed_and_ids_and_not_on_the_order_of_the_rows():
    ids = [f"z{n}" for n in range(30)]
    drawn = Draws(ids, 3, 4, 8)
    shuffled = np.random.default_rng(0).permutation(ids).tolist()
    other = Draws(shuffled, 3, 4, 8)

    def by_id(draws, id, number):
        return [draws.ids[row] for row in draws.others(draws.ids.index(id), number)]

    contexts = [by_id(drawn, id, number) for id in ids for number in range(8)]
    assert contexts == [by_id(other, id, number) for id in ids for number in range(8)]
    assert contexts != [by_id(Draws(ids, 4, 4, 8), id, number) for id in ids for number in range(8)]


def test_all_examples_of_a_draw_are_read_behind_the_same_others_but_those_themselves():
    drawn = Draws([f"z{n}" for n in range(30)], 3, 4, 8)
    for draw in range(8):
        parts = drawn.parted(np.arange(30), draw)
        common = max(parts, key=lambda others: len(parts[others]))
        assert sorted(row for rows in parts.values() for row in rows) == [*range(30)]
        assert len(set(common)) == 3
        assert sorted(rows for rows in parts.values() if rows != parts[common]) == [[row] for row in sorted(common)]
        for row in common:
            (others,) = [others for others, rows in parts.items() if rows == [row]]
            assert len({*others}.difference(common)) == 1, "one more stands in its place, the same for all three"
            assert row not in others
    assert len({drawn.others(29, draw) for draw in range(8)}) == 8


def test_numbers_do_not_depend_on_batches_order_or_padding(inputs):
    of_pairs = matrices(icp_k_shot, inputs("llama"), "icp_k_shot", **K_SHOT)["icp_k_shot"]
    of_rows = scores(inputs("llama"))
    order = np.random.default_rng(0).permutation(7)

    def changed(kind):
        ours = inputs("llama")
        if kind == "padded":
            ours.capabilities = replace(ours.capabilities, packs=False, in_step=False)
        if kind == "shuffled":
            ours.train, ours.lengths = (t.iloc[order].reset_index(drop=True) for t in (ours.train, ours.lengths))
        return ours, order if kind == "shuffled" else slice(None), {"short": 1, "long": 2000}.get(kind, 200)

    for kind in ("short", "long", "padded", "shuffled"):
        ours, rows, tokens = changed(kind)
        found = matrices(icp_k_shot, ours, "icp_k_shot", tokens, **K_SHOT)["icp_k_shot"]
        assert_close(found, of_pairs[rows], 2e-5, np.abs(of_pairs).max())
        assert_close(scores(ours, tokens), of_rows[rows], 2e-5, np.abs(of_rows).max())


def test_a_long_row_is_cut_into_several(inputs, monkeypatch):
    of_pairs = matrices(icp_k_shot, inputs("llama"), "icp_k_shot", **K_SHOT)["icp_k_shot"]
    of_rows = scores(inputs("llama"))
    for module in (icp, icp_reverse):
        monkeypatch.setattr(module, "ROW_TOKENS", {"cpu": 1})
    found = matrices(icp_k_shot, inputs("llama"), "icp_k_shot", **K_SHOT)["icp_k_shot"]
    assert_close(found, of_pairs, 2e-5, np.abs(of_pairs).max())
    assert_close(scores(inputs("llama")), of_rows, 2e-5, np.abs(of_rows).max())


def table(method, inputs, folder, number=1, of=1):
    settings = {"batch_tokens": 200, **(K_SHOT if method == "icp_k_shot" else {})}
    module = {"icp_k_shot": icp_k_shot, "icp_reverse": icp_reverse}[method].__name__
    found = shards.compute(module, [method], inputs, settings, number, of, 200, folder, method == "icp_k_shot")
    return found[method]


@pytest.mark.parametrize("method", ["icp_k_shot", "icp_reverse"])
def test_shards_give_the_bits_of_the_whole(method, inputs, tmp_path):
    whole = table(method, inputs("llama"), tmp_path)
    for of in (2, 3):
        folders = [tmp_path / f"{number}-of-{of}" for number in range(1, of + 1)]
        [folder.mkdir() for folder in folders]
        parts = [table(method, inputs("llama"), folder, n, of) for n, folder in enumerate(folders, 1)]
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole, check_exact=True)


@pytest.mark.parametrize("method", ["icp_k_shot", "icp_reverse"])
def test_a_killed_job_goes_on_and_gives_the_same_bits(method, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(icp, "PIECE_SECONDS", 0.0)
    whole = table(method, inputs("llama"), tmp_path)
    original, written = shards.Saved.__setitem__, []

    def killed(self, name, piece):
        original(self, name, piece)
        written.append(name)
        if len(written) in (3, 7):
            raise KeyboardInterrupt

    monkeypatch.setattr(shards.Saved, "__setitem__", killed)
    (folder := tmp_path / "partial").mkdir()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            table(method, inputs("llama"), folder)
    pd.testing.assert_frame_equal(table(method, inputs("llama"), folder), whole, check_exact=True)
    assert len(set(written)) == len(written), "nothing is computed twice"


def test_a_context_that_merges_with_what_follows_has_the_joint_tokens(inputs, tiny_model):
    """The last word of the tasks and what separates them from the example are one token, " the"."""
    ours = inputs("llama")
    ours.prompts = copy.copy(ours.prompts)
    ours.prompts.separator = "e"
    ours.tasks = ours.tasks.assign(output=ours.tasks["output"] + " th")
    (group,) = groups_of(ours, 1024)
    shots = OneShots(ours.tokenizer, ours.prompts, ours.train.to_dict("records"))
    shots.encode_several(ours.tasks.to_dict("records"), range(7))
    assert shots.joint == 7
    tasks = [ours.tasks.to_dict("records")[number] for number in group]
    slow = []
    for row in ours.train.to_dict("records"):
        context = ours.prompts.few_shot(tasks, row)
        assert str(context).endswith(" the" + naive.query(row))
        behind = naive.log_likelihood(tiny_model("llama"), ours.tokenizer, str(context), naive.target(row))
        slow.append(behind - naive.few_shot(tiny_model("llama"), ours.tokenizer, [], row))
    assert_close(scores(ours), np.array(slow), 1e-4)


def test_what_does_not_fit_is_refused_in_one_sentence(inputs):
    ours = inputs("llama")

    def checked(method, positions, **settings):
        reader = Reader("tiny", ours.tokenizer, positions)
        return check(method, settings, ours.train, ours.tasks, ours.lengths, ours.prompts, reader, ours.seed)

    longest = int((ours.lengths["n_query"] + ours.lengths["n_target"]).max())
    with pytest.raises(DataError, match=r"icp_reverse: the task \S+ and the longest example \(\S+\) need \d+ tokens"):
        checked("icp_reverse", longest, tasks="all")
    with pytest.raises(DataError, match=r"icp_reverse\.tasks: 4 are wanted where there are 3; take fewer\."):
        checked("icp_reverse", 1024, tasks=4)
    with pytest.raises(DataError, match=r"icp_k_shot\.k: 8 examples in a context where there are 7; take at most 7\."):
        checked("icp_k_shot", 1024, k=8, draws=1)
    drawn = Draws(ours.train["id"].tolist(), ours.seed, **K_SHOT)
    rows, tasks, prompts = ours.train.to_dict("records"), ours.tasks.to_dict("records"), ours.prompts
    counted = Reader("tiny", ours.tokenizer, None).counts
    needed = max(counted([prompts.few_shot_prefix([rows[row] for row in context]) for context in drawn.all()]))
    needed += max(counted([prompts.one_shot_suffix(task) + prompts.target(task) for task in tasks]))
    found = checked("icp_k_shot", needed, **K_SHOT)
    assert found == checked("icp_k_shot", None, **K_SHOT)
    assert found["contexts"] == 14
    for less in (1, needed // 2):  # the longest is named, whichever comes first
        with pytest.raises(DataError, match=rf"need {needed} tokens where tiny takes {needed - less}; set a smaller k"):
            checked("icp_k_shot", needed - less, **K_SHOT)


def test_an_example_that_ends_beyond_the_models_context_is_refused_and_not_read(inputs, monkeypatch):
    ours = inputs("llama")
    monkeypatch.setattr("icprobe.attribution.contexts.BORDERS", -(10**4))  # as if no example were long
    with pytest.raises(DataError, match=r"row \S+: behind the tasks it ends at token \d+ where the model takes 300;"):
        scores(limited(ours, 300))


def test_both_are_valued_from_python_and_refused_before_any_pass(tiny_model, tokenizer, few):
    import icprobe

    train, tasks, _ = few
    how = {"model": copy.deepcopy(tiny_model("llama")), "tokenizer": tokenizer, "icp_k_shot": K_SHOT}
    methods = ["icp_reverse", "icp_k_shot"]
    found, kept = icprobe.value(train, tasks, methods=methods, matrices=True, **how)
    assert found[["score_icp_reverse", "score_icp_k_shot"]].notna().all(axis=None)
    assert kept["icp_k_shot"].shape == (7, 4)
    with pytest.raises(DataError, match="8 examples in a context"):
        icprobe.value(train, tasks, methods=methods, **{**how, "icp_k_shot": {"k": 8}})


# --- when planning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"k": 109}, r"icp_k_shot\.k: 109 examples in contexts where there are 108; take at most 108"),
        ({"k": 6, "sample": 5}, r"icp_k_shot\.k: 6 examples in contexts where there are 5"),
        ({"tasks": 13}, r"icp_reverse\.tasks: 13 tasks in contexts where there are 12; take at most 12"),
        ({"tasks": 4, "select": "first:3"}, r"icp_reverse\.tasks: 4 tasks in contexts where there are 3"),
        ({"k": 108, "tasks": 12}, None),
        ({"k": 5, "sample": 5, "tasks": 3, "select": "first:3"}, None),
    ],
)
def test_contexts_of_more_rows_than_there_are_are_refused_as_far_as_files_tell(sections, said):
    raw = dag.configuration("config.yaml").model_dump(mode="json", exclude_unset=True)
    raw["attribution"]["methods"] += ["icp_k_shot", "icp_reverse"]
    raw["attribution"]["icp_k_shot"] = {"k": sections.get("k", 2)}
    raw["attribution"]["icp_reverse"] = {"tasks": sections.get("tasks", "all")}
    raw["data"]["train"] |= {"sample": {"n": sections["sample"]}} if "sample" in sections else {}
    raw["data"]["tasks"] |= {"select": sections.get("select", "all")}
    config = load(raw, METHODS)
    plan = Plan(config, methods_of(config))
    if said is None:
        checks.check_contexts(plan)
    else:
        with pytest.raises(ConfigError, match=f"config: attribution\\.{said}"):
            checks.check_contexts(plan)
