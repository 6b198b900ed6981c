"""Texts by chat templates: ids and masks as trl's and plain transformers' are, and what methods compute on them."""

import json

import pandas as pd
import pytest
import trl.chat_template_utils as trained
from chats import CHATML, CONVERSATIONS, EXAMPLES, MISTRAL, OURS, TASKS, THEIRS, ZEPHYR, chat, labelled, row

from icprobe.config import Templates
from icprobe.errors import ConfigError, DataError, ModelError
from icprobe.evaluation.stopping import Stops
from icprobe.tables.checking import read_table
from icprobe.tables.fitting import fit_train, lengths
from icprobe.texts.chat import prompts_of
from icprobe.texts.conversations import messages_of
from icprobe.texts.prompts import encode
from icprobe.texts.readers import Reader


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("name", THEIRS)
def test_ids_and_masks_are_those_of_trls_assistant_only_loss(name, turns, spoken):
    published, blocks = (getattr(trained, f"{name}{end}") for end in ("_chat_template", "_training_chat_template"))
    tokenizer, conversation = spoken(published), CONVERSATIONS[turns]
    if name == "gemma" and "system" in turns:
        with pytest.raises(DataError, match="System role not supported"):
            labelled(tokenizer, chat(), row(conversation))
        return
    messages = [{"role": role, "content": content} for role, content in conversation]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    theirs = tokenizer.apply_chat_template(messages, chat_template=blocks, **options)
    assert labelled(tokenizer, chat(blocks), row(conversation)) == (theirs["input_ids"], theirs["assistant_masks"])
    # By prefixes the line break that a template writes behind the end of a turn is nobody's.
    ids, mask = labelled(tokenizer, chat(), row(conversation))
    assert ids == theirs["input_ids"]
    apart = [i for i, (ours, their) in enumerate(zip(mask, theirs["assistant_masks"], strict=True)) if ours != their]
    assert {tokenizer.decode(ids[i]) for i in apart} <= {"\n"}
    assert not any(mask[i] for i in apart)


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("name", OURS)
def test_ids_and_masks_are_those_of_a_naive_construction(name, turns, spoken):
    tokenizer, conversation = spoken(OURS[name]), CONVERSATIONS[turns]
    ids, mask = labelled(tokenizer, chat(), row(conversation))
    text, wanted = "", []
    eos, first = tokenizer.eos_token, True
    if name == "mistral":
        text, wanted = eos, [(eos, 0)]
    if name == "chatml" and conversation[0][0] != "system":
        wanted = [("<|im_start|>system\nHelp.<|im_end|>\n", 0)]
    system = ""
    for role, content in conversation:
        if name == "chatml":
            wanted += [(f"<|im_start|>{role}\n", 0), (f"{content}<|im_end|>", role == "assistant"), ("\n", 0)]
        elif name == "zephyr":
            wanted += [(f"<|{role}|>\n", 0), (f"{content}{eos}", role == "assistant"), ("\n", 0)]
        elif role == "system":
            system = f"{content}\n\n"
        elif role == "user":
            wanted += [(f"[INST] {system if first else ''}{content} [/INST]", 0)]
            first = False
        else:
            wanted += [(f" {content}{eos}", 1)]
    text = "".join(part for part, _ in wanted)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    starts, at = [], 0
    for part, trained_on in wanted:
        starts.append((at, at + len(part), trained_on))
        at += len(part)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # A token that has letters of both counts where its last letter is.
    assert mask == [int(any(a < end <= b for a, b, on in starts if on)) for _, end in offsets]


@pytest.mark.parametrize("name", OURS)
def test_turns_are_found_by_letters_as_by_prefixes(name, spoken, monkeypatch):
    tokenizer = spoken(OURS[name])
    by_letters = [labelled(tokenizer, chat(), row(turns)) for turns in CONVERSATIONS.values()]
    monkeypatch.setattr("icprobe.texts.turns._letters", lambda *_: None)
    for turns, expected in list(zip(CONVERSATIONS.values(), by_letters, strict=True))[:-1]:
        assert labelled(tokenizer, chat(), row(turns)) == expected


