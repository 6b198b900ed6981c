"""Combined methods in the DAG: computed, binned, trained on, held against retraining; and when they rerun."""

import dag
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import rankdata

from icprobe.tracking.environment import measured

COMBINED = {
    "best": {"mean_rank": ["influence", "icp_budget", "length"]},
    "given": {"given_length": "best"},
}
MEMBERS = COMBINED["best"]["mean_rank"]
CONFIG = {
    "attribution": {"methods": ["given", *MEMBERS, "best"], "combined": COMBINED},
    "bins": ["top 20%"],
    "figures": {"scatter": "all"},
    "finetune": {"methods": ["best"], "bins": None, "all_data": False, "dtype": "float32"},
    "truth": {"subsets": 8, "removals": ["best"], "drop": 0.2, "controls": 2},
    "evaluation": {"judge": "none"},
}
ASKED = ["truth", "analysis", "held_out"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = dag.new(tmp_path_factory.mktemp("combined"))
    ended = project.snakemake(*ASKED, "--cores", "2", config=CONFIG)
    assert ended.returncode == 0, ended.output[-6000:]
    return project


@pytest.fixture(scope="module")
def matrices(project):
    folder = project.path / dag.RESULTS / "attributions"
    return {method: pd.read_parquet(folder / f"{method}.parquet").set_index("id") for method in [*MEMBERS, *COMBINED]}


def table(project, name):
    return pd.read_csv(project.path / dag.RESULTS / f"tables/{name}.csv")


def test_mean_ranks_are_those_of_the_matrices_task_by_task(matrices):
    best = matrices["best"]
    assert best.shape == (24, 4)
    for task in best:
        of_task = [matrices["influence"][task], matrices["icp_budget"]["score"], matrices["length"]["score"]]
        naive = np.mean([rankdata(column) / 24 for column in of_task], axis=0)
        assert np.abs(best[task] - naive).max() < 1e-12


def test_what_length_does_not_explain_is_that_of_least_squares(project, matrices):
    lengths = pd.read_parquet(project.path / dag.RESULTS / "data/lengths.parquet").set_index("id")["n_target"]
    along = np.stack([np.ones(24), rankdata(lengths.loc[matrices["best"].index])], axis=1)
    for task in matrices["best"]:
        ranks = rankdata(matrices["best"][task])
        naive = ranks - along @ np.linalg.lstsq(along, ranks, rcond=None)[0]
        assert np.abs(matrices["given"][task] - naive).max() < 1e-10


def test_they_are_in_every_table_as_methods_are(project, matrices):
    scores = table(project, "scores").set_index("id")
    for method in COMBINED:
        means = matrices[method].mean(axis=1)
        assert scores[f"score_{method}"].to_dict() == pytest.approx(means.to_dict())
        for name in ("bins", "label_aucs", "lds"):
            rows = table(project, name)
            values = rows[rows["method"] == method].drop(columns=["reliability_of_mean"], errors="ignore")
            assert len(values), (method, name)
    lds = table(project, "lds").query("set == 'tasks' and domain == 'all'").set_index("method")["lds"]
    assert lds[[*COMBINED]].notna().all()
    pairs = table(project, "correlations")[["method_a", "method_b"]].drop_duplicates()
    assert len(pairs) == 10
    assert set(table(project, "removal")["method"]) == {"best"}
    assert set(table(project, "held_out")["method"]) == {"best"}
    page = project.read("results/tiny/truth.html").decode()
    assert "Where does it stand by influence, icp_budget, length, all in all?" in page
    assert "How much higher does best rank it than the length of its response leads to expect?" in page


def test_they_cost_what_those_cost_that_they_are_computed_from(project):
    rows = table(project, "frontier").query("truth == 'lds'").set_index("method")
    parts = rows.loc[MEMBERS]
    for method in COMBINED:
        assert rows["operations"][method] == pytest.approx(parts["operations"].sum())
    own = {name: measured(project.path / f"logs/tiny/combine/tiny-llama/{name}.log")[0] for name in COMBINED}
    assert rows["seconds"]["best"] == pytest.approx(parts["seconds"].sum() + own["best"])
    assert rows["seconds"]["given"] == pytest.approx(parts["seconds"].sum() + own["best"] + own["given"])


def test_only_combined_matrices_rerun_where_the_mapping_changes(project):
    def planned(**combined):
        attribution = {**CONFIG["attribution"], "combined": {**COMBINED, **combined}}
        return project.snakemake(*ASKED, "-n", config={**CONFIG, "attribution": attribution}).jobs

    assert not planned()
    # The report shows the configuration.
    assert planned(unasked={"mean_rank": ["length", "icp_budget"]}).keys() <= {"report_truth", "truth"}
    given, best = planned(given={"given_length": "length"}), planned(best={"mean_rank": ["influence", "length"]})
    assert (given["combine"], given["score"]) == (1, 1)
    assert (best["combine"], best["score"]) == (2, 2), "what is computed from it follows"
    for jobs in (given, best):
        assert not {rule for rule in jobs if rule.startswith(("attribute", "gather", "measure_lengths"))} - {
            "gather_retrained"  # of the removal of its best
        }


def test_a_combination_more_computes_nothing_else_and_the_same_matrix_repeats_nothing(project, tmp_path):
    copied = project.copy(tmp_path)
    more = {**COMBINED, "cheap": {"mean_rank": ["length", "icp_budget"]}}
    attribution = {"methods": [*CONFIG["attribution"]["methods"], "cheap"], "combined": more}
    jobs = copied.snakemake("scores", "-n", config={**CONFIG, "attribution": attribution}).jobs
    assert {"combine": 1, "score": 1}.items() <= jobs.items()
    assert not {rule for rule in jobs if rule.startswith(("attribute", "gather", "measure"))}
    turned = {**COMBINED, "best": {"mean_rank": MEMBERS[::-1]}}
    config = {**CONFIG, "attribution": {**CONFIG["attribution"], "combined": turned}}
    ended = copied.snakemake(str(dag.RESULTS / "attributions/best.parquet"), "--cores", "1", config=config)
    assert ended.jobs["combine"] == 1, ended.output
    left = copied.snakemake("scores", "truth", "-n", config=config).jobs
    assert not left.keys() & {"score", "combine", "subset", "tabulate_lds"}, left


def test_an_unknown_method_ends_the_workflow_in_one_sentence(tmp_path):
    project = dag.new(tmp_path / "project")
    wrong = yaml.safe_load("{attribution: {combined: {best: {mean_rank: [icp, influense]}}}}")
    ended = project.snakemake("scores", "-n", config=wrong)
    assert ended.returncode == 1
    assert "config: attribution.combined.best: 'influense' is not a method; use some of icp" in ended.output


def test_scores_of_others_are_combined_without_texts_or_a_model(tmp_path):
    rng = np.random.default_rng(5)
    shares, effects = rng.integers(0, 9, 30).astype(np.float32), rng.normal(size=(30, 3)).astype(np.float32)
    project = dag.new(tmp_path / "project")
    np.savez(project.path / "given.npz", shares=shares, effects=effects)
    given = {"path": "given.npz", "key": "shares", "orientation": "scores"}
    config = {
        **dag.OF_OTHERS,
        "attribution": {
            "methods": ["icp", "influence", "best"],
            "external": {
                "icp": given,
                "influence": {**given, "key": "effects", "orientation": "examples_by_tasks"},
            },
            "combined": {"best": {"mean_rank": ["icp", "influence"]}},
        },
        "bins": ["top 20%"],
        "figures": {"scatter": []},
        "finetune": {"methods": [], "bins": None, "all_data": False},
    }
    ended = project.snakemake("results/given/theirs/tables/correlations.csv", "--cores", "2", config=config)
    assert ended.returncode == 0, ended.output[-3000:]
    found = pd.read_parquet(project.path / "results/given/theirs/attributions/best.parquet").drop(columns="id")
    naive = (rankdata(shares)[:, None] + rankdata(effects, axis=0)) / 60
    assert np.abs(found.to_numpy() - naive).max() < 1e-12
    missing = {**config["attribution"]["external"], "icp": {**given, "allow_missing": True}}
    ended = project.snakemake(
        "scores", "-n", config={**config, "attribution": {**config["attribution"], "external": missing}}
    )
    assert ended.returncode == 1
    assert "attribution.combined.best: 'icp' may have missing values (allow_missing)" in ended.output
