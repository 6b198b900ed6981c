"""A control token that stands in a row's words is text; one that a template writes is a token; nothing else changes."""

import copy
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import Inputs, encode_tasks
from icprobe.attribution.one_shots import OneShots
from icprobe.config import Templates
from icprobe.errors import DataError
from icprobe.tables.fitting import lengths, prompt_lengths
from icprobe.texts import control_tokens
from icprobe.texts.prompts import Prompts, encode, token_ids
from icprobe.texts.readers import Reader
from icprobe.training.fine_tune import tokenize

END, TURN, THINK = "<|endoftext|>", "<|im_start|>", "<think>"
CHAT = {
    "query": "{% set turn = '<|im_start|>' %}{{ turn }}user\n{{ instruction | flat }}<|im_end|>\n{{ turn ~ 'bot' }}\n",
    "target": "{{ output | flat }}<|im_end|>",
}
ROW = {"id": "r", "instruction": "Show <|im_start|> and <think>.", "input": "", "output": "It is <|endoftext|>, then."}
PLAIN = {"id": "p", "instruction": "Add 1 and 2.", "input": "", "output": "3, as <b> says | <|x"}


def made_of(templates, mode="text"):
    return Prompts({**Templates().model_dump(), **templates, "special_tokens": mode})


@pytest.fixture(scope="module")
def byte_level(tokenizer):
    """A byte-level BPE as GPT-2's and Qwen's, with tokens that are marked special and one that is not."""
    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"additional_special_tokens": [TURN, "<|im_end|>"]})
    made.add_tokens([THINK, "    "])
    return made


@pytest.fixture(scope="module")
def metaspace():
    """A BPE whose words begin with ▁, the first of a text too, as Llama's."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.ByteFallback()
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", *bytes_], show_progress=False)
    made.train_from_iterator(["▁Instruction:▁Show▁and▁<s>▁it▁is▁then▁Response:"] * 3, trainer)
    made.add_special_tokens([AddedToken(token, special=True) for token in (END, TURN, "<|im_end|>")])
    made.add_tokens([THINK])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, unk_token="<unk>")


@pytest.fixture(params=["byte_level", "metaspace"])
def known(request):
    return request.getfixturevalue(request.param)


def ids_of(tokenizer, *tokens):
    return {tokenizer.convert_tokens_to_ids(token) for token in tokens}


def test_a_control_token_in_a_row_is_tokenised_as_its_letters(known, prompts):
    found = token_ids(known, prompts.document(ROW))
    assert ids_of(known, END, TURN, THINK).isdisjoint(found)
    assert known.decode(found).replace("▁", " ").strip() == prompts.document(ROW)
    assert not ids_of(known, END, TURN, THINK).isdisjoint(token_ids(known, str(prompts.document(ROW))))


def test_the_ids_are_those_that_the_tokenizer_gives_where_it_is_told_to_split_its_special_tokens(known, prompts):
    document = prompts.document({**ROW, "instruction": f"Show{TURN}{END}  <|im_end|>."})
    own = known(str(document), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert list(token_ids(known, document)) == own
    assert list(token_ids(known, document)) != known(str(document), add_special_tokens=False)["input_ids"]


def test_a_control_token_that_the_template_writes_stays_a_token(known):
    found = token_ids(known, made_of(CHAT).document(ROW))
    tokens = [known.convert_ids_to_tokens(number) for number in found]
    assert tokens.count(TURN) == 2
    assert tokens.count("<|im_end|>") == 2
    assert ids_of(known, END, THINK).isdisjoint(found)
    plain = made_of(CHAT).document(PLAIN)
    assert list(token_ids(known, plain)) == known(str(plain), add_special_tokens=False)["input_ids"]


def test_the_template_s_tokens_are_those_of_a_row_without_control_tokens(known):
    """Around the row's words nothing moves: the ids before and behind them are the same."""
    harmless, harmful = (
        token_ids(known, made_of(CHAT).query({**PLAIN, "instruction": words})) for words in ("x y", f"x {END} y")
    )
    alike = next(i for i, (a, b) in enumerate(zip(harmless, harmful, strict=False)) if a != b)
    behind = next(i for i, (a, b) in enumerate(zip(reversed(harmless), reversed(harmful), strict=False)) if a != b)
    assert alike + behind >= len(harmless) - 2


