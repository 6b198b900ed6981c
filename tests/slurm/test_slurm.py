"""`snakemake --profile slurm` on a real Slurm: the same numbers as at home, more for what was killed, nothing twice.

`make test-slurm` starts the Slurm. Snakemake starts three times for each job, so that jobs are few here and run beside
one another: the tiny experiment with one fine-tuned model, once on Slurm and once here, and whatever goes wrong.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dag
import pytest
import yaml

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(1800),  # the first test waits for the experiment, on a machine that may be busy
    pytest.mark.skipif("TEST_SLURM" not in os.environ, reason="needs the Slurm that `make test-slurm` starts"),
]

HERE = Path(__file__).parent
# In tests nobody waits for a node's file system.
PROFILE = (
    "--profile",
    "slurm",
    "--slurm-init-seconds-before-status-checks",
    "1",
    "--seconds-between-status-checks",
    "1",
)
# Sums are rounded as threads share them, and a job here would have as many threads as the machine has cores, whatever
# the profile asks for. One thread each makes the numbers comparable on every machine.
SET_THREADS = yaml.safe_load((dag.ROOT / "slurm/config.yaml").read_text(encoding="utf-8"))["set-threads"]
ONE_THREAD = ("--set-threads", *(f"{rule}=1" for rule in SET_THREADS))
OVERLAY = {
    "attribution": {"batch_tokens": 256, "memory_budget_gb": 0.3},
    "analysis": {"chain": {"learning_rates": []}},
    "finetune": {"methods": ["random"], "bins": [">0.8"], "all_data": False},
}
# The same experiment, whole where it was cut, and without the pages and figures that are not compared.
AT_HOME = {**OVERLAY, "attribution": {**OVERLAY["attribution"], "shards": 1}}
NAMES = ("correlations", "overlaps", "label_aucs", "label_auc_differences", "chain", "bins", "scores")
NAMES += ("held_out", "held_out_differences", "tail_patch")
TABLES = [*(str(dag.RESULTS / f"tables/{name}.csv") for name in NAMES), "results/tiny/data/repeated.csv"]
# What is computed; reports and figures also say when and how fast.
COMPARED = {".parquet", ".csv", ".md", ".tex", ".jsonl", ".safetensors"}

BASE = "results/tiny/tiny-llama/responses/base.jsonl"

END = Counter(report=1, all=1)
TABULATION = Counter(tabulate_win_rates=1, plot_judgements=1) + END
GENERATION = Counter(generate=1, judge=1) + TABULATION
OUTCOMES = Counter(measure_outcomes=1, tabulate_held_out=1)
ICP = (
    Counter(attribute=2, gather_attributions=1, score=1, correlate=1, compare_bins=1, tell_labels=1, plot_scores=1)
    + Counter(tabulate_scores=1)
    + Counter(["tabulate_bins", "subset", "fine_tune"])
    + Counter(["chain", "plot_sweep", "tail_patch"])
    + GENERATION
    + OUTCOMES
)
SUBMITTED = Counter(
    rule_prepare_model=1,
    group_tables=1,
    rule_attribute=4,
    rule_attribute_influence=2,
    rule_correlate=1,
    rule_chain=1,
    rule_fine_tune=1,
    rule_generate=1,
    rule_generate_base=1,
    rule_measure_outcomes=1,
)


def submitted(output: str) -> Counter[str]:
    """What became a Slurm job, by the folder of its log; a group's tells all its rules after its name."""
    return Counter(re.findall(r"submitted with SLURM jobid \d+ \(log: \S*slurm_logs/(group_tables|\w+)", output))


def computed(project: dag.Project) -> dict[str, bytes]:
    """{path: content} of every number that the experiment computes, shards of matrices aside."""
    root = project.path / "results/tiny"
    files = [path for path in sorted(root.rglob("*")) if path.suffix in COMPARED and "-of-" not in path.stem]
    files = [path for path in files if not {".partial", "figures"} & set(path.parts)]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def slurm(project: dag.Project, *arguments: str, config: dict | None = None) -> dag.Ended:
    return project.snakemake(*ONE_THREAD, *PROFILE, *arguments, config=OVERLAY if config is None else config)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(6) as pool:
        yield pool


