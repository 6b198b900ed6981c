"""Examples that fine-tuning cannot learn from: where a selection counts tokens, they are as if they were not there."""

import logging

import numpy as np
import pandas as pd
import pytest
from test_selections import Case, rule

from icprobe.analysis import selecting
from icprobe.errors import ScoreError

SEEDS = range(4)
QUOTA = {"column": "domain", "shares": {"code": 0.3, "maths": 0.2}}
RULES = {
    "the plain rule": {"tokens": 60},
    "tasks in turn": {"tokens": 60, "per_task": "round_robin"},
    "tokens matched": {"tokens": 250, "match": "length"},
    "examples matched": {"top": 20, "match": "length"},
    "a quota of tokens": {"tokens": 100, "quota": QUOTA},
    "what is unlike": {"tokens": 60, "diverse": {"by": "embedding"}},
}


def case(seed, n=80):
    """A case in which each fifth example cannot be trained on, the best one among them; and which can."""
    made = Case(seed, n)
    made.lengths[::5] = 0
    made.lengths[made.ranked()[0]] = 0
    return made, np.flatnonzero(made.lengths)


def chosen(made, keys, rows):
    """The ids that are chosen of these rows of the case."""
    drawn = np.random.default_rng(0).normal(size=(len(made.ids), 4)).astype(np.float32)
    vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True))[rows]
    given = (made.lengths[rows], made.values[rows], made.effects[rows].T, lambda places: vectors[places])
    found = selecting.select("mine", rule(**keys), made.table.iloc[rows].reset_index(drop=True), *given)
    return np.array(made.ids)[rows[found]].tolist()


@pytest.mark.parametrize("keys", RULES.values(), ids=RULES)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_cannot_be_trained_on_is_as_if_it_were_not_there(seed, keys, caplog):
    made, known = case(seed)
    assert chosen(made, keys, np.arange(80)) == chosen(made, keys, known)
    left = f"selections.mine: {80 - len(known)} of 80 examples are left out, because fine-tuning cannot learn from them"
    assert left in caplog.text


def test_a_share_is_of_all_examples_as_it_is_where_no_tokens_are_counted():
    made, known = case(0)
    matched, plain = (made.select(top="25%", match=match) for match in ("length", None))
    assert len(matched) == len(plain) == 20
    assert {*matched} <= {*known}


def test_a_selection_that_counts_no_tokens_takes_what_it_took(caplog):
    made, _ = case(0)
    found = selecting.select("mine", rule(top=20), made.table)
    assert found.tolist() == made.ranked()[:20]
    assert not caplog.records


@pytest.mark.parametrize("keys", [{"top": 70, "match": "length"}, {"tokens": 1e6}], ids=str)
def test_what_is_asked_beyond_them_is_refused_before_and_after_the_scores(keys):
    made, known = case(0)
    of = f"there are only {len(known)}" if "top" in keys else f"have only {made.lengths.sum():,}"
    with pytest.raises(ScoreError, match=of):
        selecting.check("mine", rule(**keys), pd.Series(made.ids), made.lengths, made.values)
    with pytest.raises(ScoreError, match=r"with a score and a token to learn from"):
        made.select(**keys)


@pytest.mark.parametrize("keys", RULES.values(), ids=RULES)
def test_where_none_can_be_trained_on_one_sentence_says_so(keys):
    made, _ = case(0)
    made.lengths[:] = 0
    said = r"^selections\.mine: fine-tuning cannot learn from any of the 80 examples, .*raise finetune\.max_length"
    with pytest.raises(ScoreError, match=said):
        selecting.check("mine", rule(**keys), pd.Series(made.ids), made.lengths, made.values)
    with pytest.raises(ScoreError, match=said):
        made.select(**keys)
    for kind in ("random", "random_tokens", "random_length"):
        with pytest.raises(ScoreError, match=said):
            selecting.baseline("mine", kind, np.arange(9), made.ids, made.lengths, 0)


def test_ties_are_counted_among_those_that_can_be_chosen():
    score, lengths = pd.Series([1.0, 1.0, 1.0, 0.0]), np.array([3, 0, 2, 1])
    assert selecting.tied(score, np.array([0])) == (3, 1)
    assert selecting.tied(score, np.array([0]), lengths) == (2, 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["random", "random_tokens", "random_length"])
def test_a_baseline_of_counted_tokens_draws_only_what_can_be_trained_on(kind, seed, caplog):
    made, known = case(seed, n=200)
    best = np.array(made.ranked()[:60])
    best = best[made.lengths[best] > 0]
    drawn = selecting.baseline("mine", kind, best, made.ids, made.lengths, seed)
    assert {*drawn} <= {*known}
    assert "selections.mine: " in caplog.text
    alone = {place: number for number, place in enumerate(known)}
    again = selecting.baseline(
        *("mine", kind, np.array([alone[place] for place in best])),
        *([made.ids[place] for place in known], made.lengths[known], seed),
    )
    assert known[again].tolist() == drawn.tolist(), "as if the others were not there"


def test_a_baseline_is_as_long_as_what_is_trained_on_of_a_selection_that_counts_none():
    made, _ = case(0, n=200)
    best = np.array(made.ranked()[:60])
    trained = best[made.lengths[best] > 0]
    assert len(trained) < len(best)
    drawn = selecting.baseline("mine", "random_length", best, made.ids, made.lengths, 0)
    assert len(drawn) == len(trained)
    drawn = selecting.baseline("mine", "random_tokens", best, made.ids, made.lengths, 0)
    assert abs(made.lengths[drawn].sum() - made.lengths[best].sum()) <= made.lengths.max() / 2


def test_where_all_can_be_trained_on_nothing_is_said(caplog):
    caplog.set_level(logging.INFO)
    made = Case(0)
    made.select(tokens=60)
    selecting.baseline("mine", "random_tokens", np.arange(9), made.ids, made.lengths, 0)
    assert not caplog.records
