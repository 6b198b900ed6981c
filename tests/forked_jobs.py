"""Jobs of a workflow without the seconds of their imports: forked, for each job, from a process that has done them.

Snakemake starts jobs with `python()` in place of its interpreter. That waits for the job as if it were it: its files,
folder, variables, signals and end are the job's. What is no job's script runs in the interpreter itself. Each job
imports its copy of the package, and wandb: the process that it is forked from never does. Shared are the imports of
other packages, what they read from the environment (jobs have one thread each, whatever they were given), and the seed
of Python's hashes. Tests that are about processes, memory or threads do without this (`dag.Project.start`).
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

# A module that is missing here is imported in each job that needs it.
IMPORTED = (
    *("snakemake.script", "pyarrow.parquet", "pandas", "scipy.stats", "scipy.optimize", "statsmodels.stats.multitest"),
    *("torch", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "tokenizers"),
    *("transformers.models.auto.tokenization_auto", "peft", "trl.trainer.sft_trainer", "datasets", "accelerate"),
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_pdf", "fontTools.subset"),
    *("altair", "vl_convert", "jinja2", "networkx", "pydantic", "yaml", "httpx", "sklearn.cluster"),
)
SCRIPTS = f"{os.sep}.snakemake{os.sep}scripts{os.sep}"
CLIENT = """#!{python} -SE
import os, sys
if len(sys.argv) != 2 or {scripts!r} not in sys.argv[1]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import array, json, signal, socket
with socket.socket(socket.AF_UNIX) as job:
    job.connect({address!r})
    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    job.sendmsg([b"1"], files)
    job.sendall(json.dumps([sys.argv[1], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    told = job.makefile()
    number = int(told.readline())
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, lambda one, _: os.kill(number, one))
    status = int(told.readline() or 9)
if os.WIFSIGNALED(status):
    signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""


@functools.cache
def python() -> str:
    """An interpreter for Snakemake in this process's tests, whose jobs are forked; it ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="jobs-")
    atexit.register(folder.cleanup)
    address, client = f"{folder.name}/socket", Path(folder.name, "python")
    client.write_text(CLIENT.format(python=sys.executable, scripts=SCRIPTS, address=address))
    client.chmod(0o755)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    mine, its = socket.socketpair()
    subprocess.Popen(
        [sys.executable, "-P", __file__, str(listening.fileno()), str(its.fileno())],
        pass_fds=[listening.fileno(), its.fileno()],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    listening.close()
    its.close()
    atexit.register(mine.close)
    return str(client)


def snakemake() -> list[str]:
    """The beginning of a command: a Snakemake with a process of its own, whose jobs are forked."""
    return [sys.executable, "-c", f"import sys; sys.executable = {python()!r}; from snakemake.cli import main; main()"]


# --- the process that jobs are forked from ----------------------------------------------------------------------


def _serve(listening: socket.socket, parent: socket.socket) -> tuple[list[int], str, str, dict[str, str]]:
    """Forks one that waits for each job, and from it the job, in which alone this returns: files, script, folder and
    variables.
    """
    for name in IMPORTED:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:  # trl imports it and does not use it
        del sys.modules[name]
    gc.collect()
    gc.freeze()
    threading.Thread(target=lambda: (parent.recv(1), os._exit(0)), daemon=True).start()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        job, _ = listening.accept()
        if os.fork() == 0:
            break
        job.close()
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, *_ = socket.recv_fds(job, 1, 3)
    with job.makefile() as asked:
        script, folder, environment = json.loads(asked.readline())
    if pid := os.fork():
        for file in files:
            os.close(file)
        job.sendall(b"%d\n" % pid)
        gone = threading.Thread(target=lambda: (job.recv(1), _kill(pid)), daemon=True)  # who waits for it was killed
        gone.start()
        _, status = os.waitpid(pid, 0)
        with suppress(OSError):
            job.sendall(b"%d\n" % status)
        os._exit(0)
    job.close()
    return files, script, folder, environment


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _become(files: list[int], script: str, folder: str, environment: dict[str, str]) -> None:
    """What `python script` does in that folder and environment, from here to its end."""
    os.setsid()
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if {"icprobe", "wandb"} & {name.split(".")[0] for name in sys.modules}:
        raise RuntimeError("the package was imported before the fork")
    sys.path[:0] = [str(Path(script).parent), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    importlib.invalidate_caches()
    sys.argv = [script]
    code: Any = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking down what the imports made takes half a second


if __name__ == "__main__":
    listening, parent = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    _become(*_serve(listening, parent))
