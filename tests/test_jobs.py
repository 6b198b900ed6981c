"""Jobs end cleanly: what a user can mend is one sentence, a bug is a traceback, and the log tells what happened."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from icprobe import cores
from icprobe.tables import parquet
from icprobe.tables.places import with_places
from icprobe.workflow.jobs import SPINNING, threads

pytestmark = pytest.mark.timeout(60)

PREAMBLE = """
from types import SimpleNamespace

from icprobe.workflow.jobs import job

snakemake = SimpleNamespace(
    input=["results/demo/m/scores/icp.parquet"],
    output=["results/demo/m/tables/correlations.csv"],
    params={"code": "abc", "analysis": {"resamples": 3}},
    wildcards={"experiment": "demo", "model": "m", "method": "icp", "bin": "gt-0.80", "seed": "0"},
    log=["logs/demo/rule.log"],
    rule="fine_tune",
    threads=64,
    config={},
)
"""


def start_job(directory: Path, body: str, **environment: str) -> subprocess.Popen:
    """A script of the workflow, begun in `directory` with a stand-in for Snakemake's object."""
    script = directory / "script.py"
    script.write_text(PREAMBLE + body)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "ICPROBE"))}
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=directory,
        env={**inherited, "NETRC": str(directory / "no-netrc"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_job(directory: Path, body: str, **environment: str) -> SimpleNamespace:
    """The same, run to its end: returncode, stdout, stderr and the rule's log."""
    process = start_job(directory, body, **environment)
    stdout, stderr = process.communicate(timeout=55)
    log = directory / "logs/demo/rule.log"
    return SimpleNamespace(
        returncode=process.returncode, stdout=stdout, stderr=stderr, log=log.read_text() if log.exists() else ""
    )


def test_the_log_begins_with_rule_and_wildcards_and_ends_with_time_and_memory(tmp_path):
    ended = run_job(tmp_path, "import logging\nwith job(snakemake):\n    logging.getLogger('icprobe').info('half way')")
    assert ended.returncode == 0, ended.stderr
    first, middle, last = ended.log.splitlines()
    assert "fine_tune: experiment=demo model=m method=icp bin=gt-0.80 seed=0" in first
    assert middle.endswith(" half way")
    assert re.search(r"done after \d+\.\d s; peak memory \d+\.\d\d GB$", last)
    assert "half way" in ended.stderr


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("icprobe.errors.DataError('train.jsonl, line 3: no output.')", "train.jsonl, line 3: no output."),
        ("OSError(28, 'No space left on device', 'big.npy')", "big.npy: the disk is full"),
        ("RuntimeError('I/O error: No space left on device (os error 28)')", "correlations.csv: the disk is full"),
        ("MemoryError()", "fine_tune: out of memory"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_without_a_traceback(tmp_path, error, sentence):
    ended = run_job(tmp_path, f"import icprobe.errors\nwith job(snakemake):\n    raise {error}")
    assert ended.returncode == 1
    assert ended.stderr.count(sentence) == 1, ended.stderr
    assert ended.log.count(sentence) == 1, ended.log
    assert "error: " in ended.log
    assert "Traceback" not in ended.stderr + ended.log
    assert "failed after" in ended.log.splitlines()[-1]


def test_a_made_id_in_a_message_is_told_with_its_row(tmp_path):
    for name, table in {
        "tasks": {"id": ["x" + "0" * 12, "x" + "1" * 12, "x" + "1" * 12 + "-2"], "row_number": [0, 4, 7]},
        "train": {"id": ["x" + "1" * 11 + "2", "a7"], "text": ["", ""]},
    }.items():
        parquet.write_parquet(pd.DataFrame(table), tmp_path / f"{name}.parquet")
    inputs = [str(tmp_path / "tasks.parquet"), str(tmp_path / "train.parquet"), str(tmp_path / "absent.parquet")]
    said = with_places("row x111111111111-2: its answer is empty; so is that of x000000000000.", inputs)
    assert said == (
        "row x111111111111-2: its answer is empty; so is that of x000000000000. (x111111111111-2 is row_number 7 of "
        "data.tasks; x000000000000 is row_number 0 of data.tasks, counted from 0)"
    )
    for same in ("row a7: no answer.", "row x111111111112: no answer.", "row x222222222222: no answer."):
        assert with_places(same, inputs) == same

    raised = "raise icprobe.errors.DataError('row x111111111111: no answer.')"
    snakemake = f"snakemake.input = {inputs!r}\n"
    ended = run_job(tmp_path, f"import icprobe.errors\n{snakemake}with job(snakemake):\n    {raised}")
    assert "no answer. (x111111111111 is row_number 4 of data.tasks, counted from 0)" in ended.stderr


def test_a_bug_shows_its_traceback_once_in_the_log_and_once_on_the_terminal(tmp_path):
    ended = run_job(tmp_path, "with job(snakemake):\n    {}['missing']")
    assert ended.returncode == 1
    for text in (ended.log, ended.stderr):
        assert text.count("Traceback") == 1, text
        assert text.count("KeyError: 'missing'") == 1, text


def test_sigterm_removes_partial_files_and_leaves_no_result(tmp_path):
    body = """
import time
from icprobe.artifacts import atomic_path
with job(snakemake):
    with atomic_path("result.txt") as aside:
        aside.write_text("half")
        print("begun", flush=True)
        time.sleep(30)
"""
    process = start_job(tmp_path, body)
    assert process.stdout.readline() == "begun\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert time.monotonic() - begun < 15
    assert not [path.name for path in tmp_path.iterdir() if "result.txt" in path.name]
    assert "terminated by SIGTERM" in (tmp_path / "logs/demo/rule.log").read_text()


def test_a_job_runs_with_a_home_that_cannot_be_written(tmp_path):
    # A home that does not exist: no permission keeps root from writing to one that does.
    body = """
import os
with job(snakemake):
    print(os.environ["MPLCONFIGDIR"], os.environ["HF_HOME"])
"""
    ended = run_job(tmp_path, body, HOME=str(tmp_path / "none"), HF_HOME="/models")
    assert ended.returncode == 0, ended.stderr
    matplotlib, hub = ended.stdout.split()
    assert Path(matplotlib).is_dir()
    assert Path(matplotlib).is_relative_to(tmp_path)
    assert hub == "/models"


def future_input(directory: Path, seconds: float) -> None:
    path = directory / "results/demo/m/scores/icp.parquet"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (time.time() + seconds, time.time() + seconds))


def test_an_input_that_is_a_little_ahead_of_the_clock_is_waited_for(tmp_path):
    future_input(tmp_path, 6)
    ahead = (tmp_path / "results/demo/m/scores/icp.parquet").stat().st_mtime
    ended = run_job(tmp_path, "with job(snakemake):\n    pass")
    assert ended.returncode == 0, ended.stderr
    assert "ahead of this machine's clock; waiting" in ended.log
    assert time.time() > ahead


def test_an_input_from_the_far_future_is_refused_before_the_work(tmp_path):
    future_input(tmp_path, 3600)
    ended = run_job(tmp_path, "with job(snakemake):\n    print('works')")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.search(r"scores/icp.parquet: its modification time is 3[56]\d\d s in the future\. Set the", ended.stderr)
    assert "Traceback" not in ended.stderr


def test_a_finished_job_leaves_a_record_of_what_it_was_computed_with(tmp_path):
    body = """
import torch
snakemake.params["settings"] = {"dtype": "bfloat16", "device": "auto"}
with job(snakemake):
    torch.set_num_threads(1)
"""
    ended = run_job(tmp_path, body)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "logs/demo/rule.environment.json").read_text())
    assert (record["rule"], record["outputs"]) == ("fine_tune", ["results/demo/m/tables/correlations.csv"])
    facts = record["environment"]
    assert (facts["threads"], facts["dtype"], facts["commit"]) == (1, "bfloat16", "unknown")
    assert facts["torch"] == version("torch")
    assert facts["device"]
    assert facts["processor"]


