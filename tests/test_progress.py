"""A long job says how far it is: done of total, rate and time left."""

import logging
import re

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
