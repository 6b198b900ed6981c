"""How well each method agrees with each truth, against what it costs: seconds, and operations."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from icprobe.analysis.frontier import words
from icprobe.analysis.headline import RIVALS
from icprobe.figures.drawing import Drawn, Inputs
from icprobe.figures.style import BARS, GREY, PAGE, STYLE, legend_below, looks, name_axes, title
from icprobe.formatting import OKABE_ITO

# Cost -> its axis, and the column that says who is on the frontier.
COSTS = {
    "seconds": ("seconds, measured", "pareto"),
    "operations": ("floating-point operations, counted", "pareto_operations"),
}
LINES = dict(zip(RIVALS, (":", "-."), strict=True))


def draw(inputs: Inputs) -> Drawn:
    table = inputs.over_all_tasks("frontier")
    figure = frontier_points(table, inputs.params.colors, inputs.params.methods, inputs.params.tail_patch_unit)
    return Drawn(figure, table, "Agreement with each truth against cost")


def frontier_points(
    table: pd.DataFrame, colors: Sequence[str] = OKABE_ITO, known: Sequence[str] = (), tail_patch_unit: str = "nats"
) -> Figure:
    """A row of panels for each truth: agreement with its 95% interval against seconds (left) and operations (right).

    table: rows of frontier.csv of one model. known: the methods of the experiment, whose order gives the looks. The
    stairs join the methods on the frontier. Rivals, which cost nothing, and a known ceiling of correlations are lines.
    """
    methods = table[~table["method"].isin(RIVALS) & table["value"].notna()]
    truths = list(dict.fromkeys(methods["truth"]))
    styles = looks(list(dict.fromkeys(methods["method"])), known, colors)
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 1.9 * max(len(truths), 1) + 0.3))
        panels = figure.subplots(max(len(truths), 1), len(COSTS), squeeze=False, sharey="row", sharex="col")
        if not truths:
            for axes in panels.ravel():
                axes.set_axis_off()
            title(panels[0, 0], "No method's agreement is defined")
            return figure
        for row, truth in zip(panels, truths, strict=True):
            for axes, (cost, (label, on_frontier)) in zip(row, COSTS.items(), strict=True):
                rows = methods[(methods["truth"] == truth) & methods[cost].notna()]
                _lines(axes, table[table["truth"] == truth])
                _points(axes, rows, cost, styles)
                _stairs(axes, rows[rows[on_frontier].astype(bool)].sort_values(cost), cost)
                axes.grid(axis="y")
                name = words(truth, tail_patch_unit) if axes is row[0] else ""
                name_axes(axes, label if truth == truths[-1] else "", name, y_width=24)
                if rows.empty:
                    title(axes, "No method's cost is known")
        for column, cost in zip(panels.T, COSTS, strict=True):
            _log(column[0], methods[cost].dropna())
        handles = {
            text: handle
            for axes in panels.ravel()
            for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        if handles:
            legend_below(figure, handles=list(handles.values()), labels=list(handles), handlelength=1.5)
    return figure


def _points(axes: Axes, rows: pd.DataFrame, cost: str, styles: dict[str, dict[str, str]]) -> None:
    for row in rows.to_dict("records"):
        reach = [[max(row["value"] - row["low"], 0)], [max(row["high"] - row["value"], 0)]]
        axes.errorbar(row[cost], row["value"], yerr=reach, fmt="none", ecolor=styles[row["method"]]["color"], **BARS)
        axes.plot(row[cost], row["value"], linestyle="none", label=row["method"], **styles[row["method"]])


def _stairs(axes: Axes, rows: pd.DataFrame, cost: str) -> None:
    """What is reached at most for a cost or less."""
    if len(rows):
        axes.step(
            rows[cost], rows["value"], where="post", color=GREY, linewidth=0.8, zorder=1, label="best for its cost"
        )


def _lines(axes: Axes, rows: pd.DataFrame) -> None:
    for row in rows[rows["method"].isin(RIVALS) & rows["value"].notna()].itertuples():
        axes.axhline(row.value, color=GREY, linewidth=0.8, linestyle=LINES[row.method], label=f"counting {row.method}")
    ceiling = rows["ceiling"].max()
    if ceiling == ceiling and not rows["truth"].iloc[0].startswith("auc "):
        axes.axhline(ceiling, color=GREY, linewidth=0.8, linestyle="--", label="ceiling")


def _log(axes: Axes, values: pd.Series) -> None:
    """A log axis, linear next to 0 where a method costs nothing."""
    positive = values[values > 0]
    if positive.empty:
        return
    if (values <= 0).any():
        first, last = np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max()))
        axes.set_xscale("symlog", linthresh=10**first)
        # Its own ticks go on below the threshold, where they lie over that of 0.
        axes.xaxis.set_major_locator(FixedLocator([0, *10 ** np.arange(first, last + 1)]))
    else:
        axes.set_xscale("log")
        narrow = positive.max() < 50 * positive.min()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("e+", "e")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08)
    axes.autoscale(axis="x")
