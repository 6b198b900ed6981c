"""Responses that a real llama.cpp server writes are those of transformers, or are refused; nothing is left running."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from endpoint import FAULTS, Endpoint

from icprobe import artifacts, jsonl
from icprobe.config.templates import Templates
from icprobe.config.training import Evaluation
from icprobe.engine.models import load_model
from icprobe.engine.random_models import random_model
from icprobe.errors import ConfigError, DataError, EndpointError
from icprobe.evaluation import generation
from icprobe.evaluation.engines import guard
from icprobe.evaluation.engines.model import Model
from icprobe.evaluation.engines.responses import response, responses
from icprobe.evaluation.engines.server import serving
from icprobe.texts.prompts import Prompts
from icprobe.texts.tokenizing import load_tokenizer, train_tokenizer

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install xllamacpp")

SERVE = [sys.executable, str(Path(__file__).with_name("serve_gguf.py")), "{model}", "{port}"]
ROWS = [
    {"id": f"p{n}", "subset": None, "instruction": "Count. " * (1 + 5 * n % 7) + str(n), "input": ""} for n in range(9)
]
CONTEXT, NEW_TOKENS = 128, 12
PROMPTS = Prompts.of_queries({"query": Templates().query})
SHORT = Prompts.of_queries({"query": "{{ instruction }}", "bos": "none"})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama whose greedy texts vary, with a control token that a template may write."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(["Instruction: Response: Count to ten, then back to one. 0 1 2 3 4 5 6 7 8 9"], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = random_model("llama", {**sizes, "max_position_embeddings": CONTEXT}, 3, tokenizer)
    with torch.no_grad():  # small random weights copy their last token
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    artifacts.write_manifest(folder, max_positions=CONTEXT, vocabulary=len(tokenizer))
    return folder


@pytest.fixture(scope="module")
def expected(base):
    """What transformers writes."""
    return transformers(base, PROMPTS)


@pytest.fixture(scope="module")
def running(base):
    """The address of a server that runs already."""
    with serving(settings(start=[*SERVE, "--names", "one"])["endpoint"], base) as server:
        yield server.address


def transformers(base, prompts, rows=ROWS):
    options = {"max_new_tokens": NEW_TOKENS, "batch_size": 4, "device": "cpu"}
    return generation.responses(load_model(base, device="cpu"), load_tokenizer(base), prompts, rows, "tiny", options)


def settings(**endpoint):
    options = {"attempts": 2, "concurrency": 3, "start_seconds": 60, **endpoint}
    evaluation = Evaluation(engine="endpoint", endpoint=options, max_new_tokens=NEW_TOKENS)
    plain = evaluation.model_dump(mode="json", include={"engine", "max_new_tokens", "dtype", "endpoint"})
    return plain | {"endpoint": plain["endpoint"] | evaluation.endpoint.execution()}


def written(base, queries=PROMPTS, rows=ROWS, partial=None, **endpoint):
    return responses(Model.of(base, None, queries), queries, rows, "tiny", settings(**endpoint), partial)


def refused(base, *args, error=EndpointError, **endpoint):
    before = servers()
    with pytest.raises(error) as caught:
        written(base, *args, **endpoint)
    assert servers() == before, "a server was left running"
    return str(caught.value)


def servers():
    return {process.pid for process in psutil.Process().children(recursive=True)}


def forward(address, change=lambda answer: None):
    """Asks a real server what a proxy is asked, and changes its answer."""

    def answer(body):
        body = json.dumps(body).encode()
        request = urllib.request.Request(f"{address}/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as found:
            found = json.load(found)
        change(found)
        return found

    return answer


# --- the same responses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", ["tokens", "text"])
def test_a_server_that_is_started_writes_what_transformers_writes(base, expected, prompts):
    assert len({row["output"] for row in expected}) > 5, "responses that are all alike would show nothing"
    before = servers()
    assert written(base, start=SERVE, prompts=prompts) == expected
    assert servers() == before


def test_what_ends_a_response_is_what_ends_it_for_transformers(base):
    named = load_model(base, device="cpu").generation_config.eos_token_id
    assert Model.of(base, None, PROMPTS).ends == generation.ends_of(load_tokenizer(base), named)


def test_a_server_that_ends_at_tokens_which_are_no_ends_is_asked_to_go_on(base, expected):
    tokenizer = load_tokenizer(base)
    pieces = Counter(piece for row in expected for piece in tokenizer.tokenize(row["output"]) if len(piece) > 2)
    piece = pieces.most_common(1)[0][0]
    start = [*SERVE, "--end", str(tokenizer.convert_tokens_to_ids(piece))]
    assert written(base, start=start) == expected
    message = refused(base, start=start, prompts="text")
    assert f"at {piece!r}, which is no end of this model. Set evaluation.endpoint.prompts: tokens" in message


def test_a_token_before_every_text_is_refused_and_token_ids_have_none(base, expected):
    start = [*SERVE, "--bos"]
    assert written(base, start=start) == expected
    message = refused(base, start=start, prompts="text", concurrency=1)
    assert "has read 9 tokens where eval prompt p0 has 8: it adds tokens of its own, such as a BOS" in message


def test_a_response_without_token_ids_is_taken_where_its_text_can_show_its_end(base, expected, running):
    def hide(answer):
        answer.pop("__verbose")

    with Endpoint(forward(running, hide), models=["m"]) as proxy:
        found = written(base, base_url=proxy.url, model="m")
        # llama.cpp leaves out the bytes of a last character that is not whole.
        assert [row["output"].rstrip("\ufffd") for row in found] == [row["output"].rstrip("\ufffd") for row in expected]
        turns = Prompts.of_queries({"query": "{{ instruction }}<|turn|>"})
        message = refused(base, turns, base_url=proxy.url, model="m")
    assert "nobody can tell where '<|turn|>', a control token of templates.query, ends one" in message


def test_a_next_prompt_and_a_control_token_end_a_response(base):
    turns = Prompts.of_queries({"query": "{{ instruction }}<|turn|>"})
    model, tokenizer = Model.of(base, None, turns), load_tokenizer(base)
    ids = tokenizer("Count to ten.<|turn|> 1 2 3", add_special_tokens=False)["input_ids"]
    assert response(ids, model) == "Count to ten."
    model = Model.of(base, None, PROMPTS)
    text = "Count to ten.\n\nInstruction: Count. Response: one"
    assert response(text, model) == "Count to ten."
    assert response(tokenizer(text, add_special_tokens=False)["input_ids"], model) == "Count to ten."


def test_a_prompt_that_leaves_little_of_the_context_gets_what_is_left(base):
    tokenizer = load_tokenizer(base)
    long = tokenizer.decode(tokenizer("0 1 2 3 4 5 6 7 8 9 " * 30)["input_ids"][: CONTEXT - 5])
    rows = [{**ROWS[0], "instruction": long}, ROWS[1]]
    assert written(base, SHORT, rows, start=SERVE) == transformers(base, SHORT, rows)
    full = [{**ROWS[0], "instruction": long + long}]
    assert "Eval prompt p0 has" in refused(base, SHORT, full, start=SERVE, error=DataError)


# --- what is refused --------------------------------------------------------------------------------------------


def test_a_context_that_is_too_small_is_refused(base):
    model = dataclasses.replace(Model.of(base, None, SHORT), limit=None)
    for length, said in ((CONTEXT - 6, "it stopped after 6 tokens of 12"), (300, "do not fit the server's context")):
        text = model.tokenizer.decode(model.tokenizer("0 1 2 3 4 5 6 7 8 9 " * 50)["input_ids"][:length])
        with pytest.raises(EndpointError, match=said):
            responses(model, SHORT, [{**ROWS[0], "instruction": text}], "tiny", settings(start=SERVE))


def test_a_wrong_key_is_said_and_an_absent_one_before_anything_is_started(base, monkeypatch, tmp_path):
    monkeypatch.setenv("ENDPOINT_KEY", "sk-wrong")
    message = refused(base, start=[*SERVE, "--key", "sk-right"], key_variable="ENDPOINT_KEY")
    assert "Is the key in ENDPOINT_KEY right?" in message
    assert "sk-" not in message
    monkeypatch.setenv("ENDPOINT_KEY", "sk-right")
    assert len(written(base, start=[*SERVE, "--key", "sk-right"], key_variable="ENDPOINT_KEY")) == len(ROWS)
    monkeypatch.delenv("ENDPOINT_KEY")
    start = ["touch", str(tmp_path / "{port}{model}")]
    assert "ENDPOINT_KEY is not set" in refused(base, start=start, key_variable="ENDPOINT_KEY", error=ConfigError)
    assert not list(tmp_path.iterdir())


def shell(script):
    return ["sh", "-c", script, "{model}", "{port}"]


def test_a_server_that_does_not_come_up_is_told_in_one_sentence_with_its_last_words(base):
    message = refused(base, start=shell("echo loading; echo no such GPU.; exit 3"))
    assert message == "The server of evaluation.endpoint.start ended with exit code 3: no such GPU."
    started = time.monotonic()
    message = refused(base, start=shell("echo loading; sleep 300"), start_seconds=0.5)
    assert "does not answer at http://127.0.0.1:" in message
    assert message.endswith("within 0.5 s (evaluation.endpoint.start_seconds): loading.")
    assert time.monotonic() - started < guard.GRACE_SECONDS, "sleep ends at SIGTERM"
    message = refused(base, start=["no-such-server", "{model}", "{port}"])
    assert message.startswith("no-such-server: there is no such command")


# It runs out of memory at the first prompt.
DIES = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content = json.dumps({"object": "list", "data": [{"id": "m"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def do_POST(self):
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(5)
HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def test_a_server_that_dies_on_the_way_is_told_with_its_last_words(base):
    message = refused(base, start=[sys.executable, "-c", DIES, "{model}", "{port}"])
    assert message == (
        "The server of evaluation.endpoint.start ended with exit code 5: out of memory. Responses so far are kept."
    )


def test_responses_that_came_survive_a_job_that_ends(base, expected, running, tmp_path):
    with Endpoint(forward(running), [None] * 4 + ["401"] * 99, models=["m"]) as proxy:
        options = {"base_url": proxy.url, "model": "m", "concurrency": 1, "partial": tmp_path}
        with pytest.raises(EndpointError, match="Responses so far are kept"):
            written(base, **options)
        journal = tmp_path / "responses.jsonl"
        assert len(jsonl.read(journal)) == 4
        journal.write_bytes(journal.read_bytes()[:-3])  # the last line was being written
        proxy.faults, proxy.bodies = [], []
        assert written(base, **options) == expected
        assert len(proxy.bodies) == 6, "three are known"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_nothing(base, expected, running, fault):
    with Endpoint(forward(running), [fault], models=["m"]) as proxy:
        assert written(base, base_url=proxy.url, model="m", concurrency=1) == expected
        assert len(proxy.bodies) == len(ROWS) + 1


def changed(**of_choice):
    return lambda answer: answer["choices"][0].update(of_choice)


WRONG = {
    "no choices": (lambda answer: answer.update(choices=[]), "sent no completion 2 times"),
    "no text": (changed(text=None), r"sent no completion 2 times \(a completion without text\)"),
    "no usage": (lambda answer: answer.pop("usage"), "does not say how many tokens it has read and written"),
    "no count of the prompt's": (lambda answer: answer["usage"].pop("prompt_tokens"), "does not say how many tokens"),
    "a token more": (
        lambda answer: answer["usage"].update(prompt_tokens=answer["usage"]["prompt_tokens"] + 1),
        "has read 9 tokens where eval prompt p0 has 8: it adds tokens",
    ),
    "as many others": (changed(prompt_token_ids=[7] * 8), "has read 8 tokens where eval prompt p0 has 8 others"),
    "another tokenizer": (changed(text="Paris, in France"), "has another tokenizer than tiny"),
    "a filter": (changed(finish_reason="content_filter"), "for the reason 'content_filter', so it is not whole"),
    "no reason": (changed(finish_reason=None), "for the reason None"),
    "two responses": (lambda answer: answer["choices"].append(answer["choices"][0]), "has written 2 responses of"),
    "too long": (lambda answer: answer["usage"].update(completion_tokens=99), "where one of at most 12 was asked for"),
    "lost token ids": (lambda answer: answer["usage"].update(completion_tokens=12), "1 token id of a response of 12"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_that_may_be_anothers_is_refused(base, running, wrong, monkeypatch):
    change, said = WRONG[wrong]
    if wrong == "lost token ids":
        monkeypatch.setattr("icprobe.evaluation.engines.endpoint._ids", lambda completion: [5])
    with Endpoint(forward(running, change), models=["m"]) as proxy, pytest.raises(EndpointError, match=said):
        written(base, rows=ROWS[:1], base_url=proxy.url, model="m")


def test_a_model_that_the_endpoint_does_not_name_is_refused(base, expected, running):
    assert written(base, base_url=running, model="one") == expected
    with pytest.raises(EndpointError, match=r"serves 1 model \(one\), none of which is other\. Serve it under"):
        written(base, base_url=running, model="other")
    with Endpoint(forward(running), models=["a", "b"]) as proxy:
        with pytest.raises(EndpointError, match=r"serves 2 models \(a, b\), none of which is m"):
            written(base, base_url=proxy.url, model="m")
        assert not proxy.bodies
    with pytest.raises(EndpointError, match="cannot be reached"):
        written(base, base_url="http://127.0.0.1:9/v1", model="m", attempts=1)


# --- nothing is left --------------------------------------------------------------------------------------------

# A server with a child, a grandchild in a session of its own whose parent has died, and one that SIGTERM does not end.
FAMILY = """
sleep 300 & echo $! > "$2/child"
"$3" -c 'import subprocess; print(subprocess.Popen(["sleep", "300"], start_new_session=True).pid)' > "$2/orphan"
sh -c 'trap "" TERM; echo $$ > "$0/stubborn"; while :; do sleep 1; done' "$2" &
wait
"""
HOLDS = """
import sys, time
from icprobe.evaluation.engines import server
server.Server.is_ready = lambda self: len(list(server.Path(sys.argv[1]).iterdir())) == 3
start = ["sh", "-c", sys.argv[2], "{model}", "{port}", sys.argv[1], sys.executable]
options = {"start": start, "base_url": None, "start_seconds": 60}
with server.serving(options, server.Path("m")):
    print("ready", flush=True)
    time.sleep(300)
"""


def test_a_job_that_is_killed_leaves_no_server_and_nothing_that_it_has_started(tmp_path):
    job = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path), FAMILY],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert job.stdout.readline() == b"ready\n"
    family = [psutil.Process(int((tmp_path / name).read_text())) for name in ("child", "orphan", "stubborn")]
    if sys.platform != "linux":  # where nothing tells whose an orphan was
        family.pop(1).kill()
    assert all(process.is_running() for process in family)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    _, left = psutil.wait_procs(family, timeout=guard.GRACE_SECONDS + 20)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
