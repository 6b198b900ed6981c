"""The tables of retraining as the workflow makes them: its rules and scripts, from files whose truth numpy knows."""

import dag
import numpy as np
import pandas as pd
import pytest
from retrained import experiment, noisy
from scipy.stats import spearmanr

from icprobe.workflow.plan import Plan

pytestmark = pytest.mark.timeout(600)
TRUTH = {"subsets": 64, "removals": ["influence"], "leave_one_out": 40}
RULES = ("tabulate_lds", "tabulate_removal", "tabulate_left_out")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(files of the experiment, folder of the tables): icp is a random matrix, influence exact."""
    project = dag.new(tmp_path_factory.mktemp("project"))
    known = experiment(tmp_path_factory.mktemp("known"), examples=120, tasks=20)
    out = experiment(tmp_path_factory.mktemp("out"), examples=120, tasks=20, subsets=40, left_out=True)
    tasks = [f"t{j}" for j in range(20)]
    ids = list(known.lengths["id"])
    rng = np.random.default_rng(0)
    best = pd.read_parquet(known.matrices["influence"]).set_index("id").mean(axis=1).nlargest(12).index
    sets = {f"control-{c}": rng.permutation(ids)[:12] for c in range(8)} | {"influence": best}
    removed = pd.concat(
        [
            pd.DataFrame({"subset": s, "method": None if "-" in s else s, "task": None, "id": list(of)})
            for s, of in sets.items()
        ]
    )
    effect = pd.read_parquet(known.matrices["influence"]).set_index("id")
    lost = [(s, 0, "tasks", t, -effect.loc[list(of), t].sum(), 7) for s, of in sets.items() for t in tasks]
    files = {
        "truth/subsets": known.subsets,
        "truth/outcomes": noisy(known.outcomes, 0.1, 2),
        "truth/left_out": out.subsets,
        "truth/left_out_outcomes": out.outcomes,
        "truth/removals": removed,
        "truth/removals_outcomes": pd.DataFrame(lost, columns=known.outcomes.columns),
        "data/lengths": known.lengths,
        "attributions/icp": pd.read_parquet(known.matrices["random"]),
        "attributions/influence": pd.read_parquet(known.matrices["influence"]),
        "scores/length": pd.read_parquet(known.scores["length"]),
    }
    files = {dag.RESULTS / f"{name}.parquet": table for name, table in files.items()}
    domains = ["a", "b"] * 10
    files[dag.RESULTS.parent / "data/tasks.parquet"] = pd.DataFrame({"id": tasks, "domain": domains})
    for path, table in files.items():
        (project.path / path).parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(project.path / path)
    config = {
        "attribution": {"methods": ["icp", "influence", "length"]},
        "finetune": {"methods": []},
        "figures": {"scatter": "all"},
        "truth": TRUTH,
    }
    ended = project.snakemake(
        *(str(dag.RESULTS / f"tables/{name}.csv") for name in ("lds", "removal", "leave_one_out")),
        *("--cores", "1", "--allowed-rules", *RULES),
        config=config,
    )
    assert ended.returncode == 0, ended.output
    return files, project.path / dag.RESULTS / "tables"


def test_exact_influence_is_found_by_each_of_them(made):
    _, folder = made
    for name, column, number in (("lds", "lds", "n_subsets"), ("leave_one_out", "lds", "n_examples")):
        table = pd.read_csv(folder / f"{name}.csv")
        assert list(table)[:4] == ["model", "set", "domain", "method"]
        assert set(table["domain"]) == {"all", "a", "b"}
        rows = table.query("domain == 'all'").set_index("method")
        assert rows.loc["influence", column] >= 0.95
        assert abs(rows.loc["icp", column]) <= 0.2
        assert set(rows.index) == {"icp", "influence", "length", "document tokens", "response tokens"}
        assert (table[number] == {"lds": 64, "leave_one_out": 40}[name]).all()
    removal = pd.read_csv(folder / "removal.csv").query("domain == 'all'").iloc[0]
    assert removal.method == "influence"
    assert removal.low > 0
    assert (removal.n_removed, removal.n_controls, removal.n_tasks) == (12, 8, 20)
    differences = pd.read_csv(folder / "lds_differences.csv").query("domain == 'all'")
    row = differences.query("method_a == 'icp' and method_b == 'influence'").iloc[0]
    assert row.difference < -0.7
    assert row.p_value_holm < 0.001


def test_the_score_of_the_files_is_the_naive_loop(made):
    files, folder = made
    table = pd.read_csv(folder / "lds.csv").query("method == 'icp'").set_index("domain")
    matrix = files[dag.RESULTS / "attributions/icp.parquet"].set_index("id")
    members = files[dag.RESULTS / "truth/subsets.parquet"].groupby("subset")["id"]
    sums = pd.DataFrame({subset: matrix.loc[ids].sum() for subset, ids in members}).T
    outcomes = files[dag.RESULTS / "truth/outcomes.parquet"].pivot_table(
        index="subset", columns="id", values="log_likelihood"
    )
    each = {t: spearmanr(sums.loc[outcomes.index, t], outcomes[t]).statistic for t in outcomes}
    assert np.isclose(table.loc["all", "lds"], np.mean(list(each.values())))
    assert np.isclose(table.loc["b", "lds"], np.mean([each[f"t{j}"] for j in range(1, 20, 2)]))


def test_tables_follow_from_what_is_trained():
    plain = dag.configuration("config.yaml", "configs/tiny.yaml")
    assert Plan(plain, dag.METHODS).truth_tables == []
    asked = plain.model_copy(update={"truth": plain.truth.model_copy(update=TRUTH)})
    tables = ["lds.csv", "lds_differences.csv", "removal.csv", "leave_one_out.csv", "frontier.csv"]
    assert Plan(asked, dag.METHODS).truth_tables == tables
