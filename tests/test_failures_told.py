"""What the terminal says of jobs that failed: whose fault it was, in its own sentence."""

import re

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
