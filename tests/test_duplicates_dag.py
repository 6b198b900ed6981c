"""Duplicates through the DAG: found before the sample is drawn, listed, told, and nothing of it where nobody asks."""

from collections import Counter

import dag
import pandas as pd
import pytest

from icprobe import jsonl

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the tiny experiment, on a machine that may be busy


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path_factory.mktemp("duplicates"))


def test_the_default_plans_nothing(project):
    for config in (None, {"data": {"deduplicate": None}}):
        ended = project.snakemake("all", "-n", config=config)
        assert ended.jobs == Counter(), ended.output
    assert not (project.path / "results/tiny/data/duplicates.csv").exists()


def test_what_repeats_an_earlier_row_is_dropped_before_the_sample_and_told(project):
    rows = jsonl.read(project.path / "train.jsonl")[:24]
    for row in rows:
        row.pop("id")
    near = {**rows[3], "output": rows[3]["output"] + "!"}
    jsonl.write([*rows, rows[0], near, rows[1]], project.path / "repeated.jsonl")
    config = {
        "data": {"train": {"path": "repeated.jsonl", "sample": None}, "deduplicate": {"near": 0.7}},
        "attribution": {"methods": ["length"]},
        "bins": [],
        "finetune": None,
        "figures": {"scatter": []},
        "experiment": "unique",
    }
    ended = project.snakemake("results/unique/scores.html", "--cores", "2", config=config)
    assert ended.returncode == 0, ended.output[-4000:]
    found = pd.read_csv(project.path / "results/unique/data/duplicates.csv")
    train = pd.read_parquet(project.path / "results/unique/data/train.parquet")
    assert train["row_number"].tolist() == [*range(24)]
    kept = [train["id"][0], train["id"][3], train["id"][1]]
    assert found["kept_id"].tolist() == kept
    assert [found["id"][0], found["id"][2]] == [f"{train['id'][0]}-2", f"{train['id'][1]}-2"]
    assert found["similarity"][[0, 2]].tolist() == [1, 1]
    assert 0.7 <= found["similarity"][1] < 1
    said = "3 training examples that repeat an earlier one exactly or nearly (similarity from 0.7) are dropped"
    assert f"{said}, of 27" in (project.path / "logs/unique/find_duplicates.log").read_text()
    assert (
        "27 rows read, 0 empty ones and 3 duplicates dropped"
        in (project.path / "logs/unique/prepare_train.log").read_text()
    )
    assert said in project.read("results/unique/scores.html").decode()

    # Another threshold that finds the same repeats nothing that follows the table.
    config["data"]["deduplicate"] = {"near": 0.69}
    ended = project.snakemake("results/unique/data/train.parquet", "--cores", "1", config=config)
    assert ended.jobs == Counter(find_duplicates=1, prepare_train=1), ended.output
    ended = project.snakemake("results/unique/scores.html", "-n", config=config)
    assert ended.jobs == Counter(report_scores=1), ended.output
