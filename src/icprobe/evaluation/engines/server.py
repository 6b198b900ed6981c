"""The server that a command of the user's starts for one model, for as long as a block runs."""

import http.client
import logging
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from icprobe.errors import EndpointError
from icprobe.evaluation.engines import guard

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
ADDRESS = f"http://{HOST}:{{port}}/v1"
# A proxy of the environment does not lead to this machine.
WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
EVERY_SECONDS = 0.2  # a server that is starting is looked at
LAST_BYTES, LAST_CHARACTERS = 4000, 300  # of what a server wrote, in which its last line is; of that, for a message


class Server:
    """A server that was started. address: its endpoint, ending in /v1 or the like."""

    def __init__(self, address: str, process: subprocess.Popen, output: IO[bytes]) -> None:
        self.address = address
        self._process, self._output = process, output

    def ended(self, within: float = 0) -> str | None:
        """How the server has ended, or ends within so many seconds, in words; None while it runs."""
        try:
            return f"ended with exit code {self._process.wait(within)}{self.last_words()}"
        except subprocess.TimeoutExpired:
            return None

    def last_lines(self) -> list[str]:
        """The last lines that the server wrote."""
        self._output.seek(0, 2)
        self._output.seek(max(0, self._output.tell() - LAST_BYTES))
        lines = self._output.read().decode("utf-8", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def last_words(self) -> str:
        """The last of them, after a colon."""
        last = self.last_lines()[-1:]
        return f": {last[0][-LAST_CHARACTERS:].rstrip('.')}" if last else ", and wrote nothing"

    def is_ready(self) -> bool:
        """Whether the server has read its model: it answers, and not that it is unavailable, as llama.cpp does before.

        A server need not have a path /health, nor answer without a key.
        """
        place = urlsplit(self.address)
        for address in (f"{place.scheme}://{place.netloc}/health", f"{self.address}/models"):
            try:
                WITHOUT_PROXY.open(address, timeout=5).close()
            except urllib.error.HTTPError as error:
                if error.code >= 500:
                    return False
            except (OSError, http.client.HTTPException):
                return False
        return True

    def wait(self, seconds: float) -> None:
        """Returns when the server is ready. Raises EndpointError where it ends before that, or takes longer."""
        end = time.monotonic() + seconds
        while not self.is_ready():
            if how := self.ended():
                raise EndpointError(f"The server of evaluation.endpoint.start {how}.")
            if time.monotonic() > end:
                raise EndpointError(
                    f"The server of evaluation.endpoint.start does not answer at {self.address} within {seconds:g} s "
                    f"(evaluation.endpoint.start_seconds){self.last_words()}."
                )
            time.sleep(EVERY_SECONDS)
        if how := self.ended():  # and another one has answered
            raise EndpointError(f"The server of evaluation.endpoint.start {how}.")


@contextmanager
def serving(settings: dict[str, Any], folder: Path) -> Iterator[Server]:
    """A ready server of the model in the folder, started as the settings (of `evaluation.endpoint`) say.

    When the block ends, or this process dies, the server is ended with all that it has started. Raises EndpointError.
    """
    port = _free_port()
    words = [word.replace("{model}", str(folder)).replace("{port}", str(port)) for word in settings["start"]]
    if shutil.which(words[0]) is None:
        raise EndpointError(
            f"{words[0]}: there is no such command, with which evaluation.endpoint.start begins; install it, or "
            "write its path. Each argument is an item of the list."
        )
    address = (settings["base_url"] or ADDRESS).replace("{port}", str(port))
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-P", guard.__file__, *words],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what ends the job's group leaves the guard to end the server
        )
        server = Server(address, process, output)
        try:
            server.wait(settings["start_seconds"])
            yield server
        except EndpointError:
            logger.info("the last that the server wrote:\n%s", "\n".join(server.last_lines()))
            raise
        finally:
            process.stdin.close()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