def test_the_target_is_the_last_turn_with_its_end_and_stands_behind_the_query(spoken):
    tokenizer = spoken(CHATML)
    prompts = chat().of(tokenizer)
    example = row(CONVERSATIONS["several"])
    assert prompts.target(example) == "6<|im_end|>"
    assert prompts.document(example) == f"{prompts.query(example)}{prompts.target(example)}\n"
    encoded = encode(tokenizer, prompts.query(example), prompts.target(example))
    assert tokenizer.decode(encoded.ids[encoded.n_context :]) == "6<|im_end|>"
    messages = messages_of(example)[:-1]
    assert prompts.query(example) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_template_writes_its_own_bos_once(spoken):
    tokenizer = spoken(MISTRAL)
    ids = encode(
        tokenizer, *(getattr(chat().of(tokenizer), name)(row(CONVERSATIONS["one"])) for name in ("query", "target"))
    ).ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1] != tokenizer.bos_token_id


def test_control_tokens_in_rows_are_letters(spoken):
    tokenizer = spoken(CHATML)
    said = row([("user", "What is <|im_end|>?"), ("assistant", "The <|im_end|> token.")])
    ids, mask = labelled(tokenizer, chat(), said)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 3  # of the system, the user and the assistant
    assert tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on]) == "The <|im_end|> token.<|im_end|>"
    as_token, _ = labelled(tokenizer, chat(special_tokens="token"), said)
    assert as_token.count(end) == 5


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}", "no control token behind"),
        ("{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_end|>' }}{% endfor %}", "does not write what"),
        (CHATML.replace("assistant\\n'", "assistant\\n<think>'"), "writes the turns before an answer otherwise"),
        (CHATML.replace("m.content", "m.content[:-1] if not loop.last else m.content"), "otherwise once the answer"),
    ],
)
def test_a_template_that_does_not_tell_whose_tokens_they_are_is_refused(template, complaint, spoken):
    with pytest.raises(ModelError, match=complaint):
        labelled(spoken(template), chat(), row(CONVERSATIONS["several"]))


def test_a_template_that_refuses_a_row_is_said_with_the_row(spoken):
    with pytest.raises(DataError, match=r"^row x\w+: the chat template makes nothing .*roles must alternate"):
        labelled(spoken(MISTRAL), chat(), row([("user", "a"), ("user", "b"), ("assistant", "c")]))


def test_a_model_without_a_template_is_refused(spoken):
    tokenizer = spoken(CHATML)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template; give one in templates\.chat_template"):
        chat().of(tokenizer)
    assert chat(CHATML).of(tokenizer).target(row(CONVERSATIONS["one"])) == "The Drava.<|im_end|>"


def test_no_text_depends_on_the_day(spoken):
    dated = CHATML.replace("Help.", "' + strftime_now('%d %b %Y') + '")
    prompts = chat().of(spoken(dated))
    assert prompts.query(row(CONVERSATIONS["one"])).startswith("<|im_start|>system\n26 Jul 2024<|im_end|>")
    with pytest.raises(ConfigError, match="asks for the date in a way of its own"):
        chat(CHATML.replace("Help.", "' + strftime_now(form) + '")).of(spoken(dated))


def test_jinja_templates_refuse_what_they_would_read_in_part():
    jinja = prompts_of(Templates().model_dump())
    assert jinja.query(row(CONVERSATIONS["one"])) == "Instruction: Name a river. Response:"
    with pytest.raises(DataError, match=r"conversation of 4 turns .*templates\.format: chat"):
        jinja.query(row(CONVERSATIONS["several"]))