def test_a_row_s_words_and_a_template_s_do_not_make_a_token_together(byte_level):
    prompts = made_of({"query": "<{{ instruction }}>", "target": "{{ output }}"})
    assert ids_of(byte_level, THINK).isdisjoint(token_ids(byte_level, prompts.query({**ROW, "instruction": "think"})))


def test_a_control_token_s_joint_text_is_split_at_its_context(known, prompts):
    encoded = encode(known, prompts.query(ROW), prompts.target(ROW))
    assert encoded.ids == token_ids(known, prompts.document(ROW))
    assert encoded.n_context == len(token_ids(known, prompts.query(ROW)))


@given(words=st.lists(st.sampled_from(["a", " ", "\n", "é", "世界", END, TURN, THINK, "    ", "<", "|>", "<b>"])))
def test_a_text_without_control_tokens_has_the_tokenizer_s_own_ids(words, byte_level, prompts):
    row = {**PLAIN, "output": "".join(words)}
    document = prompts.document(row)
    own = byte_level(str(document), add_special_tokens=False)["input_ids"]
    if ids_of(byte_level, END, TURN, THINK).isdisjoint(own):
        assert list(token_ids(byte_level, document)) == own
    else:
        assert byte_level.decode(token_ids(byte_level, document)) == document


def test_token_keeps_control_tokens_and_error_refuses_them_by_the_row(byte_level):
    kept = made_of({}, "token").document(ROW)
    assert list(token_ids(byte_level, kept)) == byte_level(str(kept), add_special_tokens=False)["input_ids"]
    with pytest.raises(DataError, match=r"row r: holds '<think>', a control token .* data\.special_tokens: text"):
        token_ids(byte_level, made_of({}, "error").query(ROW))
    assert token_ids(byte_level, made_of(CHAT, "error").document(PLAIN))


