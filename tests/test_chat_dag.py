"""Conversations through the DAG: from messages by a chat template to the report, and what makes results stale."""

import json

import dag
import pandas as pd
import pytest
from chats import ZEPHYR

CONFIG = {
    "data": {
        "train": {"path": "talk.jsonl", "sample": None},
        "tasks": {"path": "asked.jsonl", "select": "all"},
        "eval": {"path": "prompts.jsonl"},
        "labels": None,
        "sound_labels": None,
    },
    "templates": {"format": "chat", "chat_template": "chat.jinja"},
    "attribution": {
        "methods": ["icp", "influence", "bm25", "embedding", "ifd", "length"],
        "train_loss": "response",
        "shards": 1,
    },
    "bins": ["top 20%"],
    "analysis": {"chain": None},
    "figures": {"scatter": None},
    "finetune": {"methods": ["icp"], "bins": ["top 20%"], "all_data": False},
}


def messages(row, turns):
    middle = [{"role": "user", "content": "Wait."}, {"role": "assistant", "content": "Yes?"}] if turns else []
    said = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
    return {"id": row["id"], "messages": [{"role": "system", "content": "Help."}, *middle, *said]}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = dag.new(tmp_path_factory.mktemp("chat") / "project")
    for name, source, n in (("talk", "train", 12), ("asked", "tasks", 3), ("prompts", "eval", 4)):
        rows = [json.loads(line) for line in made.read(f"resources/demo/{source}.jsonl").splitlines()][:n]
        lines = [json.dumps(messages(row, turns=n == 12 and i % 2)) for i, row in enumerate(rows)]
        (made.path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (made.path / "chat.jinja").write_text(ZEPHYR, encoding="utf-8")
    ended = made.snakemake("all", "--cores", "2", config=CONFIG)
    assert ended.returncode == 0, ended.output[-3000:]
    return made


def test_conversations_are_valued_trained_on_and_judged(project):
    scores = pd.read_parquet(project.path / dag.RESULTS / "tables/scores.parquet")
    assert len(scores) == 12
    assert scores[[name for name in scores if name.startswith("score_")]].notna().all(axis=None)
    assert scores["messages"].map(lambda held: len(json.loads(held))).tolist() == [3, 5] * 6
    lengths = pd.read_parquet(project.path / dag.RESULTS / "data/lengths.parquet")
    assert (lengths["n_first"] < lengths["n_query"]).tolist() == [False, True] * 6
    subset = project.read(dag.RESULTS / "subsets/icp/top-20pct.jsonl").splitlines()
    assert [row["completion"][0]["role"] for row in map(json.loads, subset)] == ["assistant"] * len(subset)
    held_out = pd.read_csv(project.path / dag.RESULTS / "tables/held_out.csv")
    assert set(held_out["set"]) == {"tasks", "eval"}
    report = project.read("results/tiny/report.html").decode()
    assert "over all turns of the assistant" in report


def test_no_run_holds_a_text_that_was_not_asked_for(project):
    told = project.copy(project.path.with_name("told"))
    config = {**CONFIG, "wandb": {"mode": "offline", "texts": False}, "analysis": {"chain": None, "resamples": 50}}
    ended = told.snakemake("all", "--cores", "2", "--forcerun", "tabulate_scores", "subset", config=config)
    assert ended.returncode == 0, ended.output[-3000:]
    runs = list((told.path / "results/tiny/wandb").rglob("*"))
    assert runs
    secret = json.loads((told.path / "talk.jsonl").read_text().splitlines()[0])["messages"][1]["content"].encode()
    assert not [run for run in runs if run.is_file() and secret in run.read_bytes()]


def test_nothing_is_stale_and_an_edited_template_makes_all_texts_stale(project):
    assert project.snakemake("all", "-n", config=CONFIG).jobs == {}
    edited = project.copy(project.path.with_name("edited"))
    edited.edit("chat.jinja", "<|' + m.role", "<' + m.role")
    jobs = edited.snakemake("all", "-n", config=CONFIG).jobs
    assert {"measure_lengths", "attribute", "attribute_influence", "generate"} <= {*jobs}
    assert "prepare_model" not in jobs


def test_turns_ask_for_a_chat_template(project):
    config = {**CONFIG, "templates": None, "attribution": {**CONFIG["attribution"], "icp": {"context": "turns"}}}
    ended = project.snakemake("all", "-n", config=config)
    assert ended.returncode
    assert "attribution.icp.context: turns are those of a chat template; set templates.format: chat" in ended.output


def test_a_template_that_is_not_there_is_said_when_planning(project):
    ended = project.snakemake(
        "all", "-n", config={**CONFIG, "templates": {"format": "chat", "chat_template": "no.jinja"}}
    )
    assert ended.returncode
    assert "config: templates.chat_template: no.jinja: no such file; correct the path" in ended.output
