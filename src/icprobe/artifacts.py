"""Files that appear only when complete, are what their manifest says, and know which code made them."""

import ast
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from icprobe.errors import ArtifactError

PACKAGE = Path(__file__).parent
MANIFEST = "manifest.json"
# Columns of tables that hold names, whatever these look like.
NAME_COLUMNS = frozenset(
    {"model", "domain", "method", "method_a", "method_b", "bin", "subset", "label", "kind", "statistic", "interval"}
)

# What watches a job, or says what is wrong with it, but cannot change its result; an edit here must not repeat a month
# of GPU work.
OBSERVERS = frozenset({"icprobe.tracking", "icprobe.jobs", "icprobe.progress", "icprobe.errors", "icprobe.admission"})


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a directory to; renamed to `path` when the block ends without error.

    Nothing stands under the final name before it is complete and on disk. On any error what was written is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # What killed writers of the same path left behind; Snakemake lets one job at a time write it.
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.partial{glob.escape(path.suffix)}"):
        _remove(stale)
    # The suffix is kept: writers choose the format by it.
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    try:
        yield aside
        _sync(aside)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(aside, path)
        _sync(path.parent, inside=False)
    finally:
        _remove(aside)


@contextmanager
def one_at_a_time(path: str | Path) -> Iterator[bool]:
    """Waits while another process makes `path`, in a block such as this; yields whether it is still to be made.

    For what several experiments share: Snakemake keeps the jobs of one invocation apart, not those of two.
    """
    from huggingface_hub.utils import WeakFileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name(f".{path.name}.lock")):
        yield not path.exists()


def link(path: str | Path, target: str | Path) -> None:
    """A symbolic link at `path` to `target` beside it, unless what stands there is no link."""
    path = Path(path)
    if path.is_symlink() or not path.exists():
        aside = path.with_name(f".{path.name}.{os.getpid()}.link")
        aside.unlink(missing_ok=True)
        aside.symlink_to(Path(target).name)
        os.replace(aside, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path, inside: bool = True) -> None:
    if inside and path.is_dir():
        for child in path.iterdir():
            _sync(child)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """`value` as indented JSON with sorted keys, written atomically."""
    with atomic_path(path) as aside:
        aside.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_text(path: str | Path, text: str) -> None:
    """`text` in UTF-8, written atomically."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, table: Any) -> None:
    """A pandas table as CSV without its index, unrounded, written atomically."""
    with atomic_path(path) as aside:
        table.to_csv(aside, index=False, lineterminator="\n")


def read_csv(path: str | Path) -> Any:
    """A pandas table that `write_csv` wrote. Only what is empty is missing, and names stay texts: a domain may be
    called NA, a method 007.
    """
    import pandas as pd  # not above: most who import this module read no tables

    columns = pd.read_csv(path, nrows=0).columns
    names = NAME_COLUMNS | ({"value"} if "label" in columns else set())  # a label's value; elsewhere a number
    return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(names & {*columns}, str))


def matching(patterns: Iterable[str]) -> list[str]:
    """The files that paths or patterns name, those of a pattern in natural order; what matches nothing stays."""

    def natural(path: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]

    files = []
    for pattern in patterns:
        found = [] if os.path.exists(pattern) else glob.glob(pattern)
        files += sorted(found, key=natural) or [pattern]
    return files


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 over the canonical JSON of a plain value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def content_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of what the manifest of a directory says (its files' names and digests)."""
    path = Path(path)
    if not path.is_dir():
        return file_digest(path)
    return digest(read_manifest(path)["files"])


# --- directories with a manifest --------------------------------------------------------------------------------


def write_manifest(directory: str | Path, **facts: Any) -> None:
    """manifest.json of a directory: size and SHA-256 of every file, whatever facts are given, and its own digest."""
    directory = Path(directory)
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    contents = {**facts, "files": files}
    write_json(directory / MANIFEST, {**contents, "digest": digest(contents)})


