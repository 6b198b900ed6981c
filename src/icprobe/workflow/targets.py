"""Adds to Snakemake's word on a target that does not exist which one may have been meant."""

import re
from collections.abc import Callable, Iterable
from logging import LogRecord

from icprobe.errors import did_you_mean

# Files of an experiment lie in folders: a target without one was to be a rule.
_ABSENT = re.compile(r"No rule to produce ([^\s/]+) \(")


class Suggestion:
    """A filter of Snakemake's log, which all records pass; rules: asked when a target is absent."""

    def __init__(self, rules: Callable[[], Iterable[str]]) -> None:
        self._rules = rules

    def __call__(self, record: LogRecord) -> bool:
        """Always true; the record of an absent target gets the suggestion."""
        if found := _ABSENT.search(str(record.msg)):
            hint = did_you_mean(found[1], self._rules()) or "; `snakemake --list-target-rules` lists all."
            record.msg = f"{record.msg}\nThere is no target {found[1]}{hint}"
        return True
