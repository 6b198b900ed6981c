"""`make paper-small` runs the paper's experiment, scaled down: every method, step and judge of configs/paper.yaml."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import dag
import pytest
import yaml
from conftest import demo_rows

ROOT = Path(__file__).parents[1]


def test_the_small_one_has_every_method_and_step_of_the_paper_and_its_kind_of_judge():
    paper = dag.configuration("config.yaml", "configs/paper.yaml")
    small = dag.configuration("config.yaml", "configs/paper.yaml", "configs/paper-small.yaml")
    assert small.attribution.methods == paper.attribution.methods
    assert small.attribution.aggregators == paper.attribution.aggregators
    assert small.finetune.methods == paper.finetune.methods
    assert small.finetune.all_data == paper.finetune.all_data
    assert set(small.bins) < set(paper.bins)
    for key in ("judge", "base_responses"):
        assert getattr(small.evaluation, key) == getattr(paper.evaluation, key)
    assert (small.evaluation.llm.mode, small.evaluation.llm.order) == ("weighted", "hash")
    assert small.evaluation.llm.base_url.startswith("http://127.0.0.1:")
    assert small.evaluation.llm.key_variable is None


@pytest.fixture
def data(tmp_path):
    """A folder with files in the places and fields of the real ones, and enough rows of each kind."""
    folder = tmp_path / "some data"  # a space in its name
    for part in ("alpaca", "alpaca_eval"):
        (folder / part).mkdir(parents=True)
    rows = demo_rows("train")
    labelled = [{**row, "id": str(n), "published_icp": ["<=0.5", ">0.9"][n % 2]} for n, row in enumerate(rows)]
    (folder / "alpaca/alpaca_bins.jsonl").write_text("\n".join(map(json.dumps, labelled)), encoding="utf-8")
    tasks = [{key: row[key] for key in ("instruction", "input", "output")} for row in rows[:20]]
    (folder / "alpaca/kmeans_100.json").write_text(json.dumps(tasks), encoding="utf-8")
    for subset in ("helpful_base", "koala", "oasst", "selfinstruct", "vicuna"):
        prompts = [{"dataset": subset, "instruction": f"{subset} {n}", "input": "", "output": ""} for n in range(12)]
        (folder / f"alpaca_eval/{subset}.json").write_text(json.dumps(prompts), encoding="utf-8")
    return folder


@pytest.mark.timeout(600)
def test_make_paper_small_plans_the_whole_experiment_with_data_from_any_folder(data, tmp_path):
    project = dag.new(tmp_path / "project")
    asked = ["make", "-n", "-o", "install-test", "paper-small", f"DATA={data}", "CORES=2"]
    # As from a terminal: a child of make would say more.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    said = subprocess.run(asked, cwd=ROOT, env=outside, capture_output=True, text=True, check=True).stdout.splitlines()
    fetching, served, shown = (shlex.split(line) for line in said)
    model = dag.configuration("config.yaml").model_directory("smollm2-135m-instruct")
    assert f"{model}.gguf" in fetching, "the Makefile's JUDGE is not the file of config.yaml's model"
    assert f"{model}.gguf" in served
    port = served[served.index("--port") + 1]
    assert yaml.safe_load((ROOT / "configs/paper-small.yaml").read_text())["evaluation"]["llm"]["base_url"] == (
        f"http://127.0.0.1:{port}/v1"
    )
    assert shown == ["cat", "results/paper-small/smollm2-135m-instruct/tables/win_rates.md"]
    snakemake = served[served.index("--") + 2 :]
    layers = snakemake[snakemake.index("--configfile") + 1 : snakemake.index("--config")]
    assert layers == ["configs/paper.yaml", "configs/paper-small.yaml"]
    ended = dag.forked([*snakemake, "-n", "--nocolor"], project.path)
    assert ended.returncode == 0, ended.output
    assert ended.jobs["fine_tune"] == ended.jobs["judge"] == 4 * 2 + 1
    assert str(data / "alpaca/kmeans_100.json") in ended.output
