"""The package that notebooks import: what it loads, shows, and writes, and the notebook that shows it."""

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, demo_rows

import icprobe
from icprobe.errors import ConfigError
from icprobe.progress import Progress
from icprobe.training import subsets

TRAIN = demo_rows("train")[:7]


def test_importing_icprobe_imports_neither_torch_nor_pandas():
    code = "import sys, icprobe\nprint(dir(icprobe))\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    names, modules = done.stdout.splitlines()
    assert not {"torch", "pandas", "numpy", "pydantic"} & set(modules.split())
    assert all(f"'{name}'" in names for name in icprobe.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'valeu'"):
        icprobe.valeu  # noqa: B018
    assert all(callable(getattr(icprobe, name)) for name in icprobe.__all__)
    assert Path(icprobe.__file__).name == "__init__.py"


def test_a_notebook_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    with Progress(total=2, desc="icp", unit="pair") as progress:
        progress.update(2)
    assert "icp: 100%" in capsys.readouterr().err


def test_the_notebook_was_executed_whole_and_names_no_machine():
    text = (ROOT / "docs" / "notebooks" / "first-look.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
    assert len(text) < 100_000
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)


def test_exported_rows_are_the_files_that_the_workflow_writes(tmp_path, prompts):
    table = pd.DataFrame([dict(row, score_mine=float(n), rank_mine=7 - n) for n, row in enumerate(TRAIN)])
    best = icprobe.select(table, "mine", "top 3")
    paths = icprobe.export(best, tmp_path / "best.jsonl", "mine")
    examples, order = table.set_index("id", drop=False), table["id"].tolist()[::-1][:3]
    expected = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    subsets.write_subset(examples, order, examples["score_mine"].to_dict(), prompts, *expected)
    assert [path.name for path in paths] == ["best.jsonl", "best.messages.jsonl"]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in expected]
    with pytest.raises(ConfigError, match=r"does not end with \.jsonl"):
        icprobe.export(best, tmp_path / "best.csv")
