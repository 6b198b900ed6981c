"""Selections through the DAG: planned, chosen, fine-tuned, and in every table by their names."""

import re
from collections import Counter

import dag
import numpy as np
import pandas as pd
import pytest
import yaml

from icprobe import artifacts, jsonl

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the tiny experiment, on a machine that may be busy

SELECTIONS = {
    "best": {"method": "influence", "top": "25%", "baselines": ["random", "random_tokens", "random_length"]},
    "balanced": {"method": "icp", "top": 8, "per_task": "round_robin"},
    "worst-few": {"method": "random", "bottom": 3},
    "diverse": {"method": "influence", "top": 6, "diverse": {"by": "embedding", "weight": 0.5}},
    "matched": {"method": "length", "top": 12, "match": "length"},
    "mixture": {"method": "one_step", "tokens": 300, "quota": {"column": "planted", "shares": {"sound": 0.5}}},
}
BASELINES = ["best-random", "best-random_tokens", "best-random_length"]
TRAINED = ["balanced", "best", *BASELINES]
CONFIG = {"selections": SELECTIONS, "finetune": {"selections": ["best", "balanced"]}}
NAMES = [*TRAINED, "diverse", "matched", "mixture", "worst-few"]  # in the order of the file of configuration


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path_factory.mktemp("selections"))
    planned = project.snakemake("all", "subsets", "-n", config=CONFIG)
    ended = project.snakemake("all", "subsets", "--cores", "2", config=CONFIG)
    assert ended.returncode == 0, ended.output[-6000:]
    return project, planned, ended


def subset(project, name, form=""):
    return jsonl.read(project.path / dag.RESULTS / f"subsets/{name}/selected{form}.jsonl")


def card_of(project, name):
    return (project.path / dag.RESULTS / f"subsets/{name}/README.md").read_text()


def table(project, name):
    return artifacts.read_csv(project.path / dag.RESULTS / f"tables/{name}.csv")


def scores(project, method):
    return pd.read_parquet(project.path / dag.RESULTS / f"scores/{method}.parquet")


def test_selections_repeat_nothing_that_was_finished(project):
    _, planned, _ = project
    n = len(TRAINED)
    expected = Counter(check_selection=6, select_examples=6, draw_baseline=3, tabulate_selections=1)
    expected += Counter(embed_examples=1, describe_selection=9, count_learnt=1)
    expected += Counter(fine_tune=n, generate=n, judge=n, measure_outcomes=1, tabulate_held_out=1)
    expected += Counter(tabulate_win_rates=1, plot_judgements=1, report=1, all=1, subsets=1)
    # The subsets of bins on which nothing is trained, which this target makes besides.
    assert planned.jobs - Counter(subset=planned.jobs["subset"]) == expected, planned.output


def test_each_data_set_is_there_in_both_forms_that_trainers_take(project):
    project, _, _ = project
    for name in NAMES:
        rows, messages = subset(project, name), subset(project, name, ".messages")
        assert [row["id"] for row in rows] == [row["id"] for row in messages]
        assert len({row["id"] for row in rows}) == len(rows) > 0
        assert {"id", "score", "prompt", "completion"} <= {*rows[0]}
        assert {"id", "score", "messages"} <= {*messages[0]}


def test_beside_each_stand_how_it_is_loaded_and_what_all_methods_say_of_it(project):
    project, _, _ = project
    known = pd.read_parquet(project.path / dag.RESULTS / "tables/scores.parquet").set_index("id")
    for name in NAMES:
        folder = project.path / dag.RESULTS / f"subsets/{name}"
        ids = [row["id"] for row in subset(project, name)]
        rows = subset(project, name, ".scores")
        assert [row["id"] for row in rows] == ids
        for method in ("icp", "influence", "random"):
            assert [row[f"score_{method}"] for row in rows] == known.loc[ids, f"score_{method}"].tolist()
            assert [row[f"rank_{method}"] for row in rows] == known.loc[ids, f"rank_{method}"].tolist()
        assert f"{len(ids)} of {len(known)} examples" in card_of(project, name)
        assert set(artifacts.read_json(folder / "dataset_info.json")) == {name}
    # The configuration in it is that which made it, without defaults.
    written = yaml.safe_load(re.search("```yaml\n(.*?)```", card_of(project, "diverse"), re.DOTALL)[1])
    assert written == {"selections": {"diverse": {**SELECTIONS["diverse"], "top": "6"}}}
    assert "drawn at random (random_tokens)" in card_of(project, "best-random_tokens")


def test_a_plain_selection_is_what_a_bin_of_its_size_is(project):
    project, _, _ = project
    ranked = scores(project, "influence").sort_values(["score", "id"], ascending=[False, True])
    assert [row["id"] for row in subset(project, "best")] == ranked["id"].tolist()[:6]
    assert [row["score"] for row in subset(project, "best")] == ranked["score"].tolist()[:6]
    assert len(subset(project, "worst-few")) == 3


def test_tasks_take_turns_by_the_columns_of_the_matrix(project):
    project, _, _ = project
    matrix = pd.read_parquet(project.path / dag.RESULTS / "attributions/icp.parquet").set_index("id")
    left = matrix.copy()
    for place, row in enumerate(subset(project, "balanced")):
        column = left[matrix.columns[place % matrix.shape[1]]]
        assert column[row["id"]] == column.max()
        left = left.drop(row["id"])


