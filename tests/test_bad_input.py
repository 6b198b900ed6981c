"""Whatever stands in a file: what comes out is right, or one sentence of one kind of error."""

import csv
import io
import json
import math
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from anything import bounded, outcome, scalars, texts, values
from hypothesis import given
from hypothesis import strategies as st

from icprobe import artifacts, jsonl
from icprobe.config import Templates
from icprobe.errors import ArtifactError
from icprobe.tables import checking, parquet, reading
from icprobe.tables.fitting import fit_tasks, lengths
from icprobe.texts.prompts import Prompts, flat
from icprobe.texts.readers import Reader

pytestmark = pytest.mark.timeout(60)  # a hang is a failure
ROOT = Path(__file__).parents[1]


def table_of(content: bytes, suffix: str, **options):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rows{suffix}")
        path.write_bytes(content)
        table = outcome(lambda: checking.read_table({"path": str(path)}, ["label"], **options))
    if table is not None:
        check_table(table)
    return table


def check_table(table):
    assert len(table)
    assert table["id"].is_unique
    for column in ("id", *checking.TEXTS):
        assert all(isinstance(text, str) and text.encode() is not None for text in table[column])
    assert all(len(name.splitlines()) == 1 for name in table["id"])
    assert all(flat(text) for text in table["instruction"])
    assert all(flat(text) for text in table["output"])
    with tempfile.TemporaryDirectory() as folder:
        parquet.write_parquet(table, Path(folder, "t.parquet"))
        again = parquet.read_parquet(Path(folder, "t.parquet"))
        jsonl.write(checking.records(table[["id", *checking.TEXTS]]), Path(folder, "t.jsonl"))
        from_jsonl = checking.read_table({"path": str(Path(folder, "t.jsonl"))})
    for column in ("id", *checking.TEXTS):
        assert again[column].tolist() == table[column].tolist()
        assert from_jsonl[column].tolist() == table[column].tolist()


# --- files ------------------------------------------------------------------------------------------------------

SOUND = [
    {"id": "a", "instruction": "Say é.", "input": "", "output": "é", "label": "x"},
    {"id": "b", "instruction": "Say 🙂.", "input": 'a "quoted", text', "output": "🙂\n🙂", "label": None},
]


def sound(suffix):
    if suffix == ".parquet":
        sink = io.BytesIO()
        pd.DataFrame(SOUND).to_parquet(sink)
        return sink.getvalue()
    if suffix == ".csv":
        return pd.DataFrame(SOUND).to_csv(index=False).encode()
    lines = [json.dumps(row, ensure_ascii=False) for row in SOUND]
    return ("[" + ",\n".join(lines) + "]" if suffix == ".json" else "\n".join(lines) + "\n").encode()


@pytest.mark.parametrize("suffix", reading.FORMATS)
@bounded
@given(content=st.binary(max_size=80) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_table_or_one_sentence(suffix, content):
    table_of(content, suffix)


@pytest.mark.parametrize("suffix", reading.FORMATS)
@bounded
@given(edits=st.data())
def test_a_damaged_file_is_a_table_or_one_sentence(suffix, edits):
    content = bytearray(sound(suffix))
    for _ in range(edits.draw(st.integers(1, 3))):
        place = edits.draw(st.integers(0, len(content) - 1))
        kind = edits.draw(st.sampled_from(["set", "cut", "insert", "drop"]))
        if kind == "set":
            content[place] = edits.draw(st.integers(0, 255))
        elif kind == "cut" and place:
            del content[place:]
        elif kind == "insert":
            content[place:place] = edits.draw(st.binary(max_size=5))
        elif len(content) > 1:
            del content[place]
    table_of(bytes(content), suffix)


def usable(row, seen):
    """Whether a row can be used, by the contract alone."""

    def is_text(value):
        return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)

    def missing(value):
        return value is None

    good = is_text(row.get("instruction")) and row["instruction"].strip()
    good = good and is_text(row.get("output")) and row["output"].strip()
    good = good and (missing(row.get("input")) or is_text(row["input"]))
    name = row.get("id")
    whole = isinstance(name, int) and not isinstance(name, bool)
    good = good and (whole or (is_text(name) and name.strip()))
    name = str(name)
    good = good and len(name.splitlines()) == 1 and all(ord(c) > 31 and ord(c) != 127 for c in name)
    good = good and len(name) <= 200 and name not in seen
    seen.add(name)
    return bool(good)


