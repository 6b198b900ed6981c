"""Rows as conversations: what published files hold becomes one form, or is refused in a sentence with its place."""

import json

import pandas as pd
import pytest

from icprobe.errors import DataError
from icprobe.tables.checking import read_table
from icprobe.texts.conversations import exchanges, messages_of

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def read(*rows, on_empty="error", needs_output=True, **source):
    return read_table({"path": "train", "rows": list(rows), **source}, on_empty=on_empty, needs_output=needs_output)


def first(*rows, **how):
    return read(*rows, **how).iloc[0].to_dict()


def said(row):
    return [(message["role"], message["content"]) for message in messages_of(row)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": HI}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"messages": json.dumps(HI)}, [("user", "Hi"), ("assistant", "Hello")]),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            [("user", "Hi"), ("assistant", "Hello")],
        ),
        ({"prompt": HI[:1], "completion": HI[1:]}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"prompt": "Hi", "chosen": HI, "rejected": HI}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"prompt": "Hi", "completion": "Hello"}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"prompt": "Hi", "response": "Hello"}, [("user", "Hi"), ("assistant", "Hello")]),
        (
            {"messages": [{"role": "System", "content": "Be brief."}, *HI]},
            [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")],
        ),
        (
            {"messages": [{"role": "USER", "content": [{"type": "text", "text": "H"}, "i"], "name": "x"}, HI[1]]},
            [("user", "Hi"), ("assistant", "Hello")],
        ),
        ({"messages": [HI[0], *HI]}, [("user", "Hi"), ("user", "Hi"), ("assistant", "Hello")]),
    ],
)
def test_a_row_of_each_kind_is_one_conversation(row, expected):
    found = first(row)
    assert said(found) == expected
    assert (found["instruction"], found["input"], found["output"]) == ("Hi", "", "Hello")


def test_alpacas_columns_win_and_plain_texts_are_rows_as_ever():
    both = {"instruction": "Say hi.", "output": "Hi.", "messages": HI}
    assert first(both)["output"] == "Hi."
    assert first(both, format="messages")["output"] == "Hello"
    plain, alpaca = read({"prompt": "Hi", "completion": "Yo"}), read({"instruction": "Hi", "output": "Yo"})
    pd.testing.assert_frame_equal(plain, alpaca)


def test_columns_of_other_names_are_mapped():
    assert said(first({"dialog": HI}, columns={"messages": "dialog"})) == said(first({"messages": HI}))
    assert first({"dialog": HI, "key": 7}, columns={"messages": "dialog", "id": "key"})["id"] == "7"


def test_an_id_follows_the_whole_conversation():
    longer = [{"role": "user", "content": "Before"}, {"role": "assistant", "content": "x"}, *HI]
    table = read({"messages": HI}, {"messages": longer}, {"messages": HI})
    assert table["id"].nunique() == 3
    assert table["id"][2] == f"{table['id'][0]}-2"


def test_a_turn_without_an_answer_is_refused_or_left_away():
    row = {"messages": [*HI, {"role": "user", "content": "Bye"}]}
    with pytest.raises(DataError, match=r"train\[0\]: the conversation ends with a turn of the user"):
        read(row)
    table = read(row, on_empty="drop")
    assert said(table.iloc[0]) == said(first({"messages": HI}))
    assert table.attrs == {"dropped_empty": 0, "turns_left": 1}


def test_an_empty_answer_is_as_an_empty_output_is():
    empty = {"messages": [HI[0], {"role": "assistant", "content": " "}, *HI]}
    with pytest.raises(DataError, match=r"train\[1\]: an assistant turn is empty"):
        read({"messages": HI}, empty)
    table = read({"messages": HI}, empty, on_empty="drop")
    assert len(table) == 1
    assert table.attrs["dropped_empty"] == 1
    with pytest.raises(DataError, match="no row has an output"):
        read(empty, on_empty="drop")


