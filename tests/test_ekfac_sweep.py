"""Dampings of a sweep: methods of their own, computed in one job, and everywhere that methods are."""

import re

import dag
import numpy as np
import pandas as pd
import pytest
import yaml

from icprobe.attribution import METHODS, methods_of
from icprobe.config import load
from icprobe.errors import ConfigError
from icprobe.workflow.plan import Plan

SWEPT = ["influence_ekfac_0.01", "influence_ekfac_1"]
CONFIG = {
    "attribution": {
        "methods": ["influence", "influence_ekfac", "both"],
        "influence_ekfac": {"sweep": [0.01, 1.0]},
        "combined": {"both": {"mean_rank": [*SWEPT, "influence"]}},
        "dtype": "float32",
    },
    "bins": ["top 20%"],
    "selections": {"mine": {"method": SWEPT[1], "top": 5}},
    "figures": None,
    "analysis": None,
    "finetune": {"methods": [], "bins": None, "all_data": False, "dtype": "float32"},
    "truth": {"subsets": 4},
    "evaluation": {"judge": "none"},
}
FIT = {"sum_covariances": 2, "fisher_bases": 1, "sum_eigenvalues": 2, "fisher_eigenvalues": 1}
JOBS = (*FIT, "attribute", "attribute_ekfac", "attribute_influence", "combine")


# --- as the configuration says it -------------------------------------------------------------------------------


def configured(methods, sweep, **attribution):
    raw = yaml.safe_load((dag.ROOT / "config.yaml").read_text(encoding="utf-8"))
    raw |= {"bins": ["top 20%"], "finetune": {"methods": [], "all_data": False}}
    raw["attribution"] |= {"methods": methods, "influence_ekfac": {"sweep": sweep}, **attribution}
    return load(raw, METHODS)


def plan(*arguments, **attribution):
    config = configured(*arguments, **attribution)
    return Plan(config, methods_of(config))


def test_a_sweep_adds_its_methods_behind_influence_ekfac_with_names_for_paths():
    found = plan(["length", "influence_ekfac", "random"], [0.01, 1.0, 1e-5, 2.5e16])
    swept = ["influence_ekfac", *SWEPT, "influence_ekfac_1e-05", "influence_ekfac_2.5e16"]
    assert found.config.attribution.methods == ["length", *swept, "random"]
    assert found.swept == swept
    assert found.alone(needs_model=True) == []
    assert [*found.pass_settings(found.swept)["damping"].values()] == [0.1, 0.01, 1.0, 1e-5, 2.5e16]
    assert "damped by 0.01 of" in found.methods[SWEPT[0]].asks
    assert load(yaml.safe_load(found.config.model_dump_json()), METHODS).attribution == found.config.attribution


def test_one_damping_of_a_sweep_is_computed_alone_as_that_damping():
    found = plan([SWEPT[1]], [0.01, 1.0])
    assert (found.config.attribution.methods, found.swept) == ([SWEPT[1]], [])
    assert found.alone(needs_model=True) == [SWEPT[1]]
    assert found.method_settings(SWEPT[1])["damping"] == 1.0
    assert plan([SWEPT[1], "influence_ekfac"], [0.01, 1.0]).swept == [SWEPT[1], "influence_ekfac", SWEPT[0]]


def test_without_a_sweep_params_are_what_they_were():
    found = plan(["influence_ekfac"], [])
    settings = {key: found.method_settings("influence_ekfac")[key] for key in ("labels", "damping")}
    assert settings == {"labels": "sampled", "damping": 0.1}
    assert "sweep" not in found.method_settings("influence_ekfac")
    assert found.fisher_settings == plan(["influence_ekfac"], [0.01]).fisher_settings


@pytest.mark.parametrize(
    ("methods", "sweep", "other", "said"),
    [
        (["influence_ekfac"], [0], {}, "sweep.*greater than 0"),
        (["influence_ekfac"], [-1.0], {}, "sweep.*greater than 0"),
        (["influence_ekfac"], [float("inf")], {}, "sweep.*finite"),
        (["influence_ekfac"], [0.5, 0.50], {}, "0.5 appears twice"),
        (["influence_ekfac"], [0.1], {}, "0.1 appears twice, or is damping"),
        (["length"], [1.0], {}, "influence_ekfac is not in methods"),
        (["influence_ekfac_2"], [1.0], {}, "influence_ekfac is not in methods"),
        (["influence_ekfac", "influence_ekfac_2"], [1.0], {}, "influence_ekfac_2. is not a method"),
        (
            ["influence_ekfac"],
            [1.0],
            {"combined": {SWEPT[1]: {"given_length": "influence_ekfac"}}},
            "influence_ekfac_1. is the name of a method of yours",
        ),
        (
            ["influence_ekfac"],
            [1.0],
            {"external": {SWEPT[1]: {"path": "x.csv", "orientation": "scores"}}},
            "influence_ekfac_1. is the name of a method of yours",
        ),
    ],
)
def test_a_sweep_that_makes_no_methods_is_refused_in_one_sentence(methods, sweep, other, said):
    with pytest.raises(ConfigError, match=said) as caught:
        configured(methods, sweep, **other)
    assert len(str(caught.value).splitlines()) == 1


