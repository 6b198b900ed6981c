import importlib
import math
from collections import Counter
from typing import get_args

import pytest

from icprobe.config.training import Evaluation
from icprobe.errors import ConfigError, DataError
from icprobe.evaluation.judges import JUDGES, Pair, judge, pair_up, require_some_base_response

SETTINGS = {"draw_margin": 1.0}
GOLD = "The cat sat on the mat."


def test_every_judge_of_the_registry_can_be_chosen_and_has_a_module_with_its_function():
    chosen = set(get_args(Evaluation.model_fields["judge"].annotation))
    assert chosen == {*JUDGES, "annotations", "none"}  # the two that judge nothing
    for name, module in JUDGES.items():
        assert module.endswith(f".{name}")
        assert callable(getattr(importlib.import_module(module), name))


def naive_chrf(hypothesis, reference):
    """Mean over n = 1…6 of character n-gram precision and recall without white space; F with β = 2 (Popović 2015)."""
    hypothesis, reference = ("".join(text.split()) for text in (hypothesis, reference))
    precisions, recalls = [], []
    for n in range(1, 7):
        ours, gold = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (hypothesis, reference))
        if not ours or not gold:
            continue
        common = sum((ours & gold).values())
        precisions.append(common / sum(ours.values()))
        recalls.append(common / sum(gold.values()))
    if not precisions or not sum(precisions):
        return 0.0
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * p * r / (4 * p + r)


def pair(base, response, id="a", gold=GOLD):
    return Pair(id, None, "Where did the cat sit?", base, response, gold)


def preference(base, response, margin=1.0):
    return judge("reference", [pair(base, response)], {"draw_margin": margin})[0]["preference"]


@pytest.mark.parametrize(
    "text", ["The cat sat", "A dog ran off.", "the mat on sat cat The", GOLD, "x", "", "猫在垫子上"]
)
def test_reference_scores_are_chrf(text):
    row = judge("reference", [pair("", text)], SETTINGS)[0]
    assert row["chrf_response"] == pytest.approx(naive_chrf(text, GOLD), abs=1e-9)
    assert row["chrf_base"] == 0


def test_the_response_nearer_to_the_gold_answer_wins():
    assert preference("A dog ran off.", GOLD) == 2
    assert preference(GOLD, "A dog ran off.") == 1
    assert preference("The cat sat", "The cat sat") == 1.5


def test_the_draw_margin_is_where_a_difference_begins_to_count():
    better, worse = "The cat sat on the mat", "The cat sat on the ma"
    difference = naive_chrf(better, GOLD) - naive_chrf(worse, GOLD)
    assert preference(worse, better, difference * 1.0001) == 1.5
    assert preference(worse, better, difference * 0.9999) == 2
    assert preference(better, worse, difference * 0.9999) == 1
    assert preference(worse, better, 0) == 2
    assert preference(worse, worse, 0) == 1.5, "no difference is a draw at any margin"


def test_judgements_are_rows_in_the_order_of_the_pairs():
    rows = judge("reference", [pair("", GOLD, "b"), pair(GOLD, "", "a")], SETTINGS)
    assert [row["id"] for row in rows] == ["b", "a"]
    lengths = {"length_base", "length_response"}
    assert set(rows[0]) == {"id", "subset", "preference", "judge", "order", *lengths, "chrf_base", "chrf_response"}
    assert (rows[0]["length_base"], rows[0]["length_response"]) == (0, len(GOLD))
    assert not any(math.isnan(row["preference"]) for row in rows)
    assert judge("reference", [], SETTINGS) == []


def test_pairs_follow_the_eval_table_and_an_empty_subset_has_none():
    table = [{"id": "2", "subset": "s", "instruction": "I", "input": "", "output": "g2"}, {"id": "1", "output": "g1"}]
    base = [{"id": "1", "instruction": "I1", "output": "b1"}, {"id": "2", "instruction": "I2", "output": "b2"}]
    ours = [{"id": "1", "instruction": "I1", "output": "r1"}, {"id": "2", "instruction": "I2", "output": "r2"}]
    assert pair_up(table, base, ours) == [
        Pair("2", "s", "I2", "b2", "r2", "g2"),
        Pair("1", None, "I1", "b1", "r1", "g1"),
    ]
    assert pair_up(table, base, []) == []
    with pytest.raises(DataError, match="'1' has no response of the fine-tuned model"):
        pair_up(table, base, ours[1:])


def test_mistakes_are_one_clear_sentence():
    with pytest.raises(ConfigError, match="'refrence' is not a judge; use one of reference"):
        judge("refrence", [pair("", "")], SETTINGS)
    with pytest.raises(DataError, match=r"1 eval prompt without a gold answer to compare responses with: a\."):
        judge("reference", [pair("", "", gold=None)], SETTINGS)


def test_base_responses_that_are_given_are_given():
    require_some_base_response(["", None, "Paris."])
    with pytest.raises(DataError, match="No eval prompt has an output"):
        require_some_base_response(["", None, " "])
