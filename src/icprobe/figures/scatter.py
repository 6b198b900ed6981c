"""One method's scores against another's, coloured by a label."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icprobe.analysis.headline import of_pair
from icprobe.analysis.labels import kinds
from icprobe.figures.drawing import Drawn, Inputs
from icprobe.figures.scores import axis_label, cut_tails, together
from icprobe.figures.style import (
    COLUMN,
    DENSITY_ABOVE,
    STYLE,
    density,
    legend_below,
    look,
    name_axes,
    plain_ticks,
    title,
)
from icprobe.formatting import OKABE_ITO, UNLABELLED, estimate, fixed


def draw(inputs: Inputs, method_a: str, method_b: str) -> Drawn:
    scores = {method: inputs.scores[method] for method in (method_a, method_b)}
    labels = kinds(inputs.rows("train").set_index("id"), inputs.params.labels)
    correlations = inputs.over_all_tasks("correlations")
    figure = scatter(scores, method_a, method_b, labels, correlations, inputs.params.axis_labels, inputs.params.colors)
    shown = pd.DataFrame(scores).assign(**({} if labels is None else {labels.name: labels})).reset_index()
    return Drawn(figure, shown, f"{method_a} against {method_b}")


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
    both = together(scores[method_a], scores[method_b])
    notes = [] if correlations is None else _correlation_notes(correlations, method_a, method_b)
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 0.86 * COLUMN))
        axes = figure.add_subplot()
        if len(both) > DENSITY_ABOVE:
            cells = density(axes, both["a"].to_numpy(), both["b"].to_numpy())
            figure.colorbar(cells, ax=axes, label="examples per cell", aspect=30, pad=0.02)
        elif len(both):
            _points(axes, both, labels, colors)
        outside = cut_tails(axes, both)
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        title(axes, f"{method_a} against {method_b}", ", ".join([*notes, f"n = {len(both):,}", *outside]))
        name_axes(axes, axis_label(method_a, axis_labels), axis_label(method_b, axis_labels))
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
        axes.scatter(unlabelled["a"], unlabelled["b"], color=UNLABELLED, label=text, **style)
    for k, kind in enumerate(sorted(of_examples.dropna().astype(str).unique())):
        chosen = both[of_examples.astype(str) == kind]
        axes.scatter(chosen["a"], chosen["b"], label=f"{kind} ({len(chosen)})", **look(k, colors), **style)
    legend = legend_below(axes.figure, title=labels.name, handletextpad=0.2)
    for handle in legend.legend_handles:
        handle.set(alpha=1, sizes=[14])


def _correlation_notes(correlations: pd.DataFrame, method_a: str, method_b: str) -> list[str]:
    rows = of_pair(correlations, method_a, method_b).set_index("statistic")
    notes = []
    if "spearman" in rows.index:
        row = rows.loc["spearman"]
        notes.append(f"Spearman {estimate(row['value'], row['low'], row['high'])}")
    if "spearman_partial_length" in rows.index:
        notes.append(f"given length {fixed(rows.loc['spearman_partial_length', 'value'])}")
    return notes
