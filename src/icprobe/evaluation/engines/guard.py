"""Runs a command for as long as somebody holds this process's standard input open, and ends all that it has started.

python guard.py command argument …

The pipe closes when its holder closes it or dies, in whatever way: so a server does not outlive the job that needs it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading

import psutil

GRACE_SECONDS = 10  # between SIGTERM and SIGKILL
PR_SET_CHILD_SUBREAPER = 36  # of Linux: what is orphaned below this process becomes its child, and is seen


def main(command: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_await_end, daemon=True).start()
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL).wait()
    finally:
        signal.signal(signal.SIGTERM, lambda *_: None)
        _end_all()


def _stop(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _await_end() -> None:
    # Not sys.stdin, whose lock a thread that still reads would hold when the interpreter ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end_all() -> None:
    started = psutil.Process().children(recursive=True)
    for process in started:
        process.terminate()
    psutil.wait_procs(started, timeout=GRACE_SECONDS)
    while left := [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]:
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
