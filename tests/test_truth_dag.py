"""The retrain bank in the DAG: what is trained, what an edit repeats, and what is refused before anything runs."""

from collections import Counter

import dag
import pandas as pd
import pytest

TRUTH = {
    "truth": {"subsets": 8, "removals": ["length"], "drop": 0.2, "controls": 2, "leave_one_out": 2},
    "attribution": {"methods": ["length", "random"]},
    "bins": ["top 20%"],
    "figures": {"scatter": "all"},
    "finetune": {"methods": [], "bins": None, "all_data": False, "dtype": "float32"},
}
OUTCOMES = {
    part: dag.RESULTS / f"truth/{part}.parquet" for part in ("outcomes", "removals_outcomes", "left_out_outcomes")
}
TARGETS = [*map(str, OUTCOMES.values())]


def laid_over(**sections):
    return {
        key: {**TRUTH.get(key, {}), **sections.get(key, {})} if isinstance(value, dict) else value
        for key, value in {**TRUTH, **sections}.items()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny experiment's sets, all trained on."""
    project = dag.new(tmp_path_factory.mktemp("truth"))
    ended = project.snakemake(*TARGETS, "--cores", "2", config=TRUTH)
    assert ended.returncode == 0, ended.output[-6000:]
    return project


def kept(project):
    """The trainings in the bank, by their files."""
    return set((project.path / "results/tiny/.cache/retrainings").rglob("*.json"))


def test_every_set_is_trained_on_with_every_seed(trained):
    found = {part: pd.read_parquet(trained.path / path) for part, path in OUTCOMES.items()}
    sets = {
        "outcomes": [f"subset-{r}" for r in range(8)],
        "removals_outcomes": ["length", "control-0", "control-1"],
    }
    answers = found["outcomes"].groupby(["subset", "seed"]).size()
    assert answers.nunique() == 1
    for part, names in sets.items():
        assert found[part][["subset", "seed"]].drop_duplicates().values.tolist() == [
            [n, s] for n in names for s in (0, 1)
        ]
    out = found["left_out_outcomes"]
    assert out["subset"].nunique() == 3
    assert out["subset"][0] == "all"
    for table in found.values():
        assert set(table["set"]) == {"tasks", "eval"}
        assert (table["log_likelihood"] < 0).all()
        assert table.groupby(["subset", "seed"]).size().nunique() == 1
    assert len(kept(trained)) == 2 * (8 + 3 + 3)


def test_the_trainings_take_less_than_a_minute_of_a_processor(trained):
    (file,) = trained.path.glob("logs/tiny/retrain/tiny-llama/subsets/*.benchmark.tsv")
    measured = pd.read_csv(file, sep="\t")
    assert measured["cpu_time"].max() < 60, measured


def test_more_subsets_train_those_alone(trained, tmp_path):
    project = trained.copy(tmp_path)
    before, first = kept(project), pd.read_parquet(project.path / OUTCOMES["outcomes"])
    ended = project.snakemake(*TARGETS, "--cores", "2", config=laid_over(truth={"subsets": 12}))
    assert ended.returncode == 0, ended.output[-6000:]
    assert ended.jobs == Counter({"draw_sets": 1, "retrain": 1, "gather_subsets": 1})
    more = kept(project) - before
    assert len(more) == 2 * 4
    assert before < kept(project)
    table = pd.read_parquet(project.path / OUTCOMES["outcomes"])
    assert table[: len(first)].equals(first)
    assert table["subset"].nunique() == 12


EDITS = {
    "a method more": ({"attribution": {"methods": ["length", "random", "influence_mean"]}}, Counter()),
    "another bin": ({"bins": ["top 10%"]}, Counter()),
    "a method's aggregator": ({"attribution": {"aggregators": {"influence": "fraction_positive"}}}, Counter()),
    "another loss of the gradients": (
        {"attribution": {"methods": ["length", "influence"], "train_loss": "response"}},
        Counter(),
    ),
    "another learning rate": (
        {"finetune": {"learning_rate": 1e-3}},
        Counter(retrain=3, gather_subsets=1, gather_retrained=2),
    ),
    "another removal": (
        {"truth": {"removals": ["length", "random"]}},
        Counter(choose_removals=1, retrain=1, gather_retrained=1),
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_repeats_what_it_must(edit, trained, tmp_path):
    changes, expected = EDITS[edit]
    ended = trained.copy(tmp_path).snakemake(*TARGETS, "-n", config=laid_over(**changes))
    assert ended.returncode == 0, ended.output
    seen = Counter(
        {rule: n for rule, n in ended.jobs.items() if "retrain" in rule or "gather" in rule or "remov" in rule}
    )
    assert seen["retrain"] == expected["retrain"], ended.output
    if edit == "another learning rate":
        assert seen == expected, ended.output


def test_how_losses_are_checked_repeats_no_training(trained, tmp_path):
    project = trained.copy(tmp_path)
    project.edit("workflow/scripts/data/check_losses.py", "    run.summary(", "    logging.info('')\n    run.summary(")
    ended = project.snakemake(*TARGETS, "-n", config=TRUTH)
    assert ended.returncode == 0, ended.output
    assert ended.jobs == Counter({"check_losses": 1})


def test_truth_beside_gradients_of_the_response_repeats_none_of_them(tmp_path):
    project = dag.new(tmp_path)
    config = TRUTH | {"truth": {"subsets": 0}, "attribution": {"methods": ["influence"], "train_loss": "response"}}
    ended = project.snakemake("scores", "--cores", "2", config=config)
    assert ended.jobs["attribute_influence"], ended.output[-6000:]
    ended = project.snakemake("scores", "-n", config=config | {"truth": {"subsets": 8}})
    assert ended.returncode == 0, ended.output
    assert ended.jobs == Counter({"check_losses": 1})


# --- the tables of the trainings -------------------------------------------------------------------------------

SHOWN = {"frontier": 1, "plot_truth": 1, "report_truth": 1, "truth": 1}
COMPARED = {"tabulate_lds": 1, "tabulate_left_out": 1}
# (module of the analysis that is edited, jobs that rerun)
TABLES = {
    "nothing": (None, {}),
    "how an LDS is computed": ("lds", COMPARED | SHOWN),
    "how a removal is computed": ("removal", {"tabulate_removal": 1} | SHOWN),
    "how costs are counted": ("frontier", SHOWN),
}


@pytest.fixture(scope="module")
def shown(trained, tmp_path_factory):
    """The same with its tables and page."""
    project = trained.copy(tmp_path_factory.mktemp("shown"))
    ended = project.snakemake("truth", "--cores", "2", config=TRUTH)
    assert ended.returncode == 0, ended.output[-6000:]
    assert "retrain" not in ended.jobs
    return project


@pytest.mark.parametrize("case", TABLES)
def test_an_edit_of_a_tables_code_makes_it_and_what_shows_it_again(case, shown, tmp_path):
    module, expected = TABLES[case]
    project = shown.copy(tmp_path)
    if module:
        with open(project.path / f"src/icprobe/analysis/{module}.py", "a", encoding="utf-8") as file:
            file.write("\n\nADDED = 1\n")
    ended = project.snakemake("truth", "-n", config=TRUTH)
    assert ended.returncode == 0, ended.output
    assert ended.jobs == Counter(expected), ended.output


def test_a_method_more_trains_nothing_and_is_in_the_tables(shown, tmp_path):
    project = shown.copy(tmp_path)
    more = laid_over(attribution={"methods": ["length", "random", "icp"]})
    ended = project.snakemake("truth", "--cores", "2", config=more)
    assert ended.returncode == 0, ended.output[-6000:]
    assert "retrain" not in ended.jobs
    assert "tabulate_removal" not in ended.jobs
    for name in ("lds", "leave_one_out", "frontier"):
        assert "icp" in set(pd.read_csv(project.path / dag.RESULTS / f"tables/{name}.csv")["method"]), name


REFUSED = {
    "no training": ({**TRUTH, "finetune": None}, "truth: models are trained as finetune says"),
    "a method that is not scored": (laid_over(truth={"removals": ["icp"]}), "truth.removals: 'icp' is not in"),
    "a method twice": (laid_over(truth={"removals": ["length", "length"]}), "'length' appears twice"),
    "one control": (laid_over(truth={"controls": 1}), "truth.controls"),
    "all examples": (laid_over(truth={"share": 1.0}), "truth.share"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(case, tmp_path):
    config, sentence = REFUSED[case]
    from icprobe.attribution import METHODS
    from icprobe.config import load
    from icprobe.errors import ConfigError

    raw = {
        "experiment": "mine",
        "data": {name: {"path": f"{name}.jsonl"} for name in ("train", "tasks")},
        **config,
    }
    with pytest.raises(ConfigError) as refused:
        load(raw, METHODS)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_truth_without_trainings_is_no_success(tmp_path):
    ended = dag.new(tmp_path).snakemake("truth", "--cores", "1")
    assert ended.returncode == 1
    assert "truth: nothing says what to train again; write truth: {subsets: 64}" in ended.output
