"""A llama.cpp server on loopback for as long as a command runs: an OpenAI-compatible judge that needs no account.

python -m icprobe.evaluation.judges.server model.gguf --port 8089 -- snakemake --cores 2 all

Needs the package xllamacpp. Ends with the command's exit code; the server is a part of this process and ends with it.
"""

import argparse
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from icprobe import cores
from icprobe.errors import JudgeError
from icprobe.evaluation.engines.server import HOST, WITHOUT_PROXY

HEALTHY_WITHIN = 120  # seconds, to read the model


@contextmanager
def serving(gguf: str | Path, port: int, slots: int = 2, context: int = 4096) -> Iterator[str]:
    """The address (ending in /v1) of a healthy server of the model, within the block.

    slots: requests answered at once; context: tokens of each. Raises JudgeError where the port is taken, xllamacpp is
    not installed, or the model cannot be served.
    """
    try:
        import xllamacpp
    except ImportError:
        raise JudgeError("A llama.cpp server needs the package xllamacpp: pip install xllamacpp.") from None
    if not Path(gguf).is_file():
        raise JudgeError(f"{gguf}: no such file; give a GGUF file.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise JudgeError(f"{HOST}:{port} cannot be used ({error.strerror}); choose another port.") from None
    options = xllamacpp.CommonParams()
    options.model.path = str(gguf)
    options.n_parallel, options.n_ctx = slots, slots * context
    options.hostnames, options.port, options.verbosity = [HOST], port, 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = cores.usable()
    try:
        server = xllamacpp.Server(options)
    except Exception as error:  # its own, of no documented kind
        raise JudgeError(f"{gguf}: llama.cpp cannot serve it: {error}") from None
    try:
        _wait_until_healthy(f"{server.listening_address}/health")
        yield f"{server.listening_address}/v1"
    finally:
        del server


def _wait_until_healthy(address: str) -> None:
    end = time.monotonic() + HEALTHY_WITHIN
    while time.monotonic() < end:
        try:
            with WITHOUT_PROXY.open(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)  # it answers 503 while it reads the model
    raise JudgeError(f"{address} does not answer after {HEALTHY_WITHIN} s; is the model too large for this machine?")


def run(command: Sequence[str]) -> int:
    """Runs a command to its end and returns its exit code; SIGTERM is passed on to it, SIGINT it has got by itself."""
    process = subprocess.Popen(command)
    # A handler, not SIG_IGN, which the command would have inherited. It ends in its own time, with its locks undone.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: list[str] | None = None) -> int:
    """Serves the model while the command runs; returns the command's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m icprobe.evaluation.judges.server", description=__doc__.splitlines()[0]
    )
    parser.add_argument("gguf", help="the model, a GGUF file")
    parser.add_argument("--port", type=int, required=True, help="port on loopback")
    parser.add_argument("--slots", type=int, default=2, help="requests answered at once (2)")
    parser.add_argument("--context", type=int, default=4096, help="tokens of one request, at most (4096)")
    parser.add_argument("command", nargs="+", help="after --: what to run while the server is up")
    chosen = parser.parse_args(arguments)
    try:
        with serving(chosen.gguf, chosen.port, chosen.slots, chosen.context) as address:
            print(f"{chosen.gguf} is served at {address}", file=sys.stderr)
            return run(chosen.command)
    except JudgeError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
