"""What opens a door is in no file that is written, and reaches the jobs that need it."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import dag
import pytest
from test_jobs import run_job

from icprobe import masking
from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.errors import ConfigError, DataError
from icprobe.invocations import Invocation


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hush@host:80/v1", "https://***@host:80/v1"),
        ("https://ghp_hush@host/v1.", "https://***@host/v1."),
        ("https://me:hu/sh@host/v1", "https://***@host/v1"),
        ("from https://me@x.org:hush@host/v1 on", "from https://***@host/v1 on"),
        ("http://host/a?rev=3&token=hush&page=2", "http://host/a?rev=3&token=***&page=2"),
        ("http://host/a?X-Amz-Signature=hush#access_token=hush", "http://host/a?X-Amz-Signature=***#access_token=***"),
        ("'http://host/a?api_key=hush'", "'http://host/a?api_key=***'"),
        ("http://host/a?key=hush&sig=hush", "http://host/a?key=***&sig=***"),
        ("Authorization: Bearer hush", "Authorization: Bearer ***"),
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
    llm = {"base_url": "https://host/v1", "model": "j", "key_variable": "sk-hush"}
    raw = {"experiment": "x", "models": ["m"], "model_sources": {"m": {"source": "random"}}, "data": {}, "bins": []}
    with pytest.raises(ConfigError, match="key_variable: String should match") as error:
        load({**raw, "evaluation": {"judge": "llm", "llm": llm}}, METHODS)
    assert "hush" not in str(error.value)


def test_why_a_job_ran_is_masked_in_the_workflows_run():
    """Snakemake says what a param was, which records of earlier versions hold as it stood in the configuration."""
    invocation = Invocation(began=0.0)
    event = {"event": "job_info", "job": 1, "rule": "judge", "wildcards": {}, "benchmark": None, "time": 1.0}
    invocation.take({**event, "reason": "Params have changed since last execution: before: https://me:hush@host/v1"})
    assert invocation.job_table()["reason"].tolist() == [
        "Params have changed since last execution: before: https://***@host/v1"
    ]


# --- the workflow -----------------------------------------------------------------------------------------------

TOKEN, PASSWORD, KEY, JUDGE_KEY = "t0ken-of-the-table", "passw0rd-of-the-judge", "k3y-in-the-query", "sk-of-the-judge"


class Guarded:
    """Serves a table to who has its token, and judges for who has the judge's key; tells what was refused."""

    def __init__(self, table: bytes) -> None:
        self.refused: list[str] = []
        self.served = {"GET": 0, "POST": 0}
        guarded = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None:
                pass

            def answer(self, right: bool, content: bytes) -> None:
                if not right:
                    guarded.refused.append(f"{self.path} {self.headers.get('Authorization')}")
                guarded.served[self.command] += right
                self.send_response(200 if right else 403)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self.answer(parse_qs(urlsplit(self.path).query).get("token") == [TOKEN], table)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                top = [{"token": name, "logprob": math.log(0.5), "bytes": None} for name in "mM"]
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "m"}}
                choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
                whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "j", "choices": [choice]}
                self.answer(self.headers.get("Authorization") == f"Bearer {JUDGE_KEY}", json.dumps(whole).encode())

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def guarded():
    server = Guarded((dag.ROOT / "resources/demo/train.jsonl").read_bytes())
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_no_file_that_the_workflow_writes_holds_a_secret(tmp_path, tmp_path_factory, guarded):
    """Table and judge behind doors, one from a file, one from the command line; W&B offline; then all is searched."""
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    port = guarded.http.server_port
    table = f"http://127.0.0.1:{port}/train.jsonl?token={TOKEN}"
    judge = f"http://me:{PASSWORD}@127.0.0.1:{port}/v1?api_key={KEY}"
    llm = f"{{base_url: '{judge}', model: j, key_variable: JUDGE_API_KEY}}"
    ended = project.snakemake(
        *("all", "--cores", "2", "--config", f"evaluation={{judge: llm, llm: {llm}}}"),
        config={"data": {"train": {"path": None, "url": table}}, "wandb": {"mode": "offline"}},
        environment={"JUDGE_API_KEY": JUDGE_KEY},
    )
    assert ended.returncode == 0, ended.output[-3000:]
    assert guarded.refused == []
    assert min(guarded.served.values()) > 0
    report = (tmp_path / "results/tiny/report.html").read_text()
    assert f"127.0.0.1:{port}/train.jsonl?token=***" in report
    assert f"http://***@127.0.0.1:{port}/v1" in report
    runs = [*(tmp_path / "results/tiny/wandb").glob("offline-run-*/run-*.wandb")]
    assert {log.stem.split("-")[1] for log in runs} >= {"prepare_train", "judge", "report", "workflow"}
    secrets = [secret.encode() for secret in (TOKEN, PASSWORD, KEY, JUDGE_KEY)]
    given = {tmp_path / "mine.yaml"}
    found = [
        str(path)
        for path in tmp_path.rglob("*")
        if path.is_file() and path not in given and any(secret in path.read_bytes() for secret in secrets)
    ]
    assert found == []
    assert not any(secret.decode() in ended.output for secret in secrets)
