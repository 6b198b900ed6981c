"""Methods that take no gradient and no prompt for each pair: each against a naive loop, and against another cut."""

import copy
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from chats import ZEPHYR
from matrices import ARCHITECTURES, assert_close
from naive import query, target
from tokenizers.processors import TemplateProcessing

from icprobe.attribution import METHODS, bm25, difficulty, embedding, vectors
from icprobe.attribution.bm25 import text_of, words
from icprobe.attribution.shards import compute
from icprobe.engine.batching import batches
from icprobe.errors import DataError
from icprobe.texts.chat import prompts_of

MODELS = [(embedding, "embedding"), (difficulty, "perplexity"), (difficulty, "ifd")]


def split(tokenizer, row):
    """(tokens of a document, how many of them are its query's)."""
    whole = tokenizer(query(row) + target(row))["input_ids"]
    start = len(tokenizer(query(row))["input_ids"])
    return whole, start


def matrix(module, inputs, method, batch_tokens=200):
    """[N, columns] with the rows in the order of inputs.train."""
    settings = {"batch_tokens": batch_tokens} if METHODS[method].needs_model else {}
    columns = len(inputs.tasks) if METHODS[method].per_task else 1
    found = np.full((len(inputs.train), columns), np.nan, np.float32)
    for _, rows, block in module.attribute(inputs, method, batches(inputs.lengths, batch_tokens), **settings):
        found[rows] = block
    return found


# --- bm25 -------------------------------------------------------------------------------------------------------


def plain_bm25(examples, tasks, k1=1.5, b=0.75):
    """The formula, as the docs write it."""
    n, mean = len(examples), sum(map(len, examples)) / len(examples)

    def effect(z, t):
        counts, total = Counter(z), 0.0
        for word in t:
            having = sum(word in other for other in examples)
            idf = math.log(1 + (n - having + 0.5) / (having + 0.5))
            total += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(z) / mean))
        return total

    return np.array([[effect(z, t) for t in tasks] for z in examples])


def test_bm25_is_the_formula_over_all_words_of_example_and_task(inputs):
    ours = inputs("llama")
    found = matrix(bm25, ours, "bm25")
    texts = [
        [f"{row['instruction']} {row['input'] or ''} {row['output']}".lower() for row in table.to_dict("records")]
        for table in (ours.train, ours.tasks)
    ]
    examples, tasks = ([words(text) for text in of_table] for of_table in texts)
    slow = plain_bm25(examples, tasks)
    assert len(np.unique(slow)) == slow.size, "a test on ties proves little"
    assert_close(found, slow, 1e-6, slow.max())


def test_bm25_asks_no_model_and_depends_on_no_order_of_rows(inputs):
    ours = inputs("llama")
    expected = matrix(bm25, ours, "bm25")
    order = np.random.default_rng(0).permutation(len(ours.train))
    shuffled = replace(
        ours,
        model=None,
        tokenizer=None,
        prompts=None,
        train=ours.train.iloc[order].reset_index(drop=True),
        lengths=ours.lengths.iloc[order].reset_index(drop=True),
    )
    np.testing.assert_array_equal(matrix(bm25, shuffled, "bm25"), expected[order])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, don't STOP: naïve 3.14", ["hello", "don", "t", "stop", "naïve", "3", "14"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("我喜欢苹果。好", ["我喜", "喜欢", "欢苹", "苹果", "好"]),
        ("ラーメンを2つ", ["ラー", "ーメ", "メン", "ンを", "2", "つ"]),
        ("กินข้าว", ["กิ" + "น", "นข้", "ข้า", "าว"]),
        ("हिन्दी में लिखो", ["हिन्दी", "में", "लिखो"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("Привет, мир", ["привет", "мир"]),
        ("😀 += ...", []),
    ],
)
def test_words_are_words_in_any_script(text, expected):
    assert words(text) == expected


