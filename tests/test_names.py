"""What is absent is absent in every format; a name that looks like something else is told apart, or refused."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from icprobe import artifacts
from icprobe.analysis.domains import by_domain, score_sets
from icprobe.analysis.labels import label_aucs
from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.errors import ConfigError, DataError
from icprobe.evaluation.judges.annotations import read_annotations
from icprobe.evaluation.win_rates import win_rate_table
from icprobe.tables import checking, parquet, reading

ROOT = Path(__file__).parents[1]
FORMATS = ["csv", "json", "jsonl", "parquet"]
GAPS = [
    {"id": "a", "planted": "sound", "domain": "math", "subset": "s1"},
    {"id": "b", "planted": "bad", "domain": None, "subset": None},
    {"id": "c", "planted": None, "domain": "math", "subset": None},
    {"id": "d", "planted": None, "domain": None, "subset": "s1"},
]
GROUPS = ["planted", "domain", "subset"]
LOOKS_MISSING = ["NA", "None", "null", "nan", "007"]


def written(folder, kind, rows):
    frame = pd.DataFrame([{"instruction": "Say it.", "output": "It.", **row} for row in rows]).astype(object)
    path = folder / f"rows.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=kind == "jsonl")
    return path


def read(path):
    return checking.read_table({"path": str(path)}, extra=GROUPS)


@pytest.mark.parametrize("kind", FORMATS)
def test_absent_labels_domains_and_subsets_are_absent_in_every_format(kind, tmp_path):
    table = read(written(tmp_path, kind, GAPS))
    assert checking.records(table[["id", *GROUPS]]) == GAPS
    scores = {"icp": pd.Series([0.9, 0.1, 0.95, 0.99], index=table["id"])}
    found = label_aucs(scores, table, {"planted": ["sound"]})
    assert found[["value", "auc", "n_negative"]].to_numpy().tolist() == [["bad", 1.0, 1]]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_blank_label_is_none(kind, tmp_path):
    table = read(written(tmp_path, kind, [{"id": "a", "planted": " ", "domain": "x"}, {"id": "b", "planted": "y"}]))
    assert [row["planted"] for row in checking.records(table)] == [None, "y"]


@pytest.mark.parametrize("kind", FORMATS)
def test_white_space_makes_no_other_value_of_a_label_and_no_other_row_of_a_table(kind, tmp_path):
    rows = [{"planted": "very sound", "domain": "math"}, {"planted": "very\n sound ", "domain": "\tmath"}]
    table = read(written(tmp_path, kind, rows))
    assert table[["planted", "domain"]].to_numpy().tolist() == [["very sound", "math"]] * 2
    with pytest.raises(DataError, match='a domain must not be called "all"'):
        read(written(tmp_path, kind, [{"domain": "all "}]))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("word", LOOKS_MISSING)
def test_a_word_that_looks_missing_is_a_word_in_texts_and_in_labels(kind, word, tmp_path):
    rows = [{"instruction": word, "input": word, "output": word, "planted": word, "domain": word, "subset": word}]
    table = read(written(tmp_path, kind, rows))
    assert table.drop(columns=["id", "row_number"]).loc[0].tolist() == [word] * 6


def test_rows_of_a_csv_whose_ids_are_all_empty_have_none_as_in_every_format(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,instruction,output\n,a,b\n,c,d\n")
    without = written(tmp_path, "jsonl", [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}])
    assert read(path)["id"].tolist() == read(without)["id"].tolist()
    path.write_text("id,instruction,output\nx,a,b\n,c,d\n")
    with pytest.raises(DataError, match=r'line 3: "id" is missing; give all rows one'):
        read(path)


@pytest.mark.parametrize(("column", "name"), [("domain", "all"), ("domain", "overall"), ("subset", "overall")])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_domain_or_subset_that_means_all_of_them_is_refused_by_its_row(column, name, kind, tmp_path):
    with pytest.raises(DataError, match=rf'{kind}, (line|row) \d: a {column} must not be called "{name}"'):
        read(written(tmp_path, kind, [{column: "x"}, {column: name}]))


def test_a_subset_called_overall_is_refused_wherever_it_is_named(tmp_path):
    folder = tmp_path / "overall.jsonl", tmp_path / "other.jsonl"
    for path in folder:
        path.write_text(json.dumps({"instruction": "a"}) + "\n")
    with pytest.raises(DataError, match='a subset must not be called "overall"'):
        checking.read_table({"path": list(map(str, folder))}, extra=["subset"], needs_output=False)
    for key in ("subset", "dataset"):
        folder[0].write_text(json.dumps({"instruction": "a", "preference": 2, key: "overall"}))
        with pytest.raises(DataError, match='a subset must not be called "overall"'):
            read_annotations([folder[0]])
    with pytest.raises(ConfigError, match=r'data\.eval\.subsets: "overall" means all subsets'):
        configured({"data": {"eval": {"path": None, "subsets": {"overall": "a.jsonl"}}}})


def test_annotations_without_a_subset_have_none_in_every_format(tmp_path):
    csv, jsonl = tmp_path / "a.csv", tmp_path / "a.jsonl"
    csv.write_text("instruction,output_1,output_2,preference,dataset,annotator\nx,one,three,,,\n")
    jsonl.write_text(
        json.dumps({"instruction": "x", "output_1": "one", "output_2": "three", "preference": None, "dataset": None})
    )
    assert read_annotations([csv]) == read_annotations([jsonl])
    assert read_annotations([csv])[0]["subset"] is None


def configured(changes):
    whole = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    return load({**whole, **{key: {**whole.get(key, {}), **value} for key, value in changes.items()}}, METHODS)


SCORES = {"path": "s.csv", "orientation": "scores"}


@pytest.mark.parametrize("name", ["NA", "None", "null", "NULL", "nan", "NaN"])
def test_no_model_method_or_subset_is_called_what_tables_take_for_missing(name):
    for changes in (
        {"attribution": {"external": {name: SCORES}}},
        {"model_sources": {name: {"source": "external"}}},
        {"evaluation": {"annotations": {name: {"path": "a.json"}}}},
        {"evaluation": {"annotations": {"a": {"path": "a.json", "method": name}}}},
        {"data": {"eval": {"path": None, "subsets": {name: "a.jsonl"}}}},
    ):
        with pytest.raises(ConfigError, match="this word means a missing value in tables"):
            configured(changes)


def test_a_method_called_all_is_refused_unless_it_is_all_data():
    with pytest.raises(ConfigError, match=r'attribution\.external: "all" means all data'):
        configured({"attribution": {"external": {"all": SCORES}}})
    with pytest.raises(ConfigError, match=r'attribution\.external: "control-0" means a random removal in the tables'):
        configured({"attribution": {"external": {"control-0": SCORES}}})
    for name in ("id", "output", "domain"):
        with pytest.raises(ConfigError, match=rf'attribution\.external: "{name}" means a column of the examples'):
            configured({"attribution": {"external": {name: SCORES}}})
    for note in ({}, {"bin": ">0.5"}, {"method": "all", "bin": ">0.5"}):
        with pytest.raises(ConfigError, match=r'evaluation\.annotations\.all: "all" means all data'):
            configured({"evaluation": {"annotations": {"all": {"path": "a.json", **note}}}})
    configured({"evaluation": {"annotations": {"mine": {"path": "a.json", "method": "all", "bin": "all"}}}})


@pytest.mark.parametrize("name", ["data", "figures", "synthetic", "wandb"])
def test_a_model_is_not_called_as_a_folder_of_the_experiment(name):
    whole = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    whole |= {"models": [name], "model_sources": {name: {"source": "random"}}}
    with pytest.raises(ConfigError, match=f"models: '{name}' is a folder of the experiment"):
        load(whole, METHODS)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("bins", [">0.5", ">0.50"], "bins: '>0.5' appears twice"),
        ("bins", ["<=1", "<= 1.00"], "bins: '<=1' appears twice"),
        ("finetune.bins", [">0.8", ">0.80"], r"finetune\.bins: '>0.8' appears twice"),
        ("finetune.methods", ["icp", "icp"], r"finetune\.methods: 'icp' appears twice"),
        ("finetune.seeds", [1, 1], r"finetune\.seeds: '1' appears twice"),
        ("data.labels", ["planted", "planted"], r"data\.labels: 'planted' appears twice"),
    ],
)
def test_a_list_that_names_one_thing_twice_is_refused(key, value, said):
    whole = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    section, _, last = key.rpartition(".")
    (whole[section] if section else whole)[last] = value
    with pytest.raises(ConfigError, match=said):
        load(whole, METHODS)


def test_a_bin_has_one_name_however_its_number_is_written():
    whole = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    whole["bins"], whole["finetune"]["bins"] = ["<= 0.50", ">0.85", ">0.90", ">0"], ["<=0.5", ">0.9"]
    config = load(whole, METHODS)
    assert config.bins == ["<=0.5", ">0.85", ">0.9", ">0"]
    assert config.finetune_bins == ["<=0.5", ">0.9"]


def test_names_come_out_of_a_table_as_they_went_in(tmp_path):
    """A domain or a label's value that is called NA is no missing one, and a domain or a model of digits no number."""
    path, matrix = tmp_path / "t.csv", tmp_path / "icp.parquet"
    ids = [f"e{i}" for i in range(4)]
    tasks = pd.DataFrame({"id": ["t1", "t2", "t3", "t4", "t5", "t6"], "domain": [*LOOKS_MISSING, None]})
    parquet.write_parquet(tasks, tmp_path / "tasks.parquet")
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    frame = pd.concat([pd.DataFrame({"id": ids}), pd.DataFrame(values, columns=list(tasks["id"]))], axis=1)
    parquet.write_parquet(frame, matrix)
    parquet.write_parquet(pd.DataFrame({"id": ids, "score": [0.1, 0.2, 0.3, 0.4]}), tmp_path / "score.parquet")
    labels = pd.DataFrame({"id": ids, "planted": ["sound", "1", "NA", None]})
    sets = score_sets(["icp"], [tmp_path / "score.parquet"], [matrix], tmp_path / "tasks.parquet", {"icp": "mean"})
    table = by_domain("1e5", sets, lambda found: label_aucs(found, labels, {"planted": ["sound"]}))
    artifacts.write_csv(path, table)
    found = artifacts.read_csv(path)
    for column in ("model", "domain", "label", "value", "method"):
        assert found[column].tolist() == table[column].tolist(), column
    assert list(dict.fromkeys(found["domain"])) == ["all", *LOOKS_MISSING]
    assert set(found["value"]) == {"others", "1", "NA"}
    assert found["auc"].dtype == "float64"


def test_prompts_of_a_subset_called_none_are_not_those_without_one(tmp_path):
    judgements = pd.DataFrame(
        {
            "method": "007",
            "bin": ">0.8",
            "seed": 0,
            "id": list("abcd"),
            "subset": ["None", "None", None, "NA"],
            "preference": [2.0, 2.0, 1.0, 1.0],
        }
    )
    artifacts.write_csv(tmp_path / "t.csv", win_rate_table(judgements))
    found = artifacts.read_csv(tmp_path / "t.csv").query("seed == 'all'").set_index("subset")
    assert found["n"].to_dict() == {"None": 2, "NA": 1, "overall": 4}
    assert set(found["method"]) == {"007"}


def test_every_table_is_read_by_the_function_that_tells_names_from_gaps():
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]
    reads = {path.name for path in files if re.search(r"\bpd\.read_csv\(", path.read_text(encoding="utf-8"))}
    assert reads == {"artifacts.py"}


def test_a_csv_s_empty_cells_are_null_in_the_rows_as_they_stand_in_the_file(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n"",NA\nNone,x\n')
    assert reading.read_file(tmp_path / "t.csv")[["a", "b"]].to_numpy().tolist() == [[None, "NA"], ["None", "x"]]
