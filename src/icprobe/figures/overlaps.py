"""Overlap of each method's bins with ICP's."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from icprobe.analysis.headline import distinct_bins
from icprobe.figures.drawing import Drawn, Inputs
from icprobe.figures.style import COLUMN, GREY, STYLE, legend_below, looks, name_axes, title
from icprobe.formatting import OKABE_ITO, bin_words


def draw(inputs: Inputs) -> Drawn:
    table = inputs.over_all_tasks("overlaps")
    figure = overlap_curve(table, inputs.params.colors, inputs.params.methods, inputs.rows("bins"))
    return Drawn(figure, table, "Overlap of the bins")


def overlap_curve(
    overlaps: pd.DataFrame,
    colors: Sequence[str] = OKABE_ITO,
    methods: Sequence[str] = (),
    bins: pd.DataFrame | None = None,
) -> Figure:
    """How much of each method's bins lies in ICP's bin of the same name, with 95% intervals, and chance dashed.

    overlaps: the table of that name, bins from left to right in its order; equal bins are one. An empty bin has no
    point. methods: those of the experiment, whose order gives the looks. bins: bins.csv, which tells bins apart of
    which icp has evaluated the same examples.
    """
    equal = distinct_bins(overlaps, bins)
    bins = list(equal)
    by_bin = overlaps.groupby("bin")
    sizes = by_bin["n"].max()
    chance = by_bin["chance"].first().where(sizes > 0).reindex(bins)
    places = np.arange(len(bins))
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 0.8 * COLUMN))
        axes = figure.add_subplot()
        styles = looks(overlaps["method"].unique(), methods, colors)
        # Side by side, so that no interval hides another.
        beside = dict(zip(styles, np.linspace(-0.15, 0.15, len(styles) + 2)[1:-1], strict=True))
        for method, rows in overlaps.groupby("method", sort=False):
            own = rows.set_index("bin").reindex(bins)
            axes.plot(places + beside[method], own["overlap"], label=method, **styles[method])
            axes.vlines(places + beside[method], own["low"], own["high"], color=styles[method]["color"], linewidth=0.7)
        # A line as wide as its bin, which one bin alone has too.
        axes.hlines(chance, places - 0.3, places + 0.3, color=GREY, linestyle="--", label="chance")
        axes.set_xticks(places, ["\n".join([*map(bin_words, equal[name]), f"{sizes[name]:,}"]) for name in bins])
        axes.set_xlim(-0.3, len(bins) - 0.7)
        axes.set_ylim(0, 1.03)
        axes.grid(axis="y")
        title(axes, "Agreement with the ICP bins")
        name_axes(axes, "bin and its size (examples)", "share of the bin in ICP's bin")
        legend_below(figure, handlelength=2)
    return figure
