"""Columns by other names: each is read once, and a column of texts that is not read is told."""

import json
import logging

import pandas as pd
import pytest

from icprobe.errors import DataError
from icprobe.tables import checking


def read(folder, rows, **options):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    source = {"path": str(path), **options.pop("source", {})}
    return checking.read_table(source, **options)


def texts(frame):
    return frame[["instruction", "input", "output"]].values.tolist()


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"input": "2 + 2?", "output": "4"}, {"instruction": "input"}, ["2 + 2?", "", "4"]),
        ({"instruction": "I.", "output": "O."}, {"instruction": "output", "output": "instruction"}, ["O.", "", "I."]),
        ({"instruction": "I.", "input": "N.", "answer": "O."}, {"output": "answer"}, ["I.", "N.", "O."]),
        (
            {"instruction": "I.", "input": "N.", "output": "O."},
            {"instruction": "input", "input": "instruction"},
            ["N.", "I.", "O."],
        ),
        # By the mapping these are prompts with completions, whose columns no longer have Alpaca's names.
        ({"instruction": "I.", "output": "O."}, {"prompt": "instruction", "completion": "output"}, ["I.", "", "O."]),
        ({"input": "N.", "output": "O."}, {"prompt": "input", "completion": "output"}, ["N.", "", "O."]),
        ({"prompt": "I.", "response": "O."}, {"instruction": "prompt", "output": "response"}, ["I.", "", "O."]),
    ],
)
def test_a_column_that_is_mapped_is_not_read_by_its_own_name_too(row, columns, expected, tmp_path):
    assert texts(read(tmp_path, [row], source={"columns": columns})) == [expected]


def test_a_column_that_names_rows_or_groups_them_may_be_read_twice(tmp_path):
    row = {"instruction": "I.", "output": "O.", "id": "a", "subset": "code"}
    frame = read(tmp_path, [row], source={"columns": {"domain": "subset"}}, extra=["domain", "subset"])
    assert frame[["domain", "subset"]].values.tolist() == [["code", "code"]]


def test_a_text_that_was_given_away_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"has no column 'output'"):
        read(tmp_path, [{"output": "4"}], source={"columns": {"instruction": "output"}})


def test_a_context_is_part_of_the_guess_and_told_where_it_is_not_read(tmp_path, caplog):
    row = {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada.", "category": "closed_qa"}
    with pytest.raises(DataError, match=r"columns: \{output: response, input: context\}\.$"):
        read(tmp_path, [row])
    with caplog.at_level(logging.WARNING):
        read(tmp_path, [row], source={"columns": {"output": "response", "input": "context"}})
        read(tmp_path, [{**row, "context": ""}], source={"columns": {"output": "response"}})
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        read(tmp_path, [row], source={"columns": {"output": "response"}})
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith(
        'rows.json: "context" is not read; where it belongs to what is asked, write columns: {input: context}'
    )


@pytest.mark.parametrize(
    ("row", "way"),
    [
        ({"instruction": "I.", "Context": "C.", "output": "O."}, "write columns: {input: Context}"),
        ({"instruction": "I.", "input": "N.", "context": "C.", "output": "O."}, "write it into input"),
        (
            {"prompt": "I.", "context": "C.", "response": "O."},
            "write columns: {instruction: prompt, input: context, output: response}",
        ),
    ],
)
def test_what_is_to_be_done_with_a_context_is_what_the_rows_allow(row, way, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read(tmp_path, [row])
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith(f"is not read; where it belongs to what is asked, {way}")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        checking.read_table({"rows": [{"instruction": "I.", "context": "C.", "output": "O."}], "path": "train"})
    assert caplog.records[0].getMessage().endswith("what is asked, rename it to input")


def test_a_mapped_text_may_be_a_label_too(tmp_path):
    row = {"prompt": "I.", "answer": "O."}
    frame = read(tmp_path, [row], source={"columns": {"instruction": "prompt", "output": "answer"}}, labels=["prompt"])
    assert frame["prompt"].tolist() == ["I."]


def test_a_context_in_memory_is_renamed():
    rows = pd.DataFrame([{"question": "Who?", "context": "Ada wrote it.", "answer": "Ada."}])
    with pytest.raises(DataError, match=r"'question': 'instruction', 'answer': 'output', 'context': 'input'"):
        checking.read_table({"rows": rows, "path": "train"})


def test_earlier_turns_and_a_system_message_beside_alpacas_fields_are_told(tmp_path, caplog):
    row = {"instruction": "And now?", "output": "O.", "system": "Be short.", "history": [["Hi.", "Hello."]]}
    with caplog.at_level(logging.WARNING):
        frame = read(tmp_path, [row, {**row, "instruction": "Then?", "history": []}])
        read(tmp_path, [{**row, "system": "", "history": []}])
        read(tmp_path, [row], labels=["system", "history"])
    assert len(frame) == 2
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith(
        'rows.json: "system" and "history" are not read; where models are to see them, make the rows conversations '
        "(docs/chat.md)"
    )


def test_completions_that_are_marked_as_bad_are_no_answers(tmp_path):
    rows = [
        {"prompt": "2 + 2?", "completion": "4", "label": True},
        {"prompt": "2 + 2?", "completion": "5", "label": False},
    ]
    with pytest.raises(DataError, match=r'row 2: "label" is false, as of a bad completion in unpaired preferences; '):
        read(tmp_path, rows)
    with pytest.raises(DataError, match='row 2: "label" is false'):
        read(tmp_path, rows, source={"columns": {"instruction": "prompt", "output": "completion"}})
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match='line 3: "label" is false'):
        checking.read_table({"path": str(tmp_path / "rows.csv")})
    assert len(read(tmp_path, rows, needs_output=False)) == 2  # what is asked has no bad answer
    assert len(read(tmp_path, [{**rows[0], "label": 0}])) == 1
    assert len(read(tmp_path, rows[:1])) == 1
    for asked in ({"source": {"format": "prompt_completion"}}, {"labels": ["label"]}):
        assert len(read(tmp_path, rows, **asked)) == 2
