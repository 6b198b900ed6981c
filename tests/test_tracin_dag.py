"""tracin through the DAG: it trains once, on all examples, and nothing else depends on that training."""

import json

import dag
import pandas as pd
import pytest

pytestmark = pytest.mark.timeout(900)
ALONE = {
    "attribution": {"methods": ["tracin"], "shards": 2},
    "bins": ["top 20%"],
    "analysis": None,
    "figures": None,
    "finetune": {"methods": [], "bins": None, "all_data": True, "generate": False},
    "evaluation": None,
}
TRAJECTORY = dag.RESULTS / "trajectory"
ALL_DATA = dag.RESULTS / "checkpoints/all/all/seed-0"


def changed(**attribution):
    return {**ALONE, "attribution": {**ALONE["attribution"], **attribution}}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = dag.new(tmp_path_factory.mktemp("tracin") / "project")
    targets = ["report", "subsets", str(ALL_DATA)]
    planned = project.snakemake(*targets, "-n", config=ALONE)
    assert planned.returncode == 0, planned.output
    wanted = {"train_trajectory": 1, "attribute": 2, "score": 1, "fine_tune": 1}
    assert {rule: planned.jobs[rule] for rule in wanted} == wanted
    ended = project.snakemake(*targets, "--cores", "2", config=ALONE)
    assert ended.returncode == 0, ended.output[-3000:]
    return project


@pytest.fixture(scope="module")
def listed(project):
    return json.loads(project.read(f"{TRAJECTORY}.manifest.json"))["checkpoints"]


def jobs(project, config, target="report"):
    planned = project.snakemake(target, "-n", config=config)
    assert planned.returncode == 0, planned.output
    return {rule: n for rule, n in planned.jobs.items() if "traj" in rule or rule in ("attribute", "fine_tune")}


def test_the_training_is_that_of_the_model_on_all_data(project, listed):
    assert [one["step"] for one in listed] == [2, 4, 6]
    rates = [one["learning_rate"] for one in listed]
    assert rates == sorted(rates, reverse=True)
    last = TRAJECTORY / listed[-1]["directory"] / "adapter_model.safetensors"
    assert project.read(last) == project.read(ALL_DATA / "adapter_model.safetensors")


def test_it_is_scored_binned_and_reported(project):
    matrix = pd.read_parquet(project.path / dag.RESULTS / "attributions/tracin.parquet").set_index("id")
    assert matrix.shape == (24, 4)
    scores = pd.read_parquet(project.path / dag.RESULTS / "scores/tracin.parquet").set_index("id")["score"]
    assert scores.nunique() == 24
    best = scores.sort_values(ascending=False).index[:5].to_list()
    rows = project.read(dag.RESULTS / "subsets/tracin/top-20pct.jsonl").splitlines()
    assert [json.loads(row)["id"] for row in rows] == best
    page = project.read("results/tiny/report.html").decode()
    assert "influence asks, along a training" in page
    assert "with checkpoints on the way, for tracin" in page


def test_what_the_training_depends_on_repeats_it_and_nothing_else_does(project):
    assert jobs(project, ALONE) == {}
    assert jobs(project, changed(memory_budget_gb=1)) == {}
    # The report's own jobs do not read the models that are fine-tuned here.
    trained = {"train_trajectory": 1, "attribute": 2}
    faster = {**ALONE, "finetune": {**ALONE["finetune"], "learning_rate": 1e-3}}
    assert jobs(project, faster, "scores") == trained
    assert jobs(project, changed(tracin={"checkpoints": 2}), "scores") == trained
    assert jobs(project, changed(tracin={"checkpoints": 2}), str(ALL_DATA)) == {}
    assert jobs(project, {**ALONE, "finetune": {**ALONE["finetune"], "seeds": [0, 1]}}, "scores") == {}
    assert jobs(project, changed(reduction="mean"), "scores") == {"attribute": 2}
    beside = changed(methods=["tracin", "icp"])
    assert jobs(project, beside, "scores") == {"attribute": 2}
    plain = project.snakemake("scores", "-n", config=changed(methods=["influence"], tracin={"checkpoints": 2}))
    assert "train_trajectory" not in plain.jobs


def test_the_same_checkpoints_given_make_the_same_matrix_without_a_training(project, listed, tmp_path):
    said = {
        "directories": [str(TRAJECTORY / one["directory"]) for one in listed],
        "learning_rates": [one["learning_rate"] for one in listed],
    }
    config = {**changed(tracin=said), "experiment": "given", "finetune": None}
    ended = project.snakemake("scores", "--cores", "2", config=config)
    assert ended.returncode == 0, ended.output[-3000:]
    assert (ended.jobs["train_trajectory"], ended.jobs["list_checkpoints"]) == (0, 1)
    given, own = (
        pd.read_parquet(project.path / "results" / name / "tiny-llama/attributions/tracin.parquet")
        for name in ("given", "tiny")
    )
    pd.testing.assert_frame_equal(given, own, check_exact=True)
    there = project.copy(tmp_path / "copy")
    weights = there.path / said["directories"][0] / "adapter_model.safetensors"
    weights.write_bytes((there.path / said["directories"][1] / "adapter_model.safetensors").read_bytes())
    assert there.snakemake("scores", "-n", config=config).jobs["attribute"] == 2


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**ALONE, "finetune": None}, "tracin takes gradients along a training as finetune says; write finetune: {"),
        (changed(tracin={"directories": ["gone"], "learning_rates": [1]}), "directories: gone: neither adapter_config"),
        (changed(tracin={"directories": ["gone"]}), "learning_rates: there are 0, of 1 directories; give one for each"),
    ],
)
def test_what_cannot_be_trained_or_found_is_said_when_it_is_planned(config, said, project):
    ended = project.snakemake("scores", "-n", config={**config, "experiment": "refused"})
    assert ended.returncode != 0
    assert said in ended.output


def test_more_checkpoints_than_steps_are_refused_before_the_first_step(project):
    ended = project.snakemake(
        "scores", "--cores", "2", config={**changed(tracin={"checkpoints": 7}), "experiment": "many"}
    )
    assert ended.returncode != 0
    assert "tracin.checkpoints: 7 checkpoints of a training of 6 steps; take at most 6" in ended.output
