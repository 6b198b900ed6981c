"""Filters of Snakemake's log, which all records pass: what a target may have been, and reasons of a bearable length."""

import re
from collections.abc import Callable, Iterable
from logging import LogRecord

from icprobe.errors import did_you_mean

# Files of an experiment lie in folders: a target without one was to be a rule.
_ABSENT = re.compile(r"No rule to produce ([^\s/]+) \(")
# Targets that are there where the configuration has what they need.
_NEEDS = {"export": "selections", "publish": "selections and export: {hub: owner/name}"}
SHOWN = 3  # files that a reason names of each kind


class Suggestion:
    """Adds to the word on a target that does not exist which one may have been meant; rules: asked when one is."""

    def __init__(self, rules: Callable[[], Iterable[str]]) -> None:
        self._rules = rules

    def __call__(self, record: LogRecord) -> bool:
        """Always true; the record of an absent target gets the suggestion."""
        if found := _ABSENT.search(str(record.msg)):
            hint = f" without {_NEEDS[found[1]]}." if found[1] in _NEEDS else ""
            hint = hint or did_you_mean(found[1], self._rules()) or "; `snakemake --list-target-rules` lists all."
            record.msg = f"{record.msg}\nThere is no target {found[1]}{hint}"
        return True


def shorten_reason(record: LogRecord) -> bool:
    """Always true; of files that made a job necessary, which may be dozens, the reason names the first."""
    if isinstance(reason := getattr(record, "reason", None), str):
        record.reason = "; ".join(_first(kind) for kind in reason.split("; "))
    return True


def _first(kind: str) -> str:
    names = kind.split(", ")
    return kind if len(names) <= SHOWN else f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
