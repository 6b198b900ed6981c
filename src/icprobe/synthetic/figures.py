"""The figures of the synthetic check. Each function takes its table and returns a matplotlib Figure."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icprobe.figures.style import STYLE, grid, legend_below, look, name_axes, plain_ticks, title
from icprobe.formatting import OKABE_ITO
from icprobe.synthetic.closed_forms import PAIRS

NAMES = {"icp": "icp", "influence": "influence", "closed_form": "closed form"}
AXES = {"noise": "noise σ", "dimension": "dimension of x"}


def correlations(
    table: pd.DataFrame, against: str, statistic: str = "spearman", colors: Sequence[str] = OKABE_ITO
) -> tuple[Figure, pd.DataFrame]:
    """The correlation of each pair of methods against noise or dimension, a panel for each value of the other.

    table: as `synthetic.correlations` returns it. Returns the rows that are drawn, too.
    """
    shown = table[table["statistic"] == statistic]
    other = next(name for name in AXES if name != against)
    values, panels = sorted(shown[against].unique()), sorted(shown[other].unique())
    lowest = np.nanmin([0.5, np.floor(10 * shown["low"].min()) / 10])
    with rc_context(STYLE):
        figure, axes_of = grid(len(panels), height=1.9)
        for axes, panel in zip(axes_of, panels, strict=True):
            for k, (a, b) in enumerate(PAIRS):
                in_pair = (shown["method_a"] == a) & (shown["method_b"] == b) & (shown[other] == panel)
                rows = shown[in_pair].set_index(against).reindex(values)
                places = np.arange(len(values)) + 0.08 * (k - 1)  # intervals side by side
                reach = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
                axes.errorbar(
                    places,
                    rows["value"],
                    yerr=np.maximum(reach, 0),
                    elinewidth=0.8,
                    markersize=3,
                    label=_pair(a, b),
                    **look(k, colors),
                )
            _ordered_axis(axes, values)
            axes.set_ylim(lowest, 1.03)
            plain_ticks(axes.yaxis)
            axes.grid(axis="y")
            title(axes, f"{'d' if other == 'dimension' else 'σ'} = {panel:g}")
            name_axes(axes, AXES[against], statistic.capitalize())
        _legend_of_first(figure, axes_of)
    return figure, shown


def learning(table: pd.DataFrame, colors: Sequence[str] = OKABE_ITO) -> Figure:
    """The transformer's squared error against the points in its prompt, the best predictor's dashed, over Var(y).

    table: `dimension`, `noise`, `n_context`, `squared_error`, `optimal_squared_error`.
    """
    noise = sorted(table["noise"].unique())
    with rc_context(STYLE):
        figure, axes_of = grid(table["dimension"].nunique(), height=1.9)
        for axes, (dimension, rows) in zip(axes_of, table.groupby("dimension", sort=True), strict=True):
            for k, sigma in enumerate(noise):
                curve = rows[rows["noise"] == sigma]
                variance = dimension + sigma**2  # of y: the error of knowing nothing
                style = {**look(k, colors), "markersize": 2.5}
                axes.plot(curve["n_context"], curve["squared_error"] / variance, label=f"σ = {sigma:g}", **style)
                best = curve["optimal_squared_error"] / variance
                axes.plot(curve["n_context"], best, linestyle="--", color=style["color"])
            axes.set_ylim(0)
            plain_ticks(axes.xaxis, whole=True)
            plain_ticks(axes.yaxis)
            axes.grid(axis="y")
            title(axes, f"d = {dimension}")
            name_axes(axes, "points in the prompt", "squared error / variance of y", y_width=20)
        axes_of[0].plot([], [], linestyle="--", color="black", label="ridge regression")
        _legend_of_first(figure, axes_of)
    return figure


def _ordered_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set_xlim(-0.4, len(values) - 0.6)


def _legend_of_first(figure: Figure, axes_of: Sequence[Axes]) -> None:
    """One legend for all panels, which show the same lines."""
    for axes in axes_of[1:]:
        for artist in [*axes.lines, *axes.containers]:
            artist.set_label("_")
    legend_below(figure)


def _pair(a: str, b: str) -> str:
    return f"{NAMES[a]}, {NAMES[b]}"
