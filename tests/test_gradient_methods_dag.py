"""cosine and self_influence over some layers alone, through the DAG: planned, scored, binned and reported."""

import json
import re

import dag
import pandas as pd
import pytest

from icprobe.analysis.binning import size_of

pytestmark = pytest.mark.timeout(900)
ALONE = {
    "attribution": {"methods": ["cosine", "self_influence"], "parameters": "attention", "shards": 2},
    "bins": ["top 20%"],
    "analysis": None,
    "figures": None,
    "finetune": None,
    "evaluation": None,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = dag.new(tmp_path_factory.mktemp("gradients") / "project")
    planned = project.snakemake("report", "subsets", "-n", config=ALONE)
    assert planned.returncode == 0, planned.output
    wanted = {"attribute_influence": 2, "attribute": 2, "check_parameters": 1, "score": 2, "subset": 2}
    assert {rule: planned.jobs[rule] for rule in wanted} == wanted
    ended = project.snakemake("report", "subsets", "--cores", "2", config=ALONE)
    assert ended.returncode == 0, ended.output[-3000:]
    return project


@pytest.mark.parametrize("method", ["cosine", "self_influence"])
def test_examples_are_ordered_by_the_scores_and_the_best_go_into_the_bin(method, project):
    matrix = pd.read_parquet(project.path / dag.RESULTS / f"attributions/{method}.parquet").set_index("id")
    scores = pd.read_parquet(project.path / dag.RESULTS / f"scores/{method}.parquet").set_index("id")["score"]
    assert scores.nunique() == len(scores) == 24
    assert (matrix.abs() <= 1).all(axis=None) if method == "cosine" else (matrix["score"] < 0).all()
    best = scores.sort_values(ascending=False).index[: size_of("top 20%", 24)].to_list()
    rows = project.read(dag.RESULTS / f"subsets/{method}/top-20pct.jsonl").splitlines()
    assert [json.loads(row)["id"] for row in rows] == best


def test_the_jobs_and_the_report_say_over_which_weights_gradients_are_taken(project):
    checked = json.loads(project.read(dag.RESULTS / "data/parameters.checked.json"))
    manifest = json.loads(project.read(f"{dag.MODEL}/manifest.json"))
    assert 0 < checked["share"] < manifest["attributed_share"]
    share = f"{100 * checked['share']:.1f}% of the weights of"
    layers = f"{checked['layers']} of {checked['of_layers']} linear layers"
    for job in ("check_parameters/tiny-llama.log", "attribute_influence/tiny-llama/1-of-2.log"):
        assert f"{layers}, {share} the blocks (attribution.parameters: attention)" in project.log("tiny", job)
    page = project.read("results/tiny/report.html").decode()
    assert f"are taken over {share} its blocks, {layers.replace(' of ', ' of its ')}" in page
    assert "over the linear layers of attention alone (parameters: attention)" in page
    asked = re.findall(r"points? in the same direction|How far would training on it push", page)
    assert len(set(asked)) == 2
