"""The target `synthetic`: what it makes, what an edit reruns, and Snakemake's own report of it."""

import zipfile
from collections import Counter
from pathlib import Path

import dag
import pandas as pd
import pytest

from icprobe.artifacts import PACKAGE

WHERE = "results/tiny/synthetic"
TARGET = Counter(synthetic=1)
PLOTS = Counter(plot_points=1) + TARGET
CORRELATION = Counter(correlate_points=1) + PLOTS
VALUES = Counter(value_points=1) + CORRELATION
TRAINING = Counter(train_regressor=1) + VALUES


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = dag.new(tmp_path_factory.mktemp("synthetic") / "project")
    ended = project.snakemake("synthetic", "--cores", "2")
    assert ended.returncode == 0, ended.output
    assert ended.jobs == TRAINING, ended.output
    return project


def module(name):
    return lambda project: (project.path / f"src/icprobe/{name}.py").open("a").write("\n_ADDED = 1\n") and None


CASES = {
    "nothing": (lambda project: None, Counter()),
    "steps": (lambda project: {"synthetic": {"steps": 31}}, TRAINING),
    "functions": (lambda project: {"synthetic": {"functions": 31}}, VALUES),
    "resamples": (lambda project: {"analysis": {"resamples": 10}}, CORRELATION),
    "colors": (lambda project: {"figures": {"colors": ["#112233"]}}, PLOTS),
    "finetune.learning_rate": (lambda project: {"finetune": {"learning_rate": 1e-3}}, Counter()),
    "in_all": (lambda project: {"synthetic": {"in_all": True}}, Counter()),
    "seed": (lambda project: {"seed": 1}, TRAINING),
    "regressor.py": (module("synthetic/regressor"), TRAINING),
    "synthetic_values.py": (module("synthetic/values"), VALUES),
    "synthetic.py": (module("synthetic/closed_forms"), VALUES),
    "synthetic_figures.py": (module("synthetic/figures"), PLOTS),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_what_reads_the_edited_thing_reruns_and_nothing_else(case, finished, tmp_path):
    change, expected = CASES[case]
    project = finished.copy(tmp_path)
    ended = project.snakemake("synthetic", "-n", config=change(project))
    assert ended.returncode == 0, ended.output
    assert ended.jobs == expected, ended.output


@pytest.mark.timeout(1800)
def test_the_target_makes_tables_and_figures_and_the_same_bytes_again(finished, tmp_path):
    table = pd.read_csv(finished.path / WHERE / "correlations.csv")
    assert table.groupby(["dimension", "noise"]).size().to_dict() == dict.fromkeys(
        [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)], 9
    )
    assert set(table["n"]) == {30 * 3}
    for name in ("noise", "dimension", "learning"):
        assert b"<svg" in finished.read(f"{WHERE}/figures/{name}.svg")
        assert len(pd.read_csv(finished.path / WHERE / "figures" / f"{name}.csv"))
    project = finished.copy(tmp_path)
    ended = project.snakemake("synthetic", "--cores", "1", "--forceall")
    assert ended.returncode == 0, ended.output
    for file in (
        "transformer/model.safetensors",
        "values.parquet",
        "learning.csv",
        "correlations.csv",
        "figures/noise.svg",
    ):
        assert project.read(f"{WHERE}/{file}") == finished.read(f"{WHERE}/{file}"), file


@pytest.mark.timeout(1800)
def test_snakemakes_own_report_has_its_figures_with_their_captions(finished, tmp_path):
    project = finished.copy(tmp_path)
    ended = project.snakemake("synthetic", "--report", "report.zip")
    assert ended.returncode == 0, ended.output
    with zipfile.ZipFile(project.path / "report.zip") as archive:
        names = {Path(name).stem for name in archive.namelist() if "/data/raw/" in name}
        (page,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("report.html"))
    assert names == {"noise", "dimension", "learning"}
    text = " ".join(page.replace("\\n", " ").split())
    for path in (PACKAGE / "figures" / "captions").glob("synthetic_*.rst"):
        assert " ".join(path.read_text(encoding="utf-8").split()[:4]) in text, path.name


@pytest.mark.timeout(1800)
def test_all_makes_it_only_where_the_configuration_says_so(finished, tmp_path):
    project = dag.new(tmp_path / "fresh")
    assert "train_regressor" not in project.snakemake("all", "-n").jobs
    asked = project.snakemake("all", "-n", config={"synthetic": {"in_all": True}}).jobs
    assert {rule: asked[rule] for rule in ("train_regressor", "value_points", "correlate_points", "plot_points")} == {
        "train_regressor": 1,
        "value_points": 1,
        "correlate_points": 1,
        "plot_points": 1,
    }