fields = {
    "id": scalars | values,
    "instruction": scalars | values,
    "output": scalars | values,
    "input": scalars | values,
}
good_fields = {"id": texts | st.integers(), "instruction": texts, "output": texts, "input": texts | st.none()}
rows = st.one_of(
    st.fixed_dictionaries(good_fields), st.fixed_dictionaries(good_fields), st.fixed_dictionaries({}, optional=fields)
)


def has_number_that_json_lacks(value):
    if isinstance(value, dict):
        return any(map(has_number_that_json_lacks, value.values()))
    if isinstance(value, list):
        return any(map(has_number_that_json_lacks, value))
    return isinstance(value, float) and not math.isfinite(value)


@bounded
@given(found=st.lists(rows, min_size=1, max_size=4), ascii_only=st.booleans())
def test_any_rows_come_out_as_they_are_or_are_refused_as_the_contract_says(found, ascii_only):
    content = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in found)
    content = content.encode("utf-8", "surrogatepass")
    table = table_of(content, ".jsonl")
    seen: set = set()
    expected = sum(usable(row, seen) for row in found) == len(found)
    if any(row.get("id") is not None for row in found):
        try:
            content.decode()
        except UnicodeDecodeError:
            expected = False
        expected = expected and not any(map(has_number_that_json_lacks, found))
        assert (table is not None) == expected
    if table is not None:
        for column in checking.TEXTS:
            assert table[column].tolist() == [row.get(column) or "" for row in found]


@bounded
@given(found=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_a_csv_gives_back_any_texts(found):
    sink = io.StringIO(newline="")
    # All in quotation marks: Python's writer forgets them around a lone carriage return.
    csv.writer(sink, quoting=csv.QUOTE_ALL).writerows([["instruction", "input", "output"], *found])
    table = table_of(sink.getvalue().encode(), ".csv")
    if all(instruction.strip() and output.strip() for instruction, _, output in found):
        assert table is not None
    if table is not None:
        assert [tuple(row) for row in table[["instruction", "input", "output"]].to_numpy()] == found


ARROW = {
    "struct": pa.array([{"a": 1}, None]),
    "list": pa.array([["x"], []]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    "bytes": pa.array([b"\xff", b"x"]),
    "broken utf-8": pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
    ),
    "numbers": pa.array([1, None]),
    "floats": pa.array([1.5, float("nan")]),
    "times": pa.array([2**62, 0], pa.timestamp("us")),
    "dates": pa.array([2**30, 0], pa.date32()),
    "decimals": pa.array([None, None], pa.decimal128(38, 2)),
    "nulls": pa.nulls(2),
    "booleans": pa.array([True, False]),
    "dictionary": pa.array(["x", "y"]).dictionary_encode(),
    "large texts": pa.array(["x", "y"], pa.large_string()),
}


@pytest.mark.parametrize("kind", ARROW)
@pytest.mark.parametrize("column", ["id", "instruction", "output", "label", "other"])
def test_parquet_columns_of_any_type_are_read_or_refused(kind, column):
    columns = {"id": ["a", "b"], "instruction": ["a", "b"], "output": ["c", "d"]}
    sink = io.BytesIO()
    pq.write_table(pa.table({**columns, column: ARROW[kind]}), sink)
    table = table_of(sink.getvalue(), ".parquet")
    if kind in ("dictionary", "large texts"):
        assert table[column].tolist() == ["x", "y"] if column != "other" else len(table) == 2


@pytest.mark.parametrize("suffix", reading.FORMATS)
def test_rows_of_a_megabyte_are_rows(suffix, prompts):
    long = "wörd 🙂 " * 130_000
    found = [{"id": "a", "instruction": "x" * 10**6, "input": None, "output": long}, {**SOUND[0], "id": "z"}]
    frame = pd.DataFrame(found)[["id", "instruction", "input", "output"]]
    sink = io.BytesIO()
    if suffix == ".parquet":
        frame.to_parquet(sink)
    elif suffix == ".csv":
        frame.to_csv(sink, index=False)
    else:
        sink.write(frame.to_json(orient="records", lines=suffix == ".jsonl").encode())
    table = table_of(sink.getvalue(), suffix)
    assert table["output"][0] == long
    assert prompts.target(table.iloc[0].to_dict()) == " " + long.strip()


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"id": ' + "9" * 5000 + "}",
        '{"instruction": "a", "output": 1e999}',
        "{" + ",".join(f'"{i}": 1' for i in range(50_000)) + ',"49999": 2}',
        "\n".join(json.dumps({f"k{i}": 1}) for i in range(3000)),
        "\r".join(["{}"] * 3),
        '{"' + "k" * 10**6 + '": 1, "' + "k" * 10**6 + '": 1}',
        '{"id": "' + "i" * 10**6 + '", "instruction": "a", "output": "b"}',
        '{"id": {"a": ' + '"' + "i" * 10**6 + '"}, "instruction": "a", "output": "b"}',
        '{"' + "c" * 10**6 + '": "x"}',
    ],
    ids=[
        "brackets",
        "braces",
        "digits",
        "infinity",
        "double key",
        "keys",
        "cr",
        "long key",
        "id",
        "object id",
        "column",
    ],
)
def test_what_would_take_for_ever_is_refused_at_once(content, suffix):
    if suffix == ".json" and not content.startswith("["):
        content = "[" + content.replace("\n", ",") + "]"
    assert table_of(content.encode(), suffix) is None


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "C:\\x", "~", "$(id)", "a/b", "{x}", "<script>", "%s", "-rf"]
)
def test_ids_are_names_and_never_paths(name, tmp_path, monkeypatch):
    from icprobe.attribution.gathering import gather
    from icprobe.attribution.matrix import to_table

    monkeypatch.chdir(tmp_path)
    table = table_of(json.dumps({"id": name, "instruction": "a", "output": "b"}).encode(), ".jsonl")
    assert table["id"].tolist() == [name]
    parquet.write_parquet(table, "train.parquet")
    parquet.write_parquet(to_table([name], [name], table[["id"]].to_numpy() == 0), "1-of-1.parquet")
    gather(["1-of-1.parquet"], "train.parquet", "whole.parquet")
    assert parquet.read_parquet("whole.parquet").columns.tolist() == ["id", name]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1-of-1.parquet", "train.parquet", "whole.parquet"]


