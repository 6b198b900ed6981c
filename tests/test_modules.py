"""The workflow as a module of somebody else's, in a folder that holds nothing of ours; what the catalog asks of it."""

import json
import re
import shutil
import subprocess
import sys

import dag
import pandas as pd
import pytest
import snakemakes
import yaml
from snakemake.utils import update_config

import icprobe
from icprobe.attribution import METHODS
from icprobe.config import load, stands_alone

SCORES = dag.RESULTS / "tables/scores.csv"
MODULE = """
module icprobe:
    snakefile: {snakefile}
    config: {config}
"""
ON_DISK = repr(str(dag.ROOT / "workflow/Snakefile"))
# What snakedeploy writes (0.17), with its address of a tag.
DEPLOYED = (
    'configfile: "config/config.yaml"\n'
    + MODULE.format(snakefile='github("lab/icprobe", path="workflow/Snakefile", tag="v1")', config="config")
    + "use rule * from icprobe\n"
)
# Of somebody who has a workflow, with a configuration and hooks of their own.
NESTED = (
    'configfile: "config.yaml"\n'
    + MODULE.format(snakefile=ON_DISK, config='config["valued"]')
    + """
use rule * from icprobe as icprobe_*
use rule attribute from icprobe as icprobe_attribute with:
    priority: 5

onsuccess:
    print("their last words")
    icprobe.onsuccess()

rule theirs:
    default_target: True
    input: "results/tiny/tiny-llama/tables/scores.csv", "results/tiny/scores.html"
    output: "best.csv"
    shell: "sort -r {input[0]} | sed -n 1,3p > {output}"
"""
)


@pytest.fixture
def folder(tmp_path):
    """A folder with data of its own, and nothing of the project."""
    shutil.copytree(dag.ROOT / "resources/demo", tmp_path / "resources/demo")
    shutil.copy(tmp_path / "resources/demo/train.jsonl", tmp_path / "train.jsonl")
    return tmp_path


def whole():
    """The tiny experiment's configuration, as one mapping."""
    raw = {}
    for name in ("config.yaml", "configs/tiny.yaml"):
        update_config(raw, yaml.safe_load((dag.ROOT / name).read_text(encoding="utf-8")))
    update_config(raw, dag.SETTINGS)
    return raw


def snakemake(folder, snakefile, config, *arguments, **environment):
    """How `snakemake` ended in the folder, with the package installed, as it were."""
    (folder / "Snakefile").write_text(snakefile, encoding="utf-8")
    (folder / "config").mkdir(exist_ok=True)
    for name in ("config.yaml", "config/config.yaml"):
        (folder / name).write_text(yaml.safe_dump(config), encoding="utf-8")
    inherited = dag._environment([dag.ROOT / "src"]) | {"XDG_CACHE_HOME": str(folder / "cache")}
    return dag.Ended(*snakemakes.snakemake(["--nocolor", *arguments], inherited | environment, folder))


@pytest.mark.timeout(900)
def test_scores_of_a_module_are_those_of_the_workflow_itself(folder, tmp_path_factory):
    config = {"theirs": 1, "valued": whole() | {"finetune": None, "figures": None}}
    config["valued"]["attribution"] |= {"methods": ["icp", "influence"]}
    ended = snakemake(folder, NESTED, config, "--cores", "2")
    assert ended.returncode == 0, ended.output[-3000:]
    alone = dag.finished(tmp_path_factory.getbasetemp())
    scores, others = (pd.read_csv(place / SCORES, dtype=str) for place in (folder, alone.path))
    assert {"score_icp", "rank_influence", "output"} <= set(scores)
    pd.testing.assert_frame_equal(scores, others[scores.columns])
    assert len((folder / "best.csv").read_text().splitlines()) == 3
    # Our hooks have run beside theirs, and the page says by which rules it was made, with the names that our files use.
    assert "Results: results/tiny; W&B: disabled" in ended.output
    assert ended.output.index("their last words") < ended.output.index("Report: results/tiny/scores.html")
    page = (folder / "results/tiny/scores.html").read_text(encoding="utf-8")
    made = (alone.path / "results/tiny/report.html").read_text(encoding="utf-8")
    rules = [re.findall(r'<th scope="row"><code>(\w+)</code>', text) for text in (page, made)]
    assert {"attribute", "score", "prepare_train"} <= set(rules[0]) <= {*rules[1], "report_scores"}
    again = snakemake(folder, NESTED, config, "-n")
    assert "Nothing to be done" in again.output, again.output[-2000:]
    config["valued"]["estimate"] = {"rate": 1e9, "targets": ["analysis"]}
    estimated = snakemake(folder, NESTED, config, "icprobe_estimate", "--cores", "2")
    assert estimated.returncode == 0, estimated.output[-3000:]
    rules = (folder / "results/tiny/estimate.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert {"icprobe_correlate", "total"} <= {line.split(",")[0] for line in rules}


def test_a_deployed_workflow_takes_rules_and_scripts_from_the_repository_at_a_tag(folder):
    repository = folder / "hub/lab/icprobe"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *dag.PARTS, "config"],
        cwd=dag.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dag.ROOT / name, repository / name, follow_symlinks=False)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"], ["tag", "v1"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    # Git fetches from there what it is told to fetch from GitHub.
    hub = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{folder / 'hub'}/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
    }
    planned = snakemake(folder, DEPLOYED, whole(), "-n", **hub)
    assert planned.returncode == 0, planned.output[-3000:]
    assert {"attribute", "fine_tune", "report", "all"} <= set(planned.jobs)
    table = "results/tiny/data/train.parquet"
    ended = snakemake(folder, DEPLOYED, whole(), "--cores", "1", table, **hub)
    assert ended.returncode == 0, ended.output[-3000:]
    assert (folder / table).is_file()
    # Which code made it is told by what the code says, not by where it lies; triggers as in profiles/default.
    triggers = ("--rerun-triggers", "mtime", "params", "input", "software-env", "--")
    local = DEPLOYED.replace('github("lab/icprobe", path="workflow/Snakefile", tag="v1")', ON_DISK)
    assert "Nothing to be done" in snakemake(folder, local, whole(), "-n", *triggers, table).output


