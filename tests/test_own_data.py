"""An experiment of one's own: it holds nothing of the demo, and a plan of it is read in one look."""

import json
import re
import subprocess
import sys

import dag
import pages
import pandas as pd
import pytest
import yaml

from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.config.sections import Attribution
from icprobe.config.sources import TrainTable, local_files

README = dag.ROOT / "README.md"
# What the README shows.
OWN, MORE = (yaml.safe_load(block.text) for block in pages.blocks(README) if block.language == "yaml")
TRAINED = {"fine_tune", "generate", "generate_base", "judge", "prepare_eval", "tabulate_win_rates"}


TINY = {
    "models": ["tiny"],
    "model_sources": {
        "tiny": {
            "source": "random",
            "sizes": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
        }
    },
    "attribution": {"dtype": "float32"},
}


@pytest.fixture
def run(tmp_path):
    """(configuration, *arguments) → how `snakemake` ended with it, in a folder with the project and own data."""
    for part in dag.PARTS:
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).symlink_to(dag.ROOT / part)
    (tmp_path / "private").mkdir()
    rows = [("Say it.", word) for word in ("apple", "pear", "plum", "fig", "nut", "a date")]
    pd.DataFrame(rows, columns=["prompt", "response"]).to_csv(tmp_path / "private/my_examples.csv", index=False)
    tasks = [{"question": "Name a fruit.", "answer": "apple"}, {"question": "Name a tool.", "answer": "saw"}]
    (tmp_path / "private/my_tasks.jsonl").write_text(
        "".join(f"{json.dumps(task)}\n" for task in tasks), encoding="utf-8"
    )

    def start(configuration, *arguments):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
        return dag.forked(["--nocolor", *arguments, "--configfile", "mine.yaml"], tmp_path, WANDB_MODE="disabled")

    return start


@pytest.fixture
def planned(run):
    """The same, as a dry run."""
    return lambda configuration, *arguments: run(configuration, "-n", *arguments)


def test_own_data_are_planned_without_the_demos_prompts_labels_and_trainings(planned):
    ended = planned(OWN, "all")
    assert ended.returncode == 0, ended.output
    assert ended.jobs["report"] == ended.jobs["correlate"] == 1
    assert not TRAINED & {*ended.jobs}, ended.jobs
    assert ended.jobs["subset"] == 12, "files for trainers: six methods, two bins"
    assert "demo" not in ended.output.split("Job stats")[1]


def test_the_readmes_file_that_asks_for_more_is_one_whole_configuration():
    config = load(MORE, METHODS)
    assert config.finetune_methods == ["icp", "influence"]
    assert config.data.eval is not None


def test_scores_are_a_target_that_stops_at_them_their_table_and_a_report_of_them(planned):
    jobs = planned(OWN, "scores").jobs
    assert jobs["report_scores"] == jobs["tabulate_scores"] == 1
    assert not {"correlate", "plot_scores", "report", *TRAINED} & {*jobs}


def test_a_plan_is_read_in_one_look(planned):
    ended = planned(OWN, "all")
    lines = ended.output.split("Job stats:")[1].splitlines()
    assert len(lines) < 60, len(lines)
    assert len(re.findall("^total ", ended.output, re.MULTILINE)) == 1
    assert re.search(r"^About \d+ (s|min) of work, \d+ (s|min) of it in \w+; at most \d+\.\d GB", ended.output, re.M)
    assert "Reasons:" in ended.output
    assert len(planned(OWN, "all", "--verbose").output.splitlines()) > 2 * len(lines)


@pytest.mark.parametrize(
    ("sections", "rules"),
    [
        (
            {"finetune": {"methods": ["icp"], "bins": ["top 20%"], "all_data": False}, "evaluation": None},
            {"fine_tune"},
        ),
        ({"finetune": None}, set()),
    ],
)
def test_null_plans_none_of_it(planned, sections, rules):
    assert TRAINED & {*planned({**OWN, **sections}, "all").jobs} == rules


def test_what_is_asked_for_and_cannot_be_is_told_with_the_line_to_write(planned):
    ended = planned({**OWN, "finetune": {"methods": ["icp"]}}, "all")
    assert ended.returncode
    assert (
        ended.output.splitlines().count(
            "config: finetune: fine-tuning and its evaluation need data.eval; write data: {eval: {path: "
            "my_prompts.jsonl}}, or `evaluation: null` to skip evaluation, or `finetune: null` for none"
        )
        == 1
    )


def test_a_target_behind_configfile_is_told_in_one_sentence(planned):
    ended = planned(OWN, "--configfile", "mine.yaml", "analysis", "--cores", "1")
    assert ended.returncode
    assert "Traceback" not in ended.output
    assert "analysis: no such configuration file. Put targets before --configfile" in ended.output


def test_a_mistyped_configuration_file_is_no_target(tmp_path):
    (tmp_path / "mine.yaml").touch()
    command = [sys.executable, "-m", "snakemake", "-n", "scores", "--configfile", "mine.yml"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'mine.yml: no such configuration file; did you mean "mine.yaml"?' in ended.stderr
    assert "Put targets before" not in ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readmes_steps_end_in_scores_tables_and_a_report(run, tmp_path):
    readmes = {**OWN, **TINY, "attribution": OWN["attribution"] | TINY["attribution"]}
    ended = run(readmes, "all", "--cores", "2")
    assert ended.returncode == 0, ended.output
    model = tmp_path / "results" / "mine" / "tiny"
    matrix = pd.read_parquet(model / "attributions/icp.parquet").set_index("id").mean(axis=1)
    scores = pd.read_parquet(model / "scores/icp.parquet").set_index("id")["score"]
    assert scores.to_dict() == pytest.approx(matrix.to_dict(), rel=1e-5), "the file asks for the mean"
    assert {path.stem for path in model.glob("scores/*.parquet")} == {*Attribution().methods}
    assert not [*model.glob("checkpoints"), *model.glob("responses")]
    page = (tmp_path / "results/mine/report.html").read_text(encoding="utf-8")
    assert "planted" not in page
    ended = run(readmes, "scores", "--cores", "2")
    assert ended.returncode == 0, ended.output
    short = (tmp_path / "results/mine/scores.html").read_text(encoding="utf-8")
    assert all(f'<section id="{part}"' in short for part in ("asked", "examples", "explorer"))
    assert not any(f'<section id="{part}"' in short for part in ("correlations", "figures", "win-rates"))


def test_a_file_that_is_named_by_its_address_is_a_file(tmp_path):
    """Or an edit of it would rerun nothing."""
    path = tmp_path / "my rows.jsonl"
    path.write_text(json.dumps({"instruction": "a", "output": "b"}))
    assert local_files(TrainTable(url=path.as_uri())) == [str(path)]
    assert local_files(TrainTable(url="https://example.org/rows.jsonl")) == []
    with pytest.raises(ValueError, match="without braces"):
        TrainTable(url=path.with_name("r{1}.jsonl").as_uri())
