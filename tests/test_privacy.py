"""W&B gets numbers and figures; texts of rows only where the configuration says so. What goes where is said at once."""

import json
import subprocess
import sys
import threading

import dag
import pandas as pd
import pytest
from test_jobs import run_job
from test_syncing import sync
from tracked import run_directories, settings

from icprobe.tracking import destination, lineage, modes, records, syncing

pytestmark = pytest.mark.timeout(90)

SECRET = {name: f"a private {name} that stays here" for name in ("instruction", "input", "output")}
FILES = {
    "input": ["results/demo/data/train.parquet", "resources/mine/train.jsonl", "results/demo/m/scores/icp.parquet"],
    "output": [
        "results/demo/m/subsets/icp/gt-0.80.jsonl",
        "results/demo/m/responses/base.jsonl",
        "results/demo/m/judgements/icp/gt-0.80/seed-0.jsonl",
        "results/demo/m/tables/scores.csv",
        "results/demo/report.html",
    ],
}
# A job that reads and makes a file of each kind, and shows a table of rows.
WORK = f"""
import json, pathlib
import pandas
def write(path, text):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(text)
texts = json.dumps({SECRET!r})
snakemake.input, snakemake.output = {FILES["input"]!r}, {FILES["output"]!r}
for path in snakemake.input:
    write(path, "0.5" if "scores" in path else texts)
with job(snakemake) as run:
    run.table("examples", pandas.DataFrame([{{"id": "00", "icp": 0.25, **{SECRET!r}}}]))
    for path in snakemake.output:
        write(path, texts)
"""


def held(directory) -> bytes:
    """All that the offline runs hold."""
    found = (path for run in run_directories(directory) for path in run.rglob("*") if path.is_file())
    return b"".join(path.read_bytes() for path in found)


def run_with(directory, texts: bool):
    known = json.loads(settings("offline")) | {"texts": texts}
    ended = run_job(directory, WORK, ICPROBE_TRACKING=json.dumps(known))
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("texts", [False, True])
def test_runs_and_what_is_uploaded_of_them_hold_texts_only_where_that_is_asked_for(texts, tmp_path, server):
    run_with(tmp_path, texts)
    content = held(tmp_path)
    assert b"0.25" in content
    for text in SECRET.values():
        assert (text.encode() in content) == texts
    (record,) = records.read_all(tmp_path / "results/demo/wandb")
    assert record.texts == texts
    sent_before = sync(tmp_path, server.url, "--dry-run")
    assert (sent_before.returncode, server.requests) == (0, [])
    ended = sync(tmp_path, server.url)
    assert ended.returncode == 0, ended.stderr
    count = "1 of them with texts of rows" if texts else "none of them with texts of rows"
    server_name = server.url.removeprefix("http://")
    assert (
        f"would upload 1 run to {server_name}, {count}; all with ids, labels and names of files" in sent_before.stdout
    )
    assert ("tables with texts; " in sent_before.stdout) == texts
    for name in ("data/train.parquet", "tables/scores.csv", "report.html"):
        assert (f"{name} (" in sent_before.stdout) == texts
    assert "m/scores/icp.parquet (3 bytes)" in sent_before.stdout
    assert f"uploading 1 run to {server_name}, {count}" in ended.stderr
    sent = json.dumps(server.requests)
    assert len(server.sent("CreateArtifact")) >= len(FILES["input"] + FILES["output"]) - 1
    for text in SECRET.values():
        assert (text in sent) == texts


def test_files_that_stay_here_may_change_before_the_upload(tmp_path, server):
    run_with(tmp_path, False)
    (tmp_path / FILES["output"][0]).unlink()
    ended = sync(tmp_path, server.url)
    assert ended.returncode == 0, ended.stderr


def test_a_run_from_before_records_told_counts_as_one_with_texts(tmp_path):
    run = tmp_path / "offline-run-20260101_000000-x"
    run.mkdir()
    edges = {"inputs": [{"name": "results/demo/data/train.parquet"}], "outputs": []}
    (run / records.RECORD).write_text(json.dumps({"rule": "subset", "wildcards": {}, **edges}))
    assert records.read(run / "run-x.wandb").texts


