"""Files that appear only when complete, and are what their manifest says."""

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
from typing import Any

from icprobe import paths
from icprobe.errors import ArtifactError, reason

PACKAGE = Path(__file__).parent
MANIFEST = "manifest.json"
# Columns of tables that hold names, whatever these look like.
NAME_COLUMNS = frozenset(
    {
        "id",
        "kept_id",
        "first_id",
        "instruction",
        "input",
        "output",
        "task",
        "selection",
        "baseline",
        "model",
        "domain",
        "method",
        "method_a",
        "method_b",
        "bin",
        "set",
        "subset",
        "label",
        "kind",
        "statistic",
        "interval",
    }
)


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
        sync(aside)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(aside, path)
        sync(path.parent, inside=False)
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


def sync(path: Path, inside: bool = True) -> None:
    """Waits until a file, or a directory and (inside) all that is in it, is on disk."""
    if inside and path.is_dir():
        for child in path.iterdir():
            sync(child)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """`value` as indented JSON with sorted keys, written atomically."""
    with atomic_path(path) as aside:
        aside.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def clock_of(folder: str | os.PathLike) -> float:
    """What time it is by the file system of a folder, in the seconds of `os.stat`: a shared one has its own clock."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")
        file.flush()
        return os.fstat(file.fileno()).st_mtime


def read_json(path: str | Path) -> Any:
    """Reads one of our JSON files. Raises ArtifactError where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({reason(error)}); remove it.") from None


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
    names = NAME_COLUMNS | ({"value"} if "auc" in columns else set())  # a label's value; elsewhere a number
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
    """SHA-256 of a file, or of what the manifest of a directory says: its files' names and digests, and, of a model
    that is not loaded as it lies there, how it is loaded."""
    path = Path(path)
    if not path.is_dir():
        return file_digest(path)
    manifest = read_manifest(path)
    load = (manifest.get("source") or {}).get("load")
    return digest([manifest["files"], load] if load else manifest["files"])


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
        raise ArtifactError(f"{path}: cannot be read ({error}). Remove {directory} to have it rebuilt.") from None
    return manifest


def known_manifest(directory: str) -> dict[str, Any]:
    """The same, read once for as long as it stays as it is; nothing where there is none, or a damaged one."""
    try:
        return _manifest_of(directory, os.stat(os.path.join(directory, MANIFEST)).st_mtime_ns)
    except (OSError, ArtifactError):
        return {}


@functools.lru_cache
def _manifest_of(directory: str, _modified: int) -> dict[str, Any]:
    return read_manifest(directory)


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
        raise ArtifactError(f"{path}: {what}. Remove {directory} to have it rebuilt.")
    return manifest


# --- what is partial --------------------------------------------------------------------------------------------


def partial_directory(experiment_directory: str | Path, *identity: Any) -> Path:
    """Where a long job keeps unfinished work, outside its declared outputs, which Snakemake wipes before a rerun.

    identity: plain values that the work depends upon (digests of inputs, params); another identity is another folder.
    """
    directory = Path(experiment_directory) / paths.PARTIAL / digest(identity)[:32]
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def temporary_directory() -> tempfile.TemporaryDirectory:
    """A private directory in TMPDIR, gone at the end of the `with` block."""
    return tempfile.TemporaryDirectory(prefix="icprobe-")
