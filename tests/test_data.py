"""Tables come out as the files say, each row checked; samples and selections are what was asked for."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icprobe import jsonl
from icprobe.errors import ArtifactError, ConfigError, DataError
from icprobe.tables import checking, labels, parquet, reading, selecting

ROWS = [
    {"id": "007", "instruction": "Add.", "input": "1 2", "output": "3"},
    {"id": "b", "instruction": 'Say "hi",\nplease.', "input": "", "output": "hi\u2028there"},
    {"id": "ج", "instruction": "ترجم", "input": "🙂", "output": " =1+1 "},
]


def written(folder, kind, rows=ROWS):
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def read(path, **options):
    return checking.read_table({"path": str(path), **options.pop("source", {})}, **options)


def values(column):
    return [None if pd.isna(value) else value for value in column]


def refused(path, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_the_same_rows_come_out_of_every_format(kind, tmp_path):
    assert read(written(tmp_path, kind)).to_dict("records") == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_line_ends_and_byte_order_mark_are_no_part_of_a_row(kind, tmp_path):
    path = written(tmp_path, kind, ROWS[:1])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read(path).to_dict("records") == ROWS[:1]


def test_rows_without_ids_keep_theirs_wherever_they_stand_and_whatever_stands_beside_them(tmp_path):
    rows = [{"instruction": f"a{n}", "output": "b", "input": None if n else ""} for n in range(11)]
    found = read(written(tmp_path, "jsonl", rows))
    assert found["row_number"].tolist() == list(range(11))
    assert set(found["input"]) == {""}
    assert found["id"].is_unique
    assert found["id"].str.fullmatch("x[0-9a-f]{12}").all(), found["id"].tolist()
    # Fewer rows, in another order, in another format, with a label more: the same ids.
    fewer = [row | {"label": "l"} for row in rows[:7][::-1]]
    again = read(written(tmp_path, "csv", fewer))
    assert again["id"].tolist() == found["id"].tolist()[:7][::-1]


def test_rows_that_repeat_another_are_numbered_and_each_text_counts(tmp_path):
    row = {"instruction": "a", "input": "b", "output": "c"}
    others = [row | {name: "other"} for name in row]
    ids = read(written(tmp_path, "jsonl", [row, *others, row, row]))["id"].tolist()
    assert ids[4:] == [f"{ids[0]}-2", f"{ids[0]}-3"]
    assert len(set(ids)) == 6


def test_rows_with_ids_have_no_row_numbers(tmp_path):
    assert "row_number" not in read(written(tmp_path, "jsonl"))


def test_tasks_without_ids_are_chosen_by_their_numbers_or_the_ids_made_for_them(tmp_path):
    rows = [{"instruction": f"a{n}", "output": "b"} for n in range(12)]
    table = read(written(tmp_path, "jsonl", rows))
    for names in (["10", "2"], ["10", "02"], ["10", table["id"][2]]):
        assert selecting.select_tasks(table, names, 0)["instruction"].tolist() == ["a10", "a2"], names
    for names, message in ((["12"], "no task '12'; the first ids are 'x"), (["2", "02"], "a task appears twice")):
        with pytest.raises(DataError, match=message):
            selecting.select_tasks(table, names, 0)
    # With ids of their own, numbers are ids.
    with pytest.raises(DataError, match="no task '0'"):
        selecting.select_tasks(table.drop(columns="row_number"), ["0"], 0)


def test_labels_are_texts_and_absent_ones_are_absent(tmp_path):
    rows = [{"instruction": "a", "output": "b", "x": 1}, {"instruction": "a", "output": "b", "x": None}]
    table = read(written(tmp_path, "parquet", rows), extra=["x", "y"])
    assert values(table["x"]) == ["1", None], "a column with gaps holds floats"
    for value, said in ((0.5, "0.5"), (np.float32(2), "2"), (np.float32("nan"), None), (-3.0, "-3")):
        assert checking.label(value) == said
    assert "y" not in table
    assert values(read(written(tmp_path, "jsonl", rows), extra=["x"])["x"]) == ["1", None]


def test_domains_are_those_of_all_files_that_can_be_read(tmp_path):
    for name, domains in (("a", ["law", None, " "]), ("b", ["law"]), ("c", ["code"])):
        pd.DataFrame({"topic": domains}).to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    (tmp_path / "broken.json").write_text("[")
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "broken.json", "absent.json", "c.jsonl")]
    assert checking.values(files, {"domain": "topic"}, "domain") == {"law", "code"}
    assert checking.values(files[:2], {"domain": "topic"}, "domain") == {"law"}
    assert checking.values(files, {}, "domain") == set()


def test_columns_can_be_renamed_and_even_exchanged(tmp_path):
    path = written(tmp_path, "jsonl", [{"output": "the question", "instruction": "the answer"}])
    table = read(path, source={"columns": {"instruction": "output", "output": "instruction"}})
    assert table.loc[0, ["instruction", "output"]].tolist() == ["the question", "the answer"]
    assert "has no column 'z', which `columns` gives for our 'output'; it has 'output', 'instruction'." in refused(
        path, source={"columns": {"output": "z"}}
    )
    assert 'did you mean "output"?' in refused(path, source={"columns": {"output": "outputs"}})


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("missing", [{}, {"x": None}, {"x": " "}])
def test_a_label_of_which_no_row_has_a_value_is_refused(kind, missing, tmp_path):
    rows = [row | {"planted": "sound"} | missing for row in ROWS]
    path = written(tmp_path, kind, rows)
    assert values(read(path, labels=["planted"])["planted"]) == ["sound"] * 3
    with pytest.raises(ConfigError, match=rf"data.labels: no row of {path} has a value in the column 'x'; correct"):
        read(path, labels=["planted", "x"])
    with pytest.raises(ConfigError, match=r"column 'plantd'; did you mean \"planted\"\? correct the name"):
        read(path, labels=["plantd"])


def test_a_label_that_is_no_number_and_without_good_values_is_told_with_the_key_to_write(tmp_path):
    rows = [row | {"stars": n, "source": "ab"[n % 2]} for n, row in enumerate(ROWS)]
    table = read(written(tmp_path, "jsonl", rows), labels=["stars", "source"])
    assert labels.check_unmarked(table, ["stars", "source"], ["source"]) == []
    (told,) = labels.check_unmarked(table, ["stars", "source"], [])
    assert "data.sound_labels: {source: [VALUE]} (it holds 'a', 'b')" in told


def test_labels_are_numbers_where_every_value_is_a_finite_one():
    def numbers(*given):
        found = labels.numbers(pd.Series(given, dtype=object))
        return None if found is None else values(found)

    assert numbers("1", "2.5", None) == [1, 2.5, None]
    assert numbers("1e3", "-2") == [1000, -2]
    for given in (("1", "2", "three"), ("1", "nan"), ("1", "inf"), ("1", "1"), (None, None), ("True", "False")):
        assert numbers(*given) is None, given


@pytest.mark.parametrize(
    ("kind", "size", "complete"),
    [(k, n, k != "json" or n < 9) for k in ("json", "csv", "parquet") for n in (3, 9000)]
    + [("jsonl", 3, True), ("jsonl", 9000, False)],
)
def test_a_look_at_a_file_finds_its_columns(kind, size, complete, tmp_path):
    rows = [{"instruction": f"Question {n}?", "response": "a" * 40} for n in range(size)]
    found = reading.columns_of(written(tmp_path, kind, rows))
    assert found == (["instruction", "response"] if complete or kind == "jsonl" else [], complete)


@pytest.mark.parametrize("content", ["", "{", "[1]\n", '"', "\udcff", '{"a": 1, "a": 2}'])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "txt"])
def test_a_look_at_a_broken_file_finds_nothing_and_raises_nothing(kind, content, tmp_path):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert not reading.columns_of(path)[1] or kind == "csv"
    assert reading.columns_of(tmp_path / f"none.{kind}") == ([], False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"instruction": "a", "output": "b"', "broken JSON (Expecting ',' delimiter, character 46)"),
        ('{"instruction": "a", "output": ""}', '"output" is empty'),
        ('{"instruction": "a", "output": "\\u2003 \\u00a0"}', '"output" is empty'),
        ('{"instruction": "a", "output": null}', '"output" is empty'),
        ('{"instruction": "  ", "output": "b"}', '"instruction" is empty'),
        ('{"output": "b"}', '"instruction" is missing'),
        ('{"instruction": "a", "output": 3}', "\"output\" is '3' (int), not a string"),
        ('{"instruction": "a", "output": ["b"]}', '"output" is a list of 1 (list), not a string'),
        ('{"instruction": "a", "output": "b", "output": "c"}', "the key 'output' appears twice"),
        ('{"instruction": "a", "output": NaN}', "NaN is not JSON"),
        ('{"instruction": "a", "output": "\\ud800"}', "half a surrogate pair"),
        ('{"instruction": "a", "output": "b", "kind": "\\ud800"}', '"kind" holds half a surrogate pair'),
        ('{"id": "007", "instruction": "a", "output": "b"}', "the id '007' is already used by line 1"),
        ('{"id": 1.0, "instruction": "a", "output": "b"}', "\"id\" is '1.0' (float), not a string or a whole number"),
        ('{"id": true, "instruction": "a", "output": "b"}', "\"id\" is 'True' (bool)"),
        ('{"id": "a\\nb", "instruction": "a", "output": "b"}', "an id is one line"),
        ('{"id": "\\u001b[2J", "instruction": "a", "output": "b"}', "an id is one line"),
        ('{"id": null, "instruction": "a", "output": "b"}', '"id" is missing; give all rows one, or none'),
        ('["a", "b"]', "a row must be a JSON object, not list"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(line, said, tmp_path):
    path = tmp_path / "rows.jsonl"
    if line.startswith("{") and '"id"' not in line:
        line = '{"id": "z", ' + line[1:]
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + line + "\n")
    message = refused(path, extra=["kind"])
    assert message.startswith(f"{path}, line 3: "), message
    assert said in message


def test_empty_outputs_are_dropped_and_counted_on_request(tmp_path):
    table = read(written(tmp_path, "jsonl", [*ROWS, {"id": "z", "instruction": "a", "output": " "}]), on_empty="drop")
    assert (len(table), table.attrs["dropped_empty"]) == (3, 1)
    assert "no row has an output" in refused(
        written(tmp_path, "jsonl", [{"instruction": "a", "output": ""}]), on_empty="drop"
    )


def test_eval_prompts_need_no_output(tmp_path):
    path = written(tmp_path, "jsonl", [{"instruction": "a"}])
    assert read(path, needs_output=False)["output"].tolist() == [""]
    assert "has no column 'output' (it has 'instruction'); say which it is, such as columns: {output: NAME}." in (
        refused(path)
    )
    path = written(tmp_path, "jsonl", [{"Prompt": "a", "completion": "b"}])
    assert "such as columns: {instruction: Prompt, output: completion}." in refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("instruction,output\na,b,c\n", "line 2: holds 3 fields where the header names 2"),
        ("instruction,output\na,b\na\n", "line 3: holds 1 fields where the header names 2"),
        ("instruction,output,output\na,b,c\n", "line 1: the column 'output' appears twice"),
        ('instruction,output\na,"b\n', "line 2: broken CSV"),
        ("instruction,output\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_a_csv_that_is_no_table_is_refused_and_never_shifted(content, said, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert said in refused(path)


def test_whole_numbers_of_a_parquet_file_stay_whole_beside_nulls(tmp_path):
    table = pa.table({"id": [2**60 + 1, 2], "instruction": ["a", "a"], "output": ["b", "c"], "n": [2**60 + 1, None]})
    pq.write_table(table, tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet", extra=["n"])
    assert found["id"].tolist() == [str(2**60 + 1), "2"]
    assert values(found["n"]) == [str(2**60 + 1), None]


def test_nested_parquet_columns_are_no_texts(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"instruction": ["a"], "output": [{"text": "b"}], "more": [[1, 2]]}), path)
    assert '"output" is an object of 1 (dict), not a string' in refused(path)


def test_a_file_that_is_missing_or_of_no_known_format_is_named(tmp_path):
    assert refused(tmp_path / "none.jsonl") == f"{tmp_path / 'none.jsonl'}: no such file."
    assert "unknown format '.txt'" in refused(tmp_path / "rows.txt")
    (tmp_path / "folder.jsonl").mkdir()
    assert "no such file" in refused(tmp_path / "folder.jsonl")


def test_written_tables_are_the_same_bytes_and_any_changed_byte_of_a_page_is_found(tmp_path):
    frame = pd.DataFrame({"id": ["a", "b", "c"], "score": np.array([0.1, 0.85, -1e300])})
    path = tmp_path / "t.parquet"
    parquet.write_parquet(frame, path)
    content = path.read_bytes()
    parquet.write_parquet(frame.copy(), path)
    assert path.read_bytes() == content
    pd.testing.assert_frame_equal(parquet.read_parquet(path), frame, check_dtype=False)
    sound = parquet.read_parquet(path)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    found = 0
    for place in range(4, footer):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            read_back = parquet.read_parquet(path)
        except ArtifactError:
            found += 1
        else:
            assert read_back.equals(sound), f"byte {place}: other values without a word"
    assert found > 20


def test_jsonl_gives_back_the_rows_and_has_no_nan(tmp_path):
    path = tmp_path / "rows.jsonl"
    jsonl.write(ROWS, path)
    assert read(path).to_dict("records") == ROWS
    with pytest.raises(ValueError, match="not JSON compliant"):
        jsonl.write([{"score": float("nan")}], path)
    assert read(path).to_dict("records") == ROWS


def test_a_good_value_that_no_row_has_is_refused_with_the_values_that_there_are(tmp_path, caplog):
    rows = [
        {"planted": "sound", "stars": 3},
        {"planted": "trun cated", "stars": 5},
        {"planted": " sound", "stars": None},
    ]
    table = read(
        written(tmp_path, "jsonl", [ROWS[0] | {"id": str(n)} | row for n, row in enumerate(rows)]), extra=rows[0]
    )
    good = {"planted": ["sound", "fine"], "stars": ["5", "4"], "absent": ["yes"]}
    assert labels.check_sound_labels(table, good) == {"planted": 2, "stars": 1, "absent": 0}
    assert "data.sound_labels.planted: no row has 'fine'" in caplog.text
    said = r"config: data\.sound_labels\.planted: no row .* has 'ok'; .* holds 'sound', 'trun cated'\. Correct"
    with pytest.raises(ConfigError, match=said):
        labels.check_sound_labels(table, {"planted": ["ok", "fine"]})
    with pytest.raises(ConfigError, match=r"no row .* has 'sond'; .*; did you mean .sound.\?"):
        labels.check_sound_labels(table, {"planted": ["trun cated", "sond"]})
    with pytest.raises(ConfigError, match=r"holds '0', '1', '10', '11', .*, …; did you mean .2.\? Correct it"):
        labels.check_sound_labels(pd.DataFrame({"n": [str(n) for n in range(20)]}), {"n": ["20"]})
    assert labels.check_sound_labels(table.assign(planted=None), {"planted": ["sond"]}) == {"planted": 0}


@pytest.mark.parametrize(
    ("there", "good", "meant"),
    [
        (["sound", "fine", "bad"], ["SOUND", "fine"], "sound"),
        (["0.25", "0.5", "1"], ["0.5", "1.0"], "1"),
        (["good", "gold"], ["good", "god"], "gold"),
        (["-1", "-1.0e0"], ["-1", "-1.00"], "-1.0e0"),
        (["sound", "sounds", "found", "fine"], ["fine", "sonud"], "sound"),
        (["NaN-free", "nan"], ["NaN-free", "NAN"], "nan"),
        (["verified", "not verified"], ["not verified", "verifed"], "verified"),
    ],
)
def test_a_good_value_that_looks_like_another_is_refused_beside_one_that_is_there(there, good, meant):
    with pytest.raises(ConfigError, match=f'did you mean "{re.escape(meant)}"'):
        labels.check_sound_labels(pd.DataFrame({"rating": there}), {"rating": good})


@pytest.mark.parametrize(
    ("there", "good"),
    [
        (["10", "9"], ["10", "11"]),
        (["-1", "1"], ["1", "-10"]),
        (["1e-05", "1e-04"], ["1e-04", "1e-06"]),
        (["4 stars", "3 stars"], ["4 stars", "5 stars"]),
        ([">0.7", "<=0.5"], [">0.7", ">0.8"]),
        (["1", "2"], ["2", "-1"]),
        (["unsafe", "fine"], ["fine", "safe"]),
        (["incorrect", "correct"], ["correct", "mostly correct"]),
        (["no", "yes"], ["yes", "not"]),
        (["grade A", "grade B"], ["grade A", "grade C"]),
        ([">0.5", "none"], ["none", "<0.5"]),
    ],
)
def test_a_good_value_of_another_number_is_one_that_no_row_has(there, good, caplog):
    assert labels.check_sound_labels(pd.DataFrame({"rating": there}), {"rating": good}) == {"rating": 1}
    assert f"data.sound_labels.rating: no row has '{good[1]}'" in caplog.text