def test_a_task_in_chinese_or_thai_finds_the_example_that_speaks_of_the_same(inputs):
    ours = inputs("llama")
    said = ["如何做苹果派？先切苹果。", "ฉันชอบกินข้าวที่บ้าน", "How to bake an apple pie", "天气很好", "...", "x", "y"]
    ours.train = ours.train.assign(instruction=said, input=None, output="!")
    ours.tasks = ours.tasks.assign(instruction=["苹果派的做法", "กินข้าว", "An Apple"], input=None, output="?")
    found = matrix(bm25, ours, "bm25")
    assert found.argmax(axis=0).tolist() == [0, 1, 2]
    assert ((found > 0).sum(axis=0) == 1).all()
    assert (found[4] == 0).all(), "an example without a word shares none"


def test_bm25_refuses_examples_without_any_word(inputs):
    ours = inputs("llama")
    ours.train = ours.train.assign(instruction="?", input=None, output="!")
    with pytest.raises(DataError, match="bm25: no example has a word"):
        matrix(bm25, ours, "bm25")


def test_bm25_reads_all_turns_of_a_conversation_and_what_it_calls():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather"}}]}
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Rain?"}, call]
    row = {"instruction": "Rain?", "input": "", "output": "weather", "messages": json.dumps(turns)}
    assert words(text_of(row)) == ["be", "kind", "rain", "function", "name", "weather"]
    assert text_of({"instruction": "a", "input": "b", "output": "c"}).split() == ["a", "b", "c"]


# --- embedding --------------------------------------------------------------------------------------------------


def naive_point(model, ids, skipped=0):
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double()
    return sum((i + 1) * state for i, state in enumerate(states[skipped:]))


def cosines(train, tasks, point):
    examples, to_tasks = ([point(row) for row in table.to_dict("records")] for table in (train, tasks))
    return np.array([[torch.cosine_similarity(z, t, dim=0).item() for t in to_tasks] for z in examples])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embedding_equals_the_naive_loop(architecture, inputs, few, tiny_model, tokenizer):
    model = tiny_model(architecture)
    slow = cosines(*few[:2], lambda row: naive_point(model, split(tokenizer, row)[0]))
    assert slow.std() > 1e-3
    assert_close(matrix(embedding, inputs(architecture), "embedding"), slow, 1e-5)


def test_a_task_is_nearest_to_itself_among_the_examples(inputs):
    ours = inputs("llama")
    ours.train = pd.concat([ours.tasks, ours.train.iloc[3:]], ignore_index=True)
    found = matrix(embedding, ours, "embedding")
    np.testing.assert_allclose(found[:3].diagonal(), 1, atol=1e-6)
    assert (found.argmax(axis=0) == [0, 1, 2]).all()


