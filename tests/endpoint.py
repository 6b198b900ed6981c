"""A stand-in for an OpenAI-compatible endpoint, on loopback, and what it is asked in tests."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from icprobe.config.training import Evaluation
from icprobe.evaluation.judges import Pair

PAIRS = [Pair(str(n), "s", f"Count to {n}.", "one " * (n + 1), "two " * (9 - n), "-") for n in range(8)]
FAULTS = ["429", "500", "503", "cut", "half", "nonsense", "not json", "no choices", "error in a 200"]


class Endpoint:
    """An OpenAI-compatible server on loopback: `answer(body)` gives each completion, after `faults` in their order.

    A fault is a name of FAULTS, an HTTP status with a message, or (status, body). models: the names that it lists.
    """

    def __init__(self, answer, faults=(), models=()):
        self.answer, self.faults, self.models = answer, list(faults), models
        self.bodies, self.keys, self.most_at_once, self._at_once = [], [], 0, 0
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def reply(self, status, content, kind="application/json", length=None):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self):
                listed = [{"id": name, "object": "model", "created": 0, "owned_by": "me"} for name in endpoint.models]
                self.reply(200, json.dumps({"object": "list", "data": listed}).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.bodies.append(body)
                    endpoint.keys.append(self.headers.get("Authorization"))
                    endpoint._at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint._at_once)
                    fault = endpoint.faults.pop(0) if endpoint.faults else None
                try:
                    self.fail(fault, body) if fault else self.reply(200, json.dumps(endpoint.answer(body)).encode())
                finally:
                    with lock:
                        endpoint._at_once -= 1

            def fail(self, fault, body):
                if isinstance(fault, tuple):
                    self.reply(fault[0], json.dumps(fault[1]).encode())
                elif fault[0].isdigit():
                    self.reply(int(fault[:3]), json.dumps({"error": {"message": f"fault {fault}"}}).encode())
                elif fault == "cut":
                    self.close_connection = True
                elif fault == "half":
                    content = json.dumps(endpoint.answer(body)).encode()
                    self.reply(200, content[: len(content) // 2], length=len(content))
                    self.close_connection = True
                elif fault == "nonsense":
                    self.reply(200, b"<html>Welcome!</html>", "text/html")
                elif fault == "error in a 200":
                    self.reply(200, json.dumps({"error": {"code": 429, "message": "fault 429"}}).encode())
                elif fault == "not json":
                    self.reply(200, b'{"choices": [')
                else:
                    self.reply(200, b'{"object": "list"}')

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()


def settings(url, **changes):
    options = {"base_url": url, "model": "judge-1", "concurrency": 3, **changes}
    evaluation = Evaluation(judge="llm", llm=options)
    settings = evaluation.judge_settings
    return settings | {"llm": settings["llm"] | evaluation.llm.execution()}


def completion(content="", tokens=None):
    logprobs = None
    if tokens is not None:
        top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in tokens.items()]
        logprobs = {"content": [{**top[0], "top_logprobs": top}] if top else [], "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "judge-1", "usage": usage} | {
        "choices": [{**choice, "logprobs": logprobs}]
    }


def prefers_two(body):
    """A judge without a bias of place: it likes the answer that says "two"."""
    first = body["messages"][0]["content"].partition('<answer model="m">')[2].partition("</answer>")[0]
    m = 0.8 if "two" in first else 0.1
    return completion(tokens={"m": math.log(m), "M": math.log(0.9 - m), "The": math.log(0.1)})
