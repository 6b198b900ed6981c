"""W&B runs hold what was logged, cost little, and never fail or hold up a job. No test needs W&B's service."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from test_jobs import start_job
from tracked import KEY, LIGHT, WORK, run_directories, run_name_of_work, run_tracked, settings
from wandb.util import get_core_path

from icprobe.tracking import lineage, syncing, wandb_runs

pytestmark = pytest.mark.timeout(90)


def read_back(directory: Path, *options: str) -> Any:
    """What the only run holds: its records, or with --summary one object."""
    (log,) = (directory / "results/demo/wandb").glob("*run-*/run-*.wandb")
    return inspect(log, *options)


def inspect(log: Path, *options: str) -> Any:
    """What `wandb leet inspect` finds in a log, without the second that it takes to find its reader."""
    command = [get_core_path(), "leet", "inspect", "--json", "--no-observability", *options, "--run-file", str(log)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said) if options else [json.loads(line) for line in said.splitlines()]


# --- what a run is ----------------------------------------------------------------------------------------------


def test_a_run_is_the_same_run_for_the_same_job_and_params_only():
    job = {"method": "icp", "bin": "gt-0.80"}
    same = [lineage.run_id("demo", "fine_tune", job, {"code": "a", "seeds": [0, 1]}) for _ in range(2)]
    others = [
        lineage.run_id("paper", "fine_tune", job, {"code": "a", "seeds": [0, 1]}),
        lineage.run_id("demo", "generate", job, {"code": "a", "seeds": [0, 1]}),
        lineage.run_id("demo", "fine_tune", {**job, "bin": "gt-0.50"}, {"code": "a", "seeds": [0, 1]}),
        lineage.run_id("demo", "fine_tune", job, {"code": "b", "seeds": [0, 1]}),
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 5
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", same[0])


@pytest.mark.parametrize(
    ("rule", "wildcards", "name"),
    [
        ("fine_tune", {"model": "m", "method": "icp", "bin": "gt-0.80", "seed": "0"}, "fine-tune icp >0.8 seed 0"),
        ("fine_tune", {"model": "m", "method": "all", "bin": "all", "seed": "3"}, "fine-tune all seed 3"),
        ("subset", {"model": "m", "method": "random", "bin": "le-0.50"}, "subset random <=0.5"),
        ("attribute", {"model": "m", "method": "icp", "scatteritem": "1-of-4"}, "attribute icp 1-of-4"),
        ("correlate", {"experiment": "demo", "model": "m"}, "correlate m"),
        ("report", {"experiment": "demo"}, "report"),
    ],
)
def test_names_of_runs_can_be_read(rule, wildcards, name):
    assert lineage.run_name(rule, wildcards) == name


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("resources/models/m", "model"),
        ("resources/demo/train.jsonl", "dataset"),
        ("results/demo/data/train.parquet", "dataset"),
        ("results/demo/m/data/lengths.parquet", "dataset"),
        ("results/demo/m/attributions/icp/1-of-2.parquet", "attribution"),
        ("results/demo/m/scores/icp.parquet", "score"),
        ("results/demo/m/subsets/icp/gt-0.80.jsonl", "subset"),
        ("results/demo/m/checkpoints/icp/gt-0.80/seed-0", "model"),
        ("results/demo/m/responses/base.jsonl", "responses"),
        ("results/demo/m/outcomes/base.parquet", "outcomes"),
        ("results/demo/m/judgements/icp/gt-0.80/seed-0.jsonl", "judgements"),
        ("results/demo/m/tables/win_rates.csv", "table"),
        ("results/demo/synthetic/transformer", "model"),
        ("results/demo/synthetic/values.parquet", "table"),
        ("results/demo/synthetic/figures/noise.svg", "figure"),
        ("results/demo/report.html", "report"),
        ("results/demo/truth.html", "report"),
        ("results/demo/figures/sweep.svg", "figure"),
        ("results/outcomes/data/eval.parquet", "dataset"),
        ("results/demo/scores/subsets/icp/gt-0.80.jsonl", "subset"),
        ("results/tables/figures.v2/responses/base.jsonl", "responses"),
        ("resources/tables/train.jsonl", "dataset"),
        ("private/tables/eval.jsonl", None),
        ("logs/demo/rule.log", None),
    ],
)
def test_every_path_of_the_workflow_has_a_type(path, kind):
    assert lineage.artifact_type(path) == kind
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", lineage.artifact_name(path))


# --- offline ----------------------------------------------------------------------------------------------------


def test_an_offline_run_read_back_holds_all_that_was_logged(tmp_path):
    ended = run_tracked(tmp_path, WORK, mode="auto")
    assert ended.returncode == 0, ended.stderr
    assert re.search("no key for .* was found.* The run is kept offline for `make sync`", ended.log)
    run = read_back(tmp_path, "--summary")
    assert (run["name"], run["project"], run["exit_code"]) == ("fine-tune icp >0.8 seed 0", "icprobe", 0)
    assert run["tags"] == ["icp", ">0.8", "m"]
    assert {name: run["summary"][name] for name in ("examples", "spearman", "train/loss")} == {
        "examples": 96,
        "spearman": 0.7,
        "train/loss": 0.5,
    }
    assert run["summary"]["peak_memory_gb"] > 0
    config = run["config"]
    assert (config["code"], config["analysis"], config["bin"]) == ("abc", {"resamples": 3}, "gt-0.80")
    for edges, path in (("inputs", "m/scores/icp.parquet"), ("outputs", "m/tables/correlations.csv")):
        path = f"results/demo/{path}"
        size = (tmp_path / path).stat().st_size
        assert config[edges] == [
            {"name": path, "bytes": size, "digest": lineage.content_digest(tmp_path / path)},
        ]
    records = read_back(tmp_path)
    points = [record["history"]["item"] for record in records if record["type"] == "history"]
    losses = [(point["train/step"], point["train/loss"]) for point in points if "train/loss" in point]
    assert losses == [(1, 1.5), (2, 0.5)]
    begun = next(record["run"] for record in records if record["type"] == "run")
    assert (begun["run_group"], begun["job_type"]) == ("demo", "fine_tune")
    artifacts = {record["artifact"]["name"]: record["artifact"] for record in records if record["type"] == "artifact"}
    assert artifacts["demo.m.tables.correlations.csv"]["type"] == "table"
    assert artifacts["demo.m.scores.icp.parquet"]["use_after_commit"]
    media = {path.suffix: path.read_text() for path in run_directories(tmp_path)[0].rglob("media/*/*")}
    assert json.loads(media[".json"])["data"] == [["icp", 0.5], [None, None]]
    assert media[".html"].startswith("<html>")
    assert "<svg" in media[".html"]
    assert "<?xml" not in media[".html"]


def test_a_rerun_leaves_one_run_directory(tmp_path):
    assert run_tracked(tmp_path, LIGHT).returncode == 0
    (first,) = run_directories(tmp_path)
    time.sleep(1)  # Names of directories are by the second.
    assert run_tracked(tmp_path, LIGHT).returncode == 0
    (second,) = run_directories(tmp_path)
    assert first.name != second.name


def test_a_killed_job_keeps_what_it_logged(tmp_path):
    body = "import time\nwith job(snakemake) as run:\n    run.log({'train/loss': 1.25}, step=7)\n"
    body += "    run.summary(examples=96)\n    time.sleep(1.5)\n    print('logged', flush=True)\n    time.sleep(30)\n"
    process = start_job(tmp_path, body, ICPROBE_TRACKING=settings("offline"))
    assert process.stdout.readline() == "logged\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    summary = read_back(tmp_path, "--summary")["summary"]
    assert (summary["train/loss"], summary["train/step"], summary["examples"]) == (1.25, 7, 96)


def test_a_failed_job_is_a_failed_run_and_names_no_outputs(tmp_path):
    body = "import icprobe.errors\nwith job(snakemake):\n    raise icprobe.errors.DataError('no.')"
    assert run_tracked(tmp_path, body).returncode == 1
    run = read_back(tmp_path, "--summary")
    assert run["exit_code"] == 1
    assert run["config"]["outputs"] == []


def test_large_files_and_models_are_logged_by_digest_alone(tmp_path):
    body = """