def test_what_cannot_be_read_as_text_is_refused_and_no_template_without_such_rows(byte_level):
    shouting = made_of({"query": "<|im_start|>{{ instruction | capitalize }}"})
    with pytest.raises(DataError, match=r"row r: holds '<think>', .* cannot be read as text"):
        token_ids(byte_level, shouting.query(ROW))
    fine = shouting.query(PLAIN)
    assert list(token_ids(byte_level, fine)) == byte_level(str(fine), add_special_tokens=False)["input_ids"]
    words = Tokenizer(models.WordLevel({"<unk>": 0, THINK: 1, "Response:": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(THINK, special=True)])
    one_word = PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(DataError, match="the tokenizer has no other tokens for it"):
        token_ids(one_word, made_of({}).query({**ROW, "instruction": THINK}))


def normalising(**flags):
    """A BPE that reads ＜ as <, and its control tokens, which it looks for afterwards."""
    made = Tokenizer(models.BPE())
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([AddedToken(token, special=True, **flags) for token in (THINK, END)])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_a_control_token_that_the_tokenizer_makes_of_other_letters_is_text_too():
    known = normalising(normalized=True)
    words, template = {**ROW, "instruction": "an ＜think＞"}, made_of({"query": "＜think＞{{ instruction }}"})
    found = token_ids(known, made_of({}).query(words))
    assert ids_of(known, THINK).isdisjoint(found)
    assert found == token_ids(normalising(normalized=False), made_of({}).query(words))
    assert token_ids(known, template.query(PLAIN))[0] in ids_of(known, THINK)
    with pytest.raises(DataError, match=r"row r: holds .* data\.special_tokens: text"):
        token_ids(known, made_of({}, "error").query(words))


def test_a_token_that_a_template_writes_is_never_replaced_by_the_letters_of_another_name():
    known, prompts = normalising(normalized=False, single_word=True), made_of({"query": "{{ instruction }}" + END})
    with pytest.raises(DataError, match="cannot be read as text"):  # beside a letter END is no token
        token_ids(known, prompts.query({**ROW, "instruction": "<think> a"}))
    found = token_ids(known, prompts.query({**ROW, "instruction": "<think>"}))
    assert known.convert_ids_to_tokens(found) == [*THINK, END]


def test_a_token_that_the_model_does_not_know_is_refused_where_lengths_are_measured(byte_level):
    tokens = len(byte_level)
    wide = copy.deepcopy(byte_level)
    wide.add_special_tokens({"additional_special_tokens": ["[PAD]"]})
    rows = pd.DataFrame([{**ROW, "output": "It is [PAD]."}])
    refused = rf"^row r: '\[PAD\]' is a control token of m's tokenizer .* number is {tokens}, .* {tokens} rows"
    with pytest.raises(DataError, match=refused):
        lengths(rows, made_of({}, "token"), Reader("m", wide, None, tokens))
    with pytest.raises(DataError, match=r"^templates: "):
        lengths(rows, made_of({"query": "[PAD] {{ instruction }}"}), Reader("m", wide, None, tokens))
    assert len(lengths(rows, made_of({}), Reader("m", wide, None, tokens)))
    assert len(lengths(rows, made_of({}, "token"), Reader("m", wide, None, tokens + 1)))


def test_every_engine_reads_a_row_s_control_tokens_as_text(byte_level, prompts, tiny_model):
    train, tasks = pd.DataFrame([ROW, PLAIN]), pd.DataFrame([PLAIN, {**ROW, "id": "t"}])
    own = lengths(train, prompts, Reader("m", byte_level, None))
    inputs = Inputs(train, tasks, own, prompts, tiny_model("llama"), byte_level)
    forbidden = ids_of(byte_level, END, TURN, THINK)
    documents = encode_documents(inputs, [[0, 1]])
    assert forbidden.isdisjoint({number for document in documents.values() for number in document.ids})
    assert [len(documents[row].ids) for row in (0, 1)] == (own["n_query"] + own["n_target"]).tolist()
    assert forbidden.isdisjoint({number for task in encode_tasks(inputs) for number in task.ids})
    prefix, suffixes = OneShots(byte_level, prompts, tasks.to_dict("records")).encode(ROW, [0, 1])
    assert forbidden.isdisjoint({*prefix, *(number for suffix in suffixes for number in suffix.ids)})
    whole = prompts.one_shot(ROW, {**ROW, "id": "t"}) + prompts.target(ROW)
    assert prefix + suffixes[1].ids == token_ids(byte_level, whole)
    examples, _ = tokenize(byte_level, [ROW], prompts, 512)
    end = byte_level.eos_token_id
    assert forbidden & set(examples[0]["input_ids"]) == {end}
    assert examples[0]["input_ids"].index(end) == len(examples[0]["input_ids"]) - 1


def test_rows_with_control_tokens_are_counted_in_the_log(byte_level, prompts, caplog):
    caplog.set_level("INFO")
    reader = Reader("m", byte_level, None)
    assert control_tokens.count_control_tokens(byte_level, [prompts.document(row) for row in (ROW, PLAIN)])[0] == 1
    assert control_tokens.count_control_tokens(byte_level, [made_of(CHAT).document(PLAIN)]) == (0, [])
    lengths(pd.DataFrame([ROW, PLAIN]), prompts, reader)
    assert "1 of 2 rows hold control tokens of m" in caplog.text
    caplog.clear()
    prompt_lengths(pd.DataFrame([ROW]), made_of({}, "token"), reader, 5)
    assert "1 of 1 rows hold control tokens of m" in caplog.text
    assert "they are tokens" in caplog.text


def test_texts_of_rows_are_tokenised_in_one_place():
    source = Path(control_tokens.__file__).parents[1]
    calls = re.compile(r"(?<![a-z_])tokenizer\(|\.encode_batch\(|apply_chat_template\(")
    found = {str(path.relative_to(source)) for path in source.rglob("*.py") if calls.search(path.read_text("utf-8"))}
    # Where a cut may fall or a target begins, and whether a tokenizer knows any words: a model reads none of these ids.
    elsewhere = {"texts/prompts.py", "texts/readers.py", "texts/turns.py", "engine/models.py"}
    assert found == {"texts/control_tokens.py", *elsewhere}
