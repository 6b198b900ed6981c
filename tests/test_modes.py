"""Whether W&B runs are sent, kept or not made: the user's nearest word wins, and what is switched off stays off."""

import json
import os
import subprocess
import sys

import dag
import pytest
from test_invocations import SNAKEFILE, Project
from tracked import KEY, LIGHT, run_directories, run_tracked, settings

from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.errors import ConfigError
from icprobe.tracking import modes

pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        ("auto", {}, "auto"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": " Disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": ""}, "auto"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "online"),
        ("online", {"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, "disabled"),
        ("online", {"WANDB_DISABLED": "false"}, "online"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("disabled", {"WANDB_MODE": "offline"}, "disabled"),
    ],
)
def test_the_environments_mode_wins_over_the_configurations_unless_that_is_disabled(
    configured, environment, mode, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = {modes.VARIABLE: settings(configured), "WANDB_CONFIG_DIR": str(tmp_path), **environment}
    assert modes.settings(given)["mode"] == mode


def test_the_environments_project_and_entity_win_over_the_configurations():
    given = {modes.VARIABLE: settings("offline"), "WANDB_PROJECT": "mine", "WANDB_ENTITY": "team"}
    assert [modes.settings(given)[key] for key in ("project", "entity")] == ["mine", "team"]


def test_a_mode_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="WANDB_MODE: 'ofline' is not a mode; use online, offline or disabled"):
        modes.settings({modes.VARIABLE: settings("auto"), "WANDB_MODE": "ofline"})


def test_wandb_null_is_off():
    raw = {"experiment": "x", "models": ["m"], "model_sources": {"m": {"source": "random"}}, "data": {}, "bins": []}
    raw |= {"attribution": {"methods": ["length"]}, "finetune": {"methods": [], "all_data": False}}
    assert load(raw, METHODS).wandb.mode == "offline"
    assert load({**raw, "wandb": None}, METHODS).wandb.mode == "disabled"


@pytest.mark.parametrize(
    ("word", "runs"),
    [({"WANDB_MODE": "offline"}, 1), ({"WANDB_MODE": "disabled"}, 0), ({"WANDB_DISABLED": "true"}, 0)],
)
@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_job_sends_nothing_where_the_environment_says_so(tmp_path, server, mode, word, runs):
    online = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    ended = run_tracked(tmp_path, LIGHT, mode=mode, **online, **word)
    assert ended.returncode == 0, ended.stderr
    assert server.requests == []
    assert len(run_directories(tmp_path)) == runs
    assert ("W&B: offline (WANDB_MODE)" in ended.log) == bool(runs)


def test_a_job_sends_nothing_after_wandb_offline(tmp_path, server):
    own = str(tmp_path / "settings of wandb")
    online = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_CONFIG_DIR": own}
    subprocess.run([sys.executable, "-m", "wandb", "offline"], cwd=tmp_path, env=online, check=True)
    ended = run_tracked(tmp_path, LIGHT, mode="auto", **online)
    assert ended.returncode == 0, ended.stderr
    assert server.requests == []
    assert len(run_directories(tmp_path)) == 1


@pytest.mark.parametrize(("mode", "chosen"), [("offline", "offline"), ("auto", "online"), ("disabled", "disabled")])
def test_wandb_online_sends_nothing_that_the_configuration_keeps(mode, chosen, tmp_path):
    (tmp_path / "settings").write_text("[default]\nmode = online\n")
    environment = {modes.VARIABLE: json.dumps({"mode": mode}), "WANDB_CONFIG_DIR": str(tmp_path)}
    assert modes.settings(environment)["mode"] == chosen
    assert modes.settings({**environment, "WANDB_MODE": "online"})["mode"] == (
        "disabled" if mode == "disabled" else "online"
    )


@pytest.mark.parametrize(("mode", "runs"), [("offline", 1), ("disabled", 0)])
def test_the_workflows_own_run_sends_nothing_where_the_environment_says_so(tmp_path, server, mode, runs):
    project = Project(tmp_path)
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("offline", "auto"))
    code, said = project.run(WANDB_MODE=mode, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert code == 0, said
    if runs:
        project.summary()
    assert server.requests == []
    assert len(project.runs()) == runs


def test_a_job_on_another_machine_is_told_the_environments_word(tmp_path):
    """Through a generic cluster that hands on no environment but what the workflow names."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    project = dag.new(tmp_path)
    kept = " ".join(f"{name}={os.environ[name]}" for name in ("PATH", "HOME"))
    submit = f"env -i {kept} PYTHONPATH={project.path / 'src'} sh"
    ended = project.snakemake(
        *("--executor", "cluster-generic", "--jobs", "1", "--cluster-generic-submit-cmd", submit),
        *("--seconds-between-status-checks", "1", "results/tiny/data/eval.parquet"),
        config={"wandb": {"mode": "auto"}},
        environment={"WANDB_MODE": "offline"},
    )
    assert ended.returncode == 0, ended.output
    assert "W&B: offline (WANDB_MODE)" in project.log("tiny", "prepare_eval.log")