def test_an_eval_prompt_may_wait_for_an_answer():
    table = read({"messages": HI[:1]}, {"messages": HI}, needs_output=False)
    assert table["output"].tolist() == ["", "Hello"]
    assert said(table.iloc[0]) == [("user", "Hi")]
    assert first({"prompt": "Hi"}, needs_output=False)["instruction"] == "Hi"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [{"role": "user", "content": None}, HI[1]]}, 'message 1 of "messages" has no content'),
        ({"messages": [{"role": "judge", "content": "x"}]}, "has the role 'judge'"),
        ({"messages": ["Hi"]}, "message 1 of \"messages\" is 'Hi', not a mapping"),
        ({"messages": []}, "a list of messages is needed"),
        ({"messages": "Hi"}, "is text that is no JSON"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, HI[1]]}, "type 'image'"),
        ({"messages": [HI[0], {**HI[1], "weight": 0}]}, "weight 0"),
        ({"messages": [HI[1]]}, "no turn of the user before its last answer"),
        ({"messages": [HI[0], {"role": "assistant", "content": "\ud800"}]}, "half a surrogate pair"),
        ({"chosen": "Hello"}, '"prompt" is missing'),
        ({"prompt": "Bye", "chosen": HI}, 'does not begin with "prompt"'),
        ({"messages": HI, "tools": "{"}, '"tools" is text that is no JSON'),
    ],
)
def test_what_cannot_be_understood_is_one_sentence_with_its_place(row, complaint):
    with pytest.raises(DataError, match=complaint) as caught:
        read(row)
    assert str(caught.value).startswith("train[0]: ")


def test_a_format_that_is_said_needs_its_columns():
    with pytest.raises(DataError, match="has no column 'conversations', which rows of the format sharegpt have"):
        read({"messages": HI}, format="sharegpt")


