"""Whether all files say the version of a tag: `make check-release TAG=v0.2.0`. Python's own library alone."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Where the version stands, besides pyproject.toml, and how.
PLACES = {
    "src/icprobe/__init__.py": r'^__version__ = "(.+)"$',
    "rules/common.smk": r'modules\.place_of\(workflow, version="(.+)"\)',
    "envs/icprobe.post-deploy.sh": r"icprobe\[slurm\]==([\w.]+)",
    "CITATION.cff": r"^version: (.+)$",
    "profiles/kubernetes/config.yaml": r"^container-image: \S+:([\w.]+)$",
    "Containerfile": r"(?:icprobe:|image\.version=\")([\w.]+)",
    "docs/clusters.md": r"icprobe:(\d[\w.]*\d)",
    "docs/deploying.md": r"(?:icprobe==|@v|tag=\"v|--tag v)([\w.]+)",
}


def mistakes(tag: str, root: Path = ROOT) -> list[str]:
    """What stands in the way of a release; tag: such as "v0.2.0", or "" for what is between releases."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    found = [f"the tag is {tag!r}, and pyproject.toml says v{version}"] if tag not in ("", f"v{version}") else []
    for place, pattern in PLACES.items():
        said = re.findall(pattern, (root / place).read_text(encoding="utf-8"), re.MULTILINE)
        found += [f"{place}: says {other!r}, and pyproject.toml {version!r}" for other in said if other != version]
        found += [] if said else [f"{place}: says no version"]
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if tag and not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        found.append(f"CHANGELOG.md: has no section [{version}] with a date; [Unreleased] becomes it")
    if tag and not re.search(r"^date-released: ", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE):
        found.append("CITATION.cff: has no date-released")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch(r"v\d+\.\d+\.\d+\S*", sys.argv[1]):
        sys.exit("check-release: name the tag, such as TAG=v0.2.0")
    sys.exit("\n".join(mistakes(sys.argv[1])) or None)
