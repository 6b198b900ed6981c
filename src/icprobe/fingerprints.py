"""Which code and files made a result: digests of what a script and all that it reaches do, and of what is in files."""

import ast
import atexit
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from icprobe.artifacts import PACKAGE, digest, file_digest, write_json

# What watches a job, or says what is wrong with it, but cannot change its result; an edit here must not repeat a month
# of GPU work.
OBSERVERS = frozenset(
    {
        *("icprobe.tracking.runs", "icprobe.workflow.jobs", "icprobe.progress", "icprobe.errors"),
        # What they find out of a model is in its manifest, an input of every job that computes with it.
        *("icprobe.engine.admission", "icprobe.engine.trials"),
        # A rule's inputs and outputs say where files lie.
        "icprobe.paths",
    }
)

LARGE_BYTES = 2e8  # hashing such a file each time that Snakemake starts would take too long


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


def contents(files: Iterable[str]) -> dict[str, str]:
    """Digest of each file that a user brings; of a large one its size, and when it was changed.

    By time alone, one that is older than what was made from the file before it would pass for unchanged; and weights of
    one model are as large as those that it had before.
    """
    found = {}
    for file in files:
        facts = os.stat(file)
        large = facts.st_size >= LARGE_BYTES
        found[file] = f"{facts.st_size} bytes of {facts.st_mtime_ns}" if large else file_digest(file)
    return found


def package_files(pattern: str) -> list[str]:
    """Digests of files of the package that are no modules, such as templates: no fingerprint of code covers them."""
    found = sorted(PACKAGE.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{pattern}: the package has no such file")
    return [file_digest(path) for path in found]


class _Source(NamedTuple):
    """A source file: a digest of what it does, and the first-party modules that it imports anywhere."""

    meaning: str
    imports: frozenset[str]


def _source(path: Path) -> _Source:
    return _read(path, path.stat().st_mtime_ns)


@functools.cache
def _read(path: Path, _modified: int) -> _Source:
    text = path.read_text(encoding="utf-8")
    key = hashlib.sha256(text.encode()).hexdigest()
    if key not in _known():
        tree = ast.parse(text, filename=str(path))
        _known()[key] = [digest(_meaning(tree)), *sorted(map(list, _imported(tree)))]
        _keep_at_exit()
    meaning, *imported = _known()[key]
    return _Source(meaning, _modules(imported))


# --- what has been read before: parsing 90 modules anew would take a third of the time of `snakemake -n` --------------


@functools.cache
def _known() -> dict[str, list]:
    """SHA-256 of a source -> its meaning and imports, as this code has parsed them, here or in earlier processes."""
    try:
        return json.loads(_cache().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@functools.cache
def _keep_at_exit() -> None:
    atexit.register(_keep)


def _keep() -> None:
    if not _cache().parents[1].is_dir():
        return  # Snakemake never ran here, so that this is not our folder
    # Where nothing can be written, the next process parses again.
    with suppress(OSError):
        write_json(_cache(), _known())
        for other in _cache().parent.glob("code-*.json"):
            if other != _cache():
                other.unlink()


@functools.cache
def _cache() -> Path:
    return Path(".snakemake", "icprobe-caches", f"code-{file_digest(__file__)[:16]}.json").absolute()


# --- what a source does -----------------------------------------------------------------------------------------


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


def _imported(tree: ast.Module) -> set[tuple[str, ...]]:
    """First-party imports anywhere, functions included: (module,), or (module, name) of `from module import name`."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name,) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {(node.module, alias.name) for alias in node.names}
    return {names for names in found if names[0].split(".")[0] == "icprobe"}


def _modules(imported: Iterable[Sequence[str]]) -> frozenset[str]:
    """The modules that imports name: `from icprobe import jsonl` names one, `from icprobe.jsonl import f` not."""
    names = {".".join(one) if len(one) == 2 and _exists(".".join(one)) else one[0] for one in imported}
    return frozenset(names - {"icprobe"})


def _exists(name: str) -> bool:
    base = PACKAGE.joinpath(*name.split(".")[1:])
    return base.with_suffix(".py").exists() or (base / "__init__.py").exists()


def _module_path(name: str) -> Path:
    base = PACKAGE.joinpath(*name.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
