"""What a killed job has computed it does not compute again: blocks that take minutes are kept in pieces."""

import logging
import re

import numpy as np
import pandas as pd
import pytest

from icprobe.attribution import icp, icp_budget, one_step, shards
from icprobe.engine import likelihood
from icprobe.engine.batching import packed, packs

SETTINGS = {
    "icp": {},
    "icp_budget": {"round_tasks": 2, "share": 0.2},
    "one_step": {},
}


@pytest.fixture
def attribute(inputs, monkeypatch):
    """(module, folder, most) → (its table, passes); most: passes after which the job is killed."""
    monkeypatch.setattr(shards, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(icp, "PIECE_SECONDS", 0.0)

    def run(module, folder, most=10**6):
        method = module.__name__.rsplit(".", 1)[1]
        engine = one_step if module is one_step else likelihood
        passes, original = [], engine.packed_log_likelihoods

        def counted(*arguments):
            if engine is likelihood and not arguments[1][0][0]:  # the tasks themselves, computed once
                return original(*arguments)
            if len(passes) == most:
                raise KeyboardInterrupt
            passes.append(arguments)
            return original(*arguments)

        folder.mkdir(exist_ok=True)
        settings = {"batch_tokens": 200, **SETTINGS[method]}
        with monkeypatch.context() as patched:
            patched.setattr(engine, "packed_log_likelihoods", counted)
            try:
                # All examples are one batch.
                tables = shards.compute(
                    module.__name__, [method], inputs("llama"), settings, 1, 1, 10**6, folder, method != "icp_budget"
                )
            except KeyboardInterrupt:
                return None, len(passes)
        return tables[method], len(passes)

    return run


@pytest.mark.parametrize("module", [icp, icp_budget, one_step])
def test_a_killed_job_goes_on_within_a_batch_and_gives_the_same_bits(module, attribute, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    undisturbed, whole = attribute(module, tmp_path / "undisturbed")
    nothing, some = attribute(module, tmp_path / "partial", most=2 * whole // 3)
    assert nothing is None
    resumed, rest = attribute(module, tmp_path / "partial")
    assert re.search(r"resumed: 0 of \d+ examples were finished before, and parts of others \([1-9]\d*\)", caplog.text)
    pd.testing.assert_frame_equal(resumed, undisturbed, check_exact=True)
    # One pass may be lost; one_step sets out with the tasks before the step, and loses one example at most.
    lost = 1 if module is not one_step else 2 * len(undisturbed.columns)
    assert some + rest <= whole + lost
    assert rest < whole


def test_a_budgeted_job_killed_after_each_pass_ends_in_the_same_bits(attribute, tmp_path):
    undisturbed, whole = attribute(icp_budget, tmp_path / "undisturbed")
    for _ in range(whole):
        assert attribute(icp_budget, tmp_path / "partial", most=1)[1] == 1
    resumed, rest = attribute(icp_budget, tmp_path / "partial")
    assert rest == 0
    pd.testing.assert_frame_equal(resumed, undisturbed, check_exact=True)


def test_no_more_texts_are_tokenised_before_a_pass_than_it_takes(inputs, monkeypatch):
    ours = inputs("llama")
    ours.train, ours.lengths = (pd.concat([table] * 20, ignore_index=True) for table in (ours.train, ours.lengths))
    probe, tokenizer, texts, at_passes = icp.Probe(ours, 1), ours.tokenizer, [], []

    def counting(text, **options):
        texts.extend([text] if isinstance(text, str) else text)
        return tokenizer(text, **options)

    original = likelihood.packed_log_likelihoods
    monkeypatch.setattr(probe.one_shots, "tokenizer", counting)
    monkeypatch.setattr(
        likelihood, "packed_log_likelihoods", lambda *arguments: at_passes.append(len(texts)) or original(*arguments)
    )
    probe.effects(np.arange(30), "icp_budget/round/0", [0, 1])
    of_example = 1 + 2 * 2  # a prefix, and each task's context and whole text
    assert at_passes == [of_example * min(n + 2, 30) for n in range(30)], "a pack, and the example after it"


def test_packs_of_sequences_as_they_come_are_those_of_all():
    lengths = np.random.default_rng(0).integers(1, 50, 200).tolist()
    taken = []
    found = []
    for pack in packed((taken.append(n) or n for n in lengths), int, 100):
        found.append(pack)
        assert len(taken) <= sum(map(len, found)) + 1
    assert found == [lengths[pack] for pack in packs(lengths, 100)]
    assert [length for pack in found for length in pack] == lengths
    assert all(sum(pack) <= 100 for pack in found)
