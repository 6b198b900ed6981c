"""A job reruns when, and only when, something that it reads changed: one edit at a time, then `snakemake -n`.

What would rerun is Snakemake's own table of jobs, compared in full: each rule with the number of its jobs.
"""

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import dag
import pytest
from edits import CASES, NOTHING, OF_TRAIN, appended

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the tiny experiment, on a machine that may be busy


@pytest.fixture(scope="module")
def plans(request, tmp_path_factory):
    """name → what `snakemake -n` says after the edit of that case; two at a time, each in a copy of its own."""
    finished = dag.finished(tmp_path_factory.getbasetemp())
    asked = [
        item.callspec.params["case"] for item in request.session.items if "case" in getattr(item, "fixturenames", ())
    ]

    def plan(name: str) -> dag.Ended:
        project = finished.copy(tmp_path_factory.mktemp("edited"))
        change, _ = CASES[name]
        ended = project.snakemake("all", "-n", config=change(project))
        shutil.rmtree(project.path)
        return ended

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(plan, name) for name in asked}


@pytest.mark.parametrize("case", CASES)
def test_what_reads_the_edited_thing_reruns_and_nothing_else(case, plans):
    ended = plans[case].result()
    assert ended.returncode == 0, ended.output
    expected = CASES[case][1]
    more, less = ended.jobs - expected, expected - ended.jobs
    assert ended.jobs == expected, f"reruns needlessly: {dict(more)}; ought to rerun: {dict(less)}\n{ended.output}"
    assert expected or "Nothing to be done" in ended.output


def test_a_finished_experiment_is_looked_through_within_seconds(tmp_path_factory, tmp_path):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    ended = [project.start("all", "-n").wait() for _ in range(3)]
    assert all("Nothing to be done" in one.output for one in ended)
    assert all("\nResults: results/tiny; W&B: " in one.output for one in ended)
    # Of the processor, not of the clock: on a machine that others use too, only these tell anything, and even these
    # differ by half between processors. Three on a quiet machine of today.
    fastest = min(one.cpu_seconds for one in ended)
    assert fastest < 6, f"{fastest:.2f} s of CPU time"


def test_a_copy_of_the_project_runs_its_own_package(tmp_path_factory, tmp_path):
    """Without this, all that is said above of edits of the package's modules would be about nothing."""
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    project.edit("src/icprobe/config/__init__.py", '"""', 'raise SystemExit("the copy is read")\n"""')
    ended = project.snakemake("all", "-n")
    assert ended.returncode != 0
    assert "the copy is read" in ended.output


def test_a_table_made_anew_with_the_same_rows_repeats_nothing(tmp_path_factory, tmp_path):
    """Snakemake compares contents once a file is there, not while it plans: the tables first, then the rest."""
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    appended("workflow/scripts/data/prepare_train.py")(project)
    assert project.snakemake("all", "-n").jobs == OF_TRAIN + Counter(prepare_train=1, count_repeated=1)
    made = project.snakemake("results/tiny/data/train.parquet", "--cores", "1")
    assert made.returncode == 0, made.output
    assert project.snakemake("all", "-n").jobs == NOTHING


def test_how_a_job_computes_reaches_it_and_changes_no_byte(tmp_path_factory, tmp_path):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    shard = dag.RESULTS / "attributions/influence/1-of-2.parquet"
    before = project.read(shard)
    ended = project.snakemake(
        str(shard), "--force", "--cores", "1", config={"attribution": {"memory_budget_gb": 0.001}}
    )  # fmt: skip
    assert ended.returncode == 0, ended.output
    assert "within 0.001 GB" in project.log("tiny/attribute_influence/tiny-llama/1-of-2.log")
    assert project.read(shard) == before
