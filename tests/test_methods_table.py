"""The table of docs/methods.md is what a finished experiment has measured, and says nothing that it has not."""

import re
import sys

import dag
import pandas as pd
import pytest
from conftest import ROOT

from icprobe.attribution import METHODS as REGISTRY
from icprobe.errors import DataError, IcprobeError
from icprobe.formatting import estimate, fixed, number

sys.path.insert(0, str(ROOT))  # `benchmarks` belongs to the repository, not to the installed package

from benchmarks import methods

METHODS = ["influence", "random", "length", "both"]
CONFIG = {
    "attribution": {"methods": METHODS, "combined": {"both": {"mean_rank": ["influence", "length"]}}},
    "bins": ["top 20%"],
    "figures": {"scatter": "all"},
    "finetune": {"methods": [], "bins": None, "all_data": False, "dtype": "float32"},
    "truth": {"subsets": 6, "removals": ["influence"], "drop": 0.2, "controls": 2},
}
MIB = 1024**2 / 1e9


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = dag.new(tmp_path_factory.mktemp("measured"))
    ended = project.snakemake("truth", "--cores", "2", config=CONFIG)
    assert ended.returncode == 0, ended.output[-6000:]
    return project


@pytest.fixture(scope="module")
def rows(project):
    return methods.measured(project.path / "results/tiny").set_index("method")


def of(project, name):
    return pd.read_csv(project.path / dag.RESULTS / f"tables/{name}.csv")


def cells_of(text):
    """{method: its cells} of a table in Markdown."""
    found = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in found}


def test_every_number_is_the_experiments(project, rows):
    assert rows.index.tolist() == METHODS
    assert set(rows[["model", "examples", "tasks"]].itertuples(index=False, name=None)) == {("tiny-llama", 24, 4)}
    frontier = of(project, "frontier").drop_duplicates("method").set_index("method")
    lds = of(project, "lds").query("set == 'tasks' and domain == 'all'").set_index("method")
    auc = of(project, "label_aucs").query("label == 'planted' and domain == 'all'").drop_duplicates("method")
    auc, removal = auc.set_index("method"), of(project, "removal").query("domain == 'all'").set_index("method")
    pairs = of(project, "correlations").query("statistic == 'spearman' and domain == 'all'")
    with_length = {
        next(m for m in (row.method_a, row.method_b) if m != "length"): row.value
        for row in pairs.itertuples()
        if "length" in (row.method_a, row.method_b)
    }
    for method, row in rows.iterrows():
        assert (row["seconds"], row["operations"]) == tuple(frontier.loc[method, ["seconds", "operations"]])
        assert [*row[["lds", "lds_low", "lds_high"]]] == [*lds.loc[method, ["lds", "low", "high"]]]
        assert [*row[["auc", "auc_low", "auc_high"]]] == [*auc.loc[method, ["auc", "low", "high"]]]
        if method == "influence":
            assert [*row[["removal", "removal_low", "removal_high"]]] == [*removal.loc[method, ["loss", "low", "high"]]]
        else:
            assert row[["removal", "removal_low", "removal_high"]].isna().all()
        expected = 1.0 if method == "length" else with_length[method]
        assert row["spearman_length"] == pytest.approx(expected, abs=1e-12)


def test_memory_is_the_peak_of_the_jobs_that_the_matrix_rests_on(project, rows):
    logs, peaks = project.path / "logs/tiny", {}
    of_jobs = {
        "influence": "attribute_influence/tiny-llama/*-of-2",
        "random": "attribute_without_model/tiny-llama/random/1-of-1",
        "length": "attribute_without_model/tiny-llama/length/1-of-1",
        "both": "combine/tiny-llama/both",
    }
    for method, pattern in of_jobs.items():
        files = [*logs.glob(f"{pattern}.benchmark.tsv")]
        assert len(files) == (2 if method == "influence" else 1)
        peaks[method] = max(pd.read_csv(file, sep="\t")["max_rss"].item() for file in files)
    peaks["both"] = max(peaks[method] for method in ("influence", "length", "both"))
    assert rows["gb"].to_dict() == pytest.approx({method: peak * MIB for method, peak in peaks.items()})


