"""Offline runs are uploaded once, in order, and what could not be uploaded is named; the saved view of a project."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracked import KEY, LIGHT, WORK, run_directories, run_name_of_work, run_tracked

from icprobe import lineage, syncing

pytestmark = pytest.mark.timeout(90)


def sync(directory: Path, server: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "icprobe.syncing", "sync", "results/demo", *options]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server}
    environment["PYTHONPATH"] = str(Path(syncing.__file__).parents[1])
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=80)


def test_sync_uploads_once_with_lineage_and_uploads_again_what_has_grown(tmp_path, server):
    assert run_tracked(tmp_path, WORK).returncode == 0
    first = sync(tmp_path, server.url)
    assert first.returncode == 0, first.stderr
    assert server.sent("UpsertBucket")[0]["displayName"] == run_name_of_work()
    assert len(server.sent("UseArtifact")) == 1
    asked = len(server.requests)
    second = sync(tmp_path, server.url)
    assert (second.returncode, len(server.requests)) == (0, asked), second.stderr
    (mark,) = (tmp_path / "results/demo/wandb").glob("*run-*/*.synced")
    (log,) = (tmp_path / "results/demo/wandb").glob("*run-*/*.wandb")
    assert syncing.pending(tmp_path / "results/demo/wandb") == []
    assert mark.name == log.name + ".synced"
    log.touch()
    assert syncing.pending(tmp_path / "results/demo/wandb") == [log]


def test_a_run_of_which_the_server_refuses_a_part_is_not_uploaded(tmp_path, server):
    assert run_tracked(tmp_path, WORK).returncode == 0
    server.refused = {"CreateArtifact"}
    first = sync(tmp_path, server.url)
    assert (first.returncode, run_directories(tmp_path)[0].name in first.stderr) == (1, True), first.stderr
    assert "failed to log artifact" in first.stderr
    server.refused = {"UseArtifact"}
    second = sync(tmp_path, server.url)
    assert second.returncode == 0, second.stderr
    assert "its inputs are not linked" in second.stderr


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_sync_without_a_server_names_the_runs_and_fails_soon(tmp_path, silent_server, kind):
    assert run_tracked(tmp_path, LIGHT).returncode == 0
    begun = time.monotonic()
    failed = sync(tmp_path, silent_server if kind == "silent" else "http://127.0.0.1:9", "--timeout", "1")
    assert failed.returncode == 1
    assert run_directories(tmp_path)[0].name in failed.stderr
    assert time.monotonic() - begun < 10


def test_makers_of_a_file_are_uploaded_before_its_readers(tmp_path):
    edges = {"c": (["b.out"], []), "a": ([], ["a.out"]), "b": (["a.out"], ["b.out"]), "killed": None}
    logs = {}
    for name, edge in edges.items():
        logs[name] = tmp_path / name / f"run-{name}.wandb"
        logs[name].parent.mkdir()
        if edge:
            (tmp_path / name / lineage.EDGES).write_text(json.dumps({"inputs": edge[0], "outputs": edge[1]}))
    waves = syncing.waves(list(logs.values()))
    assert [[log.parent.name for log in wave] for wave in waves] == [["a", "killed"], ["b"], ["c"]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")
def test_the_saved_view_shows_correlations_overlaps_and_win_rates():
    pytest.importorskip("wandb_workspaces", reason="the package wandb-workspaces is optional")
    view = json.loads(syncing.workspace("icprobe", "me", "demo")._to_model().model_dump_json())
    sections = view["spec"]["section"]["panel_bank_config"]["sections"]
    assert [section["name"] for section in sections] == [
        "Correlations",
        "Overlaps",
        "Win rates",
        "Training",
        "Workflow",
    ]
    workflow = [f"workflow/{state}" for state in ("done", "failed", "total")]
    metrics = [panel["config"].get("metrics") for section in sections for panel in section["panels"]]
    assert [metric for metric in metrics if metric] == [
        ["spearman"],
        ["overlap"],
        ["win_rate"],
        ["train/loss"],
        workflow,
    ]
    tables = [json.dumps(section["panels"][1]) for section in sections[:3]]
    assert all(
        f'"{name}"' in table for name, table in zip(("correlations", "overlaps", "win_rates"), tables, strict=True)
    )
    assert '"demo"' in json.dumps(view["spec"]["section"]["run_sets"][0]["filters"])
