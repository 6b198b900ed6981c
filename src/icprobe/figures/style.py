"""The look that all figures share: paper widths, ticks and titles."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from icprobe import formatting
from icprobe.formatting import GREY, SHAPES

COLUMN, PAGE = 3.4, 7.0  # inches: one column of a paper, and the page
MARKERS = tuple(SHAPES.values())
BARS = {"elinewidth": 0.8, "capsize": 1.5}  # of errors, where points have an interval
DENSITY_ABOVE = 2000  # examples; more points than that hide each other
DENSITY_CELLS = 40
FEW_LEVELS = 101  # shares of 100 tasks
# Numbers that differ by less are one: relative to their size, which is rounding, or to the range of all.
ROUNDING, EQUAL_SHARE = 1e-12, 1e-9
NOTE_WIDTH = 58  # characters: a paper column less the y axis
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "svg.fonttype": "path",  # text as shapes: no viewer replaces the font and breaks the layout
    "svg.hashsalt": "icprobe",
    "pdf.fonttype": 42,  # TrueType, embedded: some publishers refuse Type 3
}


def grid(n: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of n panels, three in a row, each `height` inches high."""
    columns = min(n, 3)
    rows = -(-n // columns)
    figure = Figure(figsize=(PAGE * columns / 3 if n > 1 else COLUMN, height * rows + 0.2))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in panels[n:]:
        unused.remove()
    return figure, list(panels[:n])


def title(axes: Axes, text: str, note: str = "") -> None:
    """A bold title, and under it a small note in grey."""
    lines = fill(note.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"), NOTE_WIDTH)
    axes.set_title(text + "\n" * (lines.count("\n") + 1 if note else 0))
    if note:
        offset = {"xycoords": "axes fraction", "textcoords": "offset points"}
        drawn = axes.annotate(lines, (0, 1), (0, 4), fontsize=6.5, color=GREY, **offset)
        drawn.set_in_layout(False)  # a note longer than its panel must not squeeze the panel


def name_axes(axes: Axes, x: str, y: str, x_width: int = 48, y_width: int = 40) -> None:
    """Axis labels, broken into lines of so many characters that they stay beside their panel."""
    axes.set_xlabel(fill(x, x_width, break_long_words=False))
    axes.set_ylabel(fill(y, y_width, break_long_words=False))


def legend_below(figure: Figure, **options) -> Legend:
    """A legend under the figure, in as many columns as its width takes."""
    texts = [text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]]
    width = 72 * figure.get_figwidth()
    entry = 0.58 * STYLE["legend.fontsize"] * max(map(len, texts)) + 26  # points: letters, handle and gap
    columns = min(len(texts), max(1, int(width // entry)))
    return figure.legend(loc="outside lower center", ncols=columns, **options)


def look(k: int, colors: Sequence[str]) -> dict[str, str]:
    """Colour and marker of the k-th method or label, those that it has in the report's charts too."""
    color, shape = formatting.look(k, colors)
    return {"color": color, "marker": SHAPES[shape]}


def looks(methods: Sequence[str], known: Sequence[str], colors: Sequence[str]) -> dict[str, dict[str, str]]:
    """The look of each of these methods, which is that of its place among all known ones in every figure."""
    places = list(dict.fromkeys([*known, *methods]))
    return {method: look(places.index(method), colors) for method in methods}


def plain_ticks(axis: Axis, most: int = 5, whole: bool = False) -> None:
    """Few ticks on a linear axis, 20000 written as 20k: a separate power of ten would fall upon the label."""
    axis.set_major_locator(MaxNLocator(most, integer=whole))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, np.abs(axis.get_view_interval()).max())))


def length_ticks(axes: Axes, lengths: np.ndarray) -> None:
    """A log x axis in plain numbers, with ticks at 1, 2 and 5 where it covers little more than a decade."""
    axes.set_xscale("log")
    narrow = len(lengths) and lengths.max() < 50 * lengths.min()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def tick(value: float, largest: float) -> str:
    """A number on an axis that reaches to `largest`: 0.25, 8000, but 8k where the axis goes beyond 10k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value and largest >= max(size, 1e4):
            return f"{round(value / size, 10):g}{letter}".replace("-", "−")
    return f"{round(value, 10):g}".replace("-", "−")


def levels_of(values: np.ndarray) -> np.ndarray | None:
    """The distinct values in ascending order where they are few and recur, as shares of 12 tasks do; else
    None. Of values that rounding alone tells apart the lowest stands for all."""
    levels = np.unique(values)
    if len(levels):
        rounding = max(ROUNDING * np.abs(levels).max(), EQUAL_SHARE * (levels[-1] - levels[0]))
        levels = levels[np.diff(levels, prepend=-np.inf) > rounding]
    return levels if 1 < len(levels) <= FEW_LEVELS and len(levels) < len(values) / 2 else None


def limits(values: np.ndarray) -> tuple[float, float]:
    """The range to draw: all of it, unless the central 98% fill less than half; then those and a quarter
    more. Around values that are all one, half a unit."""
    low, high = values.min(), values.max()
    if high - low <= ROUNDING * max(abs(low), abs(high)):
        return low - 0.5, high + 0.5
    inner_low, inner_high = np.percentile(values, [1, 99])
    reach = inner_high - inner_low
    if reach == 0 or high - low <= 2 * reach:
        return low, high
    return max(low, inner_low - 0.25 * reach), min(high, inner_high + 0.25 * reach)


def density(axes: Axes, x: np.ndarray, y: np.ndarray, log_x: bool = False) -> QuadMesh:
    """How many examples fall in each cell, on a log colour scale; a score of few levels gets one cell per
    level."""
    edges = [_edges(x, log_x), _edges(y, False)]
    counts, *edges = np.histogram2d(x, y, bins=edges)
    shown = np.ma.masked_equal(counts.T, 0)
    # The thin edge closes the seams that viewers leave between neighbouring cells.
    return axes.pcolormesh(*edges, shown, norm=LogNorm(1), cmap="cividis", edgecolors="face", linewidth=0.1)


def _edges(values: np.ndarray, log: bool) -> np.ndarray:
    if log:
        low, high = values.min(), values.max()
        return np.geomspace(low / 1.05, high * 1.05, DENSITY_CELLS + 1)
    levels = levels_of(values)
    if levels is None:
        return np.linspace(*limits(values), DENSITY_CELLS + 1)
    half = np.diff(levels) / 2
    return np.concatenate([[levels[0] - half[0]], levels[:-1] + half, [levels[-1] + half[-1]]])
