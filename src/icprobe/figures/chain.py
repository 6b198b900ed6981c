"""Correlations of the chain's links, and the error of one_step/η against influence, by step size."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from icprobe.figures.drawing import Drawn, Inputs
from icprobe.figures.style import BARS, GREY, STYLE, grid, legend_below, look, name_axes, title
from icprobe.formatting import OKABE_ITO, link_words

LINKS = ("icp~one_step", "one_step~influence")
ENDS = "icp~influence"
LEVELS = {"element": "Element by element", "example": "Example by example (scores)"}


def draw(inputs: Inputs) -> Drawn:
    table = inputs.over_all_tasks("chain")
    table = table[table["level"].isin(LEVELS)]
    return Drawn(chain_curves(table, inputs.params.colors), table, "The chain icp, one_step, influence")


def chain_curves(table: pd.DataFrame, colors: Sequence[str] = OKABE_ITO) -> Figure:
    """The links' rank correlations by step size, of all cells and of the scores; and the error of one_step/η, log–log.

    table: rows of chain.csv of one model over all tasks, levels element and example. The correlation of icp and
    influence, which knows no step size, is a line with its interval as a band.
    """
    with rc_context(STYLE):
        figure, panels = grid(3, height=2.1)
        for axes, (level, text) in zip(panels, LEVELS.items(), strict=False):
            rows = table[(table["level"] == level) & (table["statistic"] == "spearman")]
            for row in rows[rows["link"] == ENDS].itertuples():
                axes.axhspan(row.low, row.high, color="#E6E6E6", zorder=0)
                axes.axhline(row.value, color=GREY, linewidth=0.8, linestyle="--", label=link_words(ENDS))
            for k, link in enumerate(LINKS):
                found = rows[rows["link"] == link].sort_values("learning_rate")
                _with_intervals(axes, found, label=link_words(link), **look(k, colors))
            n = f"n = {rows['n'].max():,} {'cells' if level == 'element' else 'examples'}" if len(rows) else ""
            axes.set_ylim(min(-0.05, 1.1 * rows["low"].min()) if rows["low"].notna().any() else -0.05, 1.05)
            axes.grid(axis="y")
            title(axes, text, n)
            name_axes(axes, "step size η", "Spearman correlation")
        axes, rows = panels[-1], table[table["statistic"] == "relative_error"].sort_values("learning_rate")
        _with_intervals(axes, rows, **look(1, colors))
        positive = rows["value"][rows["value"] > 0]
        if len(positive):
            axes.set_yscale("log")
            # Whole decades: a single point has an axis, too.
            axes.set_ylim(10 ** np.floor(np.log10(positive.min() / 1.3)), 10 ** np.ceil(np.log10(positive.max() * 1.3)))
            axes.yaxis.set_major_locator(LogLocator(numticks=6))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
        title(axes, "Error of one_step/η", _error_note(rows))
        name_axes(axes, "step size η", "relative to influence")
        for axes in panels:
            _step_axis(axes, rows["learning_rate"].to_numpy())
        handles, texts = panels[0].get_legend_handles_labels()
        if handles:
            legend_below(figure, handles=handles, labels=texts, handlelength=2)
    return figure


def _with_intervals(axes: Axes, rows: pd.DataFrame, **style) -> None:
    value = rows["value"].to_numpy(dtype=np.float64)
    reach = np.maximum([value - rows["low"], rows["high"] - value], 0)  # drops rounding
    axes.errorbar(rows["learning_rate"], value, yerr=reach, **BARS, **style)


def _step_axis(axes: Axes, steps: np.ndarray) -> None:
    if len(steps):  # nothing at all has no logarithm
        axes.set_xscale("log")
        axes.set_xlim(steps.min() / 3, steps.max() * 3)
        axes.xaxis.set_major_locator(LogLocator(numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())


def _error_note(rows: pd.DataFrame) -> str:
    """What the error does below the step size at which it is least, where that is not the smallest."""
    if rows["value"].isna().all():
        return "undefined: influence is 0"
    best = rows.loc[rows["value"].idxmin(), "learning_rate"]
    if len(rows) > 1 and best > rows["learning_rate"].min():
        return f"least at η = {best:g}, rounding below"
    return f"least at η = {best:g}" if len(rows) > 1 else f"at η = {best:g}"