import os, pathlib
from icprobe.artifacts import write_manifest
model = pathlib.Path("results/demo/m/checkpoints/icp/gt-0.80/seed-0")
model.mkdir(parents=True)
(model / "model.safetensors").write_bytes(b"weights")
write_manifest(model)
large = pathlib.Path("results/demo/m/attributions/icp.parquet")
large.parent.mkdir(parents=True)
with open(large, "wb") as file:
    file.truncate(51_000_000)
snakemake.input, snakemake.output = [], [str(model), str(large)]
with job(snakemake):
    pass
"""
    ended = run_tracked(tmp_path, body)
    assert ended.returncode == 0, ended.stderr
    logged = [record["artifact"] for record in read_back(tmp_path) if record["type"] == "artifact"]
    contents = {artifact["type"]: [entry["path"] for entry in artifact["manifest"]["contents"]] for artifact in logged}
    assert contents == {"model": ["manifest.json"], "attribution": ["digest.json"]}
    assert json.loads(logged[1]["metadata"])["bytes"] == 51_000_000
    copied = sum(path.stat().st_size for path in (tmp_path / "results/demo/wandb").rglob("*") if path.is_file())
    assert copied < 1_000_000, f"{copied} bytes below results/demo/wandb"


def test_an_import_does_not_fail_where_the_service_of_wandb_has_died(tmp_path):
    """wandb reports to its service, from within the import, that a job imports transformers, sklearn and so on."""
    body = """
