"""The registry of figures: each has its module, its caption, and draws from files what its line says that it reads."""

import importlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from icprobe import figures
from icprobe.artifacts import PACKAGE, write_csv
from icprobe.figures import FIGURES
from icprobe.figures.drawing import Inputs, caption
from icprobe.tables.parquet import write_parquet

METHODS = ["icp", "influence", "length"]


@pytest.fixture
def job(tmp_path):
    """The files and params of a job that draws, for three methods of 30 examples."""
    rng = np.random.default_rng(0)
    ids = [f"e{i}" for i in range(30)]
    score = {method: pd.DataFrame({"id": ids, "score": rng.random(30)}) for method in METHODS}
    pairs = [("icp", "influence"), ("icp", "length"), ("influence", "length")]
    correlations = [
        ("m", domain, a, b, "spearman", 0.5, 0.2, 0.7, "bootstrap", 30) for domain in ("all", "code") for a, b in pairs
    ]
    columns = ["model", "domain", "method_a", "method_b", "statistic", "value", "low", "high", "interval", "n"]
    tables = {
        "correlations": pd.DataFrame(correlations, columns=columns),
        "lengths": pd.DataFrame({"id": ids, "n_query": 5, "n_target": rng.integers(1, 50, 30)}),
        "train": pd.DataFrame({"id": ids, "planted": ["sound", "noise"] * 15}),
    }
    files = {"scores": [str(tmp_path / f"{method}.parquet") for method in METHODS]}
    for path, table in zip(files["scores"], score.values(), strict=True):
        write_parquet(table, path)
    for name, table in tables.items():
        files[name] = str(tmp_path / f"{name}.{'csv' if name == 'correlations' else 'parquet'}")
        (write_csv if name == "correlations" else lambda path, rows: write_parquet(rows, path))(files[name], table)
    params = {"methods": METHODS, "axis_labels": {}, "colors": ["#112233"], "labels": ["planted"]}
    return SimpleNamespace(**files), SimpleNamespace(**params)


def test_every_figure_has_a_module_that_draws_and_a_caption():
    for name in FIGURES:
        assert callable(importlib.import_module(figures.module(name)).draw)
        assert caption(name)
    written = {path.stem for path in (PACKAGE / "figures" / "captions").glob("*.rst")}
    others = {name for name in written if name.endswith("_table") or name.startswith(("synthetic_", "workflow"))}
    assert written - others == FIGURES.keys()


@pytest.mark.parametrize("name", ["distributions", "heat_map", "lengths", "scatter"])
def test_a_figure_reads_what_its_line_says_and_nothing_else(name, job):
    files, params = job
    read = SimpleNamespace(**{source: getattr(files, source) for source in FIGURES[name].reads})
    pair = ["icp", "influence"] if FIGURES[name].of_pairs else []
    drawn = figures.draw(name, Inputs(read, params), *pair)
    assert len(drawn.table) == (3 if name == "heat_map" else 30)
    assert drawn.title
    assert figures.stem(name, *pair) == ("scatter/icp--influence" if pair else name)


def test_a_file_is_read_once_for_all_figures(job, monkeypatch):
    opened = []
    read_csv = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda path, **options: opened.append(path) or read_csv(path, **options))
    inputs = Inputs(*job)
    for pair in (("icp", "influence"), ("icp", "length")):
        figures.draw("scatter", inputs, *pair)
    figures.draw("heat_map", inputs)
    assert opened.count(job[0].correlations) == 2  # its head for the names of columns, then the table


def test_tables_of_several_models_stand_one_below_the_other(job, tmp_path):
    files, params = job
    two = SimpleNamespace(correlations=[files.correlations, files.correlations])
    rows = Inputs(two, params).rows("correlations")
    assert len(rows) == 12
    assert rows.index.is_unique
