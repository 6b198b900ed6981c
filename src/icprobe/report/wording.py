"""How sentences count and list things."""

from collections.abc import Iterable

import pandas as pd

from icprobe.formatting import count
from icprobe.paths import SELECTED


def compared(tested: pd.DataFrame) -> str:
    """What a table of differences compares; tested: `bin`, where selections and their baselines stand as one."""
    selected = tested["bin"] == SELECTED
    kinds = {"two methods on the same bin": ~selected, "two selections or baselines": selected}
    return " or of ".join(words for words, rows in kinds.items() if rows.any())


def many(n: float, noun: str) -> str:
    """Counts things: 1 example, 12 examples."""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def every(n: int, noun: str) -> str:
    """Speaks of all things of a kind: the bin, both bins, all 3 bins."""
    return f"the {noun}" if n == 1 else f"{'both' if n == 2 else f'all {count(n)}'} {noun}s"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Lists things: icp; icp and random; icp, length and random."""
    words = list(words)
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
