"""What a chat template leaves out of a conversation is refused, and nothing that it writes."""

import importlib.resources
from contextlib import nullcontext

import pytest
from chats import CHATML, chat
from test_chat import CALLING

from icprobe.errors import DataError
from icprobe.tables.checking import read_table
from icprobe.tables.fitting import lengths
from icprobe.texts.readers import Reader

ANSWERED = {"role": "assistant", "content": "Paris"}
ASKED = {"role": "user", "content": "Where?"}
TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
USERS = "{% for m in messages %}{% if m.role != 'ROLE' %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
SILENT_CALL = CALLING.replace("{{ m.content }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}")
FIRST_CALL = CALLING.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
CALLS = [{"type": "function", "function": {"name": "add", "arguments": {"a": a}}} for a in (1, 2)]
CALLED = [
    ASKED,
    {"role": "assistant", "content": "I add.", "tool_calls": CALLS},
    {"role": "tool", "content": "3"},
    ANSWERED,
]


def read_row(messages):
    return read_table({"path": "rows", "rows": [{"messages": messages}]}).iloc[0].to_dict()


def published(name):
    return importlib.resources.files("trl").joinpath(f"chat_templates/{name}.jinja").read_text()


@pytest.mark.parametrize(
    ("template", "messages", "lost"),
    [
        (
            USERS.replace("ROLE", "system"),
            [{"role": "system", "content": "Be brief."}, ASKED, ANSWERED],
            "system message",
        ),
        (
            USERS.replace("ROLE", "tool"),
            [ASKED, {"role": "assistant", "content": "I look."}, {"role": "tool", "content": "42"}, ANSWERED],
            r"message 3 \(tool\)",
        ),
        (
            CHATML.replace("m.content", "m.content.split('</think>')[-1]"),
            [ASKED, {**ANSWERED, "content": "<think>A long thought.</think>Paris"}],
            r"thoughts in message 2 \(assistant\)",
        ),
        (SILENT_CALL, CALLED, r"message 2 \(assistant\)"),
        (FIRST_CALL, CALLED, r"call of a tool in message 2 \(assistant\)"),
    ],
)
def test_words_that_a_template_leaves_out_are_refused(template, messages, lost, spoken):
    told = read_table({"path": "rows", "rows": [{"messages": messages}]})
    with pytest.raises(DataError, match=f"the chat template does not write its {lost}; remove that"):
        lengths(told, chat(), Reader("m", spoken(template), None))
    lengths(told, chat(), Reader("m", spoken(CALLING), None))


def test_thoughts_of_turns_that_are_answered_may_be_left_out(spoken):
    said = "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}"
    turn = (
        "{{ '<|im_start|>assistant\\n' }}{% generation %}" + said + "{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    )
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + turn + "{% else %}" + TURN + "{% endif %}{% endfor %}"
    )
    thought = {**ANSWERED, "content": "<think>A thought.</think>Paris"}
    told = read_table({"path": "rows", "rows": [{"messages": [ASKED, thought, ASKED, thought]}]})
    lengths(told, chat(), Reader("m", spoken(template + PROMPT), None))


def test_calls_are_looked_for_without_taking_them_away(spoken):
    """gpt-oss' template refuses the result of a tool that was not called."""
    template = published("gptoss")
    messages = [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
        {"role": "tool", "content": "3"},
        ANSWERED,
    ]
    told = read_row(messages)
    chat(template).of(spoken(CHATML)).check_written(told)


def test_thoughts_that_a_prompt_has_opened_are_thoughts(spoken):
    thought = {**ANSWERED, "content": "A thought.\n</think>\n\nParis"}
    told = read_row([ASKED, thought, ASKED, thought])
    chat().of(spoken(CHATML)).check_written(told)
    cut = chat(USERS.replace("m.role != 'ROLE'", "true").replace("m.content", "m.content.split('</think>')[-1]"))
    with pytest.raises(DataError, match=r"does not write its thoughts in message 4 \(assistant\)"):
        cut.of(spoken(CHATML)).check_written(told)


@pytest.mark.parametrize("written", ["{{ c.function }}", "{{ c.function | tojson(ensure_ascii=true) }}"])
def test_a_call_may_be_written_as_python_or_ascii_writes_it(written, spoken):
    told = read_row(CALLED)
    template = CALLING.replace("{{ c | tojson if c.type == 'function' }}", written)
    assert template != CALLING
    chat(template).of(spoken(CHATML)).check_written(told)


@pytest.mark.parametrize(
    ("held", "lost"),
    [
        ({"arguments": {"a": "Zq9"}}, None),
        (
            {"parameters": {"a": "Zq9"}},
            "arguments of a call in message 2 under 'parameters' .rename that to 'arguments'",
        ),
        ({"input": {"a": "Zq9"}}, "arguments of a call in message 2 under 'input' .rename that to 'arguments'"),
        ({"args": ["Zq9"]}, "'args' .rename that to 'arguments'"),
        ({"arguments": {"a": "Zq9"}, "note": "Zq"}, "arguments of a call in message 2 under 'note'; remove"),
        ({"id": "c1", "type": "function", "index": 0}, None),
        *(({"parameters": none}, None) for none in ("{}", "{ }", "null", "", {})),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_values_of_a_call_that_a_template_knows_by_another_name_are_not_left_out(held, lost, inside, spoken):
    template = published("qwen3_6")
    call = {"name": "add", **held}
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": call} if inside else call]}
    told = read_row([ASKED, called, {"role": "tool", "content": "3"}, ANSWERED])
    prompts = chat(template).of(spoken(CHATML))
    with pytest.raises(DataError, match=f"does not write its .*{lost}") if lost else nullcontext():
        prompts.check_written(told)


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        ("gemma4", ["<|channel>thought\nHm.<channel|>Paris"]),
        ("gemma4", ["It is<|channel>thought Hm.<channel|> Paris"]),
        ("<answer>", ["Hm. <answer>Paris"]),
        ("### Answer", ["Hm.\n### Answer\nParis"]),
        ("qwen3", ["Write </think> and <think> there.", "Paris"]),
        ("qwen3", ["Write </think> there.", "Paris"]),
    ],
)
def test_words_between_other_markers_are_not_left_out(template, answers, spoken):
    messages = [turn for answer in answers for turn in (ASKED, {**ANSWERED, "content": answer})]
    told = read_row(messages)
    cut = CHATML.replace("m.content", f"m.content.split('{template}')[-1]")
    text = published(template) if template.isalnum() else cut
    with pytest.raises(DataError, match=r"does not write its .*message 2 \(assistant\)"):
        chat(text).of(spoken(CHATML)).check_written(told)
    chat().of(spoken(CHATML)).check_written(told)


@pytest.mark.parametrize(
    ("template", "thought"),
    [
        ("gemma4", "<|channel>thought\nHm.<channel|>Paris"),
        *(("qwen3", said) for said in ("Hm.</think>Paris", "Hm. </think> Paris", "4</think>4", "因此。</think>巴黎")),
        ("qwen3", "Hm\n</think>\n\nParis"),
        ("qwen3", "<think>Hm</think>Paris"),
    ],
)
def test_thoughts_that_are_answered_may_be_left_out_by_published_templates(template, thought, spoken):
    told = read_row([ASKED, {**ANSWERED, "content": thought}, ASKED, ANSWERED])
    chat(published(template)).of(spoken(CHATML)).check_written(told)
