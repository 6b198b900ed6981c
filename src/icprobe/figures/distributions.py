"""How each method's scores are distributed."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icprobe.figures.drawing import Drawn, Inputs
from icprobe.figures.scores import axis_label
from icprobe.figures.style import STYLE, grid, levels_of, limits, name_axes, plain_ticks, title
from icprobe.formatting import OKABE_ITO


def draw(inputs: Inputs) -> Drawn:
    figure = distributions(inputs.scores, inputs.params.axis_labels, inputs.params.colors)
    return Drawn(figure, pd.DataFrame(inputs.scores).reset_index(), "Distributions of the scores")


def distributions(
    scores: Mapping[str, pd.Series],
    axis_labels: Mapping[str, str] | None = None,
    colors: Sequence[str] = OKABE_ITO,
) -> Figure:
    """One histogram per method, each on its own scale.

    Scores of few distinct values get one bar per value. A long tail is cut off, and the panel says how many
    examples lie outside.
    """
    with rc_context(STYLE):
        figure, panels = grid(len(scores), height=1.6)
        for k, (axes, (method, score)) in enumerate(zip(panels, scores.items(), strict=True)):
            values = score.dropna().to_numpy(dtype=np.float64)
            title(axes, method, _histogram(axes, values, colors[k % len(colors)]))
            plain_ticks(axes.xaxis)
            plain_ticks(axes.yaxis, 4, whole=True)
            name_axes(axes, axis_label(method, axis_labels), "examples", x_width=34)
    return figure


def _histogram(axes: Axes, values: np.ndarray, color: str) -> str:
    if not len(values):
        return "no scores"
    levels = levels_of(values)
    if levels is not None:
        counts = np.bincount(np.searchsorted(levels, values, side="right") - 1)
        axes.bar(levels, counts, width=0.85 * np.diff(levels).min(), color=color)
        return f"n = {len(values):,}"
    low, high = limits(values)
    axes.hist(values, bins=40 if len(values) > 1000 else 20, range=(low, high), color=color)
    outside = int(((values < low) | (values > high)).sum())
    return f"n = {len(values):,}" + (f", {outside:,} outside" if outside else "")
