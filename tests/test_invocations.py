"""One invocation of Snakemake as a W&B run: what events tell, and Snakemake itself with the logger plugin."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import snakemakes

from icprobe.tracking import runs
from icprobe.tracking.workflow_run import INHERITED, Invocation, cause

ROOT = Path(__file__).parents[1]
SNAKEFILE = """
import json, os
os.environ["ICPROBE_TRACKING"] = json.dumps({"mode": "offline", "project": "icprobe", "experiment": "demo"})

rule all:
    input: "a.txt", "b.txt", "joined.txt"

rule write:
    output: "{name,a|b}.txt"
    benchmark: "{name}.tsv"
    shell: "sleep 0.3; echo 1 > {output}"

rule spare:
    output: "{name}.spare"
    shell: "touch {output}"

rule join:
    input: "a.txt", "b.txt"
    output: "joined.txt"
    params: sign=config["sign"]
    benchmark: "joined.tsv"
    log: "joined.log"
    shell: "cat {input} > {output} 2> {log}; sleep {config[seconds]}; exit {config[code]}"
"""


def started(job, rule, time, reason="Missing output files: x", **wildcards):
    event = {"event": "job_info", "job": job, "rule": rule, "time": time, "reason": reason, "benchmark": None}
    return {**event, "wildcards": wildcards}


def test_events_add_up_to_counts_and_tables(tmp_path):
    benchmark = tmp_path / "score.tsv"
    benchmark.write_text("s\th:m:s\tmax_rss\n2.5\t0:00:02\t101.5\n")
    invocation = Invocation(began=100.0)
    score = started(1, "score", 101.0, method="icp", bin="gt-0.80") | {"benchmark": str(benchmark)}
    changes = [
        {"event": "run_info", "jobs": {"score": 2, "all": 1, "total": 3}, "time": 100.0},
        score,
        started(2, "score", 101.5, f"{INHERITED}: x; Params have changed since last execution: before, now"),
        {"event": "job_finished", "job": 1, "time": 104.0},
        {"event": "job_error", "job": 2, "time": 105.0},
    ]
    assert all(map(invocation.take, changes))
    assert invocation.counts() == {"total": 3, "done": 1, "failed": 1, "running": 0}
    rules = invocation.rule_table().set_index("rule")
    assert rules.loc["score", ["planned", "done", "failed", "seconds", "peak_mb"]].tolist() == [2, 1, 1, 2.5, 101.5]
    assert rules.loc["all", ["planned", "done"]].tolist() == [1, 0]
    jobs = invocation.job_table()
    assert jobs["job"].tolist() == ["score icp >0.8", "score"]
    assert jobs.loc[0, ["method", "bin", "state", "began", "seconds"]].tolist() == ["icp", ">0.8", "done", 1.0, 2.5]
    assert set(invocation.stale_table()["why"]) == {"Missing output files", "Params have changed since last execution"}


def test_an_invocation_says_how_it_ended():
    invocation = Invocation(began=0.0)
    invocation.take({"event": "run_info", "jobs": {"all": 1, "total": 1}})
    invocation.take(started(1, "all", 0.0))
    assert invocation.outcome() == "killed"
    invocation.take({"event": "ended"})
    assert invocation.outcome() == "failed"  # interrupted: it ended, and left a job
    invocation.take({"event": "job_error", "job": 1})
    assert invocation.outcome() == "failed"
    # A second attempt.
    invocation.take(started(1, "all", 1.0))
    invocation.take({"event": "job_finished", "job": 1})
    assert invocation.outcome() == "done"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("Missing output files: a, b; Input files updated by another job: c", "Missing output files"),
        ("Input files updated by another job: c", INHERITED),
        (
            "Input files updated by another job: c; Params have changed since last execution: Union of: now; Then",
            "Params have changed since last execution",
        ),
        ("Code has changed since last execution", "Code has changed since last execution"),
        ("Forced execution", "Forced execution"),
        ("Rules with neither input nor output files are always executed.",) * 2,
    ],
)
def test_the_cause_is_a_jobs_own(reason, expected):
    assert cause(reason) == expected.rstrip(".")


def test_a_chart_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    table = pd.DataFrame({"rule": ["score", "all"], "seconds": [2.5, None]})
    runs.Run().bars("seconds", table, "rule", "no such column", "Seconds")
    assert not caplog.records
    taken = []
    run = runs.Run()
    run.begin(SimpleNamespace(take=taken.append, complete=True, directory=tmp_path))
    run.bars("seconds", table, "rule", "no such column", "Seconds")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the chart seconds could not be logged" in caplog.text
    run.bars("seconds", table, "rule", "seconds", "Seconds")
    run.bars("seconds", table.tail(1), "rule", "seconds", "Seconds")  # no values, no chart
    assert [entry["bars"]["data"] for entry in taken] == [[["score", 2.5]]]


# --- Snakemake itself -------------------------------------------------------------------------------------------


class Project:
    """A Snakefile of four jobs in a folder of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "Snakefile").write_text(SNAKEFILE)

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        words, environment = self._asked(*arguments, **options)
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *words],
            cwd=self.path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    def run(self, *arguments: str, **options) -> tuple[int, str]:
        return snakemakes.snakemake(*self._asked(*arguments, **options), self.path)[:2]

    def _asked(
        self, *arguments: str, code: int = 0, seconds: float = 0, sign: str = "+", **environment: str
    ) -> tuple[list[str], dict[str, str]]:
        """The words after `snakemake`, and its environment."""
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("WANDB", "ICPROBE", "SNAKEMAKE"))}
        words = ["--cores", "2", "--logger", "icprobe", "--nocolor", *arguments]
        return (
            [*words, "--config", f"code={code}", f"seconds={seconds}", f"sign={sign}"],
            {**inherited, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **environment},
        )

    def runs(self) -> list[Path]:
        return sorted((self.path / "results/demo/wandb").glob("*run-*/run-*.wandb"))

    def summary(self, index: int = -1) -> dict:
        """What the run holds once it is finished, which on a busy machine is after Snakemake is."""
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary"]
        for _ in range(600):
            if logs := self.runs():
                said = subprocess.run([*command, logs[index]], capture_output=True, text=True, check=False).stdout
                run = json.loads(said or "{}")
                if "outcome" in run.get("summary", {}) and run["exit_code"] is not None:
                    return run
            time.sleep(0.2)
        raise TimeoutError(f"{self.path}: no finished run")

    def tables(self, log: Path) -> dict[str, list]:
        """name -> rows, of the tables that a run logged."""
        found = log.parent.rglob("media/table/*.json")
        return {path.name.split("_")[0]: json.loads(path.read_text())["data"] for path in found}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_an_invocation_is_one_run_with_what_ran_why_and_what_it_cost(project):
    code, said = project.run()
    assert code == 0, said
    run = project.summary()
    (log,) = project.runs()
    assert (run["name"], run["exit_code"], run["tags"]) == ("workflow all, 4 jobs", 0, ["workflow"])
    summary = run["summary"]
    counts = {name: summary[f"jobs/{name}"] for name in ("total", "done", "failed", "running")}
    assert counts == {"total": 4, "done": 4, "failed": 0, "running": 0}
    assert (summary["outcome"], summary["stale/Missing output files"]) == ("done", 3)
    assert summary["seconds/write"] >= 0.55  # of two clocks
    assert summary["workflow/done"] == 4
    rows = project.tables(log)
    assert [row[:4] for row in rows["rules"]] == [["write", 2, 2, 0], ["join", 1, 1, 0], ["all", 1, 1, 0]]
    names = [row[0] for row in rows["jobs"]]
    # What is ready at once, Snakemake starts in the order of a set of objects: by their addresses in memory.
    assert [*sorted(names[:2]), *names[2:]] == ["write a", "write b", "join", "all"]

    # Only what is stale, and why.
    code, said = project.run(sign="-")
    assert code == 0, said
    second = project.summary(1)["summary"]
    assert (second["stale/Params have changed since last execution"], second["jobs/total"]) == (1, 2)


