"""icprobe's own engines as contestants, called as the workflow's jobs call them."""

from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.contestant import Outcome, Round
from benchmarks.counting import counted, icp_operations, influence_operations
from benchmarks.texts import Work
from icprobe.attribution import icp, icp_reverse, influence, influence_mean, one_step


def matrix_of(
    module: ModuleType, work: Work, model: Any, capabilities: Any, method: str, columns: int, **settings: Any
) -> dict:
    """{method: [N, columns]} in the examples' order."""
    made: dict[str, np.ndarray] = {}
    blocks = module.attribute(
        work.inputs(model, capabilities), method, work.runs, batch_tokens=work.batch_tokens, **settings
    )
    for name, rows, block in blocks:
        made.setdefault(name, np.full((len(work.train), columns), np.nan, np.float32))[rows] = block
    return made


def prepared(work: Work) -> tuple[Any, Any]:
    """The model, and what the engines can do with it."""
    model = work.load_model()
    return model, work.capabilities(model)


def icp_round(work: Work) -> Round:
    model, capabilities = prepared(work)

    def run() -> Outcome:
        with counted(model) as linear:
            matrix = matrix_of(icp, work, model, capabilities, "icp", len(work.tasks))["icp"]
        return Outcome(matrix, facts={"operations": icp_operations(work, model, linear), "tokens": linear["tokens"]})

    return run


def icp_reverse_round(work: Work) -> Round:
    model, capabilities = prepared(work)
    return lambda: Outcome(matrix_of(icp_reverse, work, model, capabilities, "icp_reverse", 1)["icp_reverse"])


def influence_round(work: Work) -> Round:
    """settings: methods (default influence alone), memory_budget_gb, show (whose matrix; default the first's)."""
    model, capabilities = prepared(work)
    methods = work.settings.get("methods", ["influence"])
    budget = work.settings.get("memory_budget_gb", 3.0)
    operations = influence_operations(work, model)

    def run() -> Outcome:
        made = matrix_of(
            influence, work, model, capabilities, methods[0], len(work.tasks), methods=methods, memory_budget_gb=budget
        )
        facts = {"operations": operations, "memory_budget_gb": budget}
        return Outcome(made[work.settings.get("show", methods[0])], facts=facts)

    return run


def influence_mean_round(work: Work) -> Round:
    model, capabilities = prepared(work)
    return lambda: Outcome(matrix_of(influence_mean, work, model, capabilities, "influence_mean", 1)["influence_mean"])


def one_step_round(work: Work) -> Round:
    model, capabilities = prepared(work)
    return lambda: Outcome(matrix_of(one_step, work, model, capabilities, "one_step", len(work.tasks))["one_step"])
