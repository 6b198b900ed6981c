"""What stands around the package: jobs on GitHub, forms, releases; held against schemas, and against the Makefile."""

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def checked(schema, *files):
    """What check-jsonschema finds wrong with files; its schemas come with it."""
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", *files]
    ended = subprocess.run(command, capture_output=True, text=True)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "idea.yml")]),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE/config.yml"]),
        ("dependabot", [GITHUB / "dependabot.yml"]),
        ("citation-file-format", [ROOT / "CITATION.cff"]),
    ],
)
def test_files_for_github_follow_their_schemas(schema, files, tmp_path):
    assert files
    assert not checked(schema, *files)
    wrong = tmp_path / files[0].name
    wrong.write_text(f"unheard: of\n{files[0].read_text(encoding='utf-8')}", encoding="utf-8")
    assert "unheard" in checked(schema, wrong)


def steps():
    """(job, step) of all workflows."""
    for file in WORKFLOWS:
        for name, job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].items():
            for step in job["steps"]:
                yield f"{file.stem}/{name}", step


def test_jobs_run_targets_of_the_makefile_or_what_must_pass_before_a_change_lands():
    run = [(job, step["run"]) for job, step in steps() if "run" in step]
    assert {job.split("/")[0] for job, _ in run} == {"tests", "docs", "release"}
    for job, command in run:
        target = re.fullmatch(r"make ([\w-]+)(?: PYTHON=python)?|\.ci/run", command)
        assert target, f"{job}: {command}"
        # `docs` is a page's own matter: what it needs is no part of this environment.
        assert target[1] in (*TARGETS, "docs", None), f"{job}: {command}"
    called = set(re.findall(r"^make ([\w-]+)", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE))
    assert called <= {*TARGETS, "docs"}


def test_only_the_job_that_publishes_may_write_and_none_holds_a_secret():
    for file in WORKFLOWS:
        text = file.read_text(encoding="utf-8")
        assert "secrets." not in text
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
        jobs = yaml.safe_load(text)["jobs"]
        assert all("timeout-minutes" in job for job in jobs.values())
        assert {name for name, job in jobs.items() if "permissions" in job} <= {"publish"}
    # An expression in a command would run what a branch is called.
    assert not [job for job, step in steps() if "${{" in step.get("run", "")]


def test_files_agree_on_the_version_and_a_release_is_refused_for_each_that_does_not(tmp_path):
    check = runpy.run_path(str(ROOT / ".ci/check_release.py"))
    mistakes, places = check["mistakes"], [*check["PLACES"], "pyproject.toml", "CHANGELOG.md"]
    assert mistakes("") == []
    for name in places:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    project = tmp_path / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1]
    assert mistakes("v9.8.7", tmp_path)[0] == f"the tag is 'v9.8.7', and pyproject.toml says v{version}"
    assert [line.split(":")[0] for line in mistakes(f"v{version}", tmp_path)] == ["CHANGELOG.md", "CITATION.cff"]
    (tmp_path / "CHANGELOG.md").write_text(f"## [{version}] - 2030-01-02\n", encoding="utf-8")
    with open(tmp_path / "CITATION.cff", "a", encoding="utf-8") as file:
        file.write("date-released: 2030-01-02\n")
    assert mistakes(f"v{version}", tmp_path) == []
    project.write_text(text.replace(f'version = "{version}"', 'version = "9.8.7"'), encoding="utf-8")
    assert {line.split(":")[0] for line in mistakes("v9.8.7", tmp_path)} >= set(check["PLACES"])


def test_the_lock_lies_within_the_ranges_and_the_lowest_bounds_are_where_these_begin():
    bounds = runpy.run_path(str(ROOT / ".ci/bounds.py"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = {wanted.name: wanted.specifier for wanted in map(Requirement, project["dependencies"])}

    def pins(lines):
        pairs = (line.split("==") for line in lines if "==" in line)
        return {canonicalize_name(name): version for name, version in pairs}

    locked = pins((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert not [name for name, allowed in ranges.items() if locked[name] not in allowed]
    lowest = pins(bounds["constraints"]("lowest"))
    assert {name for name, version in lowest.items() if locked[name] != version} <= set(bounds["LEANING"])
    for name in bounds["LEANING"]:
        assert lowest[name] in ranges[name]
        assert f"{lowest[name]}.dev0" not in ranges[name], "what lies below is not allowed"
    assert pins(bounds["constraints"]("highest")) == {}


def test_the_containerfile_has_no_mistake_that_hadolint_knows(tmp_path):
    hadolint = Path(sys.executable).with_name("hadolint")
    assert subprocess.run([hadolint, ROOT / "Containerfile"], capture_output=True, text=True).stdout == ""
    (tmp_path / "Containerfile").write_text("FROM python\nRUN cd /x && apt-get install y\n", encoding="utf-8")
    found = subprocess.run([hadolint, tmp_path / "Containerfile"], capture_output=True, text=True)
    assert found.returncode == 1
    assert "DL3006" in found.stdout
