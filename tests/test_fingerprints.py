"""Fingerprints of code: what reruns a job, and what does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from icprobe import fingerprints


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A script and a small package in which every kind of import occurs."""
    sources = {
        "script.py": "import pandas\nfrom icprobe.direct import f\nfrom icprobe import progress\n",
        "icprobe/__init__.py": "",
        "icprobe/direct.py": "import icprobe.dotted\nfrom icprobe.folder import registry\n",
        "icprobe/dotted.py": "def f():\n    if 1:\n        from icprobe import lazy as other\n",
        "icprobe/lazy.py": "import icprobe.direct\nx = 1\n",
        "icprobe/folder/__init__.py": "from icprobe.folder.inner import registry\n",
        "icprobe/folder/inner.py": "registry = {}\n",
        "icprobe/folder/chosen.py": "def attribute(): ...\n",
        "icprobe/progress.py": "import icprobe.seen_by_observers\n",
        "icprobe/seen_by_observers.py": "",
        "icprobe/unrelated.py": "from icprobe import direct\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path / "icprobe")
    known = {}
    monkeypatch.setattr(fingerprints, "_known", lambda: known)
    monkeypatch.setattr(fingerprints, "_keep_at_exit", lambda: None)
    return tmp_path


def fingerprint(package, *modules):
    return fingerprints.fingerprint(package / "script.py", modules)


def edit(package, name, old="", new="edited = 1\n"):
    path = package / name
    stat, text = path.stat(), path.read_text()
    path.write_text(text.replace(old, new) if old else text + new)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize("name", ["script", "direct", "dotted", "lazy", "folder/__init__", "folder/inner"])
def test_an_edit_of_code_that_the_script_reaches_changes_its_fingerprint(name, package):
    before = fingerprint(package)
    edit(package, "script.py" if name == "script" else f"icprobe/{name}.py")
    assert fingerprint(package) != before


@pytest.mark.parametrize("name", ["unrelated", "progress", "seen_by_observers", "folder/chosen"])
def test_an_edit_of_code_that_it_does_not_reach_or_that_only_watches_does_not(name, package):
    before = fingerprint(package)
    edit(package, f"icprobe/{name}.py")
    assert fingerprint(package) == before


def test_a_module_that_is_imported_by_its_name_counts_when_it_is_given(package):
    without, before = fingerprint(package), fingerprint(package, "icprobe.folder.chosen")
    assert without != before
    edit(package, "icprobe/folder/chosen.py")
    assert fingerprint(package, "icprobe.folder.chosen") != before


def test_an_import_that_is_added_is_followed(package):
    before = fingerprint(package)
    path = package / "icprobe/folder/inner.py"
    path.write_text("def f():\n    import icprobe.unrelated\n")
    added = fingerprint(package)
    assert added != before
    edit(package, "icprobe/unrelated.py")
    assert fingerprint(package) not in (before, added)


def test_a_touch_changes_no_fingerprint(package):
    before = fingerprint(package)
    for path in package.rglob("*.py"):
        os.utime(path)
    assert fingerprint(package) == before


CODE = '''"""A module."""


class Reader:
    """It reads."""

    def read(self, path: str = "here") -> str:
        """Says what."""
        if path == "there":  # why
            raise DataError(f"{path}: cannot be read; " + hint("try again"), path="there")
        return "what was read"
'''


@pytest.fixture
def with_code(package):
    edit(package, "icprobe/direct.py", new=CODE)
    return package


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # why", "  # because"),
        ('"""A module."""', '"""Another."""'),
        ('    """It reads."""\n', ""),
        ('"""Says what."""', "'Says more.'"),
        ("cannot be read; ", "is gone; "),
        ("try again", "do not"),
        ('f"{path}: cannot be read; "', '"It cannot be read; "'),
        ("raise DataError(", "raise DataError(\n                "),
    ],
    ids=["comment", "module", "class", "function", "message", "part of a message", "f-string", "layout"],
)
def test_what_only_says_something_changes_no_fingerprint(old, new, with_code):
    before = fingerprint(with_code), fingerprints.meaning("icprobe.direct")
    edit(with_code, "icprobe/direct.py", old, new)
    assert (fingerprint(with_code), fingerprints.meaning("icprobe.direct")) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"what was read"', '"something else"'),
        ('= "here"', '= "elsewhere"'),
        ('== "there"', '== "nowhere"'),
        ("DataError", "ModelError"),
        ("hint(", "other_hint("),
        ("raise DataError", "DataError"),
        ("path=", "folder="),
    ],
)
def test_what_does_something_changes_the_fingerprint(old, new, with_code):
    before = fingerprint(with_code), fingerprints.meaning("icprobe.direct")
    edit(with_code, "icprobe/direct.py", old, new)
    assert fingerprint(with_code) != before[0]
    assert fingerprints.meaning("icprobe.direct") != before[1]


def loaded_with(modules):
    code = f"import sys, {', '.join(modules)}\nprint(*(name for name in sys.modules if name.startswith('icprobe.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_closure_of_modules_holds_all_that_a_process_loads_with_them():
    modules = ["icprobe.report.build", "icprobe.attribution.shards", "icprobe.attribution.gathering"]
    # Python loads the registry with any method; by it, adding a method would repeat all others.
    registry = loaded_with(["icprobe.attribution"])
    rooms = {name for name in loaded_with(modules) if fingerprints._module_path(name).name == "__init__.py"}
    empty = {name for name in rooms if not fingerprints._module_path(name).read_text(encoding="utf-8")}
    loaded = loaded_with(modules) - fingerprints.OBSERVERS - registry - empty
    assert loaded <= fingerprints.closure(modules)
    assert len(loaded) > 8


OF_THE_PACKAGE = """
import ast, sys
from icprobe import fingerprints
parse, parsed = ast.parse, []
ast.parse = lambda text, **options: parsed.append(options) or parse(text, **options)
print(fingerprints.fingerprint(sys.argv[1], ["icprobe.attribution.icp"]), len(parsed))
"""


@pytest.mark.parametrize("large", [False, True])
def test_what_a_user_brings_is_told_from_other_content_of_its_size_however_old(large, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "LARGE_BYTES", 1 if large else 100)
    first, second = tmp_path / "first", tmp_path / "second"
    for file, text in ((first, "one"), (second, "two")):
        file.write_text(text)
    os.utime(second, (0, 0))
    chosen = tmp_path / "chosen"
    chosen.symlink_to(first)
    before = fingerprints.contents([str(chosen)])
    assert before == fingerprints.contents([str(chosen)])
    chosen.unlink()
    chosen.symlink_to(second)
    assert fingerprints.contents([str(chosen)]) != before


def test_a_source_is_parsed_once_and_an_edit_is_seen(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from icprobe import artifacts\n")

    def found():
        command = [sys.executable, "-c", OF_THE_PACKAGE, str(script)]
        environment = {**os.environ, "PYTHONPATH": str(Path(fingerprints.__file__).parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
        digest, parsed = done.stdout.split()
        return digest, int(parsed)

    assert found() == found()
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"], "nothing is left where Snakemake never ran"
    (tmp_path / ".snakemake").mkdir()
    (first, parsed), again = found(), found()
    assert parsed > 5
    assert again == (first, 0)
    script.write_text("from icprobe import artifacts\nedited = 1\n")
    edited, parsed = found()
    assert edited != first
    assert parsed == 1
