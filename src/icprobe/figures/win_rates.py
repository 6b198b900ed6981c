"""Win rates of the fine-tuned models."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from icprobe.figures.drawing import Drawn, Inputs
from icprobe.figures.style import BARS, COLUMN, GREY, PAGE, STYLE, legend_below, looks, name_axes, title
from icprobe.formatting import OKABE_ITO, bin_words


def draw(inputs: Inputs) -> Drawn:
    table = inputs.rows("win_rates")
    figure = win_rate_points(table, colors=inputs.params.colors, known=inputs.params.methods)
    return Drawn(figure, table, "Win rates")


def win_rate_points(
    win_rates: pd.DataFrame, subset: str = "overall", colors: Sequence[str] = OKABE_ITO, known: Sequence[str] = ()
) -> Figure:
    """The win rate of each method in each bin, over all seeds, with its 95% interval.

    win_rates: the table of that name. known: the methods of the experiment, whose order gives the looks. The baseline
    trained on all data (method `all`) is a line with its interval as a band; 50% is where the base model and the
    fine-tuned one draw. An empty bin says so.
    """
    rows = win_rates[(win_rates["subset"] == subset) & (win_rates["seed"].astype(str) == "all")]
    baseline, rows = rows[rows["method"] == "all"], rows[rows["method"] != "all"]
    bins, methods = list(dict.fromkeys(rows["bin"])), list(dict.fromkeys(rows["method"]))
    styles = looks(methods, known, colors)
    step = 0.8 / max(len(methods), 1)
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE if len(bins) * len(methods) > 6 else COLUMN, 2.6))
        axes = figure.add_subplot()
        axes.axhline(50, color=GREY, linestyle="--", linewidth=0.8, label="draw")
        for row in baseline.itertuples():
            axes.axhspan(row.low, row.high, color="#EEEEEE", zorder=0)
            axes.axhline(row.win_rate, color=GREY, linewidth=0.8, label="all data")
        for k, method in enumerate(methods):
            found = rows[rows["method"] == method].set_index("bin").reindex(bins)
            places = np.arange(len(bins)) + (k - (len(methods) - 1) / 2) * step
            rate = found["win_rate"].to_numpy(dtype=np.float64)
            # The maximum drops rounding: an interval clipped to [0, 100] still holds its rate.
            reach = np.maximum([rate - found["low"], found["high"] - rate], 0)
            axes.errorbar(places, rate, yerr=reach, linestyle="none", label=method, **BARS, **styles[method])
            # A method may not be trained on each bin; selections, which stand as a bin, are no method's bin.
            asked = np.isin(bins, rows.loc[rows["method"] == method, "bin"])
            for place in places[np.isnan(rate) & asked]:
                text = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 5.5, "color": GREY}
                axes.text(place, 1, "none judged", **text)
        axes.set_xticks(range(len(bins)), [bin_words(name) for name in bins])
        axes.set_xlim(-0.55, len(bins) - 0.45)
        highest = pd.concat([rows["high"], rows["win_rate"], baseline["high"]]).max()
        axes.set_ylim(0, 60 if np.isnan(highest) else np.clip(1.08 * highest, 60, 102))
        axes.grid(axis="y")
        title(axes, "Win rate against the base model" + ("" if subset == "overall" else f", {subset}"))
        name_axes(axes, "bin", "win rate (%), 95% interval")
        legend_below(figure, handlelength=1.5)
    return figure