from icprobe.tracking import runs
with job(snakemake) as run:
    runs.wandb_runs.kill_service()
    import sklearn
    run.summary(examples=96)
    print("sklearn is there")
"""
    done = run_tracked(tmp_path, body)
    assert done.returncode == 0, done.stderr
    assert "sklearn is there" in done.stdout + done.stderr


def test_a_directory_that_cannot_be_written_is_said_and_fails_nothing(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/demo").write_text("a file where the directory would be")
    ended = run_tracked(tmp_path, LIGHT, TMPDIR=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "results/demo/wandb cannot be written" in ended.log
    where = re.search(r"this run is in ([^\s,]+)", ended.log)[1]
    assert list(Path(where).glob("wandb/offline-run-*"))


def test_a_disabled_run_writes_nothing_and_costs_nothing(tmp_path):
    seconds = []
    for _ in range(3):  # the least of three: another process may take the core meanwhile
        begun = time.monotonic()
        body = WORK.replace("import pandas", "").replace("run.table", "0 and run.table")
        ended = run_tracked(tmp_path, body, "disabled")
        seconds.append(time.monotonic() - begun)
        assert ended.returncode == 0, ended.stderr
    assert not run_directories(tmp_path)
    assert min(seconds) < 6


def test_a_missing_wandb_is_a_warning(tmp_path):
    ended = run_tracked(tmp_path, "import sys\nsys.modules['wandb'] = None\n" + LIGHT)
    assert ended.returncode == 0, ended.stderr
    assert "W&B: no run (ModuleNotFoundError" in ended.log


# --- online -----------------------------------------------------------------------------------------------------


def test_an_online_run_sends_run_artifacts_and_lineage(tmp_path, server):
    ended = run_tracked(tmp_path, WORK, mode="auto", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert ended.returncode == 0, ended.stderr
    assert "could not" not in ended.log
    begun = server.sent("UpsertBucket")[0]
    assert (begun["groupName"], begun["jobType"], begun["displayName"]) == ("demo", "fine_tune", run_name_of_work())
    made = {sent["input"]["artifactCollectionName"] for sent in server.sent("CreateArtifact")}
    assert {"demo.m.tables.correlations.csv", "demo.m.scores.icp.parquet"} <= made
    (used,) = server.sent("UseArtifact")
    names = {identity: key.split()[0] for key, identity in server.artifacts.items()}
    assert names[used["input"]["artifactID"]] == "demo.m.scores.icp.parquet"
    assert "train/loss" in "".join(server.sent("file_stream"))
    assert not syncing.pending(tmp_path / "results/demo/wandb")


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_an_unreachable_server_costs_seconds_and_the_run_is_kept(tmp_path, silent_server, kind):
    url = silent_server if kind == "silent" else "http://127.0.0.1:9"
    begun = time.monotonic()
    ended = run_tracked(tmp_path, LIGHT, mode="online", WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
    seconds = time.monotonic() - begun
    assert ended.returncode == 0, ended.stderr
    assert "The run is kept offline for `make sync`" in ended.log
    assert read_back(tmp_path, "--summary")["summary"]["examples"] == 96
    assert seconds < 40, f"{seconds:.1f} s"


def test_a_run_of_which_the_server_refuses_a_file_is_not_taken_for_sent(tmp_path, server):
    server.refused = {"CreateArtifact"}
    ended = run_tracked(tmp_path, WORK, mode="online", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert ended.returncode == 0, ended.stderr
    assert "the server refused a part of it" in ended.log
    assert "the stand-in refuses CreateArtifact" in ended.log
    assert len(syncing.pending(tmp_path / "results/demo/wandb")) == 1
    assert "Traceback" not in ended.stderr


def test_a_server_that_falls_silent_in_the_middle_does_not_hold_the_job(tmp_path, server):
    body = "import os, urllib.request\n" + LIGHT
    body += "    urllib.request.urlopen(os.environ['WANDB_BASE_URL'] + '/stop', data=b'now').read()\n"
    keep = server.keep

    def stop(path: str, sent: bytes) -> dict:
        if path == "/stop":
            server.answer = lambda *_: time.sleep(60) or {}
            server.keep = lambda *_: time.sleep(60) or {}
        return keep(path, sent)

    server.keep = stop
    begun = time.monotonic()
    ended = run_tracked(tmp_path, body, mode="online", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    seconds = time.monotonic() - begun
    assert ended.returncode == 0, ended.stderr
    assert "no answer in time for the end of the run" in ended.log
    assert "Traceback" not in ended.stderr
    assert len(syncing.pending(tmp_path / "results/demo/wandb")) == 1
    assert seconds < 55, f"{seconds:.1f} s"


def test_a_server_that_dies_in_the_middle_loses_nothing_and_is_one_line(tmp_path, server):
    """Connections are cut and refused from then on; the job goes on, and what it logged can be uploaded later."""
    body = """
