"""GPU hours, jobs and storage of large experiments, reckoned from operation counts: nothing here is measured.

python -m benchmarks.reckoning [--page docs/scaling.md]

A multiplication with an addition counts as two operations. P: weights of the linear layers in the blocks; V: those of
the LM head. A token costs 2 P forward, 2 P for the gradients of inputs and 2 P for those of weights.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tables

# Operations per second on one card: an H200's with Pythia-1b's shape, in bfloat16 (benchmarks/results/gpu.json);
# one_step computes in float32, and its rate is assumed: 45% of 67 TFLOP/s.
RATES = {"icp": 385e12, "influence": 74e12, "influence_mean": 220e12, "one_step": 30e12}
BUDGET = 60e9  # attribution.memory_budget_gb on a card of 80 GB
SHARD_HOURS = 0.5


@dataclass(frozen=True)
class Experiment:
    """examples × tasks with a model; tokens of an example and of a task (query and response), and of its response."""

    name: str
    examples: float
    tasks: int
    blocks: float  # P
    head: float  # V
    factors: float  # elements of a token's inputs and output gradients in all linear layers, shared inputs once
    depth: int
    hidden: int
    example_tokens: int = 300
    task_tokens: int = 178
    response_tokens: int = 155

    @property
    def pairs(self) -> float:
        return self.examples * self.tasks

    @property
    def behind(self) -> float:
        """Operations of one task behind one context: forward, and the head where a response token is predicted."""
        return 2 * self.blocks * self.task_tokens + 2 * self.head * self.response_tokens


def icp(e: Experiment) -> float:
    """Each example once, each task behind each example. What tasks begin with alike is not taken off."""
    return e.examples * 2 * e.blocks * e.example_tokens + e.pairs * e.behind


def influence(e: Experiment) -> float:
    """The cheapest of three ways to share the budget, and products.

    The tasks' gradients are held in parts, with a pass over the examples for each, or the examples' with passes over
    the tasks; or the tasks' factors in parts of half the budget, with examples in step (a forward pass more) in the
    other half, and the tasks' gradients formed anew for each group of these.
    """
    examples, tasks = e.examples * e.example_tokens, e.tasks * e.task_tokens  # tokens
    tasks_held = math.ceil(e.tasks * e.blocks * 2 / BUDGET) * examples * 6 * e.blocks
    examples_held = (math.ceil(e.examples * e.blocks * 2 / BUDGET) * tasks + examples) * 6 * e.blocks
    tiles = math.ceil(tasks * e.factors * 2 / (BUDGET / 2))
    groups = math.ceil(examples * (e.hidden * (e.depth + 1) + e.factors / e.depth) * 2 / (BUDGET / 2))
    in_step = (tiles * examples * 8 + groups * tasks * 2) * e.blocks
    return min(tasks_held, examples_held, in_step) + e.pairs * 2 * e.blocks


def influence_mean(e: Experiment) -> float:
    """Forward, backward for inputs, and the contraction with the tasks' summed gradient."""
    return (e.examples * e.example_tokens + e.tasks * e.task_tokens) * 6 * e.blocks


def one_step(e: Experiment) -> float:
    """An example's gradient, then each task with the changed weights, in float32."""
    return e.examples * 6 * e.blocks * e.example_tokens + e.pairs * e.behind


METHODS = {"icp": icp, "influence": influence, "influence_mean": influence_mean, "one_step": one_step}
PYTHIA = {"blocks": 16 * 12 * 2048**2, "head": 50_304 * 2048, "factors": 16 * 16 * 2048, "depth": 16, "hidden": 2048}
LLAMA = {
    "blocks": 32 * (4 * 4096**2 + 3 * 4096 * 11_008),
    "head": 32_000 * 4096,
    "factors": 32 * (8 * 4096 + 3 * 11_008),
    "depth": 32,
    "hidden": 4096,
}
EXPERIMENTS = [
    Experiment("52,002 × 100, Pythia-1b", 52_002, 100, **PYTHIA, example_tokens=89),
    Experiment("1 M × 1,000, 7B", 1e6, 1000, **LLAMA),
    Experiment("100 M × 100, Pythia-1b", 1e8, 100, **PYTHIA),
]


def hours(e: Experiment, method: str) -> float:
    """GPU hours of one method."""
    return METHODS[method](e) / RATES[method] / 3600


def shown(number: float) -> str:
    """Two digits, or all before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def size(number_of_bytes: float) -> str:
    for unit, divisor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number_of_bytes >= divisor:
            return f"{number_of_bytes / divisor:.3g} {unit}"
    return f"{number_of_bytes / 1e3:.3g} KB"


def table() -> str:
    """GPU hours and half-hour jobs of each method, then what a method's files hold."""
    rows = []
    for method in METHODS:
        found = [hours(e, method) for e in EXPERIMENTS]
        rows.append([f"`{method}`: GPU hours (jobs)"] + [f"{shown(h)} ({math.ceil(h / SHARD_HOURS):,})" for h in found])
    matrix = [e.pairs * 4 for e in EXPERIMENTS]
    rows += [
        ["a matrix, gathered", *map(size, matrix)],
        ["its shards beside it", *map(size, matrix)],
        ["in TMPDIR while it is gathered", *map(size, matrix)],
        ["a table of scores", *(size(e.examples * 20) for e in EXPERIMENTS)],
        ["all gradients of the tasks, bfloat16", *(size(e.tasks * e.blocks * 2) for e in EXPERIMENTS)],
    ]
    return tables.markdown(["", *(e.name for e in EXPERIMENTS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reckoning", description=__doc__.splitlines()[0])
    parser.add_argument("--page", default="docs/scaling.md", help="page whose table is filled")
    page = Path(parser.parse_args().page)
    print(table())
    if page.exists():
        page.write_text(tables.filled(page.read_text(encoding="utf-8"), {"reckoned": table()}), encoding="utf-8")


if __name__ == "__main__":
    main()
