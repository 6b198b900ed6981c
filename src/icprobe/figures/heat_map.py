"""Rank correlations of all pairs of methods: plain below the diagonal, given response length above it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from icprobe.figures.drawing import Drawn, Inputs
from icprobe.figures.style import COLUMN, STYLE, title
from icprobe.formatting import DIVERGING, fixed

PLAIN, PARTIAL = "spearman", "spearman_partial_length"
COLORS = LinearSegmentedColormap.from_list("correlations", DIVERGING)


def draw(inputs: Inputs) -> Drawn:
    table = inputs.over_all_tasks("correlations")
    above = PARTIAL if PARTIAL in set(table["statistic"]) else None
    figure = heat_map(table, PLAIN, inputs.params.methods, above)
    return Drawn(figure, table[table["statistic"].isin([PLAIN, PARTIAL])], "Correlations of the methods")


def heat_map(
    correlations: pd.DataFrame,
    statistic: str = "spearman",
    methods: Sequence[str] | None = None,
    above: str | None = None,
) -> Figure:
    """The correlations of all pairs, the number in each cell; a dash where it is undefined.

    correlations: `method_a`, `method_b`, `statistic`, `value`. methods: which and in what order (default:
    as they appear). above: a second statistic for the cells above the diagonal (default: the same one).
    """
    methods = list(methods or dict.fromkeys([*correlations["method_a"], *correlations["method_b"]]))
    place = {method: k for k, method in enumerate(methods)}
    values = np.full((len(methods), len(methods)), np.nan)
    for row in correlations.itertuples():
        if row.method_a in place and row.method_b in place:
            a, b = sorted((place[row.method_a], place[row.method_b]))
            if row.statistic == statistic:
                values[b, a] = row.value
            if row.statistic == (above or statistic):
                values[a, b] = row.value
    name = _statistic(statistic)
    two = above is not None and above != statistic
    width = max(COLUMN, 1.3 + 0.5 * len(methods))
    with rc_context(STYLE):
        figure = Figure(figsize=(width, 0.86 * width))
        axes = figure.add_subplot(facecolor="#EEEEEE")
        if not methods:
            axes.set_axis_off()
            title(axes, "No pair of methods to compare")
            return figure
        image = axes.imshow(values, cmap=COLORS, vmin=-1, vmax=1)
        for (a, b), value in np.ndenumerate(values):
            if a != b:
                color = "white" if abs(value) > 0.6 else "black"
                axes.text(b, a, fixed(value), ha="center", va="center", color=color, fontsize=6.5)
        axes.set_xticks(range(len(methods)), methods, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(methods)), methods)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        title(axes, f"Below: {name}\nAbove: {_statistic(above)}" if two else name)
        figure.colorbar(image, ax=axes, label="correlation", aspect=30, pad=0.02, ticks=[-1, -0.5, 0, 0.5, 1])
    return figure


def _statistic(name: str) -> str:
    special = {"spearman_partial_length": "Spearman given length", "kendall": "Kendall τ-b"}
    return special.get(name, name.capitalize())
