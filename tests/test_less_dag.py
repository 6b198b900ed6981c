"""less through the DAG: one training serves it and tracin, and what neither reads repeats nothing."""

import dag
import pandas as pd
import pytest
from test_tracin_dag import ALONE, jobs

pytestmark = pytest.mark.timeout(900)
BOTH = {**ALONE, "attribution": {**ALONE["attribution"], "methods": ["tracin", "less"]}}
MODEL = dag.RESULTS


def changed(**attribution):
    return {**BOTH, "attribution": {**BOTH["attribution"], **attribution}}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = dag.new(tmp_path_factory.mktemp("less") / "project")
    planned = project.snakemake("report", "subsets", "-n", config=BOTH)
    assert planned.returncode == 0, planned.output
    assert {rule: planned.jobs[rule] for rule in ("train_trajectory", "attribute")} == {
        "train_trajectory": 1,
        "attribute": 4,
    }
    ended = project.snakemake("report", "subsets", "--cores", "2", config=BOTH)
    assert ended.returncode == 0, ended.output[-3000:]
    return project


def test_it_is_scored_binned_and_reported(project):
    matrix = pd.read_parquet(project.path / MODEL / "attributions/less.parquet").set_index("id")
    assert matrix.shape == (24, 4)
    assert 0 < matrix.abs().to_numpy().max() < 1e-2, "learning rates times cosines"
    scores = pd.read_parquet(project.path / MODEL / "scores/less.parquet").set_index("id")["score"]
    assert scores.nunique() == 24
    best = scores.sort_values(ascending=False).index[:5].to_list()
    subset = pd.read_json(project.path / MODEL / "subsets/less/top-20pct.jsonl", lines=True)
    assert subset["id"].to_list() == best
    page = project.read("results/tiny/report.html").decode()
    assert "step of the optimiser on it" in page
    assert "with checkpoints on the way, for tracin and less" in page


def test_what_it_depends_on_repeats_it_and_nothing_else_does(project):
    assert jobs(project, BOTH) == {}
    assert jobs(project, changed(memory_budget_gb=1)) == {}
    assert jobs(project, changed(less={"dimension": 16}), "scores") == {"attribute": 2}
    assert jobs(project, {**BOTH, "seed": 7}, "attributions") == {}
    assert jobs(project, changed(task_likelihood="mean"), str(MODEL / "scores/less.parquet")) == {}
    assert jobs(project, changed(reduction="mean"), "scores") == {"attribute": 4}
    assert jobs(project, changed(tracin={"checkpoints": 2}), "scores") == {"train_trajectory": 1, "attribute": 4}
    assert jobs(project, ALONE, "scores") == {}


def test_a_projection_is_the_seeds(project):
    found = {}
    for seed in (0, 7):
        config = {**changed(methods=["less"], less={"dimension": 16}), "seed": seed}
        assert jobs(project, config, "attributions") == {"attribute": 2}
        ended = project.snakemake("attributions", "--cores", "2", config=config)
        assert ended.returncode == 0, ended.output[-3000:]
        found[seed] = pd.read_parquet(project.path / MODEL / "attributions/less.parquet").set_index("id")
    assert (found[0] != found[7]).to_numpy().all()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**BOTH, "finetune": None}, "less takes gradients along a training as finetune says; write finetune: {"),
        (
            {**BOTH, "finetune": {**BOTH["finetune"], "lora": None}},
            "less takes gradients over adapters, and null trains",
        ),
        (
            changed(tracin={"directories": ["gone"], "learning_rates": [1]}),
            "less needs the optimiser's state beside each checkpoint",
        ),
    ],
)
def test_what_has_no_adapters_or_no_optimiser_is_refused_when_it_is_planned(config, said, project):
    ended = project.snakemake(
        "scores", "-n", config={**config, "attribution": {**config["attribution"], "methods": ["less"]}}
    )
    assert ended.returncode != 0
    assert said in ended.output