import pathlib, time
with job(snakemake) as run:
    run.log({"train/loss": 2.0}, step=0)
    print("half", flush=True)
    while not pathlib.Path("dead").exists():
        time.sleep(0.05)
    for step in range(1, 30):
        run.log({"train/loss": 1.5}, step=step)
    run.summary(examples=96)
    pathlib.Path("result.txt").write_text("whole")
"""
    begun = time.monotonic()
    process = start_job(
        tmp_path, body, ICPROBE_TRACKING=settings("online"), WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url
    )
    assert process.stdout.readline() == "half\n"
    server.die()
    (tmp_path / "dead").touch()
    _, stderr = process.communicate(timeout=50)
    seconds = time.monotonic() - begun
    assert process.returncode == 0, stderr
    assert (tmp_path / "result.txt").read_text() == "whole"
    log = (tmp_path / "logs/demo/rule.log").read_text()
    said = [line for line in log.splitlines() if "W&B" in line]
    assert len(said) == 1, log
    assert "for `make sync`" in said[0]
    assert "Traceback" not in stderr
    assert read_back(tmp_path, "--summary")["summary"]["train/step"] == 29
    assert len(syncing.pending(tmp_path / "results/demo/wandb")) == 1
    assert seconds < 40, f"{seconds:.1f} s"


def test_limits_of_waiting_stay_under_half_a_minute():
    waits = wandb_runs.CONNECT_SECONDS, wandb_runs.INIT_SECONDS + 2
    assert sum(waits) + wandb_runs.LINEAGE_SECONDS + wandb_runs.FINISH_SECONDS + 3 <= 30


def test_no_job_gives_a_table_and_a_number_one_name():
    """W&B keeps one value for a name in a run's summary: the number would stand in the table's place."""
    for script in (Path(__file__).parents[1] / "workflow/scripts").rglob("*.py"):
        text = script.read_text(encoding="utf-8")
        tables = set(re.findall(r'run\.table\(\s*"(\w+)"', text))
        numbers = set(re.findall(r"(\w+)=", " ".join(re.findall(r"run\.summary\((.*?)\)\n", text, re.DOTALL))))
        assert not tables & numbers, script
