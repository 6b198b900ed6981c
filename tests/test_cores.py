"""Jobs compute with the cores that they were given, on systems that tell a process its cores and on others."""

import importlib.util
import json
import os

import dag
import pytest

from icprobe import cores

# The first test waits for the tiny experiment, on a machine that may be busy.
pytestmark = pytest.mark.timeout(1800)

# Read by every Python process that has its folder on PYTHONPATH.
AS_ON_MACOS = """
import os

if hasattr(os, "sched_getaffinity"):
    del os.sched_getaffinity, os.sched_setaffinity
"""
# In the place of the rule's own script: waits for the other model's job, and tells whether it ran at the same time.
MEETING = """
import time
from pathlib import Path

mark = Path("under_way", snakemake.wildcards.model)
mark.parent.mkdir(exist_ok=True)
mark.touch()
ends = time.monotonic() + float(Path("patience").read_text())
while time.monotonic() < ends and len(list(mark.parent.iterdir())) < 2:
    time.sleep(0.05)
if len(list(mark.parent.iterdir())) == 2:
    Path("met").touch()
    time.sleep(1)
mark.unlink()
Path(snakemake.output.model).mkdir(parents=True)
Path(snakemake.output.manifest).touch()
"""


@pytest.fixture
def without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)


def test_cores_are_counted_where_no_system_tells_a_process_its_own(without_affinity):
    assert cores.usable() == os.cpu_count()


@pytest.mark.parametrize(("limit", "threads"), [("1", 1), (" 1,4", 1), ("999", 8), ("", 8), ("many", 8), ("0", 1)])
def test_a_heavy_job_wants_all_cores_but_no_more_than_the_user_says(limit, threads, monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert cores.wanted() == threads


def test_light_and_heavy_jobs_run_on_one_core_without_the_calls_that_linux_alone_has(tmp_path_factory, tmp_path):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/sitecustomize.py").write_text(AS_ON_MACOS, encoding="utf-8")
    heavy, light = dag.RESULTS / "attributions/icp/1-of-2.parquet", dag.RESULTS / "scores/icp.parquet"
    before = project.read(heavy), project.read(light)
    ended = project.snakemake(
        *map(str, (heavy, light)), "--force", "--cores", "1",
        environment={"OMP_NUM_THREADS": ""}, path=[tmp_path / "hooks"],
    )  # fmt: skip
    assert ended.returncode == 0, ended.output
    assert {"attribute", "score"} <= ended.jobs.keys()
    assert (project.read(heavy), project.read(light)) == before
    for log in ("attribute/tiny-llama/icp/1-of-2", "score/tiny-llama/icp"):
        facts = json.loads(project.log("tiny", f"{log}.environment.json"))["environment"]
        assert (facts["cores"], facts["threads"]) == (os.cpu_count(), 1), log


@pytest.fixture(scope="module")
def meeting(tmp_path_factory):
    """A project with two models, whose preparation tells whether both were under way at once."""
    project = dag.new(tmp_path_factory.mktemp("meeting"))
    (project.path / "workflow/scripts/data/prepare_model.py").write_text(MEETING, encoding="utf-8")
    submit = project.path / "submit"
    submit.write_text('#!/bin/sh\nsh "$1" >submitted.log 2>&1 &\necho $!\n', encoding="utf-8")
    submit.chmod(0o755)
    return project


@pytest.mark.parametrize(
    ("arguments", "patience", "met"),
    [
        (("--cores", "1"), 3, False),
        (("--cores", "256"), 60, True),
        (("--cores", "256", "--resources", "heavy=1"), 3, False),
        (("--cores", "256", "--resources", "heavy=2"), 60, True),
        (("--cores", "256", "--resources", "gpu=2"), 60, True),
        (("--profile", "profiles/generic", "--cluster-generic-submit-cmd", "./submit"), 60, True),
    ],
    ids=["one core", "small models", "told one", "told two", "two GPUs", "a cluster"],
)
def test_heavy_jobs_share_one_machine_where_models_are_small_or_it_is_said(meeting, arguments, patience, met):
    if "--profile" in arguments and not importlib.util.find_spec("snakemake_executor_plugin_cluster_generic"):
        pytest.skip("needs snakemake-executor-plugin-cluster-generic")
    (meeting.path / "patience").write_text(str(patience), encoding="utf-8")
    (meeting.path / "met").unlink(missing_ok=True)
    two = {"models": ["tiny-llama", "other"], "model_sources": {"other": {"source": "random"}}}
    ended = meeting.snakemake(
        "resources/models/tiny-llama", "resources/models/other", "--forceall", *arguments, config=two
    )
    assert ended.returncode == 0, ended.output
    assert (meeting.path / "met").exists() == met
