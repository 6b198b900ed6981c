"""influence_ekfac through the DAG: its Fisher matrix is fitted once, in parts, and stays for other dampings."""

import dag
import numpy as np
import pandas as pd
import pytest

CONFIG = {
    "experiment": "curved",
    "attribution": {"methods": ["influence", "influence_ekfac"], "dtype": "float32"},
    "bins": ["top 20%"],
    "figures": None,
    "analysis": None,
    "finetune": {"methods": [], "bins": None, "all_data": False},
}
FIT = {"sum_covariances": 2, "fisher_bases": 1, "sum_eigenvalues": 2, "fisher_eigenvalues": 1}
MODEL = "results/curved/tiny-llama"


def changed(**settings):
    return {**CONFIG, "attribution": {**CONFIG["attribution"], **settings}}


def planned(project, config):
    """The jobs of the fit and of the matrices, where any would run."""
    jobs = project.snakemake("scores", "-n", config=config).jobs
    return {rule: jobs[rule] for rule in (*FIT, "attribute", "attribute_influence") if rule in jobs}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = dag.new(tmp_path_factory.mktemp("curved") / "project")
    assert planned(made, CONFIG) == {**FIT, "attribute": 2, "attribute_influence": 2}
    ended = made.snakemake("report", "--cores", "2", config=CONFIG)
    assert ended.returncode == 0, ended.output[-3000:]
    return made


def test_it_is_scored_binned_and_reported(project):
    model = project.path / MODEL
    matrix = pd.read_parquet(model / "attributions/influence_ekfac.parquet").drop(columns="id")
    assert matrix.shape == (24, 4)
    assert np.isfinite(matrix.to_numpy()).all()
    assert set(pd.read_csv(model / "tables/bins.csv")["method"]) == {"influence", "influence_ekfac"}
    page = project.read("results/curved/report.html").decode()
    for said in ("at an optimum of training on all examples", "eigenvectors over all examples"):
        assert said in page


def test_sums_go_and_the_matrix_stays(project):
    kept = {path.name for path in (project.path / MODEL / "fisher").iterdir() if not path.name.startswith(".")}
    assert {name for name in kept if any((project.path / MODEL / "fisher" / name).rglob("*.safetensors"))} == {
        "bases",
        "eigenvalues",
    }
    assert not any((project.path / "results/curved/.partial").iterdir())
    assert planned(project, CONFIG) == {}


def test_another_damping_fits_nothing_anew(project):
    damped = changed(influence_ekfac={"damping": 0.5})
    assert planned(project, damped) == {"attribute": 2}
    path = project.path / MODEL / "attributions/influence_ekfac.parquet"
    before = pd.read_parquet(path)
    ended = project.snakemake("scores", "--cores", "2", config=damped)
    assert ended.returncode == 0, ended.output[-3000:]
    after = pd.read_parquet(path)
    assert not np.allclose(before.drop(columns="id"), after.drop(columns="id"))
    assert project.snakemake("scores", "--cores", "2", config=CONFIG).returncode == 0
    pd.testing.assert_frame_equal(before, pd.read_parquet(path))


@pytest.mark.parametrize(
    ("settings", "jobs"),
    [
        ({"influence_ekfac": {"labels": "empirical"}}, {**FIT, "attribute": 2}),
        # The likelihood that the matrix is of is the sum over tokens, whatever the gradients are.
        ({"task_likelihood": "mean"}, {"attribute": 2, "attribute_influence": 2}),
        ({"memory_budget_gb": 0.01}, {}),
    ],
)
def test_a_setting_repeats_what_depends_on_it_alone(settings, jobs, project):
    assert planned(project, changed(**settings)) == jobs


def test_the_numbers_are_those_of_one_part_and_one_shard(project):
    whole = changed(shards=1)
    whole["experiment"] = "whole"
    ended = project.snakemake("scores", "--cores", "2", config=whole)
    assert ended.returncode == 0, ended.output[-3000:]
    found, parted = (
        pd.read_parquet(project.path / f"results/{name}/tiny-llama/attributions/influence_ekfac.parquet")
        for name in ("whole", "curved")
    )
    difference = np.abs(found.drop(columns="id") - parted.drop(columns="id")).to_numpy().max()
    assert difference <= 1e-3 * parted.drop(columns="id").abs().to_numpy().max()
