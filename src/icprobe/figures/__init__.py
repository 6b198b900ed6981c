"""The registry of figures: a figure is one module here, by its name, and one line below.

Its module has `draw(inputs)`, or `draw(inputs, method_a, method_b)` where it is drawn for each pair of methods. It
takes what it reads from `drawing.Inputs` and returns a `drawing.Drawn`. Its caption is captions/{name}.rst. The
Snakefile reads this module, so nothing heavy is imported here.
"""

import importlib
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """What the workflow knows of a figure. It is drawn where all is made that it reads."""

    subcategory: str | None  # where it stands in Snakemake's report, and
    what: str  # its label there; {0} and {1} are the methods of a pair
    reads: tuple[str, ...]  # `scores`, `lengths`, `train`, `tasks`, or tables by their names
    group: str = "scores"  # one process draws it with all others of its group: those of a model's scores and tables,
    # those of its `judgements`, those of its retrainings (`truth`), or those of all models together (`sweep`)
    of_pairs: bool = False


# In the order in which the report shows them.
FIGURES = {
    "distributions": Figure("Scores", "distributions", ("scores",)),
    "heat_map": Figure("Agreement of the methods", "correlations", ("correlations",)),
    "overlaps": Figure("Agreement of the methods", "overlap of bins", ("overlaps", "bins")),
    "chain": Figure("Agreement of the methods", "the chain icp, one_step, influence", ("chain",)),
    "lengths": Figure("Scores", "against response length", ("scores", "lengths")),
    "scatter": Figure("Scores against scores", "{0} against {1}", ("scores", "correlations", "train"), of_pairs=True),
    "win_rates": Figure("Fine-tuned models", "win rates", ("win_rates",), "judgements"),
    "frontier": Figure("Retraining", "agreement against cost", ("frontier",), "truth"),
    "sweep": Figure(None, "icp against influence by model and domain", ("correlations", "tasks", "train"), "sweep"),
}


def module(name: str) -> str:
    """The module that draws a figure."""
    return f"{__name__}.{name}"


def stem(name: str, *pair: str) -> str:
    """A figure's name in paths and in W&B: that of the registry, or `scatter/icp--influence`."""
    return f"{name}/{'--'.join(pair)}" if pair else name


def draw(name: str, inputs: Any, *pair: str) -> Any:
    """A figure by its name. inputs: `drawing.Inputs`; returns a `drawing.Drawn`."""
    return importlib.import_module(module(name)).draw(inputs, *pair)