@bounded
@given(content=st.binary(max_size=60) | values.map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_manifest_are_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "manifest.json").write_bytes(content)
        with pytest.raises(ArtifactError):
            artifacts.verify(folder)


# --- texts ------------------------------------------------------------------------------------------------------

jinja = st.lists(
    st.sampled_from(
        ["{{", "}}", "{%", "%}", "{#", "#}", "-", " x ", "7*7", "raw", "endraw", "'", "|", ".__class__", "\\"]
    )
    | texts,
    max_size=8,
).map("".join)


@bounded
@given(instruction=jinja | texts, output=jinja | texts)
def test_texts_are_never_templates_and_reach_the_model_byte_for_byte(instruction, output, prompts, tokenizer):
    row = {"instruction": instruction, "input": None, "output": output}
    assert prompts.document(row) == f"Instruction: {flat(instruction)} Response: {flat(output)}"
    document = prompts.document(row)
    ids = tokenizer(document, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == document


@bounded
@given(found=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), limit=st.integers(1, 200) | st.none())
def test_any_texts_fit_are_cut_or_refused(found, limit, prompts, tokenizer):
    table = pd.DataFrame(found, columns=["instruction", "output"]).assign(input="")
    table["id"] = [str(i) for i in range(len(table))]
    reader = Reader("m", tokenizer, limit)
    fitted = outcome(fit_tasks, table, prompts, [reader], "truncate")
    if fitted is not None:
        whole = lengths(fitted, prompts, reader)
        assert limit is None or ((whole["n_query"] + whole["n_target"]) <= limit).all()
        assert all(old.startswith(new) for old, new in zip(table["output"], fitted["output"], strict=True))


@bounded
@given(
    template=jinja
    | st.lists(st.sampled_from(["{{ instruction }}", "{% if input %}", "{% endif %}"]) | jinja).map("".join)
)
def test_any_template_renders_a_text_or_is_refused(template):
    def render():
        prompts = Prompts({**Templates().model_dump(), "query": template})
        return prompts.query({"instruction": "a", "input": "b"})

    rendered = outcome(render)
    assert rendered is None or isinstance(rendered, str)
    assert "<class" not in (rendered or "")
