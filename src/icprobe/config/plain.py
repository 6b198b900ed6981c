"""The raw configuration as plain values: what JSON can hold, of bounded size and depth, without what is null."""

from collections.abc import Iterable
from typing import Any

from icprobe.errors import ConfigError, shown

MAX_DEPTH = 30  # levels of the configuration; its own are 4
MAX_SIZE = 100_000  # values in the configuration
# Parameters of requests to a judge, which null leaves out: here it does not take the key away.
NULL_SAYS = {("evaluation", "llm", "temperature"), ("evaluation", "llm", "json_schema")}


class Plain:
    """Raw values without keys that are null (but `NULL_SAYS`); only what JSON can hold, of bounded size and depth."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Any, int] | None] = {}

    def of(self, value: Any, where: tuple[str, ...] = ()) -> tuple[Any, int]:
        """(value, number of values in it). YAML's aliases: what stands in many places is looked at once."""
        if len(where) > MAX_DEPTH:
            raise mistake(where, "it is nested too deeply")
        if not isinstance(value, dict | list):
            return _scalar(value, where), 1
        if id(value) not in self.seen:
            self.seen[id(value)] = None
            if isinstance(value, dict):
                for key in value:
                    if not isinstance(key, str):
                        raise mistake(where, f"the key {shown(key)} must be a string; put quotation marks around it")
                    _scalar(key, where)
                said = {k: v for k, v in value.items() if v is not None or (*where, k) in NULL_SAYS}
                parts = {k: self.of(v, (*where, k[:60])) for k, v in said.items()}
                size = 1 + sum(size for _, size in parts.values())
                self.seen[id(value)] = {k: v for k, (v, _) in parts.items()}, size
            else:
                found = [self.of(v, (*where, str(i))) for i, v in enumerate(value)]
                size = 1 + sum(size for _, size in found)
                self.seen[id(value)] = [v for v, _ in found], size
            if size > MAX_SIZE:
                raise mistake(where, f"it holds {size} values; {MAX_SIZE} are enough for any experiment")
        result = self.seen[id(value)]
        if result is None:
            raise mistake(where, "it contains itself")
        return result


def _scalar(value: Any, where: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise mistake(where, f"{shown(value)} contains half a surrogate pair, which is not valid text")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise mistake(where, "the number is too large")
    elif not isinstance(value, int | float | None):
        kind = type(value).__name__
        raise mistake(where, f"{shown(value)} has YAML's type {kind}; put quotation marks around it")
    return value


def mistake(where: Iterable[str], what: str) -> ConfigError:
    place = ".".join(list(where)[:5])
    return ConfigError(f"config: {place + ': ' if place else ''}{what}")