def test_nothing_to_do_a_dry_run_and_a_disabled_run_make_none(project):
    assert project.run("--dry-run")[0] == 0
    assert re.search(r"total +0\n", project.run("--until", "spare")[1])
    (project.path / "Snakefile").write_text(SNAKEFILE.replace("offline", "disabled"))
    assert project.run()[0] == 0
    (project.path / "Snakefile").write_text(SNAKEFILE)
    code, said = project.run()
    assert (code, "Nothing to be done" in said) == (0, True)
    assert project.run("--touch", "--forceall")[0] == 0
    assert project.runs() == []


def test_a_part_of_the_workflow_is_done_when_its_jobs_are(project):
    assert project.run("--until", "write")[0] == 0
    run = project.summary()
    assert (run["name"], run["exit_code"], run["summary"]["outcome"]) == ("workflow write, 2 jobs", 0, "done")
    assert run["summary"]["workflow/total"] == 2


def test_a_failed_job_is_a_failed_run(project):
    assert project.run(code=3)[0] == 1
    run = project.summary()
    assert (run["exit_code"], run["summary"]["outcome"]) == (1, "failed")
    assert (run["summary"]["jobs/failed"], run["summary"]["jobs/done"]) == (1, 2)


def test_a_killed_snakemake_leaves_a_run_that_says_so(project):
    process = project.start(seconds=60)
    for _ in range(600):
        if (project.path / "joined.txt").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = project.summary()
    assert (run["exit_code"], run["summary"]["outcome"], run["summary"]["jobs/done"]) == (1, "killed", 2)


def test_a_broken_wandb_is_one_line_and_fails_nothing(project):
    broken = project.path / "broken"
    (broken / "wandb").mkdir(parents=True)
    (broken / "wandb/__init__.py").write_text("raise RuntimeError('no such luck')")
    code, said = project.run(PYTHONPATH=f"{broken}:{ROOT / 'src'}")
    assert code == 0, said
    assert [line for line in said.splitlines() if "W&B" in line or "luck" in line] == [
        "W&B: no run (RuntimeError: no such luck); the job continues without one"
    ]
