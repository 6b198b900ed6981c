"""What the figures of scores share. Scores are method -> Series [N] indexed by id, NaN = not evaluated."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from icprobe.figures.style import limits


def together(a: pd.Series, b: pd.Series) -> pd.DataFrame:
    """The examples that both series have: columns a and b, indexed by id."""
    return pd.DataFrame({"a": a, "b": b}).dropna().astype(np.float64)


def cut_tails(axes: Axes, both: pd.DataFrame) -> list[str]:
    """Keep a few extreme scores from squeezing all others; what lies outside then, as a note."""
    outside = np.zeros(len(both), dtype=bool)
    for values, set_limits in ((both["a"], axes.set_xlim), (both["b"], axes.set_ylim)):
        low, high = limits(values.to_numpy()) if len(values) else (0, 0)
        if len(values) and (low > values.min() or high < values.max()):
            pad = 0.03 * (high - low)  # whole markers at the edges
            set_limits(low - pad, high + pad)
            outside |= ((values < low - pad) | (values > high + pad)).to_numpy()
    return [f"{outside.sum():,} outside"] if outside.any() else []


def axis_label(method: str, axis_labels: Mapping[str, str] | None) -> str:
    """What a method's axis is called: its text with the unit, where `axis_labels` has one."""
    return (axis_labels or {}).get(method, f"{method} score")