@pytest.mark.parametrize(
    ("path", "holds"),
    [
        ("results/demo/data/tasks.parquet", True),
        ("results/demo/m/tables/scores.parquet", True),
        ("results/demo/m/tables/correlations.csv", False),
        ("results/demo/m/attributions/icp.parquet", False),
        ("results/demo/m/figures/lengths.svg", False),
        ("resources/models/m-abc", False),
        # What a folder of the user's, an experiment or a model is called says nothing.
        ("resources/tables/train.jsonl", True),
        ("results/outcomes/data/eval.parquet", True),
        ("results/demo/scores/subsets/icp/gt-0.80.jsonl", True),
        ("results/demo/scores/scores/icp.parquet", False),
        ("elsewhere/of_mine.csv", False),  # no artifact: nothing of it is sent
    ],
)
def test_files_are_known_by_whether_they_hold_texts(path, holds):
    assert lineage.holds_texts(path) == holds


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"mode": "disabled"}, "disabled, no runs are made, nothing is sent"),
        (
            {"mode": "offline"},
            "offline, numbers, figures, ids and labels, kept in results/mine/wandb, nothing is sent (wandb.mode)",
        ),
        ({"mode": "online"}, "online, to team/icprobe, numbers, figures, ids and labels"),
        (
            {"mode": "auto", "entity": None, "texts": True},
            "online, to your project icprobe, numbers, figures and texts",
        ),
    ],
)
def test_one_line_says_where_results_and_runs_go(chosen, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in (*modes.ENVIRONMENT, "WANDB_BASE_URL", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv(modes.VARIABLE, json.dumps({"project": "icprobe", "entity": "team", **chosen}))
    monkeypatch.setattr(destination, "check_server", lambda seconds: None)
    monkeypatch.setattr(destination, "_settled", set())
    assert destination.sentence("mine") == f"Results: results/mine; W&B: {said}"


def test_the_server_and_the_owner_in_wandbs_settings_files_are_those_that_are_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in (*modes.ENVIRONMENT, "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    # As `wandb login --host` and `wandb init` leave them.
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.corp\nentity = ours\n")
    monkeypatch.setenv(modes.VARIABLE, json.dumps({"mode": "online", "project": "icprobe"}))
    monkeypatch.setattr(destination, "check_server", lambda seconds: None)
    monkeypatch.setattr(destination, "_settled", set())
    assert "; W&B: online, to ours/icprobe on https://wandb.corp, " in destination.sentence("mine")
    monkeypatch.setenv("WANDB_BASE_URL", "")  # as good as none
    assert destination.server_address() == "https://wandb.corp"
    monkeypatch.setenv("WANDB_BASE_URL", "https://other")
    assert destination.server_address() == "https://other"


def test_the_line_says_why_runs_that_may_be_online_are_kept(monkeypatch):
    def refuse(seconds):
        raise destination.TrackingError("W&B: no key for https://api.wandb.ai was found. Run `wandb login`.")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(modes.VARIABLE, json.dumps({"mode": "auto", "project": "icprobe"}))
    monkeypatch.setattr(destination, "check_server", refuse)
    monkeypatch.setattr(destination, "_settled", set())
    monkeypatch.setenv(modes.KEPT, "")
    said = destination.sentence("mine")
    assert said.endswith("nothing is sent (no key for https://api.wandb.ai was found)")
    # What was said holds for the whole invocation, whenever a server is there.
    monkeypatch.setattr(destination, "check_server", lambda seconds: None)
    assert modes.settings()["mode"] == "offline"
    assert destination.sentence("mine") == said


def test_the_server_is_asked_once_and_the_first_answer_holds(monkeypatch):
    asked = []

    def answer(seconds):
        asked.append(seconds)
        if len(asked) > 1:
            raise destination.TrackingError("W&B: it cannot be reached. Try again later.")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(modes.VARIABLE, json.dumps({"mode": "online", "project": "icprobe", "entity": None}))
    monkeypatch.setenv("WANDB_BASE_URL", "http://me:hush@localhost:9")
    monkeypatch.setattr(destination, "check_server", answer)
    monkeypatch.setattr(destination, "_settled", set())
    monkeypatch.setenv(modes.KEPT, "")
    threads = [threading.Thread(target=destination.settle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert destination.sentence("mine").endswith(
        "online, to your project icprobe on http://***@localhost:9, numbers, figures, ids and labels"
    )
    assert len(asked) == 1


def test_an_address_that_is_none_keeps_runs_here_and_fails_nothing(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://a..b")
    with pytest.raises(syncing.TrackingError):
        syncing.check_server(1)


def test_a_key_that_is_not_used_is_said(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv(modes.VARIABLE, json.dumps({"mode": "offline", "project": "icprobe"}))
    assert destination.sentence("mine").endswith("(wandb.mode; the key in WANDB_API_KEY is not used)")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_run_of_a_whole_experiment_holds_a_text_of_its_rows(tmp_path):
    project = dag.new(tmp_path)
    ended = project.snakemake("all", "--cores", "2", config={"wandb": {"mode": "offline", "texts": False}})
    assert ended.returncode == 0, ended.output[-6000:]
    assert (
        "Results: results/tiny; W&B: offline, numbers, figures, ids and labels, kept in results/tiny/wandb"
        in ended.output
    )
    runs = sorted((tmp_path / "results/tiny/wandb").glob("*run-*"))
    content = b"".join(path.read_bytes() for run in runs for path in run.rglob("*") if path.is_file())
    rows = [*(tmp_path / "results/tiny/data").glob("*.parquet")]
    texts = {text for path in rows for column in SECRET for text in pd.read_parquet(path)[column]}
    told = [text for text in texts if len(text) > 20 and text.encode() in content]
    assert not told, told[:3]
    for run in runs:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *map(str, run.glob("run-*.wandb"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        kept = [json.loads(line) for line in said.splitlines()]
        logged = [one["artifact"] for one in kept if one["type"] == "artifact"]
        sent = {entry["local_path"] for one in logged for entry in one["manifest"]["contents"] if "local_path" in entry}
        assert not [path for path in sent if lineage.holds_texts(path.split(f"{tmp_path}/")[-1])]