def test_a_long_conversation_is_cut_in_its_last_answer(spoken):
    tokenizer = spoken(CHATML)
    long = row([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d " * 200)])
    frame, prompts = pd.DataFrame([long]), chat()
    reader = Reader("m", tokenizer, 300)
    cut = fit_train(frame, pd.DataFrame([TASKS[0]]), prompts, [reader], "truncate")
    assert 0 < len(cut["output"][0]) < len(long["output"])
    assert messages_of(cut.iloc[0])[-1]["content"] == cut["output"][0]
    counted = lengths(cut, prompts, reader).iloc[0]
    assert counted["n_first"] < counted["n_query"]


def test_responses_end_at_the_end_of_a_turn(spoken):
    for template, end in ((CHATML, "<|im_end|>"), (ZEPHYR, "<|endoftext|>")):
        tokenizer = spoken(template)
        assert tokenizer.convert_tokens_to_ids(end) in Stops.of(chat(), tokenizer).tokens


def test_subsets_hold_conversations_that_are_read_back(tmp_path):
    from icprobe.training.subsets import read_subset, write_subset

    table = pd.DataFrame(EXAMPLES).set_index("id", drop=False)
    paths = tmp_path / "bin.jsonl", tmp_path / "bin.messages.jsonl"
    write_subset(table, [*table["id"]], {}, chat(), *paths)
    back = read_subset(paths[0])
    assert [messages_of(row) for row in back] == [messages_of(row) for row in EXAMPLES]
    held = [json.loads(line)["messages"] for line in paths[1].read_text(encoding="utf-8").splitlines()]
    assert held == [messages_of(row) for row in EXAMPLES]


def test_alpacas_fields_are_one_exchange(spoken):
    tokenizer = spoken(CHATML)
    prompts = chat().of(tokenizer)
    alpaca = {"id": "a", "instruction": "Add.", "input": "1 2", "output": "3"}
    spelled = row([("user", "Add.\n\n1 2"), ("assistant", "3")])
    for text in ("query", "target", "document", "one_shot_prefix"):
        assert getattr(prompts, text)(alpaca) == getattr(prompts, text)(spelled)
    assert prompts.one_shot_prefix(alpaca).endswith("Instruction: Add. 1 2 Response: 3")


TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds <|im_end|>.", "parameters": {"a": 1}}}]
CALLING = (
    "{% if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.reasoning_content %}{{ '(' + m.reasoning_content + ')' }}{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson if c.type == 'function' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_tools_stand_in_all_texts_and_their_control_tokens_are_letters(spoken):
    tokenizer = spoken(CALLING)
    prompts, told = chat().of(tokenizer), row(CONVERSATIONS["one"], tools=TOOLS)
    assert "Adds" in prompts.query(told)
    ids, _ = labelled(tokenizer, chat(), told)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3  # of the tools, the user and the assistant
    assert "Adds" in prompts.one_shot(told, TASKS[0])  # as text
    frame = pd.DataFrame([told])
    with pytest.raises(DataError, match="have different tools, and one conversation has one set"):
        fit_train(frame, pd.DataFrame([TASKS[0]]), chat(context="turns"), [Reader("m", tokenizer, 4096)], "error")


def test_what_a_template_does_not_write_is_refused(spoken):
    reader, told = Reader("m", spoken(CHATML), None), row(CONVERSATIONS["one"], tools=TOOLS)
    with pytest.raises(DataError, match="the chat template does not write its tools"):
        lengths(pd.DataFrame([told]), chat(), reader)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
    thought = read_table({"path": "rows", "rows": [{"messages": messages}]})
    with pytest.raises(DataError, match="does not write its last reasoning_content"):
        lengths(thought, chat(), reader)
    written = chat().of(spoken(CALLING)).target(thought.iloc[0].to_dict())
    assert written == "(c)b<|im_end|>"


def test_control_tokens_that_begin_an_answer_end_none(spoken):
    said = "+ ('<|im_mid|>' if m.role == 'assistant' else '') + m.content +"
    tokenizer = spoken(CHATML.replace("+ m.content +", said))
    assert chat().of(tokenizer).target(TASKS[0]).startswith("<|im_mid|>")
    assert tokenizer.convert_tokens_to_ids("<|im_mid|>") not in Stops.of(chat(), tokenizer).tokens


def test_the_response_has_no_token_behind_the_end_of_its_turn(spoken):
    tokenizer = spoken(CHATML)
    counted = lengths(pd.DataFrame([TASKS[2]]), chat(), Reader("m", tokenizer, None)).iloc[0]
    assert counted["n_target"] == len(encode(tokenizer, "", "6<|im_end|>").ids)


def test_an_answer_that_is_cut_to_blanks_is_no_traceback(spoken):
    long = row([("user", "a"), ("assistant", "\n\n" + "d " * 300)])
    cut = fit_train(
        pd.DataFrame([long]), pd.DataFrame([TASKS[0]]), chat(), [Reader("m", spoken(CHATML), 200)], "truncate"
    )
    assert cut["output"][0].strip()
