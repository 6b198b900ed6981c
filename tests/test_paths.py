"""Where files lie: every path has its pattern in icprobe.paths, and is spelt nowhere else."""

import ast
import re
from pathlib import Path

import dag
import pytest

from icprobe import paths

ROOT = Path(__file__).parents[1]
FOLDERS = {paths.EXPERIMENT, paths.OF_MODEL, paths.EXPORT}  # no job's output
FOLDERS |= {paths.JUDGE_ANSWERS, paths.RETRAININGS, paths.BLOCKS}
CONSTANTS = {value for name, value in vars(paths).items() if name.isupper() and isinstance(value, str) and "{" in value}
MADE = [
    *(CONSTANTS - FOLDERS - {paths.STEP}),
    *(paths.manifest(directory) for directory in (paths.MODEL, paths.CHECKPOINT)),
    *(pattern(method) for pattern in (paths.shard, paths.matrix) for method in ("{method}", paths.STEP)),
    *(paths.scores(), paths.table("{file}"), paths.figure("{file}")),
    *(paths.figure_of_all("{file}"), paths.synthetic("{file}"), paths.data("{table}")),
]
# Parts that may hold slashes: a figure's folder, a job's wildcards.
LONG = {"file", "job"}


def matches(pattern, path):
    """Whether a pattern, its wildcards filled in, gives this path."""
    parts = re.split(r"\{(\w+)\}", pattern)
    regex = [re.escape(part) if i % 2 == 0 else ".+" if part in LONG else "[^/]+" for i, part in enumerate(parts)]
    return re.fullmatch("".join(regex), path) is not None


def test_every_file_that_a_job_makes_has_a_pattern(tmp_path):
    config = {"synthetic": {"in_all": True}, "finetune": {"all_data": True}}
    targets = ["all", "resources/models/tiny-llama"]
    ended = dag.new(tmp_path).snakemake(*targets, "--detailed-summary", config=config)
    assert ended.returncode == 0, ended.output
    rows = [line.split("\t") for line in ended.output.splitlines() if "\t" in line]
    outputs = [row[rows[0].index("output_file")] for row in rows[1:]]
    assert len(outputs) > 100
    assert not [path for path in outputs if not any(matches(pattern, path) for pattern in MADE)]


@pytest.mark.parametrize("file", sorted(ROOT.glob("rules/*.smk")), ids=lambda file: file.stem)
def test_a_jobs_log_has_the_name_of_its_rule_and_its_benchmark_beside_it(file):
    rules = re.split(r"^ *(?:use rule \w+ as|rule) (\w+)\b", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for rule, body in zip(rules[1::2], rules[2::2], strict=True):
        logs, benchmarks = (re.findall(rf"paths\.{kind}\((.*)\)", body) for kind in ("log", "benchmark"))
        assert logs == benchmarks, rule
        assert all(log.endswith('"models"') or re.match(rf'"{rule}["/]', log) for log in logs), (rule, logs)


def test_the_folders_of_an_experiment_are_those_that_its_paths_lie_in():
    experiment = f"{paths.EXPERIMENT}/"
    below = {pattern.removeprefix(experiment).split("/")[0] for pattern in MADE if pattern.startswith(experiment)}
    files = {"report.html", "scores.html", "truth.html", "estimate.csv", "published.json"}
    assert below - {"{model}", *files} | {paths.WANDB} == set(paths.FOLDERS), "no model may be called so"


def spelt(file):
    """Texts in a source that begin a path of the workflow, docstrings left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if id(node) not in said and (text == "results" or text.startswith(("results/", "logs/", "resources/models"))):
            yield f"{file.relative_to(ROOT)}:{node.lineno}: {text}"


def test_rules_take_their_paths_from_there():
    for file in ROOT.glob("rules/*.smk"):
        assert not re.search(r"\"(results/|logs/|resources/models)", file.read_text(encoding="utf-8")), file


def test_no_path_is_spelt_outside_of_paths():
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("workflow/scripts/**/*.py")]
    found = {file: [*spelt(file)] for file in sources}
    assert found.pop(Path(paths.__file__).resolve()), "the search finds them where they are"
    assert not [line for lines in found.values() for line in lines]


def test_checks_and_what_they_wait_for_run_before_all_else_that_could():
    rules = "\n".join(path.read_text() for path in sorted(Path(__file__).parents[1].glob("rules/*.smk")))
    blocks = dict(re.findall(r"^ *rule (\w+):\n(.*?)(?=^ *(?:use )?rule \w+|\Z)", rules, re.MULTILINE | re.DOTALL))
    first = [name for name in blocks if name.startswith("check_")]
    assert len(first) > 5
    # Checks before what they wait for: with cores for both, what fails first stops the rest.
    wanted = dict.fromkeys(first, 3) | dict.fromkeys(("measure_lengths", "measure_prompts", "prepare_model"), 2)
    # And scores that need no model before long jobs, for something to look at.
    wanted |= {"gather_attributions": 1, "score": 1}
    assert [name for name, number in wanted.items() if f"priority: {number}" not in blocks[name]] == []
