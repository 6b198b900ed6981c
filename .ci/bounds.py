"""Constraints for pip at a bound of pyproject.toml's ranges: `python .ci/bounds.py lowest`. Python's own library alone.

lowest: the versions of constraints.txt, but of LEANING those that the ranges begin with. highest: whatever is newest
within the ranges, of all requirements. The first line names LEANING.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Libraries whose insides matter to us, so that another version may be another result, or none.
LEANING = ("snakemake", "transformers", "trl", "wandb")


def constraints(bound: str) -> list[str]:
    """The lines of a constraints file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = f"# {'|'.join(LEANING)}"
    if bound == "highest":
        return [named]
    ranges = dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in project["dependencies"])
    lowest = {name: re.match(r">=([\d.]+)", ranges[name])[1] for name in LEANING}
    locked = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    others = [line for line in locked if line.split("==")[0].lower() not in lowest]
    return [named, *others, *(f"{name}=={version}" for name, version in lowest.items())]


if __name__ == "__main__":
    if sys.argv[1:] not in (["lowest"], ["highest"]):
        sys.exit("bounds: say lowest or highest")
    print(*constraints(sys.argv[1]), sep="\n")