def test_files_of_every_format_are_read_alike(tmp_path):
    rows = [{"id": "a", "messages": HI}, {"id": "b", "messages": [{"role": "system", "content": "ß"}, *HI]}]
    jsonl, parquet, csv = (tmp_path / f"train.{end}" for end in ("jsonl", "parquet", "csv"))
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pd.DataFrame(rows).to_parquet(parquet)
    pd.DataFrame([{**row, "messages": json.dumps(row["messages"])} for row in rows]).to_csv(csv, index=False)
    tables = [read_table({"path": str(path)}) for path in (jsonl, parquet, csv)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_an_answer_that_was_cut_is_the_conversations_answer():
    row = first({"messages": HI})
    assert said({**row, "output": "Hel"}) == [("user", "Hi"), ("assistant", "Hel")]


def test_tools_and_their_calls_stay():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [HI[0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages += [{"role": "tool", "name": "add", "content": "2"}, HI[1]]
    row = first({"messages": messages, "tools": [{"name": "add"}]})
    assert messages_of(row) == [HI[0], {"role": "assistant", "content": "", "tool_calls": [call]}, *messages[2:]]
    assert json.loads(row["tools"]) == [{"name": "add"}]
    system, pairs = exchanges(messages_of(row))
    assert (system, [answer for _, answer in pairs]) == ("", [json.dumps([call]), "Hello"])


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def test_rows_keep_their_numbers_where_others_are_dropped():
    empty = {"messages": [HI[0], {"role": "assistant", "content": ""}]}
    table = read(empty, {"messages": HI}, on_empty="drop")
    assert table["row_number"].tolist() == [1]
    alpaca = read({"instruction": "a", "output": ""}, {"instruction": "a", "output": "b"}, on_empty="drop")
    assert alpaca["row_number"].tolist() == [1]


def test_a_column_of_the_file_never_takes_the_place_of_the_rows_own_conversation():
    other = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    row = first({"prompt": "Hi", "completion": "Hello", "messages": json.dumps(other)}, format="prompt_completion")
    assert said(row) == [("user", "Hi"), ("assistant", "Hello")]


def test_an_id_depends_on_no_other_row():
    alone = first({"messages": HI})["id"]
    tools = {"messages": HI, "tools": [{"name": "add"}]}
    assert read({"messages": HI}, tools)["id"].tolist() == [alone, first(tools)["id"]]
    assert alone == first({"instruction": "Hi", "output": "Hello"})["id"]
    assert {first({"messages": HI, "tools": nothing})["id"] for nothing in ([], "[]", "null", "", None)} == {alone}
    longer = {"prompt": [*HI, HI[0]], "completion": [HI[1]]}
    plain = {"prompt": "Hi", "completion": "Hello"}
    assert read(plain, longer)["id"][0] == first(plain)["id"] == alone


def test_nulls_that_parquet_adds_are_no_content(tmp_path):
    calls = [{"role": "assistant", "tool_calls": [{"function": {"arguments": {n: "x"}, "name": n}}]} for n in "ab"]
    rows = [{"messages": [HI[0], call, *HI]} for call in calls]
    pd.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    from_parquet = read_table({"path": str(tmp_path / "train.parquet")})
    pd.testing.assert_frame_equal(from_parquet, read(*rows))
    pd.testing.assert_frame_equal(
        read_table({"path": "x", "rows": pd.read_parquet(tmp_path / "train.parquet")}), read(*rows)
    )


def test_thoughts_and_system_columns_are_read():
    thinking = first({"messages": [HI[0], {**HI[1], "thinking": "Greet."}]})
    assert messages_of(thinking)[-1] == {**HI[1], "reasoning_content": "Greet."}
    assert said(first({"messages": HI, "system": "Be brief."}))[0] == ("system", "Be brief.")
    with pytest.raises(DataError, match="another text than the conversation's own system message"):
        read({"messages": [{"role": "system", "content": "a"}, *HI], "system": "b"})


def test_json_texts_are_read_as_what_they_are():
    for indent in (None, 1):
        row = first({"prompt": json.dumps(HI[:1], indent=indent), "completion": "Hello"})
        assert said(row) == [("user", "Hi"), ("assistant", "Hello")]
    people = json.dumps([{"name": "Ann"}])
    assert first({"prompt": "Who?", "completion": people})["output"] == people
    called = first({"messages": [HI[0], {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])}]})
    assert messages_of(called)[-1]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": HI, "tools": 7}, "\"tools\" is '7'; a list of tools is needed"),
        ({"messages": "[" * 100_000}, "nested too deeply"),
        ({"messages": '[{"role": "user", "role": "x"}]'}, "the key 'role' appears twice"),
        (
            {"messages": [HI[0], {"role": "assistant", "tool_calls": [{"name": "\ud800"}]}]},
            "half a surrogate pair",
        ),
    ],
)
def test_odd_values_end_in_a_sentence(row, complaint):
    with pytest.raises(DataError, match=complaint):
        read(row)


def test_an_eval_prompt_with_an_empty_answer_waits_for_one():
    table = read({"messages": [HI[0], {"role": "assistant", "content": ""}]}, needs_output=False)
    assert said(table.iloc[0]) == [("user", "Hi")]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": [{"role": "user", "content": "2 + 2?"}], "output": "4"}, {}),
        ({"prompt": "2 + 2?", "output": "4"}, {}),
        ({"prompt": "2 + 2?", "answer": "4"}, {"output": "answer"}),
        ({"prompt": "2 + 2?", "output": float("nan")}, {}),
    ],
)
def test_an_eval_prompts_gold_answer_may_stand_beside_it(row, columns):
    found = read_table({"rows": [row], "columns": columns}, needs_output=False).iloc[0]
    assert found["instruction"] == "2 + 2?"
    assert found["output"] == ("" if row.get("output") != row.get("output") else "4")


