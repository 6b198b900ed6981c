"""Selections as a data set for others: what the folder holds, and that only `publish` sends it, to where it is told."""

import json
import os
import re
import subprocess
import sys
import textwrap

import dag
import pandas as pd
import pytest
import yaml
from hub_server import Hub

from icprobe.attribution import METHODS
from icprobe.config import load as load_config
from icprobe.errors import ConfigError
from icprobe.tables.parquet import read_parquet
from icprobe.training import publishing
from icprobe.workflow import exporting

pytestmark = pytest.mark.timeout(900)

TOKEN = "hf_" + "a" * 34
CONFIG = {
    "attribution": {"methods": ["influence", "length", "random"]},
    "bins": ["top 20%"],
    "finetune": None,
    "figures": {"scatter": "all", "sweep": False},
    "selections": {"best": {"method": "influence", "top": 5, "baselines": ["random"]}},
    "export": {"hub": "me/best-rows", "licence": "cc0-1.0"},
}
FOLDER = "results/tiny/export"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path_factory.mktemp("export"))
    ended = made.snakemake("export", "--cores", "2", config=CONFIG)
    assert ended.returncode == 0, ended.output
    assert ended.jobs["export"] == 1
    return made


# Jobs that publish are no forks: the hub's library reads its variables when it is imported.


def load(path, name, **environment):
    """The rows that `datasets` loads, in a process of its own: the hub's address is read once."""
    program = "import datasets, json, sys; print(json.dumps(datasets.load_dataset(*sys.argv[1:], split='train')[:]))"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path), name],
        env={**os.environ, "HF_DATASETS_OFFLINE": "0", "HF_HUB_OFFLINE": "0", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ended.stdout.splitlines()[-1])


def test_the_folder_is_a_data_set_with_every_methods_scores_beside_each_row(project, tmp_path):
    rows = load(project.path / FOLDER, "best", HF_HOME=str(tmp_path))
    subset = [json.loads(line) for line in project.read(dag.RESULTS / "subsets/best/selected.jsonl").splitlines()]
    assert rows["id"] == [row["id"] for row in subset]
    assert rows["prompt"] == [row["prompt"] for row in subset]
    assert rows["messages"][0][-1] == {"role": "assistant", "content": subset[0]["output"]}
    scores = read_parquet(project.path / dag.RESULTS / "tables/scores.parquet").set_index("id")
    for method in CONFIG["attribution"]["methods"]:
        assert rows[f"score_{method}"] == scores.loc[rows["id"], f"score_{method}"].tolist()
        assert rows[f"rank_{method}"] == scores.loc[rows["id"], f"rank_{method}"].tolist()
    assert rows["rank_influence"] == sorted(rows["rank_influence"])
    assert rows["planted"] == scores.loc[rows["id"], "planted"].tolist()
    assert len(load(project.path / FOLDER, "best-random", HF_HOME=str(tmp_path))["id"]) == 5


def test_the_card_says_what_it_is_how_it_was_chosen_and_how_to_load_it(project):
    text = project.read(f"{FOLDER}/README.md").decode()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc0-1.0"
    assert [one["config_name"] for one in yaml.safe_load(head)["configs"]] == ["best", "best-random"]
    assert "the best 5 by influence" in body
    assert re.search(r"\| best-random .*best", body)
    assert "train.jsonl" in body and str(project.path) not in text  # noqa: PT018 (of one sentence)
    assert 'load_dataset("me/best-rows", "best", split="train")' in body
    assert "- chosen from: 24 examples" in body
    for method in CONFIG["attribution"]["methods"]:
        assert f"`score_{method}`" in body
    axolotl = yaml.safe_load(textwrap.dedent(body.split("axolotl, in its configuration:")[1].split("LLaMA")[0]))
    assert axolotl["datasets"][0]["path"] == "me/best-rows"
    assert axolotl["datasets"][0]["name"] == "best"
    factory = json.loads(body.split("`dataset_info.json`:")[1].split("## Columns")[0])
    assert factory["best"]["hf_hub_url"] == "me/best-rows"


