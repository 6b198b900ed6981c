"""What stands beside a selection is true: its files are read as it says, and its table holds every method's word."""

import json
import re

import pandas as pd
import pytest
import yaml
from datasets import load_dataset
from test_finetuning import ROWS, make_base

from icprobe import jsonl
from icprobe.config.selections import Selection
from icprobe.config.templates import Templates
from icprobe.tables.parquet import write_parquet
from icprobe.texts.chat import prompts_of
from icprobe.training import cards, subsets

SELECTION = Selection(method="icp", top=4, baselines=["random"]).as_written()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    table = pd.DataFrame(ROWS).fillna({"input": ""}).set_index("id", drop=False)
    prompts = prompts_of(Templates().model_dump(include={"query", "target"}))
    paths = [folder / name for name in ("selected.jsonl", "selected.messages.jsonl")]
    subsets.write_subset(table, list(table.index), dict.fromkeys(table.index, 0.9), prompts, *paths)
    known = table.reset_index(drop=True).assign(score_icp=range(len(table)), rank_icp=range(len(table), 0, -1))
    write_parquet(known.iloc[::-1].reset_index(drop=True), folder / "all.parquet")
    jsonl.write(cards.scores_of(table.index, folder / "all.parquet"), folder / "selected.scores.jsonl")
    (folder / "all.parquet").unlink()
    text = cards.card("best", {"best": SELECTION}, "", len(table), 1000, "mine", "tiny", "selected")
    (folder / "README.md").write_text(text)
    (folder / "dataset_info.json").write_text(json.dumps(cards.dataset_info("best", "selected")))
    return folder


def block(folder, kind, number=0):
    return re.findall(rf"```{kind}\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[number]


def test_the_card_holds_the_selection_as_the_configuration_takes_it(folder):
    assert yaml.safe_load(block(folder, "yaml")) == {"selections": {"best": SELECTION}}
    assert Selection.model_validate(SELECTION) == Selection(method="icp", top=4, baselines=["random"])
    assert f"{len(ROWS)} of 1,000 examples, chosen, by" in (folder / "README.md").read_text()
    drawn = cards.card("best-random", {"best": SELECTION}, "random", 4, 9, "mine", "tiny", "selected")
    assert "# best-random\n\n4 of 9 examples, drawn at random (random) to compare with the selection below" in drawn


@pytest.mark.parametrize("title", ["on", "best", "12", "null2"])
def test_a_name_is_a_text_to_those_who_read_the_card(title):
    text = cards.card(title, {title: SELECTION}, "", 4, 9, "mine", "tiny", "selected")
    (told,) = re.findall(r"```yaml\n(model_name_or_path.*?)```", text, re.DOTALL)
    assert yaml.safe_load(told)["dataset"] == title


def test_the_folder_is_a_data_set_with_a_configuration_for_each_file(folder, tmp_path):
    ids = [row["id"] for row in ROWS]
    columns = {
        None: {"id", "prompt", "completion", "score"},
        "messages": {"id", "messages"},
        "scores": {"id", "place", "output", "score_icp", "rank_icp"},
    }
    for name, expected in columns.items():
        data = load_dataset(str(folder), name, cache_dir=str(tmp_path), split="train")
        assert list(data["id"]) == ids
        assert expected <= {*data.column_names}
    assert list(data["place"]) == [*range(1, len(ids) + 1)]
    assert list(data["score_icp"]) == [*range(len(ids))]


def test_trl_s_lines_train_as_they_stand(folder, tmp_path, monkeypatch):
    base = make_base(tmp_path / "base", "llama")
    lines = block(folder, "python").replace('"MODEL"', repr(str(base)))
    quick = f'SFTConfig({str(tmp_path / "out")!r}, max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)'
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    known = {}
    exec(lines.replace('SFTConfig("out")', quick), known)
    assert known["data"].num_rows == len(ROWS)


def test_what_other_trainers_are_told_names_files_and_columns_that_are_there(folder):
    axolotl = yaml.safe_load(block(folder, "yaml", 1))["datasets"][0]
    factory = yaml.safe_load(block(folder, "yaml", 2))
    told = json.loads((folder / factory["dataset_dir"] / "dataset_info.json").read_text())[factory["dataset"]]
    assert axolotl["path"] == told["file_name"] == "selected.messages.jsonl"
    row = json.loads((folder / told["file_name"]).read_text().splitlines()[0])
    turns = row[told["columns"]["messages"]]
    roles, tags = [turn[told["tags"]["role_tag"]] for turn in turns], told["tags"]
    assert roles == [tags["user_tag"], tags["assistant_tag"]]
    assert turns[1][tags["content_tag"]] == ROWS[0]["output"]
