"""What `make` does besides calling Snakemake: cleaning up, and the saved view of the configuration's project."""

import subprocess
from pathlib import Path

import pytest
import yaml

from icprobe.tracking import saved_view, syncing

ROOT = Path(__file__).parents[1]
COMPUTED = ("results/demo/report.html", "results/demo/model/scores/icp.parquet", "logs/demo/report.log")
COMPUTED += ("resources/models/model/manifest.json", ".snakemake/metadata/x")
KEPT = ("results/demo/.cache/llm_judge/answer.json", "results/demo/wandb/offline-run-1/run-1.wandb")
SOURCES = ("resources/demo/train.jsonl",)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def make(folder, target):
    return subprocess.run(
        ["make", "-f", ROOT / "Makefile", target], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def test_make_clean_keeps_paid_answers_and_runs_and_says_so_and_clean_all_removes_them(tmp_path):
    make(tmp_path, "clean")  # where there is nothing
    for name in (*COMPUTED, *KEPT, *SOURCES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    said = make(tmp_path, "clean")
    assert files(tmp_path) == {*KEPT, *SOURCES}
    assert "results/demo/.cache" in said
    assert "results/demo/wandb" in said
    assert "make sync" in said
    make(tmp_path, "clean-all")
    assert files(tmp_path) == {*SOURCES}


def test_make_workspace_follows_the_configuration(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(saved_view, "save_workspace", lambda *names: asked.append(names) or "https://…")
    monkeypatch.chdir(tmp_path)
    whole = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    Path("config.yaml").write_text(yaml.safe_dump(whole))
    Path("mine.yaml").write_text(yaml.safe_dump({"experiment": "mine", "wandb": {"project": "ours", "entity": "team"}}))
    for arguments in (["config.yaml"], ["config.yaml", "mine.yaml"], ["config.yaml", "--experiment", "other"]):
        syncing.main(["workspace", "--configfile", *arguments])
    assert asked == [("icprobe", None, "demo"), ("ours", "team", "mine"), ("icprobe", None, "other")]
    with pytest.raises(SystemExit, match=r"absent\.yaml: no such file"):
        syncing.main(["workspace", "--configfile", "config.yaml", "absent.yaml"])
    planned = subprocess.run(
        ["make", "-n", "-o", "install", "workspace", "CONFIGFILE=mine.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert "workspace --configfile config.yaml mine.yaml" in planned.stdout
