"""What Python code passes to `icprobe.value`: values of numpy and torch are taken, mistakes told in a sentence."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from test_from_python import RANDOM, TASKS, TRAIN, prepared, valued  # noqa: F401, fixtures

import icprobe
from icprobe.engine.models import load_model
from icprobe.errors import ConfigError, DataError, IcprobeError, ModelError
from icprobe.texts.tokenizing import reader


def lengths_of(train=TRAIN, tasks=TASKS, **options):
    """`value` by the method that needs least."""
    return icprobe.value(train, tasks, **{"model": RANDOM, "methods": "length", **options})


def test_values_of_numpy_and_torch_are_taken_as_pythons(prepared, valued):  # noqa: F811
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "batch_tokens": np.int32(64), "seed": np.int64(4)}
    found = icprobe.value(TRAIN, TASKS, model=prepared, methods=np.array(["icp", "random"]), **options)
    for name in ("score_icp", "score_random"):
        np.testing.assert_allclose(found[name], valued[0][name], rtol=1e-4)
    rows = [{**row, "id": np.int64(number)} for number, row in enumerate(TRAIN)]
    assert lengths_of(rows)["id"].tolist() == [str(number) for number in range(len(TRAIN))]


def test_a_home_directory_and_numbers_of_numpy_may_describe_a_sample(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pd.DataFrame(TRAIN).to_json(tmp_path / "train.jsonl", orient="records", lines=True)
    for path in ("~/train.jsonl", Path("~/train.jsonl")):
        section = {"path": path, "sample": {"n": np.int64(3), "seed": np.int32(1)}}
        assert len(lengths_of(section)) == 3
    assert len(lengths_of("~/train.jsonl")) == len(lengths_of(Path("~/train.jsonl"))) == len(TRAIN)


def test_an_index_of_ids_is_taken_for_the_column():
    for tables in ((TRAIN, TASKS), (pd.DataFrame(TRAIN).set_index("id"), pd.DataFrame(TASKS).set_index("id"))):
        found = lengths_of(*tables)
        assert found["id"].tolist() == [row["id"] for row in TRAIN]
        assert "row_number" not in found


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"methods": None}, ConfigError, "methods: name one at least, such as ['icp', 'influence'], not 'None'"),
        ({"methods": 3}, ConfigError, "methods: name one at least"),
        ({"methods": []}, ConfigError, "methods: name one at least"),
        ({"data": "x"}, ConfigError, "data: a mapping is needed, such as {key: value}, not 'x'"),
        ({"finetune": 3}, ConfigError, "finetune: a mapping is needed"),
        ({"templates": 3}, ConfigError, "templates: a mapping is needed"),
        ({"data": {"eval": {"path": "x.jsonl"}}}, ConfigError, "data.eval: nothing is fine-tuned or judged here"),
        (
            {"data": {"labels": {"source"}}},
            ConfigError,
            "data.labels: a text, a number, a list or a mapping is needed, not one",
        ),
        (
            {"device": object()},
            ConfigError,
            "device: a text, a number, a list or a mapping is needed, not one of the type object",
        ),
        ({"dtype": torch.float16}, ConfigError, "dtype: "),
        (
            {"model": {"source": "random", "corpus": "/nope.jsonl"}},
            ModelError,
            "model.corpus: /nope.jsonl: no such file",
        ),
    ],
)
def test_a_mistake_of_python_ends_in_one_sentence(arguments, kind, said):
    with pytest.raises(kind) as caught:
        lengths_of(**arguments)
    assert isinstance(caught.value, IcprobeError)
    assert said in str(caught.value)
    assert "YAML" not in str(caught.value)


def test_splits_of_a_data_set_are_to_be_chosen():
    import datasets

    split = datasets.Dataset.from_list(TRAIN)
    both = datasets.DatasetDict({"train": split, "test": split})
    with pytest.raises(
        DataError, match=r"train: a DatasetDict holds splits \(train, test\); choose .* dataset\['train'\]"
    ):
        lengths_of(both)
    assert len(lengths_of(both["train"])) == len(TRAIN)


@pytest.mark.parametrize("kind", ["a name", "the backend", "a function"])
def test_what_is_no_tokenizer_is_told_in_a_sentence(kind, prepared):  # noqa: F811
    tokenizer = reader(prepared).tokenizer
    given = {"a name": str(prepared), "the backend": tokenizer.backend_tokenizer, "a function": tokenizer.encode}[kind]
    with pytest.raises(ModelError, match=r"is no tokenizer of transformers; pass the object, such as AutoTokenizer"):
        icprobe.value(TRAIN, TASKS, model=load_model(prepared, "float32", "cpu"), tokenizer=given)


class Unfinished(transformers.PreTrainedTokenizerBase):
    """Some classes of transformers leave out what others tell, by a property that raises."""

    def get_vocab(self):
        return {}


class AsMistrals(Unfinished):
    """That of mistral-common has a method in its place."""

    def added_tokens_decoder(self):
        raise NotImplementedError


@pytest.mark.parametrize("kind", [Unfinished, AsMistrals])
def test_a_tokenizer_that_does_not_tell_its_added_tokens_is_told_in_a_sentence(kind, prepared):  # noqa: F811
    with pytest.raises(
        ModelError,
        match=rf"^tokenizer: a {kind.__name__} does not tell its added tokens; pass .* PreTrainedTokenizerFast\.from",
    ):
        icprobe.value(TRAIN, TASKS, model=load_model(prepared, "float32", "cpu"), tokenizer=kind())


# --- what is left out -------------------------------------------------------------------------------------------


def test_rows_that_are_left_out_are_told(caplog):
    empty = {**TRAIN[0], "id": "empty", "output": " "}
    long = {**TRAIN[0], "id": "long", "output": "word " * 5000}
    data = {"on_empty": "drop", "on_too_long": "drop", "deduplicate": "exact"}
    with caplog.at_level(logging.WARNING):
        found = lengths_of(
            [*TRAIN, {**TRAIN[2], "id": "again"}, empty, long], [*TASKS, {**empty, "id": "t"}], data=data
        )
    assert len(found) == len(TRAIN)
    assert [record.message for record in caplog.records if record.name == "icprobe.notebook.valuing"] == [
        "data.tasks: 4 rows read, 1 without an output dropped, 3 kept",
        "data.train: 10 rows read, 1 without an output, 1 that repeat others, 1 too long dropped, 7 kept",
    ]


def test_nothing_is_told_where_nothing_is_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        lengths_of(data={"on_empty": "drop", "on_too_long": "drop", "deduplicate": "exact"})
    assert not [record for record in caplog.records if record.name.startswith("icprobe.")]


def test_turns_without_an_answer_are_told(caplog):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with caplog.at_level(logging.WARNING):
        lengths_of([{"messages": turns}], data={"on_empty": "drop"})
    assert "data.train: 1 turn without an answer left away" in caplog.text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"sound_labels": {"kind": ["godo"]}},
            'data.sound_labels.kind: no row of data.train has .*did you mean "good"',
        ),
        ({"in_domain": ["mth"]}, 'data.in_domain: no row of data.tasks or data.train .*did you mean "maths"'),
    ],
)
def test_values_that_no_row_has_are_told_as_by_the_workflow(data, said):
    train = [{**row, "kind": "good"} for row in TRAIN]
    tasks = [{**row, "domain": "maths"} for row in TASKS]
    with pytest.raises(ConfigError, match=said):
        lengths_of(train, tasks, data=data)
    assert "kind" in lengths_of(train, tasks, data={"sound_labels": {"kind": ["good"]}, "in_domain": ["maths"]})
