"""What the terminal says of jobs that failed: whose fault it was, in its own sentence."""

import os
import re
import time

import pytest

from icprobe.report import terminal_summary

LINE = "2026-11-24 10:00:00"


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (
            f"{LINE} begun\n{LINE} error: train.jsonl, line 3: broken.\n{LINE} failed after 1.0 s",
            "train.jsonl, line 3: broken.",
        ),
        (f"{LINE} error: two\nlines.\n{LINE} failed after 1.0 s", "two lines."),
        (
            f"{LINE} bug: KeyError\nTraceback (most recent call last):\n  File x\n    y\nKeyError: 'z'\n{LINE} failed",
            "a bug, KeyError: 'z'",
        ),
        (f"{LINE} begun\n{LINE} terminated by SIGTERM\n", "it was ended from outside, by SIGTERM"),
        (f"{LINE} begun\n", ""),
    ],
)
def test_a_failed_job_is_told_in_its_own_sentence(tmp_path, log, sentence):
    (tmp_path / "rule.log").write_text(log)
    assert terminal_summary.sentence_of(tmp_path / "rule.log") == sentence
    said = terminal_summary.failures([[("fine_tune", {"method": "icp"}, [str(tmp_path / "rule.log")])]], width=400)
    expected = sentence or "it ended without a message, perhaps killed for memory"
    assert said.startswith(f"fine_tune failed (method=icp): {expected}\n  log: {tmp_path}/rule.log")


def test_of_a_group_those_are_told_that_failed(tmp_path):
    logs = {
        "read": "error: train.jsonl, line 3: broken.",
        "count": "done after 1.0 s; peak memory 0.10 GB",
        "killed": "begun",
        "never": None,
    }

    def told(*names: str) -> list[str]:
        group = [(name, {}, [str(tmp_path / name)]) for name in names]
        return re.findall(r"^(\S+) failed: (\S+ \S+)", terminal_summary.failures([group], width=400), re.MULTILINE)

    for name, words in logs.items():
        if words:
            (tmp_path / name).write_text(f"{LINE} {words}\n")
    assert told(*logs) == [("read", "train.jsonl, line")]
    assert told("count", "killed") == [("killed", "it ended")]
    assert told("count") == [("count", "it did")]


def test_a_log_of_an_earlier_invocation_tells_nothing_of_this_one(tmp_path):
    """Snakemake removes a job's log only when the job begins, which a later one of a group may never do."""
    began = time.time() - 60
    logs = {
        "select": (f"{LINE} begun\n", True),
        "done": (f"{LINE} done after 1.0 s; peak memory 0.10 GB\n", True),
        "broken": (f"{LINE} error: row 7 is empty.\n", True),
        "measure": (f"{LINE} error: train.jsonl, line 3: broken.\n", False),
        "count": (f"{LINE} done after 1.0 s; peak memory 0.10 GB\n", False),
    }
    for name, (text, is_of_today) in logs.items():
        (tmp_path / name).write_text(text)
        if not is_of_today:
            os.utime(tmp_path / name, (began - 3600, began - 3600))

    def told(*names: str) -> str:
        return terminal_summary.failures([[(name, {}, [str(tmp_path / name)]) for name in names]], began, width=400)

    killed = "it ended without a message, perhaps killed for memory"
    for never in ("measure", "count", "without a log"):
        said = told("select", never)
        assert said.startswith(f"select failed: {killed}\n  log: {tmp_path}/select\n\nTo resume")
        said = told("broken", never)
        assert said.startswith(f"broken failed: row 7 is empty.\n  log: {tmp_path}/broken\n\nTo resume")
        # None of the group began, or the one that did has done its work: so the other was ended before its first line.
        assert told(never) == told("done", never)
        assert told(never).startswith(f"{never} failed: {killed}\n\nTo resume")
