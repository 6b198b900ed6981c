"""What does not fit a model's context is refused, cut or dropped, for all models alike, and counted."""

import copy
from random import Random

import pandas as pd
import pytest
from test_one_shots import TOKENIZERS

from icprobe.config import Templates
from icprobe.engine.representations import mean_hidden_states
from icprobe.errors import DataError
from icprobe.tables.fitting import choose_tasks, draw, fit_tasks, fit_train, lengths, prompt_lengths
from icprobe.texts.prompts import Prompts, encode
from icprobe.texts.readers import Reader


def table(*outputs, **columns):
    ids = [f"r{i}" for i in range(len(outputs))]
    return pd.DataFrame({"id": ids, "instruction": "say", "input": "", "output": list(outputs), **columns})


def words(n):
    return " ".join(["word"] * n)


@pytest.fixture
def reader(tokenizer):
    def make(limit, name="m"):
        return Reader(name, tokenizer, limit)

    return make


def count(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_lengths_are_token_counts_of_query_and_of_what_follows_it(few, prompts, reader, tokenizer):
    train, _, expected = few
    found = lengths(train, prompts, reader(None))
    assert found["id"].tolist() == expected["id"].tolist()
    for column in ("n_query", "n_target"):
        assert found[column].tolist() == expected[column].tolist()
        assert found[column].dtype == "int32"


def test_a_sample_is_drawn_from_rows_that_are_short_enough_and_equally_from_each_stratum(reader, tokenizer, prompts):
    frame = table(*(words(n) for n in range(1, 25))).assign(subset=["koala", "vicuna", "oasst"] * 8)
    asked = {"n": 6, "stratify": "subset", "seed": 1, "max_tokens": 13}

    def draw_from(frame, **changes):
        text = lambda _, row: row["output"]  # noqa: E731
        return draw(frame, {**asked, **changes}, prompts, [reader(None)], "data.eval.sample", text)

    drawn = draw_from(frame)
    assert drawn["subset"].value_counts().to_dict() == {"koala": 2, "vicuna": 2, "oasst": 2}
    assert max(count(tokenizer, text) for text in drawn["output"]) < 13
    assert {count(tokenizer, text) for text in draw_from(frame, max_tokens=None, n=24)["output"]} > {13}
    pd.testing.assert_frame_equal(draw_from(frame), drawn)
    assert draw_from(frame, seed=2)["id"].tolist() != drawn["id"].tolist()
    assert draw(frame, None, None, [], "data.eval.sample") is frame
    with pytest.raises(
        DataError, match=r"data\.eval\.sample: 9 of the rows of 'koala' are wanted, but there are only 8"
    ):
        draw_from(frame, n=27, max_tokens=None)
    with pytest.raises(DataError, match=r"data\.eval\.sample\.stratify: the data have no column 'subset'"):
        draw_from(frame.drop(columns="subset"))


def test_a_text_without_tokens_is_refused_by_its_id(prompts):
    class Deaf:
        def __call__(self, texts, add_special_tokens):
            return {"input_ids": [[1] * len(text.replace("x", "")) for text in texts]}

    prompts = type(prompts)(
        {"query": "{{ instruction }}", "target": "{{ output }}", "one_shot_prefix": "", "separator": ""}
    )
    with pytest.raises(DataError, match="row r1: its response has no token of m"):
        lengths(table("a", "xx"), prompts, Reader("m", Deaf(), None))
    silent = table("a").assign(instruction="xx")
    with pytest.raises(DataError, match="row r0: its query has no token of m"):
        lengths(silent, prompts, Reader("m", Deaf(), None))
    with pytest.raises(DataError, match=r"data\.eval: the prompt r0 has no token of m"):
        prompt_lengths(silent, prompts, Reader("m", Deaf(), None), 5)


def test_an_answer_whose_first_letters_merge_with_the_query_is_counted_as_it_is_scored(tokenizer):
    """As " " and "Yes" do: by themselves the query would have a token more, and an answer of one token none."""
    made = Prompts.of_queries({"query": "{{ instruction }} ", "target": "{{ output }}"})
    rows = [{"instruction": "Say", "input": "", "output": answer} for answer in ("the", "the the", "46", "of it")]
    frame = pd.DataFrame(rows).assign(id=[f"r{n}" for n in range(4)])
    found = lengths(frame, made, Reader("m", tokenizer, None))
    encoded = [encode(tokenizer, made.query(row), made.target(row)) for row in rows]
    assert found["n_query"].tolist() == [one.n_context for one in encoded]
    assert found["n_target"].tolist() == [one.n_target for one in encoded]
    merges = [one.n_context < count(tokenizer, made.query(row)) for one, row in zip(encoded, rows, strict=True)]
    assert any(merges)


def test_a_row_fits_up_to_the_last_token_and_not_one_further(prompts, reader, tokenizer):
    rows = table(words(5), words(6))
    longest = max(count(tokenizer, prompts.document(row)) for row in rows.to_dict("records"))
    assert len(fit_tasks(rows, prompts, [reader(longest)], "error")) == 2
    with pytest.raises(DataError, match=rf"r1 needs {longest} tokens where m takes {longest - 1}"):
        fit_tasks(rows, prompts, [reader(longest - 1)], "error")


def test_an_example_fits_with_the_longest_task(prompts, reader, tokenizer):
    train, tasks = table(words(3), words(30)), table(words(2), words(12))
    whole = max(
        count(tokenizer, prompts.one_shot(example, task) + prompts.target(task))
        for example in train.to_dict("records")
        for task in tasks.to_dict("records")
    )
    assert fit_train(train, tasks, prompts, [reader(whole)], "error").attrs["too_long"] == 0
    kept = fit_train(train, tasks, prompts, [reader(whole - 1)], "drop")
    assert kept["id"].tolist() == ["r0"]
    assert kept.attrs["too_long"] == 1


def test_a_row_too_long_for_one_model_is_so_for_all(prompts, reader):
    rows = table(words(3), words(60))
    kept = fit_tasks(rows, prompts, [reader(None, "free"), reader(40, "small"), reader(4000, "large")], "drop")
    assert kept["id"].tolist() == ["r0"]


UNBROKEN = {
    "Chinese": "这条河流入大海，河水很清澈。" * 40,
    "Japanese": "川は海へ流れる。" * 60,
    "Thai": "แม่น้ำไหลลงสู่ทะเลเมื่อฤดูฝนมาถึงแล้วต้นไม้ก็เขียว" * 20,
    "base64": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo" * 20,
    "address": "https://example.org/" + "a1b2c3/" * 80,
    "words": "The  river\n\nruns to the sea. " * 40,
}


@pytest.mark.parametrize("text", UNBROKEN.values(), ids=UNBROKEN)
def test_a_text_without_spaces_is_cut_behind_the_last_token_that_fits(text, prompts, reader, tokenizer, caplog):
    rows, limit = table(text, "short\n\nremains"), 90
    cut = fit_tasks(rows, prompts, [reader(2 * limit)], "truncate")
    kept = cut["output"][0]
    assert text.startswith(kept)
    assert cut["output"][1] == "short\n\nremains"
    assert cut.attrs["too_long"] == 1
    assert f"1 of 2 rows are cut to fit, from {len(text)} to {len(kept)} characters in all" in caplog.text
    assert rows["output"][0] == text

    def size(output):
        return count(tokenizer, prompts.document({**rows.iloc[0], "output": output}))

    # A letter that is several tokens, and white space, which the template flattens, may leave a few tokens' room.
    assert limit - 6 <= size(kept) <= limit
    assert (
        count(tokenizer, kept) + count(tokenizer, text[len(kept) :]) == count(tokenizer, text)
        or text[len(kept)].isspace()
    )


def test_a_letter_is_not_cut_from_its_marks(prompts, reader):
    text = "ที่" * 60  # a consonant, a vowel and a tone mark above it
    for limit in range(50, 62):
        kept = fit_tasks(table(text), prompts, [reader(2 * limit)], "truncate")["output"][0]
        assert len(kept) % 3 == 0


def test_a_cut_text_fits_every_model(prompts, reader, tokenizer):
    text = UNBROKEN["Thai"]
    for models in ([reader(140, "a"), reader(120, "b")], [reader(120, "b"), reader(140, "a")]):
        kept = fit_tasks(table(text), prompts, models, "truncate").to_dict("records")
        assert 50 < count(tokenizer, prompts.document(kept[0])) <= 60


def test_examples_find_room_beside_a_task_that_is_cut(prompts, reader, tokenizer):
    model, task = reader(300), UNBROKEN["Chinese"]
    tasks = fit_tasks(table(task), prompts, [model], "truncate")
    train = fit_train(table("short", UNBROKEN["base64"]), tasks, prompts, [model], "truncate")
    assert train["output"][0] == "short"
    whole = prompts.one_shot(train.iloc[1].to_dict(), tasks.iloc[0].to_dict()) + prompts.target(tasks.iloc[0].to_dict())
    assert 294 <= count(tokenizer, whole) <= 300
    fits = fit_tasks(table("数" * 80), prompts, [model], "truncate")  # one that fits alone stays whole
    assert fits["output"][0] == "数" * 80
    with pytest.raises(DataError, match=r"row r0 does not fit into the 300 tokens of m, even .* needs \d+ of them"):
        fit_train(table("x" * 100), fits, prompts, [model], "truncate")


@pytest.mark.parametrize(("on_too_long", "ids"), [("drop", ["r0", "r2", "r3"]), ("truncate", ["r0", "r1", "r2", "r3"])])
def test_kmeans_reads_no_candidate_that_is_longer_than_the_context(
    on_too_long, ids, prompts, reader, tokenizer, tiny_model, capabilities
):
    candidates = table("one", "数" * 800, "three", "four")
    model = copy.deepcopy(tiny_model("gpt2"))  # its 1024 positions are a table, beyond which there is none

    def hidden_states(texts):
        return mean_hidden_states(model, capabilities("gpt2"), tokenizer, texts)

    def choose(on_too_long, n):
        settings = f"kmeans:{n}", 0, prompts, [reader(1024)], on_too_long
        return choose_tasks(candidates, *settings, hidden_states)

    chosen = choose(on_too_long, len(ids))
    assert chosen["id"].tolist() == ids
    assert chosen.attrs["too_long"] == 1
    with pytest.raises(DataError, match=r"data\.tasks: 1 row too long for a model's context: r1; r1 needs"):
        choose("error", 2)


def test_a_row_that_cannot_be_cut_to_fit_is_named(prompts, reader):
    rows = table("x").assign(instruction=words(100))
    with pytest.raises(DataError, match=r"data\.tasks: row r0 does not fit"):
        fit_tasks(rows, prompts, [reader(20)], "truncate")
    with pytest.raises(DataError, match=r"data\.tasks: no row fits the context of m"):
        fit_tasks(rows, prompts, [reader(20)], "drop")


def test_eval_prompts_leave_room_for_the_response(prompts, reader, tokenizer):
    rows = table("", "").assign(instruction=["short", words(10)])
    counts = [count(tokenizer, prompts.query(row)) for row in rows.to_dict("records")]
    longest = max(counts)
    for limit in (longest + 7, None):
        assert prompt_lengths(rows, prompts, reader(limit), 7)["n_query"].tolist() == counts
    with pytest.raises(DataError, match=r"1 prompt with no room for evaluation.max_new_tokens: .*: r1\. Shorten"):
        prompt_lengths(rows, prompts, reader(longest + 6), 7)


def test_an_example_fits_by_itself_where_contexts_show_less_of_it(reader):
    prompts = Prompts(Templates().model_dump() | {"one_shot_prefix": "{{ document | truncate(60) }}\n\n"})
    train, tasks = table(words(3), words(90)), table(words(2))
    for limit, too_long in ((200, 0), (60, 1)):
        kept = fit_train(train, tasks, prompts, [reader(limit)], "drop")
        assert (len(kept), kept.attrs["too_long"]) == (2 - too_long, too_long)
    with pytest.raises(DataError, match=r"data\.train: 1 row too long for a model's context: r1"):
        fit_train(train, tasks, prompts, [reader(60)], "error")
    cut = fit_train(train, tasks, prompts, [reader(60)], "truncate")
    assert lengths(cut, prompts, reader(None))[["n_query", "n_target"]].sum(axis=1).max() <= 60


def joint_lengths(train, tasks, prompts, tokenizer):
    """The tokens of each example's longest pair, as one text."""
    return [
        max(count(tokenizer, prompts.one_shot(row, task) + prompts.target(task)) for task in tasks.to_dict("records"))
        for row in train.to_dict("records")
    ]


@pytest.mark.parametrize(("kind", "seed"), [("unigram", 0), ("wordpiece", 7), ("prefix space", 10)])
def test_what_two_texts_need_as_one_is_what_has_to_fit(kind, seed):
    """At their border texts may become more tokens than they are apart."""
    tokenizer, random = TOKENIZERS[kind], Random(seed)
    signs = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "away", "from", "big", "old", "house", "12", "345"]
    signs += [",", ".", ";", ":", "-", "é", "世界", "'", "x=", "==", "((", "))", "Ab", "AB"]

    def text(n):
        return "".join(random.choice(signs) + random.choice(["", " "]) for _ in range(n)).strip()

    prompts = Prompts(
        {"query": "{{ instruction }}", "target": "{{ output }}", "one_shot_prefix": "{{ document }}", "separator": ""}
    )
    rows = [{"id": f"r{i}", "instruction": text(3), "input": "", "output": text(40)} for i in range(100)]
    asked = text(5)  # of all tasks alike, so that any of them may be the longest
    tasks = table(*(text(2) for _ in range(2))).assign(instruction=asked)
    train = pd.DataFrame(rows)
    apart = [count(tokenizer, prompts.one_shot_prefix(row)) for row in rows]
    suffixes = [prompts.one_shot_suffix(task) + prompts.target(task) for task in tasks.to_dict("records")]
    longest = max(count(tokenizer, suffix) for suffix in suffixes)
    together = joint_lengths(train, tasks, prompts, tokenizer)
    longer = [i for i, (one, pair) in enumerate(zip(apart, together, strict=True)) if pair > one + longest]
    assert longer, "no text of these merges"
    for place in longer[:3]:
        limit = Reader("m", tokenizer, apart[place] + longest)
        said = f"r{place} needs {together[place]} tokens where m takes {limit.max_positions}"
        with pytest.raises(DataError, match=said):
            fit_train(train[place : place + 1], tasks, prompts, [limit], "error")
        cut = fit_train(train, tasks, prompts, [limit], "truncate")
        assert max(joint_lengths(cut, tasks, prompts, tokenizer)) <= limit.max_positions
    # What fits as one text is left as it is.
    exactly = Reader("m", tokenizer, max(max(together), max(one + longest for one in apart)))
    assert fit_train(train, tasks, prompts, [exactly], "error").equals(train)
