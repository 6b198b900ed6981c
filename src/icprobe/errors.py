"""One exception class per kind of mistake; each message names what, where, the value seen and what to do.

Jobs and the Snakefile show these without a traceback. Any other exception is a bug, and is shown as one.
"""

import difflib
from collections.abc import Iterable, Sequence
from itertools import takewhile, zip_longest
from typing import Any

from icprobe.masking import mask


class IcprobeError(Exception):
    """A mistake that the user can mend; its message is one clear sentence or two, on one line.

    Names and values in messages come from files: what would break the line or steer a terminal is shown escaped, and
    secrets in addresses are masked.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(mask(message)))


def printable(text: str) -> str:
    """A text in which what would break a line or steer a terminal is shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ConfigError(IcprobeError):
    """The configuration has an unknown key, a wrong type or values that contradict each other."""


class DataError(IcprobeError):
    """A data file is missing, cannot be read, or holds a row that cannot be used."""


class ModelError(IcprobeError):
    """A model cannot be found, is damaged, or is no causal language model."""


class ScoreError(IcprobeError):
    """An attribution or a score is NaN, infinite, or does not belong to the examples at hand."""


class ArtifactError(IcprobeError):
    """A computed file is truncated, changed or missing."""


class ClusterError(IcprobeError):
    """A batch system cannot be reached."""


class EndpointError(IcprobeError):
    """A server that writes responses cannot be started or reached, or its answers are not those of the model."""


class JudgeError(IcprobeError):
    """A judge cannot be reached or refuses the request."""


def shown(value: Any) -> str:
    """A value as it stands in a message: at most some 60 characters, however large it is."""
    if isinstance(value, dict | list | tuple | set | frozenset):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 10_000:
        return "a number of thousands of digits"  # Python refuses to write it out
    text = str(value) if isinstance(value, str | bytes) else repr(value)
    return repr(text if len(text) <= 60 else text[:59] + "…")


def several(count: int, noun: str, plural: str = "") -> str:
    """A number of things in words: "1 row", "2,000 rows"; plural: where an s does not make it."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and dots where there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "cuda error: out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, as Python, CUDA (its exception is known by its name) or PyTorch on a CPU say it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in NO_MEMORY))
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion, to follow a message on an unknown word; empty where nothing is close."""
    folded = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(word.casefold()[:60], folded, n=1)
    return suggestion(folded[close[0]]) if close else ""


def suggestion(word: str) -> str:
    """The end of a message, which asks whether another word was meant."""
    return f'; did you mean "{word}"?'


def misspelt(value: str, known: Iterable[str]) -> str | None:
    """The first of some values that another writes with one slip: other capitals, a number written otherwise, or in one
    word a letter more, fewer or other, or two exchanged. Other numbers and words of two letters are no slips.
    """
    return next((one for one in sorted(known) if _same(value, one)), None)


def _same(one: str, other: str) -> bool:
    one, other = one.casefold(), other.casefold()
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        differing = [pair for pair in zip_longest(one.split(), other.split(), fillvalue="") if pair[0] != pair[1]]
    if len(differing) != 1 or min(map(len, differing[0])) < 3:
        return False
    one, other = differing[0]
    for _ in range(2):  # without what both begin with, and then what both end with
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
        one, other = one[start:][::-1], other[start:][::-1]
    return (one + other).isalpha() and (max(len(one), len(other)) == 1 or (len(one) == 2 and one == other[::-1]))


def reason(error: Exception) -> str:
    """What a library says of a mistake, on one line and of a bearable length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
