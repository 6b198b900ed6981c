"""A fine-tuning in two processes is that of one: the same losses, weights that differ in last bits."""

import json
import os
import signal
import subprocess
import sys
import time

import dag
import pytest
import torch
from test_finetuning import LORA, ROWS, SETTINGS, make_base

from icprobe import artifacts
from icprobe.config import Templates
from icprobe.engine.checkpoints import load_fine_tuned
from icprobe.errors import ConfigError, DataError
from icprobe.texts.chat import prompts_of
from icprobe.training.distributed import fine_tune_in_processes
from icprobe.training.fine_tune import fine_tune

TEMPLATES = {**Templates().model_dump(), "special_tokens": "text"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


def settings(**changes):
    return {**SETTINGS, "batch_size": 4, "accumulation": 2, "epochs": 2, "processes": 2, "accelerate": None, **changes}


@pytest.mark.parametrize("lora", [None, {**LORA, "dropout": 0.0}])
def test_two_processes_give_the_loss_curve_of_one(lora, base, tmp_path):
    curves, numbers = {}, {}
    for name, processes in (("one", 1), ("two", 2)):
        curve, how = [], settings(lora=lora, processes=processes)
        arguments = (tmp_path / name, how, 0, tmp_path / f"partial {name}", lambda m, s, to=curve: to.append((s, m)))
        if processes == 1:
            numbers[name] = fine_tune(base, ROWS, prompts_of(TEMPLATES), *arguments)
        else:
            numbers[name] = fine_tune_in_processes(base, ROWS, TEMPLATES, *arguments)
        curves[name] = curve
    assert [step for step, _ in curves["two"]] == [step for step, _ in curves["one"]]
    assert len(curves["one"]) >= 2
    for (_, one), (_, two) in zip(curves["one"], curves["two"], strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)
        assert two["train/learning_rate"] == one["train/learning_rate"]
    assert numbers["two"]["final_loss"] == pytest.approx(numbers["one"]["final_loss"], rel=1e-4)
    assert {k: v for k, v in numbers["two"].items() if "loss" not in k} == {
        k: v for k, v in numbers["one"].items() if "loss" not in k
    }
    assert artifacts.verify(tmp_path / "two")["kind"] == ("lora" if lora else "full")
    assert {f.name for f in (tmp_path / "two").iterdir()} == {f.name for f in (tmp_path / "one").iterdir()}
    one, two = (load_fine_tuned(tmp_path / name, base, device="cpu") for name in ("one", "two"))
    for (name, left), right in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(right, left, rtol=1e-3, atol=1e-5, msg=name)


def test_a_mistake_in_one_of_them_is_the_sentence_that_it_is_elsewhere(base, tmp_path):
    with pytest.raises(ConfigError, match="2 processes cannot share batches of 3 examples evenly"):
        fine_tune_in_processes(base, ROWS, TEMPLATES, tmp_path / "a", settings(batch_size=3), 0, tmp_path / "pa")
    with pytest.raises(DataError, match="can be trained on: each query alone"):
        fine_tune_in_processes(base, ROWS, TEMPLATES, tmp_path / "b", settings(max_length=2), 0, tmp_path / "pb")


JOB = """
import json, sys
from icprobe.training.distributed import fine_tune_in_processes
fine_tune_in_processes(*json.loads(sys.argv[1]))
"""


@pytest.mark.slow
def test_processes_whose_job_is_killed_end_and_another_goes_on_where_they_were(base, tmp_path):
    how = settings(epochs=60, checkpoint_minutes=1e-9, lora=LORA)
    arguments = [str(base), ROWS, TEMPLATES, str(tmp_path / "out"), how, 0, str(tmp_path / "partial")]
    job = subprocess.Popen([sys.executable, "-c", JOB, json.dumps(arguments)])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "partial").glob("checkpoint-*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    time.sleep(6)
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "partial")], capture_output=True, text=True, check=False)
    assert not left.stdout.split(), "nothing goes on writing"
    assert not (tmp_path / "out" / "manifest.json").exists()
    numbers = fine_tune_in_processes(*arguments)
    assert numbers["resumed_from_step"] > 0
    assert artifacts.verify(tmp_path / "out")["kind"] == "lora"


def test_a_last_batch_that_processes_cannot_share_is_refused(base, tmp_path):
    arguments = (tmp_path / "out", settings(), 0, tmp_path / "partial")
    with pytest.raises(ConfigError, match=r"finetune\.processes: 5 examples leave 1 example for the last batch of 4"):
        fine_tune(base, ROWS[:5], prompts_of(TEMPLATES), *arguments)


def test_another_file_for_accelerate_trains_again_however_old_it_is(tmp_path_factory, tmp_path):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    settings = {"finetune": {"processes": 2, "accelerate": "accelerate.yaml"}}
    own, target = project.path / "accelerate.yaml", str(dag.RESULTS / "checkpoints/all/all/seed-0")

    def write(kind, more=""):
        text = f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nmixed_precision: 'no'\n{more}"
        own.write_text(text, encoding="utf-8")

    write("'NO'")  # as accelerate's own questions leave it on a machine without GPUs
    ended = project.snakemake(target, "--cores", "2", config=settings)
    assert ended.returncode != 0
    said = "finetune.accelerate: accelerate.yaml starts 1 process where finetune.processes is 2; write the"
    assert said in " ".join(ended.output.split())
    write("MULTI_GPU")
    ended = project.snakemake(target, "--cores", "2", config=settings)
    assert ended.returncode == 0, ended.output
    assert project.snakemake(target, "-n", config=settings).jobs == {}
    write("MULTI_GPU", "main_training_function: main\n")
    os.utime(own, (1e9, 1e9))
    assert project.snakemake(target, "-n", config=settings).jobs["fine_tune"] == 1
