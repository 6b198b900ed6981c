"""`snakemake` without the seconds of its imports: forked, for each call, from a process that has done them.

Each call is a process of its own in its folder and environment, as `python -m snakemake` is, and imports its copy of
the package: the one that it is forked from never does. Shared are the imports of other packages, and with them the seed
of Python's hashes. So it is with the jobs that it starts (`forked_jobs`).
"""

import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

# What a dry run imports, by itself and in the package; a module that is missing here is imported in each call.
IMPORTED = (
    *("snakemake.cli", "snakemake.report.html_reporter", "nbformat.v4", "nbformat.validator", "jsonschema"),
    *("smart_open", "yte", "jinja2", "pydantic", "pyarrow.parquet", "networkx", "tqdm.auto"),
)
_asking = threading.Lock()


def snakemake(arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> tuple[int, str, float]:
    """(exit code, what it wrote to the terminal, seconds of CPU since the fork) of `snakemake` in a folder."""
    with tempfile.TemporaryFile("w+") as request, tempfile.TemporaryFile("w+", errors="replace") as output:
        json.dump([[*arguments], {**environment}, str(folder)], request)
        request.flush()
        request.seek(0)
        report, reported = os.pipe()
        with open(report) as told:
            with _asking:
                socket.send_fds(_server(), [b"1"], [request.fileno(), output.fileno(), reported])
            os.close(reported)
            status, seconds = json.loads(told.read())
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read(), seconds


@functools.cache
def _server() -> socket.socket:
    """The connection to this process's server, which ends with it."""
    import forked_jobs

    mine, its = socket.socketpair()
    with its:
        subprocess.Popen(
            [sys.executable, "-P", __file__, str(its.fileno()), forked_jobs.python()],
            pass_fds=[its.fileno()],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    return mine


# --- the server -------------------------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> None:
    """Forks one that waits for each request, and from it one that becomes `snakemake`: returns in that one, and at the
    end of requests."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        one, files, *_ = socket.recv_fds(requests, 1, 3)
        if not one:
            return
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, output, report = files
    if pid := os.fork():
        _, status, usage = os.wait4(pid, 0)
        os.write(report, json.dumps([status, usage.ru_utime + usage.ru_stime]).encode())
        os._exit(0)
    os.close(report)
    with open(request) as asked:
        _become(output, *json.load(asked))


def _become(output: int, arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """What `python -m snakemake` does in that folder and environment, from here to its end."""
    os.setsid()
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if [name for name in sys.modules if name.startswith("icprobe")]:
        raise RuntimeError("the package was imported before the fork")
    sys.path[:0] = [folder, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    importlib.invalidate_caches()
    sys.executable = sys.argv[2]  # of jobs
    from snakemake import cli, workflow

    workflow.Workflow._rundir = folder  # the folder in which it was imported
    sys.argv = [str(Path(cli.__file__).with_name("__main__.py")), *arguments]
    cli.main()


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