@pytest.fixture(scope="module")
def on_slurm(pool, tmp_path_factory):
    project = dag.new(tmp_path_factory.mktemp("slurm"))
    return project, pool.submit(slurm, project, "all")


@pytest.fixture(scope="module")
def at_home(pool, on_slurm, tmp_path_factory):
    project = dag.new(tmp_path_factory.mktemp("home"))
    return project, pool.submit(project.snakemake, "win_rates", *TABLES, "--cores", "2", config=AT_HOME)


# The controller does not answer for a while, as when it restarts: the second to the twentieth question fail.
DEAF = """#!/bin/sh
echo >>"$0.asked"
asked=$(wc -l <"$0.asked")
if [ "$asked" -ge 2 ] && [ "$asked" -le 20 ]; then echo "squeue: no answer" >&2; exit 1; fi
exec {squeue} "$@"
"""


@pytest.fixture(scope="module", autouse=True)
def retried(pool, on_slurm, at_home, tmp_path_factory):
    """The small workflow of this folder, begun with the experiment: most of its time it waits to be killed.

    Its Snakemake asks a controller that falls silent; whoever gave up would lose the jobs, and never end.
    """
    folder = tmp_path_factory.mktemp("retried")
    deaf = folder / "bin/squeue"
    deaf.parent.mkdir()
    deaf.write_text(DEAF.format(squeue=shutil.which("squeue")))
    deaf.chmod(0o755)
    for name in ("Snakefile", "hold_memory.py", "take_time.py"):
        shutil.copy(HERE / name, folder)
    for name in ("slurm", "profiles"):
        shutil.copytree(dag.ROOT / name, folder / name)

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *PROFILE, "--nocolor", "all"],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(dag.ROOT / "src"),
                "PATH": f"{deaf.parent}{os.pathsep}{os.environ['PATH']}",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return folder, pool.submit(run)


@pytest.fixture(scope="module")
def finished(on_slurm):
    project, ended = on_slurm
    assert ended.result().returncode == 0, ended.result().output[-6000:]
    return project


def test_heavy_jobs_are_slurm_jobs_and_light_ones_are_not(finished, on_slurm):
    assert submitted(on_slurm[1].result().output) == SUBMITTED


def test_the_numbers_are_those_of_a_run_at_home_to_the_byte(finished, at_home):
    project, ended = at_home
    assert ended.result().returncode == 0, ended.result().output[-6000:]
    there, here = computed(finished), computed(project)
    assert list(there) == list(here)
    assert {name for name in here if there[name] != here[name]} == set()
    assert sum("/attributions/" in name for name in here) == 6
    assert sum("/scores/" in name for name in here) == 6
    assert sum("/tables/" in name for name in here) >= 5


def test_models_are_retrained_in_slurm_jobs_to_the_same_bytes(finished, at_home):
    truth = {"truth": {"subsets": 2, "seeds": [0, 1], "removals": []}}
    outcomes = str(dag.RESULTS / "truth/outcomes.parquet")
    there = slurm(finished, outcomes, config={**OVERLAY, **truth})
    assert there.returncode == 0, there.output[-6000:]
    assert submitted(there.output) == Counter(rule_retrain=1)
    project, ended = at_home
    assert ended.result().returncode == 0, ended.result().output[-6000:]
    here = project.snakemake(outcomes, "--cores", "2", config={**AT_HOME, **truth})
    assert here.returncode == 0, here.output[-6000:]
    assert finished.read(outcomes) == project.read(outcomes)


# --- staleness --------------------------------------------------------------------------------------------------


def test_a_second_run_has_nothing_to_do(finished):
    ended = slurm(finished, "all")
    assert ended.returncode == 0, ended.output
    assert "Nothing to be done" in ended.output
    assert not submitted(ended.output)