def test_the_page_shows_the_csv_and_leaves_all_else(project, rows, tmp_path):
    page = tmp_path / "methods.md"
    before, after = "# Methods\n\n<!-- methods: other -->\nx\n<!-- end -->\n", "\n## icp\n"
    page.write_text(f"{before}<!-- methods: tiny -->\nold\n<!-- end -->{after}", encoding="utf-8")
    for _ in range(2):
        methods.write(rows.reset_index()[methods.COLUMNS], "tiny", tmp_path)
        text = page.read_text(encoding="utf-8")
        assert text.startswith(before)
        assert text.endswith(after)
    written = pd.read_csv(tmp_path / "methods/tiny.csv").set_index("method")
    shown = cells_of(methods.between(text, "tiny"))
    assert [*shown] == METHODS
    for method, row in written.iterrows():
        assert shown[method] == [
            number(row["seconds"]),
            number(row["operations"] / 1e12),
            number(row["gb"]),
            estimate(row["lds"], row["lds_low"], row["lds_high"]),
            estimate(row["removal"], row["removal_low"], row["removal_high"]) if method == "influence" else "",
            estimate(row["auc"], row["auc_low"], row["auc_high"]),
            fixed(row["spearman_length"]),
        ]
    assert "tiny-llama, 24 examples, 4 tasks, on " in text


def test_what_was_not_measured_is_empty(project, rows, tmp_path):
    (tmp_path / "project").mkdir()
    copied = project.copy(tmp_path / "project")
    tables = copied.path / dag.RESULTS / "tables"
    for name in ("frontier", "lds", "removal", "label_aucs"):
        (tables / f"{name}.csv").unlink()
    (copied.path / "logs/tiny/attribute_without_model/tiny-llama/length/1-of-1.benchmark.tsv").unlink()
    for file in (copied.path / "logs/tiny/attribute_without_model/tiny-llama/random").iterdir():
        file.unlink()
    found = methods.measured(copied.path / "results/tiny").set_index("method")
    empty = ["seconds", "operations", "lds", "lds_low", "lds_high", "removal", "auc", "auc_low", "auc_high"]
    assert sorted(found.index) == sorted(METHODS)
    assert found[empty].isna().all(axis=None)
    assert found["gb"].notna().to_dict() == {"influence": True, "random": False, "length": False, "both": False}
    assert found["spearman_length"].to_dict() == rows["spearman_length"].to_dict()
    assert cells_of(methods.table(found.reset_index()))["length"] == ["", "", "", "", "", "", "1.00"]


def test_what_cannot_be_read_or_written_is_refused_in_a_sentence(project, rows, tmp_path):
    with pytest.raises(IcprobeError, match="holds no scores of an experiment"):
        methods.measured(tmp_path)
    with pytest.raises(IcprobeError, match="there is no model 'mine'"):
        methods.measured(project.path / "results/tiny", "mine")
    (tmp_path / "methods.md").write_text("# Methods\n")
    with pytest.raises(DataError, match="has no <!-- methods: tiny -->"):
        methods.write(rows.reset_index(), "tiny", tmp_path)
    assert not (tmp_path / "methods").exists()


PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", re.findall(r"<!-- methods: (\S+) -->", PAGE))
def test_the_committed_table_is_that_of_its_csv(name):
    file = ROOT / f"docs/methods/{name}.csv"
    shown = methods.between(PAGE, name)
    if file.exists():
        assert shown == methods.table(methods.artifacts.read_csv(file)), f"python benchmarks/methods.py … --name {name}"
    else:
        assert shown == "", "rows without the numbers that they are from"


def test_every_committed_csv_has_its_table():
    found = {file.stem for file in (ROOT / "docs/methods").glob("*.csv")}
    assert found <= set(re.findall(r"<!-- methods: (\S+) -->", PAGE))


@pytest.mark.parametrize("method", [*REGISTRY, "mean_rank", "given_length", "external"])
def test_every_method_has_one_section_which_says_what_it_asks_costs_and_needs_and_when_to_use_it(method):
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    (text,) = [text for text in sections if text.startswith(f"{method}\n")]
    assert re.match(rf"{method}\n\n\*[^*]+\*", text), "a question first"
    assert re.search(r"^```\w+\n\S", text, re.MULTILINE), "a formula"
    for part in ("cost", "needs", "use it"):
        assert re.search(rf"\*\*{part}\*\*", text, re.IGNORECASE), part


@pytest.mark.parametrize(("name", "place"), [("demo", 0), ("alpaca", 1)])
def test_the_lds_in_docs_are_those_of_their_tables(name, place):
    """Rounded once."""
    text = (ROOT / "docs/truth.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| method \| LDS, tasks.*?\n\n", text, re.MULTILINE | re.DOTALL)[place].replace("**", "")
    rows = [[cell.strip(" `") for cell in line[1:-1].split("|")] for line in shown.strip().splitlines()[2:]]
    table = pd.read_csv(ROOT / f"docs/truth/lds-{name}.csv").query("domain == 'all'")
    for method, *cells in rows:
        for of_set, cell in zip(("tasks", "eval"), cells, strict=False):
            found = table[table["set"] == of_set].set_index("method")
            row = found.loc[method] if method != "ceiling" else found.iloc[0]
            columns = ("lds", "low", "high") if method != "ceiling" else ("ceiling", "ceiling_low", "ceiling_high")
            assert cell == estimate(*row[[*columns]]), (method, of_set)
