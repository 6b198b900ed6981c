"""Judges in the DAG: what they need is asked for before any work, and how they are asked repeats nothing."""

import os
from collections import Counter

import dag
import pytest
from endpoint import Endpoint, prefers_two

pytestmark = pytest.mark.timeout(1800)  # one test waits for the tiny experiment, on a machine that may be busy

KEY = "ICPROBE_TEST_JUDGE_KEY"
JUDGED = Counter(judge=5, tabulate_win_rates=1, plot_judgements=1, report=1, all=1)


def judged_by(url, **how):
    return {"evaluation": {"judge": "llm", "llm": {"base_url": url, "model": "judge-1", **how}}}


def test_a_missing_key_is_said_before_any_work_and_only_where_it_is_needed(tmp_path):
    project = dag.new(tmp_path)
    config = judged_by("http://127.0.0.1:9/v1", key_variable=KEY)
    ended = project.snakemake("all", "--cores", "1", config=config)
    assert ended.returncode
    assert f"evaluation.llm.key_variable: the environment variable {KEY} is not set" in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "resources/models").exists()
    assert project.snakemake("all", "-n", config=config).returncode == 0, "a plan may be made on any machine"
    assert project.snakemake("results/tiny/data/eval.parquet", "--cores", "1", config=config).returncode == 0


def test_prompts_without_gold_answers_are_refused_before_any_model_is_run(tmp_path):
    project = dag.new(tmp_path)
    project.edit("resources/demo/eval.jsonl", '"output": "', '"unused": "')
    ended = project.snakemake("all", "--cores", "1")
    assert ended.returncode
    assert "1 eval prompt without a gold answer to compare responses with" in ended.output
    assert not (tmp_path / "results/tiny/tiny-llama").exists()
    checked = "results/tiny/data/eval.checked.json"
    config = judged_by("http://127.0.0.1:9/v1")
    assert project.snakemake(checked, "--cores", "1", config=config).returncode == 0
    prompts = tmp_path / "resources/demo/eval.jsonl"
    prompts.write_text(prompts.read_text().replace('"output": "', '"unused": "'))
    given = {"evaluation": config["evaluation"] | {"base_responses": "given"}}
    assert "No eval prompt has an output" in project.snakemake(checked, "--cores", "1", config=given).output


def test_how_a_judge_is_asked_repeats_no_judgement_and_another_judge_no_response(tmp_path_factory, tmp_path):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)

    with Endpoint(prefers_two) as endpoint:
        config = judged_by(endpoint.url, key_variable=KEY, concurrency=2)
        assert project.snakemake("all", "-n", config=config).jobs == JUDGED + Counter(check_prompts=1)
        ended = project.snakemake("all", "--cores", "4", config=config, environment={KEY: "secret"})
        assert ended.returncode == 0, ended.output
        assert 0 < endpoint.most_at_once <= 2, "five judge jobs on four cores ask as one"
        questions = [body["messages"][0]["content"] for body in endpoint.bodies]
        assert len(questions) == len(set(questions)), "one request is paid for once"
        how = {"concurrency": 1, "timeout_seconds": 9, "attempts": 2, "price_input": 1.0, "price_output": 2.0}
        changed = judged_by(endpoint.url, key_variable=None, max_cost=3, **how)
        ended = project.snakemake("all", "-n", config=changed)
        assert "Nothing to be done" in ended.output, ended.output
        assert project.snakemake("all", "-n", config=judged_by(endpoint.url, least_mass=0.3)).jobs == JUDGED
    assert os.environ.get(KEY) is None