def test_the_token_that_begins_all_sequences_is_no_part_of_an_embedding(inputs, tiny_model, tokenizer):
    ours = inputs("llama")
    ours.tokenizer = copy.deepcopy(tokenizer)
    begin = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    ours.tokenizer.backend_tokenizer.post_processor = begin

    def point(row):
        ids = ours.tokenizer(query(row) + target(row))["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        return naive_point(tiny_model("llama"), ids, skipped=1)

    slow = cosines(ours.train, ours.tasks, point)
    assert_close(matrix(embedding, ours, "embedding"), slow, 1e-5)
    with_it = cosines(
        ours.train, ours.tasks, lambda row: naive_point(tiny_model("llama"), [0, *split(tokenizer, row)[0]])
    )
    assert np.abs(with_it - slow).max() > 1e-4, "else this proves nothing"


def test_embeddings_of_a_killed_job_are_those_of_one_that_was_not(
    inputs, few, tiny_model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(vectors, "SAVE_SECONDS", -1)
    ours, whole, resumed = inputs("llama"), tmp_path / "whole.npy", tmp_path / "resumed.npy"
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    shape = vectors.write_vectors(ours, whole, folders[0], batch_tokens=50)
    slow = np.array([naive_point(tiny_model("llama"), split(tokenizer, row)[0]) for row in few[0].to_dict("records")])
    assert shape == slow.shape
    assert_close(np.load(whole), slow / np.linalg.norm(slow, axis=1, keepdims=True), 1e-5)

    directions, asked = vectors.directions_of, []

    def killed(network, sequences, skipped):
        asked.append(len(sequences))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return directions(network, sequences, skipped)

    monkeypatch.setattr(vectors, "directions_of", killed)
    with pytest.raises(KeyboardInterrupt):
        vectors.write_vectors(ours, resumed, folders[1], batch_tokens=50)
    assert not resumed.exists()
    vectors.write_vectors(ours, resumed, folders[1], batch_tokens=50)
    assert len(asked) == 1 + len(batches(ours.lengths, 50)), "what was finished is computed again"
    assert resumed.read_bytes() == whole.read_bytes()


# --- perplexity and ifd -----------------------------------------------------------------------------------------


def log_probabilities(model, ids):
    """[n − 1]: of each token after the first."""
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [log_p[i - 1, ids[i]].item() for i in range(1, len(ids))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_perplexity_equals_the_naive_loop_and_is_high_where_the_response_is_easy(
    architecture, inputs, few, tiny_model, tokenizer
):
    def score(row):
        whole, start = split(tokenizer, row)
        found = log_probabilities(tiny_model(architecture), whole)[start - 1 :]
        return sum(found) / len(found)

    slow = np.array([[score(row)] for row in few[0].to_dict("records")])
    assert (slow < 0).all()
    assert_close(matrix(difficulty, inputs(architecture), "perplexity"), slow, 1e-5)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ifd_equals_the_naive_loop_over_the_same_tokens_on_both_sides(
    architecture, bos, inputs, few, tiny_model, tokenizer, monkeypatch
):
    if not bos:
        monkeypatch.setattr(tokenizer, "_special_tokens_map", {**tokenizer._special_tokens_map, "bos_token": None})
        assert tokenizer.bos_token_id is None

    def score(row):
        whole, start = split(tokenizer, row)
        model = tiny_model(architecture)
        given = log_probabilities(model, whole)[start - 1 :]
        if bos:
            return sum(given) / sum(log_probabilities(model, [tokenizer.bos_token_id, *whole[start:]]))
        return sum(given[1:]) / sum(log_probabilities(model, whole[start:]))

    slow = np.array([[score(row)] for row in few[0].to_dict("records")])
    assert slow.std() > 1e-3
    assert_close(matrix(difficulty, inputs(architecture), "ifd"), slow, 1e-5)


def test_a_response_of_one_token_has_no_ifd_where_nothing_stands_before_it(inputs, tokenizer, monkeypatch):
    ours = inputs("llama")
    ours.train = ours.train.assign(output=["a", *ours.train["output"][1:]])
    assert np.isfinite(matrix(difficulty, ours, "ifd")).all()
    monkeypatch.setattr(tokenizer, "_special_tokens_map", {**tokenizer._special_tokens_map, "bos_token": None})
    first = ours.train["id"][0]
    with pytest.raises(DataError, match=rf"ifd: 1 example with a response of one token: {first};.* or take perplexity"):
        matrix(difficulty, ours, "ifd")
    assert np.isfinite(matrix(difficulty, ours, "perplexity")).all()


def test_of_conversations_all_turns_of_the_assistant_count_each_by_itself_where_alone(inputs, tiny_model, tokenizer):
    turns = [("user", "Say a colour."), ("assistant", "Blue it is."), ("user", "Why?"), ("assistant", "The sky.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = {"id": "a", "instruction": "Why?", "input": "", "output": "The sky.", "messages": json.dumps(messages)}
    ours = inputs("llama")
    ours.train, ours.lengths = pd.DataFrame([row]), ours.lengths.iloc[:1]
    ours.prompts = prompts_of({"format": "chat", "chat_template": ZEPHYR})
    ids, sides = [], []
    for role, content in turns:
        answer = role == "assistant"
        parts = [(f"<|{role}|>\n", False), (content + tokenizer.eos_token, answer), ("\n", False)]
        for text, counts in parts:
            own = tokenizer(text)["input_ids"]
            ids += own
            sides += [counts] * len(own)
    assert ids == tokenizer(str(ours.prompts.of(tokenizer).document(row)))["input_ids"]
    model = tiny_model("llama")
    given = [p for p, counts in zip(log_probabilities(model, ids), sides[1:], strict=True) if counts]
    alone = [
        log_probabilities(model, [tokenizer.bos_token_id, *tokenizer(content + tokenizer.eos_token)["input_ids"]])
        for role, content in turns
        if role == "assistant"
    ]
    assert sum(map(len, alone)) == len(given)
    assert_close(matrix(difficulty, ours, "perplexity")[0, 0], np.mean(given), 1e-5)
    assert_close(matrix(difficulty, ours, "ifd")[0, 0], sum(given) / sum(map(sum, alone)), 1e-5)


# --- how work is cut --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "method"), MODELS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_no_number_depends_on_batch_size_order_or_padding(module, method, architecture, inputs):
    reference = matrix(module, inputs(architecture), method)
    for batch_tokens in (1, 2000):
        assert_close(matrix(module, inputs(architecture), method, batch_tokens), reference, 2e-5)
    shuffled = inputs(architecture)
    order = np.random.default_rng(0).permutation(len(shuffled.train))
    shuffled.train = shuffled.train.iloc[order].reset_index(drop=True)
    shuffled.lengths = shuffled.lengths.iloc[order].reset_index(drop=True)
    assert_close(matrix(module, shuffled, method), reference[order], 2e-5)
    padded = inputs(architecture)
    padded.capabilities = replace(padded.capabilities, packs=False, in_step=False)
    assert_close(matrix(module, padded, method), reference, 2e-5)


def computed(module, method, inputs, folder, number=1, of=1):
    folder.mkdir(exist_ok=True)
    settings = ({"batch_tokens": 200}, number, of, 200, folder, METHODS[method].per_task)
    return compute(module.__name__, [method], inputs, *settings)[method]


@pytest.mark.parametrize(("module", "method"), MODELS)
def test_a_matrix_is_bit_equal_for_any_number_of_shards(module, method, inputs, tmp_path):
    whole = computed(module, method, inputs("llama"), tmp_path / "whole")
    parts = [computed(module, method, inputs("llama"), tmp_path / f"{n}", n, 3) for n in (1, 2, 3)]
    assert all(len(part) < len(whole) for part in parts)
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole, check_exact=True)


@pytest.mark.parametrize(("module", "method"), MODELS)
def test_a_killed_job_goes_on_where_it_was_and_gives_the_same_bits(module, method, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("icprobe.attribution.shards.SAVE_SECONDS", -1.0)
    undisturbed = computed(module, method, inputs("llama"), tmp_path / "undisturbed")
    original, given = module.attribute, []

    def killed(ours, name, runs, **settings):
        given.append(len(runs))
        for made, piece in enumerate(original(ours, name, runs, **settings)):
            if made == 2 and len(given) == 1:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(module, "attribute", killed)
    with pytest.raises(KeyboardInterrupt):
        computed(module, method, inputs("llama"), tmp_path / "partial")
    resumed = computed(module, method, inputs("llama"), tmp_path / "partial")
    assert given[1] == given[0] - 2 > 0
    pd.testing.assert_frame_equal(resumed, undisturbed, check_exact=True)


@pytest.mark.parametrize(("module", "method"), MODELS)
def test_the_model_is_left_as_it_was(module, method, inputs):
    ours = inputs("gpt2")
    before = {name: value.clone() for name, value in ours.model.state_dict().items()}
    attention = ours.model.config._attn_implementation
    matrix(module, ours, method)
    assert all((value == before[name]).all() for name, value in ours.model.state_dict().items())
    assert ours.model.config._attn_implementation == attention
