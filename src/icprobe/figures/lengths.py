"""Each method's scores against response length."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from icprobe.figures.drawing import Drawn, Inputs
from icprobe.figures.scores import axis_label, cut_tails, together
from icprobe.figures.style import DENSITY_ABOVE, STYLE, density, grid, length_ticks, look, name_axes, plain_ticks, title
from icprobe.formatting import OKABE_ITO, fixed


def draw(inputs: Inputs) -> Drawn:
    n_target = inputs.rows("lengths").set_index("id")["n_target"]
    table = pd.DataFrame(inputs.scores).assign(n_target=n_target)
    spearman = table.corr(method="spearman")["n_target"].to_dict()
    figure = length_scatter(inputs.scores, n_target, inputs.params.axis_labels, spearman, inputs.params.colors)
    return Drawn(figure, table.reset_index(), "Scores against response length")


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
            both = together(n_target[n_target > 0], score)
            if len(both) > DENSITY_ABOVE:
                density(axes, both["a"].to_numpy(), both["b"].to_numpy(), log_x=True)
            else:
                axes.scatter(both["a"], both["b"], s=6, alpha=0.7, linewidths=0, **look(k, colors))
            outside = cut_tails(axes, both.assign(a=0.0))
            length_ticks(axes, both["a"].to_numpy())
            plain_ticks(axes.yaxis)
            known = correlations is not None and method in correlations
            spearman = [f"Spearman {fixed(correlations[method])}"] if known else []
            title(axes, method, ", ".join([*spearman, f"n = {len(both):,}", *outside]))
            name_axes(axes, "response length (tokens)", axis_label(method, axis_labels), y_width=22)
    return figure
