"""Two models of different size in one experiment, from texts to the figure over models and domains."""

import dag
import numpy as np
import pandas as pd
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]  # waits for the tiny experiment, on a machine that may be busy

SMALLER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TWO = {
    "models": ["tiny-llama", "tiny-gpt2"],
    "model_sources": {
        "tiny-gpt2": {
            "source": "random",
            "architecture": "gpt2",
            "sizes": SMALLER,
            "corpus": "resources/demo/train.jsonl",
        }
    },
    "data": {"in_domain": ["knowledge"]},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The finished tiny experiment with a second model, its analysis run; and when the first one's files were made."""
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path_factory.mktemp("two"))
    before = times(project)
    ended = project.snakemake("analysis", "--cores", "2", config=TWO)
    assert ended.returncode == 0, ended.output[-6000:]
    return project, ended, before


def times(project):
    return {path: path.stat().st_mtime_ns for path in (project.path / dag.RESULTS).rglob("*") if path.is_file()}


def test_the_first_models_results_are_left_alone(two):
    project, ended, before = two
    assert times(project) == before
    assert ended.jobs["prepare_model"] == ended.jobs["measure_lengths"] == ended.jobs["correlate"] == 1
    assert not {"select_tasks", "prepare_train", "prepare_eval"} & ended.jobs.keys()


def test_every_table_of_each_model_names_it_and_the_domain(two):
    project, *_ = two
    for model in TWO["models"]:
        tables = sorted((project.path / f"results/tiny/{model}/tables").glob("*.csv"))
        assert {"correlations.csv", "overlaps.csv", "label_aucs.csv", "chain.csv"} <= {path.name for path in tables}
        for path in tables:
            if path.name in ("scores.csv", "bins.csv"):
                continue  # over all tasks
            table = pd.read_csv(path)
            if table.empty:  # the labels of the demo are no numbers
                assert path.name == "label_correlations.csv"
                continue
            assert list(table.columns[:2]) == ["model", "domain"], path
            assert set(table["model"]) == {model}
            of_all = ("win_rates.csv", "differences.csv", "held_out.csv", "held_out_differences.csv", "tail_patch.csv")
            expected = {"all"} if path.name in of_all else {"all", "knowledge", "writing"}
            assert set(table["domain"]) == expected, path


def test_the_figure_shows_both_models_and_which_tasks_are_in_domain(two):
    project, *_ = two
    table = pd.read_csv(project.path / "results/tiny/figures/sweep.csv")
    assert (project.path / "results/tiny/figures/sweep.svg").read_bytes().startswith(b"<?xml")
    assert table["model"].tolist() == ["tiny-llama"] * 3 + ["tiny-gpt2"] * 3
    assert table["kind"].tolist() == ["all", "in-domain", "out-of-domain"] * 2
    assert table["n_tasks"].tolist() == [4, 3, 1] * 2
    for model in TWO["models"]:
        correlations = pd.read_csv(project.path / f"results/tiny/{model}/tables/correlations.csv")
        pair = correlations.query("method_a == 'icp' and method_b == 'influence' and statistic == 'spearman'")
        assert np.allclose(pair["value"], table.loc[table["model"] == model, "value"], equal_nan=True)


def test_a_domains_correlation_is_that_of_its_tasks_columns(two):
    project, *_ = two
    tasks = pd.read_parquet(project.path / "results/tiny/data/tasks.parquet")
    folder = project.path / "results/tiny/tiny-gpt2"
    ids = list(tasks.loc[tasks["domain"] == "knowledge", "id"])
    icp, influence = (pd.read_parquet(folder / f"attributions/{m}.parquet")[ids] for m in ("icp", "influence"))
    expected = (icp > 0).mean(axis=1).corr(influence.astype(float).mean(axis=1), method="spearman")
    table = pd.read_csv(folder / "tables/correlations.csv")
    row = table.query(
        "domain == 'knowledge' and method_a == 'icp' and method_b == 'influence' and statistic == 'spearman'"
    )
    assert np.allclose(row["value"], expected, equal_nan=True)
