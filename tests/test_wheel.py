"""The package as others install it: a wheel in an environment of its own, and what type checkers see of it."""

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import dag
import pytest

BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "src")
# What somebody writes who has read docs/python.md.
SCRIPT = """
import icprobe

scores = icprobe.value("train.jsonl", "tasks.jsonl", model={model}, methods=["influence", "length"])
both, matrices = icprobe.value("train.jsonl", "tasks.jsonl", model={model}, methods=["influence"], matrices=True)
table = icprobe.correlate(scores)
best = icprobe.select(scores, "influence", "top 3")
first, second = icprobe.export(best, "best.jsonl", "influence")
print(icprobe.__file__, len(scores), len(best), table["method_b"][0], first.name, sorted(matrices))
"""
LOADED = (
    'results = icprobe.load("results/tiny")\nnames: list[str] = results.models\nprint(len(results.scores(names[0])))\n'
)
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
MODEL = {"source": "random", "sizes": SIZES, "corpus": "train.jsonl"}
# Each of these lines is a mistake that a type checker should tell.
MISTAKES = """
icprobe.select(scores)
icprobe.correlate(scores, ["influence"], seed="one")
icprobe.value("train.jsonl", "tasks.jsonl", model="m", methods=3)
icprobe.load(5)
results.table()
icprobe.valeu
"""
# Libraries whose types are no matter of ours; mypy would read them for minutes.
MYPY = """
[mypy]
[mypy-torch.*,transformers.*,peft.*,trl.*,datasets.*,accelerate.*,scipy.*,sklearn.*,pyarrow.*,snakemake.*]
follow_imports = skip
ignore_missing_imports = True
[mypy-pandas.*]
ignore_missing_imports = True
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        skipped = shutil.ignore_patterns("*.egg-info", "__pycache__")
        copy = shutil.copytree if (dag.ROOT / name).is_dir() else shutil.copy
        copy(dag.ROOT / name, source / name, **({"ignore": skipped} if copy is shutil.copytree else {}))
    made = source / "dist"
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", made, source], check=True)
    return next(made.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An interpreter that has the wheel, and its requirements from this environment's folder."""
    home = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    made = home / "bin/python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    install = ["install", "--quiet", "--no-deps", "--ignore-installed", "--target", packages, wheel]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    # The folders that Python itself names; an editable package is in none of them, but in one that a .pth adds.
    named = [path for path in sys.path if path.endswith("site-packages") and not (Path(path) / "icprobe").is_dir()]
    (packages / "requirements.pth").write_text("\n".join(named), encoding="utf-8")
    return made


def test_a_wheel_holds_all_that_the_package_reads(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = dag.ROOT / "src"
    there = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert names == {name for name in there if ".egg-info/" not in name and "__pycache__" not in name}
    assert "icprobe/py.typed" in names


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_alone_values_correlates_selects_exports_and_loads(python, tmp_path, tmp_path_factory):
    finished = dag.finished(tmp_path_factory.getbasetemp())
    shutil.copytree(finished.path / "results", tmp_path / "results", symlinks=True)
    for name in ("train", "tasks"):
        rows = (dag.ROOT / "resources/demo" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:6]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "mine.py").write_text(SCRIPT.format(model=MODEL) + LOADED, encoding="utf-8")
    inherited = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([python, "mine.py"], cwd=tmp_path, env=inherited, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    where, *said = ended.stdout.split()
    assert Path(where).is_relative_to(python.parents[1])
    assert said == ["6", "3", "length", "best.jsonl", "['influence']", "24"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_the_package_offers_is_typed(python, tmp_path):
    (tmp_path / "mypy.ini").write_text(MYPY, encoding="utf-8")
    good, wrong = tmp_path / "good.py", tmp_path / "wrong.py"
    good.write_text(SCRIPT.format(model=repr("m")) + LOADED, encoding="utf-8")
    wrong.write_text(good.read_text(encoding="utf-8") + MISTAKES, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python]
    ended = subprocess.run([*command, good, wrong], cwd=tmp_path, capture_output=True, text=True)
    lines = {int(line) for line in re.findall(r"wrong\.py:(\d+): error", ended.stdout)}
    first = len(wrong.read_text(encoding="utf-8").splitlines()) - len(MISTAKES.strip().splitlines()) + 1
    assert lines == set(range(first, first + 6)), ended.stdout + ended.stderr
    assert "good.py" not in ended.stdout
