"""icp against influence by model and by domain of task."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from icprobe.analysis.domains import sweep_table
from icprobe.figures.drawing import Drawn, Inputs
from icprobe.figures.style import BARS, GREY, STYLE, grid, legend_below, look, name_axes, title
from icprobe.formatting import OKABE_ITO


def draw(inputs: Inputs) -> Drawn:
    table = sweep_table(*map(inputs.rows, ("correlations", "tasks", "train")), inputs.params.in_domain)
    figure = sweep_points(table, inputs.params.colors)
    return Drawn(figure, table, "icp against influence by model and by domain", [*map(_finding, table.itertuples())])


def _finding(row) -> str:
    tasks = f"{row.domain} {f'({row.kind}, ' if row.kind else '('}{row.n_tasks} tasks)"
    values = f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.model}, {tasks}: Spearman(icp, influence) = {values}"


def sweep_points(table: pd.DataFrame, colors: Sequence[str] = OKABE_ITO) -> Figure:
    """The rank correlation of icp and influence, a panel for each model, a line for each domain of tasks.

    table: as `domains.sweep_table` gives it. Colour and marker tell which domains are in-domain; the interval over
    all tasks is a band. An undefined correlation says so.
    """
    models = list(dict.fromkeys(table["model"]))
    longest = max((rows["domain"].nunique() for _, rows in table.groupby("model")), default=1)
    kinds = {
        "all": "all tasks",
        "in-domain": "in-domain tasks",
        "out-of-domain": "out-of-domain tasks",
        "": "tasks of one domain",
    }
    looks = {kind: look(k, colors) for k, kind in enumerate(["in-domain", "out-of-domain", ""])}
    looks["all"] = {"color": "#000000", "marker": "D"}
    lowest = min(-0.05, 1.1 * table["low"].min()) if table["low"].notna().any() else -0.05
    with rc_context(STYLE):
        figure, panels = grid(max(len(models), 1), height=0.95 + 0.2 * longest)
        if not models:
            panels[0].set_axis_off()
            title(panels[0], "No correlation of icp and influence")
            return figure
        for axes, model in zip(panels, models, strict=True):
            rows = table[table["model"] == model].reset_index(drop=True)
            axes.axvline(0, color=GREY, linewidth=0.6, linestyle="--")
            for row in rows[rows["kind"] == "all"].itertuples():
                axes.axvspan(row.low, row.high, color="#EEEEEE", zorder=0)
            for kind, found in rows.groupby("kind", sort=False):
                value = found["value"].to_numpy(dtype=np.float64)
                reach = np.maximum([value - found["low"], found["high"] - value], 0)
                axes.errorbar(value, found.index, xerr=reach, fmt="none", ecolor=looks[kind]["color"], **BARS)
                axes.plot(value, found.index, linestyle="none", label=kinds[kind], **looks[kind])
            for place in rows.index[rows["value"].isna()]:
                axes.text(0.02, place, "undefined", va="center", fontsize=6, color=GREY)
            names = [f"{row.domain} ({row.n_tasks})" for row in rows.itertuples()]
            axes.set_yticks(rows.index, names)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_xlim(lowest, 1.02)
            axes.grid(axis="x")
            title(axes, model, f"n = {rows['n'].max():,} examples")
            name_axes(axes, "Spearman, icp – influence", "domain (tasks)" if axes is panels[0] else "")
        every = {
            text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        legend_below(figure, handles=list(every.values()), labels=list(every), handletextpad=0.2)
    return figure