SECOND = (
    MODULE.replace("icprobe:", "other:").format(snakefile=ON_DISK, config="config") + "use rule * from other as o_*\n"
)
OURS = 'configfile: "config.yaml"\n' + MODULE.format(snakefile=ON_DISK, config="config")
ALL = "use rule * from icprobe\n"


@pytest.mark.parametrize(
    ("snakefile", "change", "sentence"),
    [
        (OURS + '    prefix: "out"\n' + ALL, {}, r"icprobe: its results stay in results/ of the working directory"),
        (OURS + '    pathvars:\n        logs="out"\n' + ALL, {}, r"icprobe: its logs stay in logs/"),
        (OURS + ALL + SECOND, {}, r"icprobe: this workflow has it already, as module icprobe"),
        (OURS + ALL, {"data": None}, r"config: data: this key is missing"),
        (OURS + ALL, {"theirs": 1}, r"config: theirs: unknown key"),
        (
            OURS + ALL,
            {"model_sources": {"tiny-llama": {"source": "random", "corpus": "none.jsonl"}}},
            r"config: model_sources\.tiny-llama\.corpus: none\.jsonl: no such file",
        ),
    ],
)
def test_what_a_module_cannot_do_is_refused_in_one_sentence(folder, snakefile, change, sentence):
    ended = snakemake(folder, snakefile, whole() | change, "-n")
    assert ended.returncode != 0
    said = ended.output.strip().splitlines()
    assert re.match(sentence, said[-1]), ended.output[-2000:]
    assert "Traceback" not in ended.output


def test_another_version_of_the_package_and_none_at_all_are_refused(folder):
    (folder / "Snakefile").write_text(OURS + ALL)
    (folder / "config.yaml").write_text(yaml.safe_dump(whole()))
    shutil.copytree(dag.ROOT / "src", folder / "src")
    module = folder / "src/icprobe/__init__.py"
    module.write_text(module.read_text().replace(f'"{icprobe.__version__}"', '"9.9.9"'))
    other = dag.forked(["-n", "--nocolor"], folder)
    assert f"icprobe: the workflow is version {icprobe.__version__} and the installed package is 9.9.9" in other.output
    # Where it is not installed: it is, editable, by a path of its own.
    absent = (
        "import os, sys\n"
        "sys.path[:] = [path for path in sys.path if not os.path.isdir(os.path.join(path, 'icprobe'))]\n"
        "sys.meta_path[:] = [one for one in sys.meta_path if not one.__module__.startswith('__editable__')]\n"
        "from snakemake.cli import main; main()"
    )
    none = subprocess.run(
        [sys.executable, "-c", absent, "-n", "--nocolor"], cwd=folder, env=dag._environment([]), capture_output=True,
        text=True,
    )  # fmt: skip
    assert none.returncode != 0
    assert none.stderr.strip().splitlines()[-1].startswith("icprobe: the package is not installed beside snakemake"), (
        none
    )


# --- what the catalog asks --------------------------------------------------------------------------------------


def test_the_catalog_and_snakedeploy_find_what_they_look_for():
    shown = yaml.safe_load((dag.ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))
    assert set(shown) == {"usage"}
    assert set(shown["usage"]) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(shown["usage"]["mandatory-flags"]) == {"desc", "flags"}
    ways = shown["usage"]["software-stack-deployment"]
    assert set(ways) == {"conda", "apptainer", "apptainer+conda"}
    assert any(ways.values())
    words = (dag.ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert "snakemake" in words
    assert "workflow" in words
    assert (dag.ROOT / "config/README.md").is_file()


def test_the_configuration_that_is_deployed_stands_alone_and_its_files_are_deployed_with_it(tmp_path):
    raw = yaml.safe_load((dag.ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    assert stands_alone(raw)
    config = load(raw, METHODS)
    shutil.copytree(dag.ROOT / "config", tmp_path / "config")  # as snakedeploy does
    for table in (config.data.train, config.data.tasks):
        rows = (tmp_path / table.path).read_text(encoding="utf-8").splitlines()
        assert {"instruction", "output"} <= json.loads(rows[0]).keys()
