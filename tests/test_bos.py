"""Models that were trained with a token at the beginning of every sequence get exactly one there."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from matrices import assert_close, matrices
from tokenizers.processors import TemplateProcessing

from icprobe.attribution import icp, influence
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import encode_tasks
from icprobe.attribution.one_shots import OneShots
from icprobe.evaluation.generation import responses
from icprobe.texts.completions import completions
from icprobe.texts.control_tokens import beginning
from icprobe.texts.prompts import Prompts
from icprobe.texts.readers import Reader

TEMPLATES = {
    "query": "Instruction: {{ instruction | flat }} Response:",
    "target": " {{ output | flat }}",
    "one_shot_prefix": "An example:\n\n{{ document }}",
    "separator": "\n\n",
}


@pytest.fixture(scope="module")
def words(tokenizer):
    """The tokenizer, which begins sequences with a token as Llama's does."""
    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"bos_token": "<s>"})
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    assert made("a")["input_ids"][0] == made.bos_token_id
    return made


@pytest.fixture
def given(inputs, words):
    def make(bos):
        ours = inputs("llama")
        ours.model.resize_token_embeddings(len(words))
        ours.tokenizer, ours.prompts = words, Prompts({**TEMPLATES, "bos": bos})
        return ours

    return make


def sequences(ours):
    """All sequences of tokens that the methods, training and judging make of the inputs, by who makes them."""
    rows = ours.train.to_dict("records")
    shots = OneShots(ours.tokenizer, ours.prompts, ours.tasks.to_dict("records"))
    pairs = [shots.encode(row, range(len(ours.tasks))) for row in rows]
    trained, _ = completions(ours.tokenizer, rows, ours.prompts, 512)
    return {
        "tasks": [one.ids for one in encode_tasks(ours)],
        "documents": [one.ids for one in encode_documents(ours, [range(len(rows))]).values()],
        "one-shot": [prefix + suffix.ids for prefix, suffixes in pairs for suffix in suffixes],
        "training": [one.ids for one in trained],
    }


def test_every_sequence_begins_with_one_and_has_no_other(given):
    ours = given("auto")
    bos = ours.tokenizer.bos_token_id
    for who, found in sequences(ours).items():
        assert all(ids[0] == bos and bos not in ids[1:] for ids in found), who
    without = sequences(given("none"))
    for who, found in sequences(ours).items():
        assert [ids[1:] for ids in found] == without[who], who


def test_a_tokenizer_that_begins_with_none_is_given_none(inputs, tokenizer):
    assert beginning(tokenizer) == []
    ours = inputs("llama")
    plain, ours.prompts = sequences(ours), Prompts({**TEMPLATES, "bos": "auto"})
    auto, ours.prompts = sequences(ours), Prompts({**TEMPLATES, "bos": "none"})
    assert auto == sequences(ours)
    assert plain.keys() == auto.keys()


def test_a_template_that_writes_the_token_itself_gets_no_second_one(given):
    ours = given("auto")
    ours.prompts = Prompts({**TEMPLATES, "query": "<s>" + TEMPLATES["query"], "bos": "auto"})
    bos = ours.tokenizer.bos_token_id
    assert all(one.ids[0] == bos and bos not in one.ids[1:] for one in encode_tasks(ours))


def test_a_rows_own_words_are_no_beginning(given):
    ours = given("auto")
    row = {"id": "x", "instruction": "<s> what is this?", "input": "", "output": "a tag"}
    text = ours.prompts.query(row)
    counted = Reader("m", ours.tokenizer, None).counts([text, str(text)])
    ids = encode_tasks(type(ours)(**{**vars(ours), "tasks": pd.DataFrame([row])}))[0].ids
    assert ids.count(ours.tokenizer.bos_token_id) == 1
    assert counted[0] > counted[1], "letters, and one token before them"


def test_numbers_are_those_of_plain_transformers_with_the_token(given):
    ours = given("auto")
    model, words, prompts = ours.model, ours.tokenizer, ours.prompts

    def log_likelihood(context, target):
        whole = [words.bos_token_id, *words(context + target, add_special_tokens=False)["input_ids"]]
        start = 1 + len(words(context, add_special_tokens=False)["input_ids"])
        log_p = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1).double()
        return sum(log_p[i - 1, whole[i]] for i in range(start, len(whole))), (log_p, whole)

    def shot(z, t):
        text = f"An example:\n\n{prompts.query(z)}{prompts.target(z)}\n\n{prompts.query(t)}"
        return (
            log_likelihood(text, prompts.target(t))[0] - log_likelihood(prompts.query(t), prompts.target(t))[0]
        ).item()

    train, tasks = ours.train.to_dict("records"), ours.tasks.to_dict("records")
    with torch.no_grad():
        slow = np.array([[shot(z, t) for t in tasks] for z in train])
    assert_close(matrices(icp, ours, "icp")["icp"], slow, 1e-4)
    fast = matrices(influence, ours, "influence", methods=["influence"])["influence"]
    other = matrices(influence, given("none"), "influence", methods=["influence"])["influence"]
    assert np.abs(fast - other).max() > 0.01 * np.abs(fast).max()
    parameters = [p.requires_grad_(True) for n, p in model.named_parameters() if ".layers." in n and p.ndim > 1]

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()

    log_p, whole = log_likelihood(prompts.query(train[0]), prompts.target(train[0]))[1]
    document = gradient(-sum(log_p[i - 1, whole[i]] for i in range(1, len(whole))))
    task = gradient(-log_likelihood(prompts.query(tasks[0]), prompts.target(tasks[0]))[0])
    assert fast[0, 0] == pytest.approx((document @ task).item(), rel=1e-3)


def test_prompts_are_answered_with_the_token_before_them(given, monkeypatch):
    ours, seen = given("auto"), []
    generate = ours.model.generate
    monkeypatch.setattr(ours.model, "generate", lambda **options: seen.append(options) or generate(**options))
    rows = [{**row, "subset": None} for row in ours.tasks.to_dict("records")]
    settings = {"max_new_tokens": 3, "batch_size": 4, "device": "cpu"}
    responses(ours.model, ours.tokenizer, ours.prompts, rows, "x", settings)
    (options,) = seen
    for ids, mask in zip(options["input_ids"].tolist(), options["attention_mask"].tolist(), strict=True):
        assert ids[mask.index(1)] == ours.tokenizer.bos_token_id
    assert json.dumps(settings)


def test_an_unknown_word_that_is_read_as_the_same_token_is_no_beginning():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "the": 1, "river": 2}, unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = "<|endoftext|>"
    unknown = PreTrainedTokenizerFast(tokenizer_object=made, unk_token=end, bos_token=end, eos_token=end)
    assert unknown("a")["input_ids"] == [0]
    assert beginning(unknown) == []
