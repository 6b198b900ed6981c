"""The figures. Each function takes tables and returns a matplotlib Figure; `save` writes it beside its
numbers.

Scores are method -> Series [N] indexed by id, NaN = not evaluated. `axis_labels` are method -> axis text
with its unit. `colors` is a cycle of #rrggbb.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from icprobe.analysis.headline import of_pair
from icprobe.artifacts import PACKAGE, atomic_path, write_csv
from icprobe.figures.style import (
    COLUMN,
    DENSITY_ABOVE,
    GREY,
    OKABE_ITO,
    PAGE,
    STYLE,
    density,
    grid,
    legend_below,
    length_ticks,
    levels_of,
    limits,
    look,
    name_axes,
    number,
    plain_ticks,
    title,
)


def save(figure: Figure, path: str | Path, table: pd.DataFrame, title: str = "", name: str = "") -> None:
    """Write the figure to path (.svg) and beside it, under the same stem, as PDF for papers and its numbers as CSV.

    title: what it shows, in a few words. name: that of its caption in captions/. Both go into the files' metadata. No
    file carries a date or random names: the same figure is the same file.
    """
    path = Path(path)
    said = caption(name) if name else ""
    metadata = {
        ".svg": {"Title": title, "Description": said, "Date": None},
        ".pdf": {"Title": title, "Subject": said, "CreationDate": None},
    }
    with rc_context(STYLE):
        for suffix, values in metadata.items():
            with atomic_path(path.with_suffix(suffix)) as aside:
                figure.savefig(aside, metadata={key: value for key, value in values.items() if value != ""})
    write_csv(path.with_suffix(".csv"), table)


def caption(name: str) -> str:
    """What a figure shows, as one paragraph; the same text stands in the reports."""
    text = (PACKAGE / "figures" / "captions" / f"{name}.rst").read_text(encoding="utf-8")
    return " ".join(text.replace("``", "").split())


def scatter(
    scores: Mapping[str, pd.Series],
    method_a: str,
    method_b: str,
    labels: pd.Series | None = None,
    correlations: pd.DataFrame | None = None,
    axis_labels: Mapping[str, str] | None = None,
    colors: Sequence[str] = OKABE_ITO,
) -> Figure:
    """One method's scores against another's: points, coloured by label; above 2,000 examples a density
    instead.

    labels: one label column indexed by id (null = unlabelled, in grey). correlations: the table of that
    name; the rows of this pair stand under the title. A long tail is cut off, and the note says how many
    lie outside.
    """
    both = _together(scores[method_a], scores[method_b])
    notes = [] if correlations is None else _correlation_notes(correlations, method_a, method_b)
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 0.86 * COLUMN))
        axes = figure.add_subplot()
        if len(both) > DENSITY_ABOVE:
            cells = density(axes, both["a"].to_numpy(), both["b"].to_numpy())
            figure.colorbar(cells, ax=axes, label="examples per cell", aspect=30, pad=0.02)
        elif len(both):
            _points(axes, both, labels, colors)
        outside = _cut_tails(axes, both)
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        title(axes, f"{method_a} against {method_b}", ", ".join([*notes, f"n = {len(both):,}", *outside]))
        name_axes(axes, _axis(method_a, axis_labels), _axis(method_b, axis_labels))
    return figure


def _points(axes: Axes, both: pd.DataFrame, labels: pd.Series | None, colors: Sequence[str]) -> None:
    style = {"s": 14 if len(both) <= 300 else 5, "alpha": 0.8 if len(both) <= 300 else 0.5, "linewidths": 0}
    if labels is None:
        axes.scatter(both["a"], both["b"], color=colors[0], **style)
        return
    of_examples = labels.reindex(both.index)
    unlabelled = both[of_examples.isna()]
    if len(unlabelled):
        text = f"unlabelled ({len(unlabelled)})"
        axes.scatter(unlabelled["a"], unlabelled["b"], color="#BBBBBB", label=text, **style)
    for k, kind in enumerate(sorted(of_examples.dropna().astype(str).unique())):
        chosen = both[of_examples.astype(str) == kind]
        axes.scatter(chosen["a"], chosen["b"], label=f"{kind} ({len(chosen)})", **look(k, colors), **style)
    legend = legend_below(axes.figure, title=labels.name, handletextpad=0.2)
    for handle in legend.legend_handles:
        handle.set(alpha=1, sizes=[14])


def _cut_tails(axes: Axes, both: pd.DataFrame) -> list[str]:
    """Keep a few extreme scores from squeezing all others; what lies outside then, as a note."""
    outside = np.zeros(len(both), dtype=bool)
    for values, set_limits in ((both["a"], axes.set_xlim), (both["b"], axes.set_ylim)):
        low, high = limits(values.to_numpy()) if len(values) else (0, 0)
        if len(values) and (low > values.min() or high < values.max()):
            pad = 0.03 * (high - low)  # whole markers at the edges
            set_limits(low - pad, high + pad)
            outside |= ((values < low - pad) | (values > high + pad)).to_numpy()
    return [f"{outside.sum():,} outside"] if outside.any() else []


def _correlation_notes(correlations: pd.DataFrame, method_a: str, method_b: str) -> list[str]:
    rows = of_pair(correlations, method_a, method_b).set_index("statistic")
    notes = []
    if "spearman" in rows.index:
        row = rows.loc["spearman"]
        notes.append(f"Spearman {number(row['value'])} [{number(row['low'])}, {number(row['high'])}]")
    if "spearman_partial_length" in rows.index:
        notes.append(f"given length {number(rows.loc['spearman_partial_length', 'value'])}")
    return notes


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
            name_axes(axes, _axis(method, axis_labels), "examples", x_width=34)
    return figure


def _histogram(axes: Axes, values: np.ndarray, color: str) -> str:
    if not len(values):
        return "no scores"
    levels = levels_of(values)
    if levels is not None:
        places, counts = np.unique(values, return_counts=True)
        axes.bar(places, counts, width=0.85 * np.diff(levels).min(), color=color)
        return f"n = {len(values):,}"
    low, high = limits(values)
    axes.hist(values, bins=40 if len(values) > 1000 else 20, range=(low, high), color=color)
    outside = int(((values < low) | (values > high)).sum())
    return f"n = {len(values):,}" + (f", {outside:,} outside" if outside else "")


def length_scatter(
    scores: Mapping[str, pd.Series],
    n_target: pd.Series,
    axis_labels: Mapping[str, str] | None = None,
    correlations: Mapping[str, float] | None = None,
    colors: Sequence[str] = OKABE_ITO,
) -> Figure:
    """Each method's scores against response length, a panel per method; above 2,000 examples a density.

    n_target: tokens, indexed by id, on a log scale. correlations: method -> its Spearman correlation with
    length.
    """
    with rc_context(STYLE):
        figure, panels = grid(len(scores), height=1.8)
        for k, (axes, (method, score)) in enumerate(zip(panels, scores.items(), strict=True)):
            both = _together(n_target[n_target > 0], score)
            if len(both) > DENSITY_ABOVE:
                density(axes, both["a"].to_numpy(), both["b"].to_numpy(), log_x=True)
            else:
                color = colors[k % len(colors)]
                axes.scatter(both["a"], both["b"], s=6, alpha=0.7, linewidths=0, color=color)
            outside = _cut_tails(axes, both.assign(a=0.0))
            length_ticks(axes, both["a"].to_numpy())
            plain_ticks(axes.yaxis)
            known = correlations is not None and method in correlations
            spearman = [f"Spearman {number(correlations[method])}"] if known else []
            title(axes, method, ", ".join([*spearman, f"n = {len(both):,}", *outside]))
            name_axes(axes, "response length (tokens)", _axis(method, axis_labels), y_width=22)
    return figure


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
        image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
        for (a, b), value in np.ndenumerate(values):
            if a != b:
                color = "white" if abs(value) > 0.6 else "black"
                axes.text(b, a, number(value), ha="center", va="center", color=color, fontsize=6.5)
        axes.set_xticks(range(len(methods)), methods, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(methods)), methods)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        title(axes, f"Below: {name}\nAbove: {_statistic(above)}" if two else name)
        figure.colorbar(image, ax=axes, label="correlation", aspect=30, pad=0.02, ticks=[-1, -0.5, 0, 0.5, 1])
    return figure


def overlap_curve(overlaps: pd.DataFrame, colors: Sequence[str] = OKABE_ITO) -> Figure:
    """How much of each method's bins lies in ICP's bin of the same name, with chance dashed.

    overlaps: the table of that name, bins from left to right in its order. An empty bin has no point.
    """
    bins = list(dict.fromkeys(overlaps["bin"]))
    by_bin = overlaps.groupby("bin")
    sizes = by_bin["n"].max()
    chance = by_bin["chance"].first().where(sizes > 0).reindex(bins)
    places = np.arange(len(bins))
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 0.8 * COLUMN))
        axes = figure.add_subplot()
        for k, (method, rows) in enumerate(overlaps.groupby("method", sort=False)):
            axes.plot(places, rows.set_index("bin")["overlap"].reindex(bins), label=method, **look(k, colors))
        axes.plot(places, chance, color=GREY, linestyle="--", label="chance")
        axes.set_xticks(places, [f"{_bin(name)}\n{sizes[name]:,}" for name in bins])
        axes.set_xlim(-0.3, len(bins) - 0.7)
        axes.set_ylim(0, 1.03)
        axes.grid(axis="y")
        title(axes, "Agreement with the ICP bins")
        name_axes(axes, "bin (icp score) and its size (examples)", "share of the bin in ICP's bin")
        legend_below(figure, handlelength=2)
    return figure


def win_rate_bars(win_rates: pd.DataFrame, subset: str = "overall", colors: Sequence[str] = OKABE_ITO) -> Figure:
    """The win rate of each method in each bin, over all seeds, with its 95% interval.

    win_rates: the table of that name. The baseline trained on all data (method `all`) is a line with its
    interval as a band; 50% is where the base model and the fine-tuned one draw. An empty bin says so.
    """
    rows = win_rates[(win_rates["subset"] == subset) & (win_rates["seed"].astype(str) == "all")]
    baseline, rows = rows[rows["method"] == "all"], rows[rows["method"] != "all"]
    bins, methods = list(dict.fromkeys(rows["bin"])), list(dict.fromkeys(rows["method"]))
    bar = 0.8 / max(len(methods), 1)
    halo = [withStroke(linewidth=1.8, foreground="white")]  # an interval shows on a black bar, too
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE if len(bins) * len(methods) > 6 else COLUMN, 2.6))
        axes = figure.add_subplot()
        axes.axhline(50, color=GREY, linestyle="--", linewidth=0.8, label="draw")
        for row in baseline.itertuples():
            axes.axhspan(row.low, row.high, color="#EEEEEE", zorder=0)
            axes.axhline(row.win_rate, color=GREY, linewidth=0.8, label="all data")
        for k, method in enumerate(methods):
            found = rows[rows["method"] == method].set_index("bin").reindex(bins)
            places = np.arange(len(bins)) + (k - (len(methods) - 1) / 2) * bar
            rate = found["win_rate"].to_numpy(dtype=np.float64)
            # The maximum drops rounding: an interval clipped to [0, 100] still holds its rate.
            reach = np.maximum([rate - found["low"], found["high"] - rate], 0)
            hatch = "" if k < len(colors) else "////"
            style = {"color": colors[k % len(colors)], "hatch": hatch, "edgecolor": "white", "linewidth": 0}
            axes.bar(places, rate, 0.9 * bar, label=method, **style)
            line = {"ecolor": "#333333", "elinewidth": 0.8, "capsize": 1.5, "path_effects": halo}
            axes.errorbar(places, rate, yerr=reach, fmt="none", **line)
            for place in places[np.isnan(rate)]:
                text = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 5.5, "color": GREY}
                axes.text(place, 1, "empty", **text)
        axes.set_xticks(range(len(bins)), [_bin(name) for name in bins])
        axes.set_xlim(-0.55, len(bins) - 0.45)
        highest = pd.concat([rows["high"], rows["win_rate"], baseline["high"]]).max()
        axes.set_ylim(0, 60 if np.isnan(highest) else np.clip(1.08 * highest, 60, 102))
        axes.grid(axis="y")
        title(axes, "Win rate against the base model" + ("" if subset == "overall" else f", {subset}"))
        name_axes(axes, "bin (icp score)", "win rate (%), 95% interval")
        legend_below(figure, handlelength=1.5)
    return figure


def _together(a: pd.Series, b: pd.Series) -> pd.DataFrame:
    """The examples that both series have: columns a and b, indexed by id."""
    return pd.DataFrame({"a": a, "b": b}).dropna().astype(np.float64)


def _axis(method: str, axis_labels: Mapping[str, str] | None) -> str:
    return (axis_labels or {}).get(method, f"{method} score")


def _statistic(name: str) -> str:
    special = {"spearman_partial_length": "Spearman given length", "kendall": "Kendall τ-b"}
    return special.get(name, name.capitalize())


def _bin(name: str) -> str:
    """`le-0.50` and `<=0.5` as ≤ 0.5."""
    for prefix, sign in {"le-": "≤ ", "gt-": "> ", "<=": "≤ ", ">": "> "}.items():
        if name.startswith(prefix):
            return f"{sign}{float(name.removeprefix(prefix)):g}"
    return name
