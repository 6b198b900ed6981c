"""Raw values of the configuration, as YAML gives them: what may stand there, and what is said of mistakes."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from icprobe.errors import ConfigError, did_you_mean, several, shown

MAX_DEPTH = 30  # levels of the configuration; its own are 4
MAX_SIZE = 100_000  # values in the configuration
MAPPING = "a mapping is needed, such as {key: value}"
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
    """An error with the place in the file, such as "config: data.train: …"."""
    place = ".".join(list(where)[:5])
    return ConfigError(f"config: {place + ': ' if place else ''}{what}")


def sentence(error: ValidationError, raw: Any, root: type[BaseModel]) -> ConfigError:
    """The first mistake that pydantic found in raw values, and how many more; root: the class of the whole."""
    # A default that follows from a wrong section is no mistake of its own.
    mistakes = [one for one in error.errors(include_url=False) if one["type"] != "default_factory_not_called"]
    first = mistakes[0]
    keys = _keys(first["loc"], raw)
    if first["type"] == "extra_forbidden":
        what = f"unknown key{did_you_mean(keys[-1], _siblings(first['loc'], root))}"
    elif first["type"] == "missing":
        keys.append(str(first["loc"][-1]))
        what = "this key is missing"
    else:
        needed = {
            "model_type": MAPPING,
            "dict_type": MAPPING,
            "list_type": "a list is needed, in brackets such as [a, b]",
        }
        if first["type"] == "string_type" and isinstance(first["input"], bool):
            needed["string_type"] = 'YAML reads yes, no, on, off, true and false as truth values; write "yes" in quotes'
        message = needed.get(first["type"], first["msg"][:400])
        seen = first.get("input")
        what = message.removeprefix("Value error, ")
        # What stands where the name of a key's variable should is often the key itself.
        hidden = isinstance(seen, dict | BaseModel) or keys[-1:] == ["key_variable"]
        what += "" if hidden else f", not {shown(seen)}"
    more = f" ({several(len(mistakes) - 1, 'more mistake')})" if len(mistakes) > 1 else ""
    return mistake([key[:60] for key in keys], what + more)


def _keys(location: tuple, raw: Any) -> list[str]:
    """The part of a location that is in the file: pydantic adds the branches of unions that it tried."""
    keys = []
    for part in location:
        if (isinstance(raw, dict) and part in raw) or (isinstance(raw, list) and isinstance(part, int)):
            raw = raw[part]
            keys.append(str(part))
    return keys


def _siblings(location: tuple, root: type[BaseModel]) -> list[str]:
    """Keys that the section holding this location knows; root: the class of the whole."""
    section: Any = root
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return []
        section = next(
            (t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(t, "model_fields")),
            None,
        )
    return list(getattr(section, "model_fields", {}))