def show_manifest(directory: str | Path, path: str | Path) -> None:
    """The manifest of a directory as a file outside it, which tells by its content whether the directory changed."""
    with atomic_path(path) as aside:
        shutil.copyfile(Path(directory) / MANIFEST, aside)


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a directory. Raises ArtifactError where there is none, or not the one that was written."""
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.pop("digest") != digest(manifest):
            raise ValueError("it was changed")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). Remove {directory} so that it is made anew.") from None
    return manifest


def verify(directory: str | Path, contents: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """The manifest, after checking every file's size and, where `contents(its name)`, its SHA-256.

    Raises ArtifactError naming the first file that is missing, truncated or changed.
    """
    manifest = read_manifest(directory)
    for name, expected in manifest["files"].items():
        path = Path(directory) / name
        if not path.is_file():
            what = "is missing"
        elif path.stat().st_size != expected["bytes"]:
            what = f"has {path.stat().st_size} bytes where the manifest says {expected['bytes']}"
        elif contents(name) and file_digest(path) != expected["sha256"]:
            what = "has another SHA-256 than the manifest says"
        else:
            continue
        raise ArtifactError(f"{path}: {what}. Remove {directory} so that it is made anew.")
    return manifest


# --- what is partial --------------------------------------------------------------------------------------------


def partial_directory(experiment_directory: str | Path, *identity: Any) -> Path:
    """Where a long job keeps unfinished work, outside its declared outputs, which Snakemake wipes before a rerun.

    identity: plain values that the work depends upon (digests of inputs, params); another identity is another folder.
    """
    directory = Path(experiment_directory) / ".partial" / digest(identity)[:32]
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def temporary_directory() -> tempfile.TemporaryDirectory:
    """A private directory in TMPDIR, gone at the end of the `with` block."""
    return tempfile.TemporaryDirectory(prefix="icprobe-")


# --- which code made it -----------------------------------------------------------------------------------------


def fingerprint(script: str | Path, modules: Iterable[str] = ()) -> str:
    """Digest of what a script, `modules` and all first-party modules do that these reach by import.

    Modules that only watch (`OBSERVERS`) do not count, nor do comments, docstrings, layout and the messages of errors.
    Snakemake takes it as a param, so that a job reruns when code that it runs has changed, and only then.
    """
    script = _source(Path(script))
    names = sorted(closure({*script.imports, *modules}))
    return digest([script.meaning, {name: _source(_module_path(name)).meaning for name in names}])[:16]


def meaning(module: str) -> str:
    """Digest of what one module does, such as an observer whose edit must repeat something; not of what it imports."""
    return _source(_module_path(module)).meaning[:16]


def closure(modules: Iterable[str]) -> set[str]:
    """First-party modules reached by import from `modules`, themselves included, observers excluded."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in OBSERVERS:
            found.add(name)
            waiting += _source(_module_path(name)).imports
    return found


class _Source(NamedTuple):
    """A source file: a digest of what it does, and the first-party modules that it imports anywhere."""

    meaning: str
    imports: frozenset[str]


def _source(path: Path) -> _Source:
    return _parsed(path, path.stat().st_mtime_ns)


@functools.cache
def _parsed(path: Path, _modified: int) -> _Source:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return _Source(digest(_meaning(tree)), _imports(tree))


def _meaning(node: ast.AST, in_error: bool = False) -> str:
    """A syntax tree as text, without what does nothing: docstrings, and texts in the making of an error.

    Not `ast.dump`, which writes the same code differently from one Python to the next.
    """
    parts = [type(node).__name__]
    in_error = in_error or isinstance(node, ast.Raise)
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or value == []:
            continue
        parts.append(name)
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, ast.AST):
                parts.append(repr(one))
            elif in_error and (isinstance(one, ast.JoinedStr) or _is_text(one)):
                parts.append("text")
            elif not (isinstance(one, ast.Expr) and _is_text(one.value)):
                parts.append(_meaning(one, in_error))
    return f"({' '.join(parts)})"


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _imports(tree: ast.Module) -> frozenset[str]:
    """First-party modules that are imported anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from icprobe import data` names a module, `from icprobe.data import read` a function in one.
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in below if name.startswith("icprobe.") and _exists(name)}
            names |= modules if len(modules) == len(below) else modules | {node.module}
    return frozenset(name for name in names if name.split(".")[0] == "icprobe" and name != "icprobe")


def _exists(name: str) -> bool:
    base = PACKAGE.joinpath(*name.split(".")[1:])
    return base.with_suffix(".py").exists() or (base / "__init__.py").exists()


def _module_path(name: str) -> Path:
    base = PACKAGE.joinpath(*name.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
