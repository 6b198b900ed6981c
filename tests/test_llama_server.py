"""A llama.cpp server that lives exactly as long as the command that needs it."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from tiny_gguf import tiny_gguf

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
    pytest.mark.timeout(400),
]

ASKS = """
import json, sys, urllib.request
body = {"model": "any", "messages": [{"role": "user", "content": "Say m."}], "max_tokens": 1}
address = f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions"
request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
assert json.load(urllib.request.urlopen(request))["choices"]
sys.exit(7)
"""
WAITS = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1], "ended").touch()
    sys.exit(9)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "began").touch()
time.sleep(300)
"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf(path)
    return path


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(gguf, port, *arguments):
    options = ["--port", str(port), "--context", "512", "--slots", "1"]
    return [sys.executable, "-m", "icprobe.evaluation.judges.server", str(gguf), *options, "--", *arguments]


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_command_finds_a_server_that_answers_and_its_exit_code_is_what_remains(gguf, port):
    done = subprocess.run(
        command(gguf, port, sys.executable, "-c", ASKS, str(port)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stderr
    assert f"is served at http://127.0.0.1:{port}/v1" in done.stderr
    assert not is_open(port)


def test_a_signal_reaches_the_command_and_the_server_ends_after_it(gguf, port, tmp_path):
    process = subprocess.Popen(command(gguf, port, sys.executable, "-c", WAITS, str(tmp_path)))
    while not (tmp_path / "began").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert is_open(port)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 9
    assert (tmp_path / "ended").exists()
    assert not is_open(port)


def test_what_cannot_be_served_is_said_in_one_line_and_the_command_never_runs(gguf, port, tmp_path):
    mark = [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"]
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"no model")

    def said(path):
        done = subprocess.run(command(path, port, *mark), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr.strip().splitlines()[-1]

    assert said(tmp_path / "absent.gguf") == f"{tmp_path}/absent.gguf: no such file; give a GGUF file."
    assert said(damaged).startswith(f"{damaged}: llama.cpp cannot serve it: ")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert f"127.0.0.1:{port} cannot be used (Address already in use)" in said(gguf)
    assert not os.path.exists(tmp_path / "ran")
