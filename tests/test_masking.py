"""What opens a door is in no file that is written, and reaches the jobs that need it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import dag
import pytest
import yaml
from test_jobs import run_job

from icprobe import masking
from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.config.training import Evaluation
from icprobe.errors import ConfigError, DataError
from icprobe.evaluation import judges
from icprobe.evaluation.judges import llm
from icprobe.tracking import records
from icprobe.tracking.workflow_run import Invocation


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hush@host:80/v1", "https://***@host:80/v1"),
        ("https://ghp_hush@host/v1.", "https://***@host/v1."),
        ("https://me:hu/sh@host/v1", "https://***@host/v1"),
        ("from http://me:hu'sh\"<@127.0.0.1:1 on", "from http://***@127.0.0.1:1 on"),
        ("'http://host:80/v1' and me@host", "'http://host:80/v1' and me@host"),
        ("from https://me@x.org:hush@host/v1 on", "from https://***@host/v1 on"),
        ("http://host/a?rev=3&token=hush&page=2", "http://host/a?rev=3&token=***&page=2"),
        ("http://host/a?X-Amz-Signature=hush#access_token=hush", "http://host/a?X-Amz-Signature=***#access_token=***"),
        ("'http://host/a?api_key=hush'", "'http://host/a?api_key=***'"),
        ("http://host/a?key=hush&sig=hush", "http://host/a?key=***&sig=***"),
        ("http://host/a?code=hush&pass=hush", "http://host/a?code=***&pass=***"),
        ("http://host/a?subscription-key=hush", "http://host/a?subscription-key=***"),
        ("Authorization: Bearer hush", "Authorization: Bearer ***"),
        ("Authorization: Token hush", "Authorization: Token ***"),
        ("{'x-api-key': 'hush'}", "{'x-api-key': '***'}"),
        ("{'authorization': 'hush'}", "{'authorization': '***'}"),
        *[(text, text) for text in ("http://host:8089/v1", "https://host/@me/x", "a?token=b", "http://[::1]:80/v1")],
        *[(text, text) for text in ("http://host/a?max_tokens=5&tokenizer=b&author=c", "tokens: 5; key: me@host")],
    ],
)
def test_secrets_of_addresses_are_masked_and_nothing_else_is(text, shown):
    assert masking.mask(text) == shown


def test_a_command_line_is_masked():
    evaluation = "evaluation={llm: {base_url: https://me:hush@host/v1, api_key: hush, key_variable: OPENAI_API_KEY}}"
    words = ["snakemake", "--config", evaluation, "hf_token=hush", "max_new_tokens=3", "--secret-key", "hush", "all"]
    assert masking.command(words) == (
        "snakemake --config evaluation={llm: {base_url: https://***@host/v1, api_key: ***, key_variable: "
        "OPENAI_API_KEY}} hf_token=*** max_new_tokens=3 --secret-key *** all"
    )


def test_addresses_are_hidden_and_revealed_each_as_itself(monkeypatch):
    addresses = ["http://host/a?token=first", "http://host/a?token=second", "http://host/b"]
    config = {"data": {"train": {"url": addresses[0]}, "eval": [{"url": addresses[1]}, {"url": addresses[2]}]}}
    config["itself"] = config
    monkeypatch.setenv(masking.VARIABLE, json.dumps(masking.hide(config)))
    shown = [config["data"]["train"]["url"], *(table["url"] for table in config["data"]["eval"])]
    assert len(set(shown)) == 3
    assert not any("first" in text or "second" in text for text in shown)
    assert [*map(masking.reveal, shown)] == addresses


@pytest.mark.parametrize(
    "address", ["https://me:hu'sh@host/v1", 'https://me:hu"sh@host/v1', " https://me:hush@host/v1 "]
)
def test_a_password_with_quotes_and_an_address_with_spaces_around_it_are_hidden(address, monkeypatch):
    config = {"base_url": address}
    monkeypatch.setenv(masking.VARIABLE, json.dumps(masking.hide(config)))
    assert config["base_url"].strip() == "https://***@host/v1"
    assert masking.reveal(config["base_url"]) == address
    assert masking.mask(f"asked {address}") == f"asked {config['base_url']}"


def test_texts_that_are_no_addresses_stay_as_they_are():
    config = {"templates": {"query": "See https://me:hush@host {{ instruction }}"}}
    assert masking.hide(config) == {}
    assert config == {"templates": {"query": "See https://me:hush@host {{ instruction }}"}}


def test_nested_values_are_masked_under_a_secrets_name():
    value = {
        "headers": {"Authorization": "hush"},
        "api_key": "hush",
        "max_tokens": 3,
        "key": "scores",
        "list": [1, "a"],
    }
    masked = {"headers": {"Authorization": "***"}, "api_key": "***", "max_tokens": 3, "key": "scores", "list": [1, "a"]}
    assert masking.masked(value) == masked


def test_a_sentence_to_the_user_is_masked():
    assert str(DataError("https://me:hush@host/a: no.")) == "https://***@host/a: no."


@pytest.mark.parametrize("error", ["RuntimeError", "icprobe.errors.DataError"])
def test_what_a_library_says_of_a_secret_is_masked_in_the_log(tmp_path, error):
    hidden = {"http://***@host/a?token=***": "http://me:hush-hush@host/a?token=t0ken"}
    body = "import logging, icprobe.errors\nwith job(snakemake):\n"
    body += "    logging.getLogger('lib').warning('sent hush-hush to http://x:y@host, key %s', 'sk-12345678')\n"
    body += f"    raise {error}('no port t0ken')"
    ended = run_job(tmp_path, body, **{masking.VARIABLE: json.dumps(hidden), "JUDGE_API_KEY": "sk-12345678"})
    assert ended.returncode == 1
    assert "sent *** to http://***@host, key ***" in ended.log
    assert "no port ***" in ended.log
    assert not any(secret in ended.log for secret in ("hush-hush", "t0ken", "sk-12345678", "x:y"))


def test_a_key_in_the_place_of_its_variables_name_is_not_repeated():
    settings = {"base_url": "https://host/v1", "model": "j", "key_variable": "sk-hush"}
    raw = {"experiment": "x", "models": ["m"], "model_sources": {"m": {"source": "random"}}, "data": {}, "bins": []}
    with pytest.raises(ConfigError, match="key_variable: String should match") as error:
        load({**raw, "evaluation": {"judge": "llm", "llm": settings}}, METHODS)
    assert "hush" not in str(error.value)


def test_a_judges_key_is_masked_whatever_its_variable_is_called(monkeypatch):
    monkeypatch.setattr(masking, "_kept", set())
    monkeypatch.setenv("MY_JUDGE", "sk-hush")
    assert judges.key("MY_JUDGE") == "sk-hush"
    assert masking.mask("Incorrect API key provided: sk-hush.") == "Incorrect API key provided: ***."


def test_why_a_job_ran_is_masked_in_the_workflows_run():
    """Snakemake says what a param was, which records of earlier versions hold as it stood in the configuration."""
    invocation = Invocation(began=0.0)
    event = {"event": "job_info", "job": 1, "rule": "judge", "wildcards": {}, "benchmark": None, "time": 1.0}
    invocation.take({**event, "reason": "Params have changed since last execution: before: https://me:hush@host/v1"})
    assert invocation.job_table()["reason"].tolist() == [
        "Params have changed since last execution: before: https://***@host/v1"
    ]


# --- the workflow -----------------------------------------------------------------------------------------------

TOKEN, PASSWORD, KEY = "t0ken-of-the-table", "passw0rd-of-the-judge", "k3y-in-the-query"
# Chance alone values the examples, and nothing is trained: the shortest way from a table to a report.
SMALL = {
    "models": ["elsewhere"],
    "model_sources": {"tiny-llama": None, "elsewhere": {"source": "external"}},
    "data": {"train": {"path": None, "sample": None}, "eval": None},
    "attribution": {"methods": ["random"]},
    "bins": [],
    "figures": {"scatter": []},
    "finetune": {"methods": [], "bins": None, "all_data": False},
    "wandb": {"mode": "offline"},
}


@pytest.fixture
def guarded():
    """Address of a server that gives the demo's examples to who has the token."""
    table = (dag.ROOT / "resources/demo/train.jsonl").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

        def do_GET(self) -> None:
            right = parse_qs(urlsplit(self.path).query).get("token") == [TOKEN]
            self.send_response(200 if right else 403)
            self.end_headers()
            self.wfile.write(table if right else b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_no_file_that_the_workflow_writes_holds_a_secret(tmp_path, guarded):
    """A table behind a token, from a file; a judge behind a password, from the command line; then all is searched."""
    project = dag.new(tmp_path)
    config = {**SMALL, "data": {**SMALL["data"], "train": {**SMALL["data"]["train"]}}}
    config["data"]["train"]["url"] = f"http://{guarded}/train.jsonl?token={TOKEN}"
    asked = f"{{base_url: 'https://me:{PASSWORD}@judge.example/v1?api_key={KEY}', model: j}}"
    ended = project.snakemake(
        *("all", "--cores", "2", "--config", f"evaluation={{judge: llm, llm: {asked}}}"), config=config
    )
    assert ended.returncode == 0, ended.output[-3000:]
    report = (tmp_path / "results/tiny/report.html").read_text()
    assert f"http://{guarded}/train.jsonl?token=***" in report
    assert "https://***@judge.example/v1?api_key=***" in report
    directory = tmp_path / "results/tiny/wandb"
    runs = records.read_all(directory)
    assert {run.rule for run in runs} >= {None, "prepare_train", "report"}  # None: the workflow's own
    assert b"judge.example" in b"".join(run.log.read_bytes() for run in runs if run.rule is None)
    # What the Snakefile tells of the present workflow fits what the runs tell of themselves.
    assert records.superseded(directory, runs) == {}
    assert set(json.loads((directory / records.PRESENT).read_text())["all"]) >= {run.rule for run in runs if run.rule}
    secrets = [secret.encode() for secret in (TOKEN, PASSWORD, KEY)]
    given = tmp_path / "mine.yaml"
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != given]
    assert any(path.match(".snakemake/metadata/*") for path in files)
    assert [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []
    assert not any(secret.decode() in ended.output for secret in secrets)


def test_a_judge_is_asked_at_its_true_address(monkeypatch):
    config = {"evaluation": {"llm": {"base_url": f"https://me:{PASSWORD}@judge.example/v1"}}}
    monkeypatch.setenv(masking.VARIABLE, json.dumps(masking.hide(config)))
    base_url = config["evaluation"]["llm"]["base_url"]
    assert base_url == "https://***@judge.example/v1"
    evaluation = Evaluation(judge="llm", llm={"base_url": base_url, "model": "j"})
    settings = evaluation.judge_settings["llm"] | evaluation.llm.execution()
    assert str(llm.client(settings).base_url) == f"https://me:{PASSWORD}@judge.example/v1/"


CONFIG = yaml.safe_load((dag.ROOT / "config.yaml").read_text(encoding="utf-8"))
SERVE = ["serve", "{model}", "--port", "{port}"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--api-key", "sk-hush"], "--api-key"),
        (["--api-key=sk-hush"], "--api-key"),
        (["--api_key", "sk-hush", "-v"], "--api_key"),
        (["env", "HF_TOKEN=hf_hush"], "HF_TOKEN"),
        (["--api-key-file", "keys.txt"], None),
        (["--max-num-batched-tokens", "8192", "--tokenizer=x"], None),
        (["--trust-token", "--verbose"], None),
        (["bash", "-c", "vllm serve --api-key sk-hush --x"], "--api-key"),
        (["--env=HF_TOKEN=hf_hush"], "HF_TOKEN"),
        (["--header", "Authorization: Bearer hush"], "a header"),
        (["bash", "-c", "vllm serve --api-key $VLLM_API_KEY"], None),
        (["--long-prefill-token-threshold", "2048", "--eos-token-id", "2", "--speculative-token-map", "a/b"], None),
        (["--use-auth-token", "true", "--max-token", "16"], None),
    ],
)
def test_a_key_in_the_command_of_a_server_is_refused(words, name):
    assert masking.secret_in([*SERVE, *words]) == name
    given = CONFIG | {"evaluation": {"engine": "endpoint", "endpoint": {"start": [*SERVE, *words]}}}
    if name is None:
        load(given, METHODS)
        return
    with pytest.raises(ConfigError) as caught:
        load(given, METHODS)
    assert f"start: the value of {name} would be kept in records" in str(caught.value)
    assert "hush" not in str(caught.value)