def test_an_edited_parameter_reruns_what_reads_it(finished):
    changed = {**OVERLAY, "finetune": {**OVERLAY["finetune"], "learning_rate": 1e-3}}
    ended = slurm(finished, "all", "-n", config=changed)
    assert ended.jobs == Counter(fine_tune=1) + GENERATION + OUTCOMES, ended.output


def edit(module):
    with open(module, "a", encoding="utf-8") as file:
        file.write("\n\nEDITED = True\n")


def test_a_touched_module_reruns_nothing_and_an_edited_one_its_rules(finished, tmp_path):
    project = finished.copy(tmp_path)
    module = project.path / "src/icprobe/attribution/icp.py"
    module.touch()
    assert "Nothing to be done" in slurm(project, "all", "-n").output
    edit(module)
    ended = slurm(project, "all", "-n")
    assert ended.jobs == ICP, ended.output


@pytest.fixture(scope="module", autouse=True)
def edited(pool, finished, tmp_path_factory):
    """A module of generation is edited, and the base model's responses are made again."""
    project = finished.copy(tmp_path_factory.mktemp("edited"))
    edit(project.path / "src/icprobe/evaluation/generation.py")
    return project, pool.submit(slurm, project, BASE)


def test_what_ran_again_on_slurm_is_finished_again(edited):
    """What a job on Slurm records of itself has to be what the next plan compares with."""
    project, ended = edited
    assert ended.result().returncode == 0, ended.result().output
    assert submitted(ended.result().output) == Counter(rule_generate_base=1)
    assert "Nothing to be done" in slurm(project, BASE, "-n").output
    assert slurm(project, "all", "-n").jobs == GENERATION


# --- what goes wrong --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def mistaken(pool, finished, tmp_path_factory):
    """Two mistakes, each in a copy of the finished run: a row without a response, and a damaged model."""
    rows = finished.copy(tmp_path_factory.mktemp("rows"))
    rows.edit("train.jsonl", '"output": "', '"output": "", "was": "')
    model = finished.copy(tmp_path_factory.mktemp("model"))
    weights = model.path / dag.MODEL / "model.safetensors"
    times = weights.parent.stat().st_mtime
    weights.write_bytes(weights.read_bytes()[:-100])
    os.utime(weights.parent, (times, times))  # to Snakemake the model is what it was
    shard = model.path / dag.RESULTS / "attributions/icp/1-of-2.parquet"
    shard.unlink()
    run = {
        "rows": (rows, "results/tiny/data/train.parquet"),
        "model": (model, str(shard.relative_to(model.path))),
    }
    return {name: pool.submit(slurm, project, target, "--retries", "0") for name, (project, target) in run.items()}


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("rows", r'train.jsonl, line 1: "output" is empty'),
        ("model", r"model.safetensors: has \d+ bytes where the manifest says \d+"),
    ],
)
def test_the_sentence_of_a_failed_job_reaches_the_terminal(mistake, sentence, mistaken):
    """Of a job in a group, and of one by itself."""
    ended = mistaken[mistake].result()
    assert ended.returncode == 1
    assert re.search(r"error: \S*" + sentence, ended.output), ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(("rule", "attempts", "made"), [("memory", 2, "2400, GPU 0"), ("time", 2, "2")])
def test_a_job_that_was_killed_comes_back_with_more_through_a_silent_controller(rule, attempts, made, retried):
    """Made by an attempt that had 2,400 MB, and the GPU that it asked for; by one that had two minutes."""
    folder, ended = retried
    assert ended.result().returncode == 0, ended.result().stdout
    assert submitted(ended.result().stdout)[f"rule_{rule}"] == attempts, ended.result().stdout
    assert (folder / f"{rule}.txt").read_text() == made
    # The silence is over, and was heard.
    assert len((folder / "bin/squeue.asked").read_text().splitlines()) > 20