def test_publish_uploads_the_folder_and_it_can_be_loaded_from_there(project, tmp_path):
    hub = Hub(TOKEN)
    try:
        where = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        copied = project.copy(tmp_path / "project")
        # Of a selection that the configuration has no more.
        (copied.path / FOLDER / "data/dropped.parquet").write_bytes(b"rows")
        ended = copied.start("publish", "--cores", "1", config=CONFIG, environment=where).wait()
        assert ended.returncode == 0, ended.output
        assert ended.jobs["publish"] == 1
        assert TOKEN not in ended.output
        done = json.loads(copied.read("results/tiny/published.json"))
        assert done["repository"] == "me/best-rows"
        assert done["private"] is True
        assert hub.private == {"me/best-rows": True}
        held = hub.repositories["me/best-rows"]
        assert set(held) == {"README.md", "data/best.parquet", "data/best-random.parquet"}
        assert held["data/best.parquet"] == copied.read(f"{FOLDER}/data/best.parquet")
        loaded = load("me/best-rows", "best", **where)
        assert loaded == load(project.path / FOLDER, "best", HF_HOME=str(tmp_path / "other"))
        assert "Nothing to be done" in copied.snakemake("publish", "-n", config=CONFIG, environment=where).output

        public = {**CONFIG, "export": {**CONFIG["export"], "private": False}}
        ended = copied.start("publish", "--cores", "1", config=public, environment=where).wait()
        assert "me/best-rows is private already, and export.private is false" in ended.output
    finally:
        hub.close()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_HUB_OFFLINE": "0"}, "there is no token of the hub; set HF_TOKEN"),
        ({"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub did not take"),
    ],
)
def test_what_cannot_be_uploaded_is_one_sentence(environment, said, project, tmp_path):
    copied = project.copy(tmp_path / "project")
    where = {"HF_HOME": str(tmp_path), **environment}
    ended = copied.start("publish", "--cores", "1", config=CONFIG, environment=where).wait()
    assert ended.returncode != 0
    assert said in ended.output
    assert "Traceback" not in ended.output
    assert TOKEN not in ended.output
    assert not (copied.path / "results/tiny/published.json").exists()


# --- what the card says of other data ---------------------------------------------------------------------------


def card(columns, chosen="the best 5 by icp", in_json=False):
    table = pd.DataFrame([("best", "m", "5", chosen)], columns=["name", "model", "rows", "chosen by"])
    return publishing.card("mine", table, columns, {}, {}, None, None, in_json)


def test_trainers_are_told_of_columns_that_are_there():
    assert '`rows.select_columns(["prompt", "completion"])` or' in card(["prompt", "completion", "messages"])
    talk = card(["messages"])
    assert 'takes `rows.select_columns(["messages"])`, without' in talk
    assert "completion" not in talk
    assert "axolotl" in talk
    in_json = card(["prompt", "completion", "messages", "tools"], in_json=True)
    assert "- `tools`: the tools that the conversation may call, in JSON" in in_json
    assert "trainers take `json.loads` of each" in in_json
    assert 'select_columns(["messages"])' not in in_json
    assert "axolotl" not in in_json


def test_a_column_of_any_name_leaves_the_table_of_the_card_whole():
    (row,) = [line for line in card(["prompt"], "the best 5 by icp, a | b: 50% x|y").splitlines() if "best 5" in line]
    assert row.replace("\\|", "").count("|") == 5


def config(**sections):
    raw = {
        "experiment": "mine",
        "models": ["m"],
        "model_sources": {name: {"source": "random"} for name in ("m", "m-x")},
        "data": {"train": {"path": "here/mine.jsonl"}, "tasks": {"path": "tasks.jsonl"}},
        "attribution": {"methods": ["length"]},
        "selections": {name: {"method": "length", "top": 3} for name in ("best", "x-best")},
    }
    return load_config(raw | sections, METHODS)


def test_of_a_local_file_the_card_has_the_name_alone_however_it_is_named():
    tasks = {"path": "tasks.jsonl"}
    for train in ({"path": "here/mine.jsonl"}, {"url": "file:///home/me/here/mine.jsonl"}):
        assert exporting.facts(config(data={"train": train, "tasks": tasks}))["rows from"] == "mine.jsonl"
    address = "https://example.org/mine.jsonl"
    assert exporting.facts(config(data={"train": {"url": address}, "tasks": tasks}))["rows from"] == address


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"export": {"hub": "me/x..y"}}, "export.hub: .*Cannot have -- or .. in repo_id"),
        ({"export": {"hub": "me/é"}}, "export.hub"),
        ({"export": {"licence": "CC BY 4.0"}}, "export.licence"),
        ({"models": ["m", "m-x"]}, "selections: two tables of an export would be called 'm-x-best'"),
    ],
)
def test_what_the_hub_would_not_take_is_refused_before_anything_runs(sections, said):
    with pytest.raises(ConfigError, match=said):
        config(**sections)


def test_a_target_says_what_it_needs(tmp_path, project):
    without = {name: value for name, value in CONFIG.items() if name != "export"}
    for missing, config in (("selections", {}), ("selections and export: {hub: owner/name}", without)):
        target = "export" if missing == "selections" else "publish"
        ended = project.snakemake(target, "-n", config=config)
        assert f"There is no target {target} without {missing}." in ended.output
