"""A long job says how far it is: done of total, rate and time left."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from icprobe.progress import Progress


@pytest.fixture
def lines(caplog, monkeypatch):
    """Log lines of a bar that is moved on by (units, seconds), on a clock that stands still otherwise."""
    clock = [1000.0]
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)

    def run(steps, **options):
        caplog.clear()
        with caplog.at_level(logging.INFO), Progress(**{"desc": "icp", "unit": "example", **options}) as progress:
            progress._time = lambda: clock[0]
            progress.start_t = progress.last_print_t = clock[0]
            for units, seconds in steps:
                clock[0] += seconds
                progress.update(units)
        return [record.getMessage() for record in caplog.records]

    return run


def test_a_line_holds_done_total_rate_and_time_left(lines):
    assert lines([(20, 10), (40, 10)], total=90) == [
        "icp: 20/90 examples, 2 examples/s, 35 s left",
        "icp: 60/90 examples, 3 examples/s, 10 s left",
    ]


def test_slow_work_is_told_in_seconds_per_unit(lines):
    assert lines([(1, 40)], total=3) == ["icp: 1/3 examples, 40 s per example, 80 s left"]


def test_what_an_earlier_try_finished_counts_as_done_but_not_for_the_rate(lines):
    assert lines([(10, 10)], total=100, initial=80) == ["icp: 90/100 examples, 1 examples/s, 10 s left"]


def test_lines_are_seconds_apart_and_the_end_is_told_once(lines):
    found = lines([(1, 1)] * 60, total=60)
    assert 6 <= len(found) <= 7, found
    assert [re.match(r"icp: (\d+)/60", line)[1] for line in found] == sorted(
        (re.match(r"icp: (\d+)/60", line)[1] for line in found), key=int
    )
    assert sum("60/60" in line for line in found) == 1


def test_without_a_total_there_is_no_time_left(lines):
    assert lines([(30, 10)], total=None) == ["icp: 30 examples, 3 examples/s"]


ON_A_TERMINAL = """
import logging, time
from types import SimpleNamespace
from icprobe.jobs import job
from icprobe.progress import Progress

snakemake = SimpleNamespace(rule="r", wildcards={}, params={}, input=[], output=[], log=["r.log"], threads=1)
with job(snakemake):
    with Progress(total=40, desc="icp", unit="example", log_seconds=0.1, mininterval=0.01) as progress:
        for step in range(40):
            time.sleep(0.01)
            progress.update(1)
            if step == 20:
                logging.info("a word in between")
"""


def test_on_a_terminal_bar_and_lines_keep_apart_and_the_log_has_the_lines(tmp_path):
    terminal, end = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    environment = {n: v for n, v in os.environ.items() if not n.startswith("ICPROBE")}
    process = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], cwd=tmp_path, env=environment, stderr=end)
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:  # Linux says so at the end of a pseudo-terminal
        pass
    assert process.wait() == 0, shown.decode()
    # What a line shows at last: what follows its last carriage return.
    lines = [line.rstrip("\r").split("\r")[-1] for line in shown.decode().split("\n")]
    assert any(re.fullmatch(r"\S+ \S+ a word in between", line) for line in lines), lines
    assert [line for line in lines if "40/40" in line and "100%" in line]
    assert not [line for line in lines if "examples/s" in line and "left" in line]
    log = (tmp_path / "r.log").read_text()
    assert "icp: 40/40 examples" in log
    assert "a word in between" in log
