"""What jobs run in: conda by a stand-in that makes Python's own environments, the image, Snakemake's linter."""

import hashlib
import os
import re
import subprocess
import sys

import dag
import pytest
import yaml

import icprobe

# What Snakemake asks of conda. Environments are Python's own; what is installed into them is installed by pip.
CONDA = """#!/bin/sh -e
case "$*" in
    "info --json") echo '{{"conda_prefix": "{prefix}", "platform": "linux-64"}}' ;;
    --version) echo conda 25.1.1 ;;
    clean*) ;;
    "config --get"*) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    *create*) while [ "$1" != --prefix ]; do shift; done; {python} -m venv "$2" ;;
    *) echo "conda $*: unknown to the stand-in" >&2; exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def conda(tmp_path_factory):
    """Environment variables with a stand-in for conda on PATH."""
    prefix = tmp_path_factory.mktemp("conda")
    (prefix / "bin").mkdir()
    (prefix / "bin/conda").write_text(CONDA.format(prefix=prefix, python=sys.executable))
    (prefix / "bin/conda").chmod(0o755)
    (prefix / "bin/activate").write_text('. "$1/bin/activate"\n')
    return {"PATH": f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return dag.new(tmp_path_factory.mktemp("planned"))


def test_every_rule_with_a_script_names_the_environment():
    """By Snakemake's own linter, which wants a log and no mixture of rules and functions, too."""
    linted = dag.forked(["--lint"], dag.ROOT)
    assert linted.returncode == 0, linted.output
    assert "in a good condition" in linted.output


def test_all_jobs_are_planned_in_one_environment(project, conda):
    listed = project.snakemake("--sdm", "conda", "--list-conda-envs", "--cores", "1", environment=conda)
    assert listed.returncode == 0, listed.output
    assert len(re.findall(r"^\S*icprobe\.yaml\s", listed.output, re.MULTILINE)) == 1, listed.output
    planned = project.snakemake("all", "-n", "--sdm", "conda", environment=conda)
    assert planned.returncode == 0, planned.output
    assert planned.output.count("Conda environment envs/icprobe.yaml will be created") == 1, planned.output
    assert planned.jobs == project.snakemake("all", "-n").jobs


def test_another_lock_of_versions_is_another_environment():
    digest = hashlib.sha256((dag.ROOT / "constraints.txt").read_bytes()).hexdigest()
    text = (dag.ROOT / "envs/icprobe.yaml").read_text(encoding="utf-8")
    assert f"\n# constraints.txt: {digest}\n" in text, "`make lock` writes the digest"
    assert yaml.safe_load(text)["dependencies"] == ["python=3.11", "pip"]


def test_make_install_the_conda_environment_and_the_image_install_the_same_way():
    script = "envs/icprobe.post-deploy.sh"
    lines = (dag.ROOT / script).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/sh -e"
    assert [line.split("constraints.txt ")[1] for line in lines if "--constraint" in line] == [
        "torch==2.13.0",
        "--editable '.[slurm]'",
    ]
    for file in ("Makefile", "Containerfile"):
        assert f"sh -e {script}" in (dag.ROOT / file).read_text(encoding="utf-8"), file


def test_the_image_holds_a_workflow_that_plans_its_experiment(tmp_path):
    """It cannot be built without a base image; what it copies makes the same folder here."""
    image = (dag.ROOT / "Containerfile").read_text(encoding="utf-8")
    for copied, to in re.findall(r"^COPY (.*) (\S+)$", image, re.MULTILINE):
        for name in copied.split():
            place = tmp_path / (name if to == "./" else to)
            place.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", dag.ROOT / name, place], check=True)
    planned = dag.forked(["-n", "all", "--nocolor", "--config", "wandb={mode: disabled}"], tmp_path)
    assert planned.returncode == 0, planned.output[-2000:]
    assert "report" in planned.output
    profile = yaml.safe_load((dag.ROOT / "profiles/kubernetes/config.yaml").read_text(encoding="utf-8"))
    assert f"--tag {profile['container-image']} ." in image
    ignored = (dag.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"private", "results", ".git"} <= set(ignored)


def test_the_environment_of_a_deployed_workflow_has_the_release(tmp_path):
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    script = ["sh", "-e", dag.ROOT / "envs/icprobe.post-deploy.sh"]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    for folder, last in ((tmp_path, f"icprobe[slurm]=={icprobe.__version__}"), (dag.ROOT, "--editable .[slurm]")):
        said = subprocess.run(script, cwd=folder, env={"PATH": path}, capture_output=True, text=True, check=True)
        assert said.stdout.splitlines()[-1].endswith(last)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_runs_in_the_environment_that_snakemake_makes(tmp_path, conda):
    """pip installs everything, PyTorch included, into an environment of Snakemake's; then a job runs in it."""
    project = dag.new(tmp_path / "project")
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (project.path / name).write_bytes((dag.ROOT / name).read_bytes())
    target = "resources/models/tiny-llama"
    ended = project.snakemake(target, "--cores", "1", "--sdm", "conda", environment=conda)
    assert ended.returncode == 0, ended.output
    assert "Activating conda environment" in ended.output
    installed = project.path / ".snakemake/conda"
    assert list(installed.glob("*/lib/python3*/site-packages/torch"))
    assert (project.path / target / "manifest.json").is_file()
