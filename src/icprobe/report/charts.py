"""The report's charts as Vega-Lite specifications: made here with Altair, drawn in the browser by Vega.

Every view has a name of its own: Altair would number them through the process, and the bytes would differ from
one build to the next. Texts of the data are values, never names of fields.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import networkx as nx
import pandas as pd

from icprobe.formatting import DIVERGING, GREY, OKABE_ITO, UNLABELLED, duration, look
from icprobe.report.dag_layout import layers

FADED, INK = "#c8c8c8", "#1b1b1b"
COLUMNS = 4  # of names in a legend above a chart: twenty in a row would run past the page
STATISTICS = {
    "spearman": "Spearman",
    "spearman_partial_length": "Spearman given response length",
    "pearson": "Pearson",
    "kendall": "Kendall",
}
CONFIG = {
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "background": "transparent",
    "view": {"stroke": "#bbbbbb"},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": "#e8e8e8",
        "domainColor": "#777777",
        "tickColor": "#777777",
    },
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 220},
    "header": {"labelFontSize": 13, "labelFontWeight": "bold", "titleFontSize": 12},
    "text": {"fontSize": 12, "color": INK},
}


def _specification(chart: alt.TopLevelMixin, description: str) -> dict[str, Any]:
    specification = chart.properties(description=description).configure(**CONFIG).to_dict(validate=True)
    # Names an address that nothing here fetches; a reader who sees none need not wonder.
    specification.pop("$schema")
    return specification


def _scales(looks: Mapping[str, tuple[str, str]]) -> tuple[alt.Scale, alt.Scale]:
    """Scales of colour and shape for names with these looks."""
    colors, shapes = zip(*looks.values(), strict=True)
    return tuple(alt.Scale(domain=list(looks), range=list(ends)) for ends in (colors, shapes))


def heat_map(correlations: pd.DataFrame, methods: Sequence[str], model: str) -> dict[str, Any]:
    """Methods × methods, coloured by the correlation that the parameter `statistic` names.

    correlations: one model's rows of correlations.csv.
    """
    rows = correlations[["method_a", "method_b", "statistic", "value"]]
    mirrored = rows.rename(columns={"method_a": "method_b", "method_b": "method_a"})
    own = pd.DataFrame(
        [(method, method, statistic, 1.0) for method in methods for statistic in rows["statistic"].unique()],
        columns=rows.columns,
    )
    cells = pd.concat([rows, mirrored, own], ignore_index=True)
    cells["value"] = cells["value"].astype(float).round(4)
    shown = alt.param(name="statistic", value="spearman")
    base = (
        alt.Chart(cells)
        .add_params(shown)
        .transform_filter("datum.statistic == statistic")
        .encode(
            x=alt.X("method_a:N", sort=list(methods), title=None, axis=alt.Axis(labelAngle=-40)),
            y=alt.Y("method_b:N", sort=list(methods), title=None),
        )
    )
    color = alt.Color(
        "value:Q",
        title="Correlation",
        scale=alt.Scale(range=list(DIVERGING), domain=[-1, 1]),
        legend=alt.Legend(gradientLength=160, orient="right"),
    )
    cell = (
        base.mark_rect(stroke="white", invalid=None)
        .properties(name="cells")
        .encode(
            color=color,
            tooltip=[
                alt.Tooltip("method_a:N", title="method"),
                alt.Tooltip("method_b:N", title="against"),
                alt.Tooltip("value:Q", title="correlation", format=".3f"),
            ],
        )
    )
    text = (
        base.mark_text()
        .properties(name="numbers")
        .encode(
            text=alt.Text("value:Q", format=".2f"),
            color=alt.condition("abs(datum.value) > 0.65", alt.value("white"), alt.value(INK)),
        )
    )
    chart = alt.layer(cell, text).properties(width=alt.Step(54), height=alt.Step(36))
    return _specification(
        chart, f"Heat map of the correlations between methods, {model}. The table beside it holds the same numbers."
    )


def scatter(groups: Sequence[str], colors: Sequence[str] = OKABE_ITO) -> dict[str, Any]:
    """Score against score; the page fills the data set `examples` (i, id, x, y, group, shown) and the axis titles.

    groups: what the label's values are called, in the order of their looks; beside them an example may be "unlabelled".
    Parameters: `brush`, the interval that the reader drags; `picked`, the row whose text is shown.
    """
    looks = {group: look(k, colors) for k, group in enumerate(groups)}
    color_scale, shape_scale = _scales(looks | {"unlabelled": (UNLABELLED, "circle")})
    brush = alt.selection_interval(name="brush", mark=alt.BrushConfig(fill=colors[0], fillOpacity=0.08, stroke=INK))
    picked = alt.param(name="picked", value=-1)
    chart = (
        alt.Chart(alt.NamedData("examples"), name="scatter")
        .mark_point(filled=True)
        .encode(
            x=alt.X(
                "x:Q",
                scale=alt.Scale(zero=False, nice=True),
                axis=alt.Axis(tickCount=5, labelOverlap="greedy", labelSeparation=8),
            ),
            y=alt.Y("y:Q", scale=alt.Scale(zero=False, nice=True)),
            color=alt.condition(
                "datum.shown",
                alt.Color(
                    "group:N",
                    title=None,
                    scale=color_scale,
                    legend=alt.Legend(orient="top", columns=COLUMNS, values=list(groups)),
                ),
                alt.value(FADED),
            ),
            shape=alt.Shape("group:N", title=None, scale=shape_scale),
            opacity=alt.condition("datum.shown || datum.i == picked", alt.value(0.75), alt.value(0.35)),
            size=alt.condition("datum.i == picked", alt.value(190), alt.value(40)),
            stroke=alt.condition("datum.i == picked", alt.value(INK), alt.value(None)),
            strokeWidth=alt.value(2.5),
            tooltip=[
                alt.Tooltip("id:N", title="example"),
                alt.Tooltip("x:Q", title="horizontal", format=".4~g"),
                alt.Tooltip("y:Q", title="vertical", format=".4~g"),
            ],
        )
        .add_params(brush, picked)
        .properties(width="container", height=340)
    )
    return _specification(
        chart,
        "Scatter plot of two scores, one point for each example. The table below lists the same examples, and the "
        "fields above limit it by score as dragging over the plot does.",
    )


def effects() -> dict[str, Any]:
    """One example's effect on every task, methods side by side; the page fills `effects` (task, text, method, column,
    effect, direction, order)."""
    bars = (
        alt.Chart(alt.NamedData("effects"), name="effects")
        .mark_bar()
        .encode(
            x=alt.X("effect:Q", title="effect", axis=alt.Axis(tickCount=3, format=".3~g")),
            y=alt.Y(
                "task:N",
                sort=alt.EncodingSortField("order", op="min"),
                title=None,
                axis=alt.Axis(labelLimit=120, grid=False),
            ),
            color=alt.Color(
                "direction:N",
                title=None,
                scale=alt.Scale(domain=["helps", "hurts"], range=[DIVERGING[-2], DIVERGING[1]]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[
                alt.Tooltip("task:N", title="task"),
                alt.Tooltip("text:N", title="asks"),
                alt.Tooltip("method:N", title="method"),
                alt.Tooltip("effect:Q", title="effect", format=".3~g"),
            ],
            column=alt.Column("column:N", title=None, sort=None, header=alt.Header(labelLimit=160)),
        )
        .properties(width=120, height=alt.Step(15))
        .resolve_scale(x="independent")
    )
    return _specification(
        bars, "Bar chart of the example's effect on every task by each method. The table below it holds the numbers."
    )


def win_rates(
    rows: pd.DataFrame, methods: Sequence[str], model: str, colors: Sequence[str] = OKABE_ITO
) -> dict[str, Any]:
    """Win rate with its interval, one line for each condition.

    rows: condition, method, win_rate, low, high. methods: all of the experiment, whose order gives the looks; the
    baseline trained on all data is none of them.
    """
    known = list(dict.fromkeys([*methods, *rows["method"]]))
    looks = {method: look(k, colors) for k, method in enumerate(known) if method in set(rows["method"])}
    color_scale, shape_scale = _scales(looks | ({"all": (GREY, "circle")} if "all" in looks else {}))
    base = alt.Chart(rows).encode(
        y=alt.Y("condition:N", sort=list(rows["condition"]), title=None, axis=alt.Axis(labelLimit=170, grid=False)),
        color=alt.Color("method:N", scale=color_scale, legend=None),
    )
    interval = (
        base.mark_rule(strokeWidth=2)
        .encode(
            x=alt.X(
                "low:Q",
                title="Win rate against the base model, %",
                scale=alt.Scale(zero=False, nice=True),
                axis=alt.Axis(tickCount=6),
            ),
            x2="high:Q",
        )
        .properties(name="intervals")
    )
    point = (
        base.mark_point(filled=True, size=80, opacity=1)
        .encode(
            x="win_rate:Q",
            shape=alt.Shape("method:N", scale=shape_scale, legend=None),
            tooltip=[
                "condition:N",
                alt.Tooltip("win_rate:Q", title="win rate, %", format=".1f"),
                alt.Tooltip("low:Q", format=".1f"),
                alt.Tooltip("high:Q", format=".1f"),
            ],
        )
        .properties(name="points")
    )
    even = (
        alt.Chart(pd.DataFrame({"x": [50]}), name="even").mark_rule(strokeDash=[5, 4], color="#555555").encode(x="x:Q")
    )
    # A step would need another kind of fitting than the width of the page.
    chart = alt.layer(even, interval, point).properties(width="container", height=24 * len(rows))
    return _specification(
        chart, f"Win rates with 95% intervals by bin and method, {model}. The table below holds the same numbers."
    )


def frontier(
    table: pd.DataFrame, methods: Sequence[str], model: str, colors: Sequence[str] = OKABE_ITO
) -> dict[str, Any]:
    """Agreement with the truth that the parameter `statistic` names, against seconds and against operations.

    table: one model's rows of frontier.csv, without rivals. methods: all of the experiment, whose order gives the
    looks.
    """
    known = list(dict.fromkeys([*methods, *table["method"]]))
    color_scale, shape_scale = _scales({method: look(k, colors) for k, method in enumerate(known)})
    shown = alt.param(name="statistic", value=table["truth"].iloc[0])
    sides = []
    for cost, title, on_frontier in (
        ("seconds", "seconds, measured", "pareto"),
        ("operations", "floating-point operations, counted", "pareto_operations"),
    ):
        rows = table[table[cost].notna() & table["value"].notna()]
        positive = rows.loc[rows[cost] > 0, cost]
        scale = alt.Scale(type="symlog", constant=float(positive.min()) if len(positive) else 1.0, padding=14)
        base = alt.Chart(rows).transform_filter("datum.truth == statistic")
        x = alt.X(f"{cost}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=4, format="~g"))
        y = alt.Y("value:Q", title="agreement", scale=alt.Scale(zero=False, nice=True))
        color = alt.Color("method:N", title=None, scale=color_scale, legend=alt.Legend(orient="top", columns=COLUMNS))
        stairs = (
            base.transform_filter(f"datum.{on_frontier}")
            .mark_line(interpolate="step-after", color=GREY, strokeWidth=1.2)
            .encode(x=x, y=y)
        )
        bars = base.mark_rule(strokeWidth=1.5).encode(
            x=x, y=alt.Y("low:Q", title="agreement"), y2="high:Q", color=color
        )
        points = base.mark_point(filled=True, size=80, opacity=1).encode(
            x=x,
            y=y,
            color=color,
            shape=alt.Shape("method:N", title=None, scale=shape_scale),
            tooltip=[
                "method:N",
                alt.Tooltip("value:Q", title="agreement", format=".3~g"),
                alt.Tooltip("low:Q", format=".3~g"),
                alt.Tooltip("high:Q", format=".3~g"),
                alt.Tooltip("seconds:Q", format=".3~g"),
                alt.Tooltip("operations:Q", format=".3~g"),
            ],
        )
        parts = {"stairs": stairs, "bars": bars, "points": points}
        layers = [part.properties(name=f"{name}-{cost}") for name, part in parts.items()]
        sides.append(alt.layer(*layers).properties(width=300, height=220))
    chart = alt.hconcat(*sides).add_params(shown)
    return _specification(
        chart,
        f"Agreement of each method with a truth against its cost, {model}. The table frontier.csv holds the numbers.",
    )


# --- the DAG ----------------------------------------------------------------------------------------------------

BOX_WIDTH, BOX_HEIGHT, COLUMN, LAYER = 164, 40, 174, 74  # the page shrinks a wider picture to its width


def dag(rules: pd.DataFrame, needs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The rules of the workflow as boxes in layers, darker the longer they took.

    rules: rule, jobs, seconds, peak_mb (NaN where not measured). needs: (rule, rule that it waits for). An edge that
    others imply is not drawn.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(rules["rule"])
    graph.add_edges_from((before, after) for after, before in needs if before != after)
    graph = nx.transitive_reduction(graph)
    place, paths = layers(graph)
    width = max(x for x, _ in place.values()) + 1
    depth = max(y for _, y in place.values()) + 1

    boxes = rules.assign(
        x=[place[rule][0] * COLUMN + COLUMN / 2 for rule in rules["rule"]],
        y=[place[rule][1] * LAYER + LAYER / 2 for rule in rules["rule"]],
    )
    boxes["left"], boxes["right"] = boxes["x"] - BOX_WIDTH / 2, boxes["x"] + BOX_WIDTH / 2
    boxes["top"], boxes["bottom"] = boxes["y"] - BOX_HEIGHT / 2, boxes["y"] + BOX_HEIGHT / 2
    boxes["time"] = [
        (f"{jobs} jobs · " if jobs > 1 else "") + duration(seconds)
        for jobs, seconds in zip(boxes["jobs"], boxes["seconds"], strict=True)
    ]
    measured = boxes["seconds"].fillna(0)
    boxes["share"] = (measured / max(measured.max(), 1e-9)).round(4)
    lines = pd.DataFrame(
        [
            (edge, step, place[node][0] * COLUMN + COLUMN / 2, y)
            for edge, path in enumerate(paths)
            for step, (node, y) in enumerate(_stations(path, place))
        ],
        columns=["edge", "step", "x", "y"],
    )
    ends = lines.groupby("edge").last()

    scales = {
        "x": alt.Scale(domain=[0, width * COLUMN], nice=False),
        "y": alt.Scale(domain=[0, depth * LAYER], nice=False, reverse=True),
    }
    x = alt.X("x:Q", scale=scales["x"], axis=None)
    y = alt.Y("y:Q", scale=scales["y"], axis=None)
    edges = (
        alt.Chart(lines, name="edges")
        .mark_line(color="#888888", strokeWidth=1.3, strokeJoin="round")
        .encode(x=x, y=y, detail="edge:N", order="step:Q")
    )
    heads = (
        alt.Chart(ends, name="heads").mark_point(
            shape="triangle-down", filled=True, size=45, color="#666666", yOffset=-3
        )
    ).encode(x=x, y=y)
    box = (
        alt.Chart(boxes, name="boxes")
        .mark_rect(stroke="#555555", cornerRadius=4)
        .encode(
            x=alt.X("left:Q", scale=scales["x"], axis=None),
            x2="right:Q",
            y=alt.Y("top:Q", scale=scales["y"], axis=None),
            y2="bottom:Q",
            color=alt.Color(
                "share:Q", scale=alt.Scale(range=["#ffffff", "#8ec3e6"], domain=[0, 1], interpolate="rgb"), legend=None
            ),
            tooltip=[
                "rule:N",
                "jobs:Q",
                alt.Tooltip("seconds:Q", format=",.1f"),
                alt.Tooltip("peak_mb:Q", title="peak MB", format=",.0f"),
            ],
        )
    )
    name = alt.Chart(boxes, name="names").mark_text(dy=-7, fontWeight="bold").encode(x=x, y=y, text="rule:N")
    time = alt.Chart(boxes, name="times").mark_text(dy=9, fontSize=11).encode(x=x, y=y, text="time:N")
    chart = alt.layer(edges, heads, box, name, time).properties(
        width=width * COLUMN, height=depth * LAYER, view=alt.ViewConfig(stroke=None)
    )
    return _specification(chart, "Diagram of the workflow's rules and what each waits for. The table below lists them.")


def _stations(path: list[Any], place: dict[Any, tuple[float, int]]) -> list[tuple[Any, float]]:
    """(node, y) along an edge, from the lower side of the first box to the upper side of the last; upright between
    the boxes of a layer that it passes."""
    ends = {node: place[node][1] * LAYER + LAYER / 2 for node in path}
    upper, lower = -BOX_HEIGHT / 2, BOX_HEIGHT / 2
    passed = [(node, ends[node] + side) for node in path[1:-1] for side in (upper, lower)]
    return [(path[0], ends[path[0]] + lower), *passed, (path[-1], ends[path[-1]] + upper)]
