"""Responses that a server writes in the DAG: started for each model, ended after it, repeated when they ought to be."""

import sys
from collections import Counter
from pathlib import Path

import dag
import psutil
import pytest
from edits import GENERATION

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install xllamacpp")
pytestmark = pytest.mark.timeout(1800)  # one test waits for the tiny experiment, on a machine that may be busy

SERVE = [sys.executable, str(Path(__file__).with_name("serve_gguf.py")), "{model}", "{port}"]
BASE, TUNED = (str(dag.RESULTS / "responses" / name) for name in ("base.jsonl", "all/all/seed-0.jsonl"))
KEY = "ICPROBE_TEST_ENDPOINT_KEY"


def by_endpoint(**options):
    return {"evaluation": {"engine": "endpoint", "endpoint": options}}


def servers(mark):
    """The processes whose command line has these words."""
    return [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


@pytest.fixture
def finished(tmp_path_factory, tmp_path):
    return dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path / "project")


def test_a_server_for_each_model_writes_what_transformers_wrote_and_how_it_is_asked_repeats_nothing(finished):
    before = {name: finished.read(name) for name in (BASE, TUNED)}
    assert before[BASE].count(b"\n") > 5
    assert before[BASE] != before[TUNED].replace(b"tiny-llama/all/all/seed-0", b"tiny-llama")
    config = by_endpoint(start=[*SERVE, "--names", "of-this-test"])
    assert finished.snakemake("all", "-n", config=config).jobs == Counter(generate_base=1) + GENERATION
    ended = finished.snakemake(BASE, TUNED, "--cores", "2", config=config)
    assert ended.returncode == 0, ended.output
    assert {name: finished.read(name) for name in before} == before
    assert "of-this-test at http://127.0.0.1:" in finished.log("tiny/generate/tiny-llama/all/all/seed-0.log")
    assert not servers("of-this-test")
    assert not list((finished.path / "results/tiny/.partial").glob("*"))

    start = config["evaluation"]["endpoint"]["start"]
    changed = by_endpoint(start=start, concurrency=1, attempts=2, timeout_seconds=9, start_seconds=30, key_variable=KEY)
    changed["evaluation"] |= {"batch_size": 3}
    assert "Nothing to be done" in finished.snakemake(BASE, TUNED, "-n", config=changed).output
    for other in (by_endpoint(start=start, prompts="text"), by_endpoint(start=[*start, "--bos"])):
        assert finished.snakemake(BASE, TUNED, "-n", config=other).jobs == Counter(generate_base=1, generate=1)


def test_a_server_that_fails_is_one_sentence_and_leaves_neither_a_file_nor_itself(finished):
    sentence = "The server of evaluation.endpoint.start ended with exit code 3: no such GPU."
    config = by_endpoint(start=["sh", "-c", "sleep 98765 & echo no such GPU; exit 3", "{model}", "{port}", "dies-here"])
    ended = finished.snakemake(BASE, "--cores", "1", config=config)
    assert ended.returncode
    assert sentence in ended.output
    assert "Traceback" not in ended.output
    assert sentence in finished.log("tiny/generate_base/tiny-llama.log")
    assert not (finished.path / BASE).exists()
    assert not servers("dies-here")
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "98765"]]


def test_a_missing_key_or_command_is_said_before_any_work_and_only_where_it_is_needed(tmp_path):
    project = dag.new(tmp_path)
    for config, said in (
        (by_endpoint(start=SERVE, key_variable=KEY), f"key_variable: the environment variable {KEY} is not set"),
        (by_endpoint(start=["no-such-server", "{model}{port}"]), "start: there is no command 'no-such-server'"),
    ):
        ended = project.snakemake("all", "--cores", "1", config=config)
        assert ended.returncode
        assert said in ended.output
        assert "Traceback" not in ended.output
        assert not (tmp_path / "resources/models").exists()
        assert project.snakemake("all", "-n", config=config).returncode == 0, "a plan may be made on any machine"
    assert project.snakemake("results/tiny/data/eval.parquet", "--cores", "1", config=config).returncode == 0
