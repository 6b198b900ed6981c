"""What every contestant is: something prepared once, then timed round by round."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Outcome:
    """What one timed round gives.

    matrix: the attributions of examples `rows` and tasks `columns` (None: all), for the error column; None where there
    are none. seconds: what the whole work would take, where the round did a part of it and says how that was scaled.
    facts: numbers for the tables (operations, tokens).
    """

    matrix: np.ndarray | None = None
    rows: list[int] | None = None
    columns: list[int] | None = None
    seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


# Prepared outside the clock (imports, model, tokens of peers that take tokens); the call is what is timed.
Round = Callable[[], Outcome]


class CannotError(Exception):
    """A contestant that cannot do what a comparison asks for; its text is the row's reason."""


def spread(n: int, k: int) -> list[int]:
    """k of n indices, evenly spread; all where there are no more."""
    k = min(k, n)
    return [int((i + 0.5) * n / k) for i in range(k)]
