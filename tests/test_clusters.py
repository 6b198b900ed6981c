"""A batch system that does not answer is one sentence within seconds, before anything is submitted."""

import os
import re
import subprocess
import sys
import time

import dag
import pytest

from icprobe.errors import ClusterError
from icprobe.workflow import asks, clusters

UP = "echo 'Slurmctld(primary) at head is UP'"
DOWN = "echo 'Slurmctld(primary) at head is DOWN'; exit 1"
BACKUP = "echo 'Slurmctld(primary) at head is DOWN'; echo 'Slurmctld(backup) at other is UP'"
LOST = "echo 'scontrol: error: Could not establish a configuration source' >&2; exit 1"


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Makes commands that stand before all others, by their names and scripts; the folder that they are in."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(**scripts):
        for name, script in scripts.items():
            path = folder / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        return folder

    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return make


@pytest.mark.parametrize("script", [UP, BACKUP])
def test_a_controller_that_answers_is_left_in_peace(script, commands):
    commands(scontrol=script)
    clusters.require_controller("slurm")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (DOWN, "head is DOWN"),
        (LOST, "Could not establish a configuration source"),
        ("exec sleep 60", "no answer within"),
    ],
)
def test_one_that_does_not_is_one_sentence_soon(script, said, commands, monkeypatch):
    monkeypatch.setattr(clusters, "LOOK_SECONDS", 0.5)
    commands(scontrol=script)
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=rf"^slurm: the controller does not answer \(`scontrol ping`: .*{said}"):
        clusters.require_controller("slurm")
    assert time.monotonic() - begun < 30


def test_a_machine_without_slurm_is_told_so(commands, monkeypatch):
    monkeypatch.setenv("PATH", str(commands()))
    with pytest.raises(ClusterError, match="there is no command scontrol here"):
        clusters.require_controller("slurm")


@pytest.mark.parametrize("executor", ["local", "dryrun", "cluster-generic", "kubernetes", "slurm-jobstep"])
def test_other_executors_are_asked_nothing(executor, commands):
    commands(scontrol=DOWN)
    clusters.require_controller(executor)


def test_a_workflow_for_an_unreachable_slurm_ends_at_once_and_submits_nothing(commands, tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    project = dag.new(tmp_path / "project")
    submitted = tmp_path / "submitted"
    folder = commands(scontrol=DOWN, sbatch=f"touch {submitted}; exit 1", sinfo="exit 1", sacctmgr="exit 1")
    path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    begun = time.monotonic()
    ended = project.snakemake("--profile", "slurm", "all", environment=path)
    assert ended.returncode == 1
    assert re.search(r"^slurm: the controller does not answer \(.* is DOWN\)\.", ended.output, re.MULTILINE), (
        ended.output
    )
    assert "Traceback" not in ended.output
    assert not submitted.exists()
    assert time.monotonic() - begun < 60


# --- what rules ask for -----------------------------------------------------------------------------------------


def test_the_table_has_the_most_that_a_job_of_each_rule_asks_for():
    jobs = [
        ("attribute", 8, {"mem_mb": 4000, "runtime": 30, "gpu": 1}),
        ("attribute", 8, {"mem_mb": 12000, "runtime": 25, "gpu": 1}),
        ("score", 1, {"mem_mb": 2000, "runtime": 20}),
    ]
    head, _, *rows = asks.table(jobs).splitlines()
    assert re.split(r"  +", head) == ["rule", "jobs", "memory, MB", "minutes", "GPUs", "CPUs"]
    assert [row.split() for row in rows] == [
        ["attribute", "2", "12,000", "30", "1", "8"],
        ["score", "1", "2,000", "20", "0", "1"],
    ]


def test_the_command_lists_the_rules_of_a_target_and_runs_nothing(tmp_path):
    project = dag.new(tmp_path)
    (project.path / "mine.yaml").write_text("attribution: {device: cuda}\n")
    arguments = ["analysis", "--configfile", "configs/tiny.yaml", "mine.yaml"]
    ended = subprocess.run(
        [sys.executable, "-m", "icprobe.workflow.asks", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    rows = {row.split()[0]: row.split()[1:] for row in ended.stdout.splitlines()[2:]}
    assert rows["attribute"][0] == "4"
    assert {rule for rule, row in rows.items() if row[3] == "1"} == {
        "attribute",
        "attribute_influence",
        "attribute_step",
    }
    assert not {"fine_tune", "analysis"} & set(rows)
    assert not (project.path / "results").exists()
