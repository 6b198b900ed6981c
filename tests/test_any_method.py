"""Any one method is enough: planned, scored, binned and reported without the others."""

import json
import re

import dag
import pandas as pd
import pytest

from icprobe.analysis.binning import size_of

# As a file of one's own says nothing of them: `null` takes away what config.yaml and configs/tiny.yaml say.
ALONE = {
    "attribution": {"methods": ["influence"]},
    "bins": None,
    "analysis": None,
    "figures": None,
    "finetune": {"methods": None, "bins": None},
}
FOLDERS = {"top 20%": "top-20pct", "bottom 20%": "bottom-20pct"}
# What would be of other methods, or of several.
OF_OTHERS = {
    "attribute",
    "attribute_without_model",
    "attribute_step",
    "correlate",
    "compare_bins",
    "chain",
    "plot_sweep",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return dag.new(tmp_path_factory.mktemp("one") / "project")


def test_one_method_is_planned_whole_and_alone(project):
    ended = project.snakemake("all", "-n", config=ALONE)
    assert ended.returncode == 0, ended.output
    assert not ended.jobs.keys() & OF_OTHERS
    counts = {rule: ended.jobs[rule] for rule in ("attribute_influence", "score", "tabulate_bins", "subset", "judge")}
    # Two bins and all data.
    assert counts == {"attribute_influence": 2, "score": 1, "tabulate_bins": 1, "subset": 3, "judge": 3}


def test_one_method_is_scored_binned_and_reported(project):
    config = {**ALONE, "finetune": {**ALONE["finetune"], "all_data": False, "methods": []}}
    subsets = {bin: dag.RESULTS / f"subsets/influence/{folder}.jsonl" for bin, folder in FOLDERS.items()}
    ended = project.snakemake("report", *map(str, subsets.values()), "--cores", "2", config=config)
    assert ended.returncode == 0, ended.output[-3000:]

    scores = pd.read_parquet(project.path / dag.RESULTS / "scores/influence.parquet").set_index("id")["score"]
    assert scores.nunique() == len(scores) == 24
    ordered = {"top 20%": scores.sort_values(ascending=False), "bottom 20%": scores.sort_values()}
    for bin, path in subsets.items():
        rows = [json.loads(line) for line in project.read(path).splitlines()]
        assert [row["id"] for row in rows] == ordered[bin].index[: size_of(bin, 24)].to_list()
    table = pd.read_csv(project.path / dag.RESULTS / "tables/bins.csv")
    assert table[["bin", "n", "n_tied", "n_tied_inside"]].values.tolist() == [
        ["bottom 20%", 5, 1, 1],
        ["top 20%", 5, 1, 1],
    ]

    page = project.read("results/tiny/report.html").decode()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    members = json.loads(data)["models"]["tiny-llama"]["bins"]
    assert {bin: len(found["influence"]) for bin, found in members.items()} == {"bottom 20%": 5, "top 20%": 5}


def test_a_bin_of_more_examples_than_there_are_ends_before_any_model_is_run(project):
    ended = project.snakemake("analysis", "--cores", "2", config={**ALONE, "experiment": "many", "bins": ["top 25"]})
    assert ended.returncode != 0
    assert "bins: 'top 25' asks for more examples than there are (24). Take fewer, or a share of them." in ended.output
    assert not (project.path / "results/many/tiny-llama/attributions").exists()


# Their jobs, and whether these are cut into the two shards of the tiny experiment.
WITHOUT_GRADIENTS = {
    "bm25": ("attribute_without_model", 1),
    "embedding": ("attribute", 2),
    "perplexity": ("attribute", 2),
    "ifd": ("attribute", 2),
}


@pytest.mark.parametrize("method", WITHOUT_GRADIENTS)
def test_a_method_without_gradients_is_planned_whole_and_alone(method, project):
    rule, shards = WITHOUT_GRADIENTS[method]
    ended = project.snakemake("all", "-n", config={**ALONE, "attribution": {"methods": [method]}})
    assert ended.returncode == 0, ended.output
    assert {name: n for name, n in ended.jobs.items() if name.startswith("attribute")} == {rule: shards}
    assert ended.jobs.get("check_responses", 0) == (method == "ifd"), "before any pass"
    assert {name: ended.jobs[name] for name in ("score", "tabulate_bins", "subset")} == {
        "score": 1,
        "tabulate_bins": 1,
        "subset": 3,
    }


def test_methods_without_gradients_are_scored_compared_and_reported(project):
    methods = [*WITHOUT_GRADIENTS]
    trained = {**ALONE["finetune"], "all_data": False, "methods": []}
    config = {**ALONE, "experiment": "cheap", "attribution": {"methods": methods}, "finetune": trained}
    ended = project.snakemake("report", "--cores", "2", config=config)
    assert ended.returncode == 0, ended.output[-3000:]
    model = project.path / "results/cheap/tiny-llama"
    matrices = {method: pd.read_parquet(model / f"attributions/{method}.parquet") for method in methods}
    assert {method: matrix.shape for method, matrix in matrices.items()} == {
        **dict.fromkeys(["bm25", "embedding"], (24, 1 + 4)),
        **dict.fromkeys(["perplexity", "ifd"], (24, 1 + 1)),
    }
    for method, matrix in matrices.items():
        scores = pd.read_parquet(model / f"scores/{method}.parquet")
        mean = matrix.drop(columns="id").astype("float64").mean(axis=1)
        assert scores["score"].tolist() == pytest.approx(mean.tolist())
        assert scores["score"].nunique() == 24
    pairs = pd.read_csv(model / "tables/correlations.csv")[["method_a", "method_b"]].drop_duplicates()
    assert len(pairs) == 6
    page = project.read("results/cheap/report.html").decode()
    for asked in ("in the same words", "as alike", "expect its response already", "Instruction-Following Difficulty"):
        assert asked in page
    assert "Building index" not in project.log("cheap", "attribute_without_model", "tiny-llama", "bm25", "1-of-1.log")
    assert project.snakemake("report", "-n", config=config).jobs == {}


# Of icp_reverse one score for each example, of icp_k_shot an effect on each task.
IN_CONTEXT = {
    "experiment": "contexts",
    "attribution": {"methods": ["icp_reverse", "icp_k_shot"], "icp_k_shot": {"k": 2, "draws": 2}},
    "bins": ["top 20%"],
    "figures": None,
    "finetune": {"methods": [], "bins": None, "all_data": False},
}


@pytest.fixture(scope="module")
def in_context(project):
    ended = project.snakemake("report", "--cores", "2", config=IN_CONTEXT)
    assert ended.returncode == 0, ended.output[-3000:]
    return project


def test_methods_with_long_contexts_are_scored_binned_and_reported(in_context):
    model = in_context.path / "results/contexts/tiny-llama"
    for method, columns in (("icp_reverse", 1), ("icp_k_shot", 4)):
        matrix = pd.read_parquet(model / f"attributions/{method}.parquet").drop(columns="id")
        assert matrix.shape == (24, columns)
        assert matrix.notna().all(axis=None)
        counted = json.loads((model / f"data/contexts.{method}.checked.json").read_text())
        assert counted["contexts"] == (1 if columns == 1 else 24 * 2)
    assert set(pd.read_csv(model / "tables/bins.csv")["method"]) == {"icp_reverse", "icp_k_shot"}
    page = in_context.read("results/contexts/report.html").decode()
    assert "turned round" in page
    assert "in the mean over the prompts that were drawn" in page


def test_what_stands_in_a_methods_contexts_repeats_that_method_alone(in_context):
    attribution = {**IN_CONTEXT["attribution"], "icp_k_shot": {"k": 3, "draws": 2}}
    jobs = in_context.snakemake("scores", "-n", config={**IN_CONTEXT, "attribution": attribution}).jobs
    assert {rule: jobs[rule] for rule in ("check_contexts", "attribute", "gather_attributions")} == {
        "check_contexts": 1,
        "attribute": 2,
        "gather_attributions": 1,
    }
    assert not in_context.snakemake("report", "-n", config=IN_CONTEXT).jobs


def test_contexts_that_do_not_fit_end_before_any_is_read(project):
    attribution = {**IN_CONTEXT["attribution"], "icp_k_shot": {"k": 25, "draws": 1}}
    config = {**IN_CONTEXT, "experiment": "crowded", "attribution": attribution}
    ended = project.snakemake("scores", "--cores", "2", config=config)
    assert ended.returncode != 0
    assert "icp_k_shot.k: 25 examples in contexts where there are 24; take at most 24" in ended.output
    assert not (project.path / "results/crowded/tiny-llama/attributions/icp_k_shot").exists()