def test_embeddings_are_those_of_the_method_embedding_and_what_is_diverse_follows_from_them(project):
    project, _, _ = project
    train = pd.read_parquet(project.path / "results/tiny/data/train.parquet")
    vectors = np.load(project.path / dag.RESULTS / "data/embeddings.npy")
    assert vectors.shape == (len(train), 48)
    # By the method itself: cosines to tasks, which read the same model.
    methods = dag.configuration("config.yaml", "configs/tiny.yaml").attribution.methods
    config = {**CONFIG, "attribution": {"methods": [*methods, "embedding"]}}
    ended = project.snakemake(str(dag.RESULTS / "attributions/embedding.parquet"), "--cores", "1", config=config)
    assert ended.returncode == 0, ended.output[-3000:]
    matrix = pd.read_parquet(project.path / dag.RESULTS / "attributions/embedding.parquet").set_index("id")
    matrix = matrix.loc[train["id"]]
    found = np.linalg.lstsq(vectors.astype(float), matrix.to_numpy(), rcond=None)[0]
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(vectors @ found - matrix.to_numpy()).max() < 1e-3
    ranked = scores(project, "influence").sort_values(["score", "id"], ascending=[False, True])["id"].tolist()
    relevance = 1 - np.arange(len(ranked)) / (len(ranked) - 1)
    cosines = vectors[train.index[train["id"].map(ranked.index).argsort()]]
    cosines = cosines @ cosines.T
    wanted = [0]
    while len(wanted) < 6:
        value = 0.5 * relevance - 0.5 * cosines[:, wanted].max(axis=1)
        value[wanted] = -np.inf
        wanted.append(int(value.argmax()))
    assert [row["id"] for row in subset(project, "diverse")] == [ranked[i] for i in wanted]


def test_the_held_out_table_the_win_rates_and_the_differences_name_them(project):
    project, _, _ = project
    for name in ("held_out", "win_rates"):
        rows = table(project, name)
        assert list(dict.fromkeys(rows.loc[rows["bin"] == "selected", "method"])) == TRAINED
        assert {"icp", "random", "all"} <= {*rows["method"]}
    differences = table(project, "held_out_differences")
    of_selections = differences[differences["bin"] == "selected"]
    assert ("best", "best-random_length") in {*zip(of_selections["method_a"], of_selections["method_b"], strict=True)}


def test_the_table_of_selections_measures_responses_and_what_is_shared(project):
    project, _, _ = project
    rows = table(project, "selections").set_index("method")
    lengths = pd.read_parquet(project.path / dag.RESULTS / "data/learnt.parquet").set_index("id")["n_learnt"]
    whole = pd.read_parquet(project.path / dag.RESULTS / "data/lengths.parquet").set_index("id")["n_target"]
    assert (lengths == whole + 1).all()  # the end of sequence
    assert list(rows.index) == [*NAMES, "all"]
    for name in NAMES:
        ids = [row["id"] for row in subset(project, name)]
        assert (rows["n"][name], rows["n_tokens"][name]) == (len(ids), lengths[ids].sum())
    best = {row["id"] for row in subset(project, "best")}
    drawn = [row["id"] for row in subset(project, "best-random_length")]
    assert rows["shared"]["best-random_length"] == pytest.approx(sum(i in best for i in drawn) / len(drawn))
    assert rows["n_tokens"]["mixture"] <= 300
    assert rows["n"]["all"] == len(lengths)


def test_the_report_and_the_terminal_name_them(project):
    project, _, ended = project
    page = project.read("results/tiny/report.html").decode()
    assert "Selections and their random baselines" in page
    assert all(name in page for name in TRAINED)
    assert "the best 25% by influence" in page
    assert "best-random_length" in ended.output
    assert "Selections and their random baselines" not in dag_report_without(project)


def dag_report_without(project):
    """The report of the same experiment without selections."""
    ended = project.snakemake("results/tiny/report.html", "--cores", "2")
    assert ended.returncode == 0, ended.output[-3000:]
    return project.read("results/tiny/report.html").decode()


def test_another_rule_repeats_what_is_made_of_it_alone(project):
    project, _, _ = project
    changed = {**SELECTIONS, "balanced": {"method": "icp", "top": 7, "per_task": "round_robin"}}
    ended = project.snakemake("all", "-n", config={**CONFIG, "selections": changed})
    one = Counter(["check_selection", "select_examples", "fine_tune", "generate", "judge"])
    tables = [
        "describe_selection",
        "tabulate_selections",
        "measure_outcomes",
        "tabulate_held_out",
        "tabulate_win_rates",
        "plot_judgements",
    ]
    assert ended.jobs == one + Counter([*tables, "report", "all"]), ended.output


def test_more_than_there_is_ends_before_any_model_is_trained(project, tmp_path):
    project, _, _ = project
    for rule, said in (
        (
            {"method": "icp", "tokens": 1e6},
            "selections.many: it asks for 1,000,000 tokens, but the examples with a score have only ",
        ),
        (
            {"method": "icp", "top": 12, "quota": {"column": "planted", "shares": {"elsewhere": 0.5}}},
            "no row of data.train has 'elsewhere'; the column 'planted' holds 'contentless', ",
        ),
    ):
        config = {"selections": {"many": rule}}
        path = str(dag.RESULTS / "data/selection.many.checked.json")
        ended = project.snakemake(path, "--cores", "1", config=config)
        assert ended.returncode != 0
        assert said in " ".join(ended.output.split())
