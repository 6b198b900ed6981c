"""How many tokens fine-tuning learns from: counted some rows at a time, what it cuts is said, and what it lacks."""

import pandas as pd
import pytest
from chats import CONVERSATIONS, ZEPHYR, chat, row
from conftest import demo_rows

from icprobe.config.templates import Templates
from icprobe.errors import DataError
from icprobe.texts import completions
from icprobe.texts.prompts import Prompts

PLAIN = Prompts(Templates().model_dump())
CHATS = [row(turns, id=name) for name, turns in CONVERSATIONS.items()]
TEXTS = {"plain": (PLAIN, demo_rows("train")[:7]), "chat": (chat(ZEPHYR), CHATS)}


@pytest.mark.parametrize("length", [30, 60, 100_000])
@pytest.mark.parametrize("form", TEXTS)
def test_counts_are_those_of_the_encoded_examples_however_many_are_read_at_a_time(form, length, tokenizer):
    prompts, rows = TEXTS[form]
    encoded, told = completions.completions(tokenizer, rows, prompts, length)
    wanted = [one.n_target if one else 0 for one in encoded]
    for at_once in (1, 3, 100):
        assert completions.learnt(tokenizer, rows, prompts, length, at_once=at_once) == (wanted, told)


def test_the_tokens_of_some_rows_are_in_memory_at_a_time(tokenizer, monkeypatch):
    sizes, encode = [], completions.completions

    def counted(tokenizer, rows, *others):
        sizes.append(len(rows))
        return encode(tokenizer, rows, *others)

    monkeypatch.setattr(completions, "completions", counted)
    completions.learnt(tokenizer, TEXTS["plain"][1], PLAIN, 512, at_once=3)
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize(("counts", "said"), [((2, 1), True), ((0, 1), True), ((2, 0), True), ((0, 0), False)])
def test_what_fine_tuning_cuts_or_drops_is_said(counts, said, caplog):
    completions.warn_of_cuts(9, dict(zip(("truncated", "dropped"), counts, strict=True)), 64)
    told = f"{counts[0]} of 9 examples are cut off at 64 tokens; {counts[1]} are dropped because their query alone is"
    assert (told in caplog.text) is said


@pytest.mark.parametrize(
    ("asked_by", "opening", "end"),
    [
        (
            "attribution.train_loss: response",
            "attribution.train_loss: response: 1 example",
            "set train_loss: document.",
        ),
        ("truth", "truth: 1 example", "remove what is too long (data.train.sample: {max_tokens: …})."),
    ],
)
def test_who_asks_for_a_loss_is_named_with_what_helps_it(asked_by, opening, end):
    lengths = pd.DataFrame({"id": ["a", "b"], "n_query": [5, 4]})
    with pytest.raises(DataError) as refused:
        completions.check_trainable(lengths, 5, asked_by)
    assert str(refused.value).startswith(f"{opening} without a loss: a; the query alone has 5 tokens or more")
    assert str(refused.value).endswith(end)
