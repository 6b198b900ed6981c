"""Jobs of one machine take turns on its GPUs: real jobs and real locks; no GPU is needed to be in line for one."""

import importlib.util
import os
import re
import signal
import time

import dag
import pytest
from test_jobs import start_job

from icprobe import cores
from icprobe.errors import ConfigError
from icprobe.workflow import gpus

pytestmark = pytest.mark.timeout(300)

# Says which GPUs it holds, once it does, and holds them until it is told to end.
HOLD = """
import os, time
from pathlib import Path

snakemake.resources = {{"heavy": 1, "gpus_if_any": {wanted}}}
snakemake.log = ["{name}.log"]
with job(snakemake):
    Path("{name}.new").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    Path("{name}.new").rename("{name}")
    while not Path("{name}.end").exists():
        time.sleep(0.02)
"""
THREE = {"CUDA_VISIBLE_DEVICES": "4,5,6"}


def nvidia_smi(folder, listing):
    """The driver's tool, in the place of one that would list GPUs that are here."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\n")
    (folder / "nvidia-smi").chmod(0o755)


class Line:
    """Jobs in line for GPUs, each with a folder of its own for its script, and one for their locks."""

    def __init__(self, folder):
        self.folder, self.jobs, self.machines = folder, {}, []
        (folder / "locks").mkdir()

    def see(self, *uuids):
        """Lets jobs that enter from now on see these GPUs."""
        self.machines.append(self.folder / f"machine-{len(self.machines)}")
        listing = [f"GPU {n}: NVIDIA A100 (UUID: {uuid})" for n, uuid in enumerate(uuids)]
        nvidia_smi(self.machines[-1], "\n".join(listing))

    def enter(self, name, wanted=1, **environment):
        script = self.folder / f"of-{name}"
        script.mkdir()
        given = {**THREE, "TMPDIR": str(self.folder / "locks"), **environment}
        if self.machines:
            given["PATH"] = f"{self.machines[-1]}{os.pathsep}{os.environ['PATH']}"
        self.jobs[name] = start_job(script, HOLD.format(wanted=wanted, name=name), **given)

    def path(self, name):
        return self.folder / f"of-{name}" / name

    def log(self, name):
        path = self.path(name).with_suffix(".log")
        return path.read_text() if path.exists() else ""

    def held(self, name, seconds=60.0):
        """The GPUs that a job holds, once it does."""
        ends = time.monotonic() + seconds
        while not self.path(name).exists():
            assert time.monotonic() < ends, f"{name} holds none after {seconds} s: {self.log(name)}"
            assert self.jobs[name].poll() is None, self.jobs[name].communicate()[1]
            time.sleep(0.02)
        return self.path(name).read_text().split(",")

    def waits(self, name):
        """Whether a job has come to wait, and holds none a second later."""
        ends = time.monotonic() + 60
        while "waiting for" not in self.log(name):
            assert not self.path(name).exists(), self.log(name)
            assert time.monotonic() < ends, self.log(name)
            time.sleep(0.02)
        time.sleep(1)
        return not self.path(name).exists()

    def end(self, name):
        self.path(name).with_suffix(".end").touch()
        assert self.jobs[name].wait(30) == 0, self.jobs[name].communicate()[1]


@pytest.fixture
def line(tmp_path):
    made = Line(tmp_path)
    yield made
    for process in made.jobs.values():
        process.kill()
        process.communicate()


def test_each_job_holds_another_gpu_and_one_too_many_waits_for_the_first_that_ends(line):
    for name in "abc":
        line.enter(name)
    first = {name: line.held(name) for name in "abc"}
    assert sorted(first.values()) == [["4"], ["5"], ["6"]]
    line.enter("d")
    assert line.waits("d")
    line.end("b")
    assert line.held("d") == first["b"]
    assert "GPU 5 of 4, 5, 6" in next(line.log(name) for name in "abc" if first[name] == ["5"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_gpu_of_a_job_that_is_killed_is_free_again(how, line):
    line.enter("a", CUDA_VISIBLE_DEVICES="1")
    assert line.held("a") == ["1"]
    line.enter("b", CUDA_VISIBLE_DEVICES="1")
    assert line.waits("b")
    line.jobs["a"].send_signal(how)
    assert line.held("b") == ["1"]


def test_a_job_of_several_processes_gets_as_many_gpus_at_once_or_holds_none(line):
    line.enter("a", wanted=2)
    assert line.held("a") == ["4", "5"]
    line.enter("b", wanted=2)
    assert line.waits("b")
    line.enter("c")
    assert line.held("c") == ["6"], "what a waiting job cannot use yet stays free for others"
    line.end("a")
    assert line.held("b") == ["4", "5"]


def test_a_gpu_by_its_number_and_by_its_uuid_is_one_gpu(line):
    """And two of one number are two, in containers and batch jobs that see none but their own."""
    line.see("GPU-1a", "GPU-2b")
    line.enter("a", CUDA_VISIBLE_DEVICES="1,0")
    assert line.held("a") == ["1"]
    line.enter("b", CUDA_VISIBLE_DEVICES="GPU-2b")
    assert line.waits("b")
    line.see("GPU-3c")
    line.enter("c", CUDA_VISIBLE_DEVICES="0")
    line.see("GPU-4d")
    line.enter("d", CUDA_VISIBLE_DEVICES="0")
    assert [line.held(name) for name in "cd"] == [["0"], ["0"]]
    line.end("a")
    assert line.held("b") == ["GPU-2b"]


def test_without_gpus_or_need_of_one_nothing_changes(line):
    line.enter("a", CUDA_VISIBLE_DEVICES="")
    line.enter("b", CUDA_VISIBLE_DEVICES="-1")
    line.enter("c", wanted=0)
    assert [line.held(name) for name in "abc"] == [[""], ["-1"], ["4", "5", "6"]]
    assert not list((line.folder / "locks").glob("icprobe-gpus*"))


def test_more_gpus_than_there_are_are_refused_in_a_sentence(monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    with pytest.raises(ConfigError, match=r"finetune\.processes: 3 processes .* 2 GPUs"), gpus.turn(3):
        pass


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("GPU 0: NVIDIA A100 (UUID: GPU-1a)\nGPU 1: NVIDIA A100 (UUID: GPU-2b)\n", {"0": "GPU-1a", "1": "GPU-2b"}),
        (
            "GPU 0: NVIDIA A100 (UUID: GPU-1a)\n  MIG 3g.20gb     Device  0: (UUID: MIG-c3)\n"
            "  MIG 3g.20gb     Device  1: (UUID: MIG-d4)\n",
            {"MIG-c3": "MIG-c3", "MIG-d4": "MIG-d4"},
        ),
        ("", {}),
    ],
    ids=["two", "parts of one", "none"],
)
def test_all_gpus_of_the_machine_are_listed_where_no_variable_chooses(said, names, monkeypatch, tmp_path):
    nvidia_smi(tmp_path, said)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setattr(gpus, "version", lambda _package: "2.13.0")
    assert gpus.listed() == names
    monkeypatch.setattr(gpus, "version", lambda _package: "2.13.0+cpu")
    assert gpus.listed() == {}, "a PyTorch for CPUs sees none"


# --- with Snakemake ---------------------------------------------------------------------------------------------


def test_jobs_at_a_time_share_the_cores(monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: 32)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [cores.wanted(*given) for given in ((), (4, 16), (4,), (64, 32))] == [32, 4, 8, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores.wanted(4, 16) == 3


def test_snakemake_gives_each_of_two_shards_a_gpu_of_its_own(tmp_path_factory, tmp_path):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    shards = [str(dag.RESULTS / f"attributions/icp/{n}-of-2.parquet") for n in (1, 2)]
    before = [project.read(shard) for shard in shards]
    ended = project.snakemake(
        *shards, "--force", "--cores", "2", "--resources", "gpu=2",
        environment={"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.output
    logs = [project.log("tiny", f"attribute/tiny-llama/icp/{n}-of-2.log") for n in (1, 2)]
    found = [re.search(r"GPU (\d) of 0, 1$", log, re.MULTILINE) for log in logs]
    assert all(found), logs
    assert [project.read(shard) for shard in shards] == before


def test_a_job_of_a_batch_system_keeps_the_gpus_that_it_was_given(tmp_path_factory, tmp_path):
    if not importlib.util.find_spec("snakemake_executor_plugin_cluster_generic"):
        pytest.skip("needs snakemake-executor-plugin-cluster-generic")
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    (tmp_path / "submit").write_text('#!/bin/sh\nsh "$1" >submitted.log 2>&1 &\necho $!\n')
    (tmp_path / "submit").chmod(0o755)
    ended = project.snakemake(
        str(dag.RESULTS / "attributions/icp/1-of-2.parquet"), "--force",
        "--profile", "profiles/generic", "--cluster-generic-submit-cmd", "./submit",
        environment={"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.output
    log = project.log("tiny", "attribute/tiny-llama/icp/1-of-2.log")
    assert "done after" in log
    assert "GPU" not in log
    assert not list(tmp_path.glob("icprobe-gpus*"))