def test_a_failed_job_leaves_no_record(tmp_path):
    run_job(tmp_path, "with job(snakemake):\n    raise MemoryError")
    assert not list((tmp_path / "logs").rglob("*.json"))


def test_importing_jobs_imports_nothing_heavy():
    code = "import sys, icprobe.workflow.jobs; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "wandb", "pandas", "numpy", "matplotlib"} & set(loaded)


def test_threads_are_no_more_than_the_cores_at_hand():
    usable = cores.usable()
    assert threads(SimpleNamespace(threads=64 * usable)) == usable
    assert threads(SimpleNamespace(threads=1)) == 1


def test_libraries_compute_with_the_threads_that_the_job_was_given(tmp_path):
    body = """
snakemake.threads = 1
with job(snakemake):
    import torch
    from threadpoolctl import threadpool_info
    print(torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info()))
"""
    ended = run_job(tmp_path, body, OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
    assert ended.returncode == 0, ended.stderr
    assert set(ended.stdout.split()) == {"1"}


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, {**SPINNING, "OMP_WAIT_POLICY": "-"}),
        ({"GOMP_SPINCOUNT": "7"}, {**SPINNING, "GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "-"}),
        ({"OMP_WAIT_POLICY": "active"}, {**dict.fromkeys(SPINNING, "-"), "OMP_WAIT_POLICY": "active"}),
    ],
    ids=["nothing set", "a count set", "a policy set"],
)
def test_waiting_threads_soon_sleep_unless_the_user_says_how_they_wait(given, seen, tmp_path):
    body = f"import os\nwith job(snakemake):\n    print(*(os.environ.get(name, '-') for name in {list(seen)}))"
    ended = run_job(tmp_path, body, **given)
    assert ended.stdout.split() == list(seen.values())