# --- in the DAG -------------------------------------------------------------------------------------------------


def planned(project, config):
    jobs = project.snakemake("scores", "-n", config=config).jobs
    return {rule: jobs[rule] for rule in JOBS if rule in jobs}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = dag.new(tmp_path_factory.mktemp("swept"))
    one_pass = {"attribute_ekfac": 2, "attribute_influence": 2, "combine": 1}
    assert planned(made, CONFIG) == {**FIT, **one_pass}
    ended = made.snakemake("truth", "analysis", "subsets", "--cores", "2", config=CONFIG)
    assert ended.returncode == 0, ended.output[-6000:]
    return made


def table(project, name):
    return pd.read_csv(project.path / dag.RESULTS / f"tables/{name}.csv")


def test_the_methods_are_everywhere_that_methods_are(project):
    methods = ["influence", "influence_ekfac", *SWEPT]
    folder = project.path / dag.RESULTS
    read = {m: pd.read_parquet(folder / f"attributions/{m}.parquet").drop(columns="id").to_numpy() for m in methods}
    assert all(np.isfinite(values).all() and values.shape == (24, 4) for values in read.values())
    assert not np.allclose(read[SWEPT[0]], read[SWEPT[1]])
    assert {f"score_{method}" for method in [*methods, "both"]} <= {*table(project, "scores").columns}
    for name in ("bins", "label_aucs", "lds", "frontier"):
        assert {*methods, "both"} <= {*table(project, name)["method"]}, name
    for method, chosen in ((SWEPT[0], "top-20pct"), ("mine", "selected")):
        assert (folder / f"subsets/{method}/{chosen}.jsonl").read_text().count("\n") == 5
    best = table(project, "scores").nlargest(5, f"score_{SWEPT[1]}")["id"]
    picked = pd.read_json(folder / "subsets/mine/selected.jsonl", lines=True, dtype={"id": str})["id"]
    assert {*picked} == {*best.astype(str)}
    page = project.read("results/tiny/truth.html").decode()
    assert "F is damped by 0.01 of its mean eigenvalue" in page


def test_the_frontier_counts_the_operations_of_fit_and_matrix(project):
    rows = table(project, "frontier").drop_duplicates("method").set_index("method")
    curved = rows.loc[["influence_ekfac", *SWEPT]]
    assert curved["operations"].nunique() == 1
    assert (curved["operations"] > 2 * rows.loc["influence", "operations"]).all()
    assert rows.loc["both", "operations"] == rows.loc[["influence", SWEPT[0]], "operations"].sum()
    assert curved["seconds"].nunique() == 1
    assert curved["seconds"].notna().all()


def test_another_sweep_fits_nothing_anew_and_none_computes_the_matrix_alone(project):
    def swept(dampings, **keys):
        attribution = {"influence_ekfac": {"sweep": dampings}, "methods": ["influence", "influence_ekfac"], **keys}
        return {**CONFIG, "attribution": {**CONFIG["attribution"], **attribution}, "selections": {}}

    assert planned(project, CONFIG) == {}
    assert planned(project, swept([0.01, 1.0, 2.0])) == {"attribute_ekfac": 2}
    assert planned(project, swept([], combined={})) == {"attribute": 2}


def test_a_damping_that_is_left_is_known_from_the_sweep_and_not_of_another_fisher_matrix(project):
    matrix = dag.RESULTS / "attributions/influence_ekfac_1.parquet"
    before = (project.path / matrix).read_bytes()

    def entries_known(**of_ekfac):
        alone = {"influence_ekfac": {"sweep": [1.0], **of_ekfac}, "methods": [SWEPT[1]], "combined": {}}
        config = {**CONFIG, "attribution": {**CONFIG["attribution"], **alone}, "selections": {}}
        ended = project.snakemake(str(matrix), "--cores", "2", config=config)
        assert ended.returncode == 0, ended.output[-6000:]
        logs = (project.path / f"logs/tiny/attribute/tiny-llama/{SWEPT[1]}").glob("*.log")
        return sum(int(n) for log in logs for n in re.findall(r"(\d+) of \d+ entries are known", log.read_text()))

    assert entries_known() == 24 * 4
    assert (project.path / matrix).read_bytes() == before
    assert entries_known(labels="empirical") == 0
    assert (project.path / matrix).read_bytes() != before