def test_a_text_that_a_format_does_not_have_is_not_lost():
    rows = [{"prompt": "Where?", "context": "In Paris.", "completion": "There."}]
    with pytest.raises(DataError, match="columns maps our 'input', which rows of the format prompt_completion do not"):
        read_table({"rows": rows, "columns": {"input": "context"}})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": HI, "output": "Yo"}, '"output" is another text than the conversation\'s own answer; remove one'),
        ({"prompt": "Hi", "completion": "Hello", "output": "Yo"}, '"output" is another text than'),
        (
            {"prompt": "Sum up.", "input": "A text", "completion": "A"},
            '"input" stands beside "prompt", and rows',
        ),
        ({"prompt": "Sum up.", "input": "A text"}, '"input" stands beside "prompt"'),
        (
            {"prompt": "Sum up.", "input": "A text", "chosen": "A", "rejected": "B"},
            "rows of the format preference have",
        ),
        ({"chosen": HI, "input": "A text", "rejected": HI}, '"input" stands beside "chosen", .* write it into that'),
    ],
)
def test_of_two_answers_and_of_an_input_beside_a_prompt_none_is_lost(row, said):
    with pytest.raises(DataError, match=said):
        read(row, needs_output=False)
    if "completion" in row and "input" in row:
        with pytest.raises(DataError, match=said):
            read(row)
        assert read(row, format="prompt_completion")["instruction"].tolist() == ["Sum up."]
    answer = row.get("completion", "Hello" if "rejected" in row and "prompt" not in row else row.get("chosen", "Hello"))
    assert len(read({**row, "output": answer, "input": ""}, needs_output=False)) == 1


def test_conversations_are_repeated_only_where_all_of_them_is(tmp_path):
    from icprobe.tables.repeated import repeated

    ending = [{"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "Welcome"}]
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, HI[1], *ending]} for n in (1, 2)]
    paths = {"train": tmp_path / "train.parquet", "tasks": tmp_path / "tasks.parquet"}
    read(*rows, rows[0]).to_parquet(paths["train"])
    read({"instruction": "Thanks", "output": "Welcome"}).to_parquet(paths["tasks"])
    found = repeated(paths).set_index(["table", "also_in", "same"])["n"]
    assert found["train", "train", "row"] == 1
    assert found["train", "tasks", "prompt"] == 0


def test_jinja_refuses_calls_beside_a_text():
    from icprobe.texts.conversations import check_one_exchange

    check_one_exchange(first({"messages": HI}))
    with pytest.raises(DataError, match="has tools, calls or thoughts beside its texts"):
        check_one_exchange(first({"messages": [HI[0], {**HI[1], "tool_calls": [CALL]}]}))


def test_the_report_shows_what_was_said_before():
    from icprobe.texts.conversations import before

    row = first({"messages": [{"role": "system", "content": "Be brief."}, *HI, *HI]})
    assert before(row) == "system: Be brief.\n\nuser: Hi\n\nassistant: Hello\n\nuser: Hi"


def test_columns_of_a_conversation_that_alpacas_fields_would_hide_are_refused():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    table = {
        "path": "rows",
        "rows": [{"instruction": "i", "output": "o", "dialog": turns}],
        "columns": {"messages": "dialog"},
    }
    with pytest.raises(DataError, match="maps our 'messages', and rows are of the format alpaca"):
        read_table(table)
    assert read_table({**table, "format": "messages"})["instruction"].tolist() == ["a"]


@pytest.mark.parametrize("calls", [["add(1)"], [None], {"name": "add"}, '{"name": "add"}'])
def test_calls_that_are_no_mappings_are_refused(calls):
    called = [HI[0], {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(DataError, match="tool_calls"):
        read({"messages": called})


def test_calls_may_be_json():
    called = [HI[0], {"role": "assistant", "content": "", "tool_calls": ['{"name": "add", "arguments": {}}']}]
    assert messages_of(first({"messages": called}))[-1]["tool_calls"] == [{"name": "add", "arguments": {}}]
