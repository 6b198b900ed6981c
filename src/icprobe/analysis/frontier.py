"""The frontier: how well each method agrees with each truth, against what the method costs.

A method is worth its cost where no other agrees at least as well for less.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from icprobe.analysis import headline
from icprobe.tables.checking import records
from icprobe.texts.conversations import messages_of

COLUMNS = ["truth", "method", "value", "low", "high", "ceiling", "seconds", "operations", "pareto", "pareto_operations"]
WORDS = {
    "lds": "LDS (rank correlation)",
    "removal": "removal of the best (nats)",
    "tail_patch": "tail patch, 10 best ({unit})",
    "leave_one_out": "leave-one-out (rank correlation)",
}
FREE = (*headline.RIVALS, "length", "random", "bm25")  # no model multiplies anything


def words(truth: str, unit: str = "nats") -> str:
    """What a truth is called on axes, with its unit. unit: of the tail patch, which is that of one_step's effects."""
    return WORDS[truth].format(unit=unit) if truth in WORDS else f"AUC of {truth.removeprefix('auc ')}"


def agreements(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Puts what each method reaches by each truth into one table: truth, method, value, low, high, ceiling.

    tables: name -> table, of lds, removal, leave_one_out, tail_patch and label_aucs those that there are, with the rows
    of one model. Their units differ: rank correlations for lds and leave_one_out, nats for removal, one_step's
    unit for tail_patch (10 best examples), an AUC for each label. ceiling: of correlations where it is known, of an
    AUC 1, else NaN.
    """
    found = []

    def add(truth: str, rows: pd.DataFrame, value: str, ceiling: float | None = None) -> None:
        for row in rows.to_dict("records"):
            limit = row.get("ceiling", np.nan) if ceiling is None else ceiling
            found.append((truth, row["method"], row[value], row["low"], row["high"], limit))

    for name in ("lds", "leave_one_out"):
        if name in tables:
            add(name, headline.of_set(tables[name]), "lds")
    if "removal" in tables:
        add("removal", headline.over_all_tasks(tables["removal"]), "loss")
    if "tail_patch" in tables:
        add("tail_patch", headline.tail_patch(tables["tail_patch"]), "effect")
    if "label_aucs" in tables:
        for label, rows in headline.good_against_others(tables["label_aucs"]).groupby("label", sort=False):
            add(f"auc {label}", rows, "auc", 1.0)
    return pd.DataFrame(found, columns=COLUMNS[:6])


def operations(method: str, *sizes: float, **more: Any) -> float:
    """Counts a method's floating-point operations, arguments as `work` takes them; NaN for one that is not known."""
    found = work(method, *sizes, **more)
    return np.nan if found is None else sum(found.values())


def work(
    method: str,
    parameters: float,
    examples: float,
    example_tokens: float,
    tasks: float,
    task_tokens: float,
    response_tokens: float,
    tried: float = 1.0,
    share: float = 1.0,
    read: Mapping[str, float] | None = None,
    checkpoints: int = 1,
    adapters: float = 0.0,
    dimension: int | None = None,
    squares: float = math.nan,
    cubes: float = math.nan,
) -> dict[str, float] | None:
    """Counts a method's floating-point operations by their kinds, which a machine does not do equally fast; None for a
    method that is not known here, such as external scores.

    Kinds: "read", passes forward; "gradients", passes forward and backward; "products", of the gradients of pairs;
    "steps", all that one_step does, in float32 with each example's update in the way.

    parameters: of the model, P; example_tokens, task_tokens: of all examples, of all tasks; response_tokens: of all
    examples' responses. A token costs 2 P forward
    and 4 P backward, as in `icprobe.workflow.work.operations`: attention over the context is left out, and that what
    tasks begin with alike is shared. icp and one_step take each task forward behind each example; influence,
    influence_log and cosine multiply the gradients of each pair, 2 P, influence_mean only with the tasks' sum, and
    self_influence takes the examples' alone. embedding reads examples and tasks once, perplexity the examples, ifd
    their responses once more, alone. tried: the share of all pairs that icp_budget evaluated. share: of the linear
    layers' weights, those that gradients are taken over; others cost no gradient, but the way back through them. read:
    tokens that a method takes forward, of those whose contexts were counted. checkpoints: of tracin and less, whose
    training is not counted. adapters: weights of less's adapters, beside P, which alone have gradients there;
    dimension: what these are projected to, if they are. squares, cubes: sums of n² and n³ over influence_ekfac's
    matrices of eigenvectors [n, n]. A token costs n² in a covariance, 2 n² where it is rotated into the basis;
    eigenvectors cost 9 n³. A damping costs what the method does, of which a sweep shares all but the products.
    """
    forward = 2 * parameters
    behind = forward * examples * task_tokens
    token = (2 + share) * forward
    over = share * adapters
    beside = (2 * forward + 4 * adapters + 2 * over) * (example_tokens + task_tokens)
    projected = (
        2 * dimension * (over * (examples + tasks) + examples * tasks) if dimension else 2 * over * examples * tasks
    )
    products = {"gradients": token * (example_tokens + task_tokens), "products": share * forward * examples * tasks}
    covariances = (2 * forward + squares) * example_tokens
    eigenvalues = (token + 2 * squares) * example_tokens + share * forward * examples
    rotations = 2 * squares * (example_tokens + task_tokens)
    read_once = {
        "icp": forward * example_tokens + behind,
        "icp_budget": forward * example_tokens + tried * behind,
        "embedding": forward * (example_tokens + task_tokens),
        "perplexity": forward * example_tokens,
        "ifd": forward * (example_tokens + response_tokens),
    } | {name: forward * count for name, count in (read or {}).items()}
    known: dict[str, dict[str, float]] = {name: {} for name in FREE} | {
        name: {"read": count} for name, count in read_once.items()
    }
    known |= dict.fromkeys(("influence", "influence_log", "cosine"), products) | {
        "influence_ekfac": {
            "gradients": covariances + 9 * cubes + eigenvalues + products["gradients"] + rotations,
            "products": products["products"],
        },
        "one_step": {"steps": token * example_tokens + behind},
        "tracin": {kind: checkpoints * count for kind, count in products.items()},
        "less": {"gradients": checkpoints * beside, "products": checkpoints * projected},
        "influence_mean": {"gradients": products["gradients"]},
        "self_influence": {"gradients": token * example_tokens},
    }
    return known.get(method)


def tokens(lengths: pd.DataFrame, train: pd.DataFrame, tasks: pd.DataFrame) -> tuple[float, float]:
    """Tokens of all examples, as they were counted, and of all tasks, by their characters at the examples' rate.

    lengths: id, n_query, n_target. No file holds the tasks' tokens; the rate has those of templates in it.
    """
    characters = [sum(map(_characters, records(table))) for table in (train, tasks)]
    of_examples = float(lengths[["n_query", "n_target"]].sum().sum())
    return of_examples, of_examples * characters[1] / characters[0] if characters[0] else np.nan


def _characters(row: Mapping[str, Any]) -> int:
    """How much a row says; of a conversation `instruction` and `output` are the last exchange alone."""
    said = [message.get("content") for message in messages_of(row)] if row.get("messages") else []
    return sum(len(str(text or "")) for text in said or map(row.get, ("instruction", "input", "output")))


def pareto(cost: pd.Series, value: pd.Series) -> pd.Series:
    """Whether no other method reaches at least this value for less, or more for as much; False where one is NaN."""
    known = cost.notna() & value.notna()
    cost, value = cost.where(known, np.inf).to_numpy(float), value.where(known, -np.inf).to_numpy(float)
    as_good = (value >= value[:, None]) & (cost <= cost[:, None])  # [method, other]
    better = as_good & ((value > value[:, None]) | (cost < cost[:, None]))
    return known & ~better.any(axis=1)


def frontier(agreed: pd.DataFrame, seconds: Mapping[str, float], operations: Mapping[str, float]) -> pd.DataFrame:
    """The rows of frontier.csv, without its column `model`.

    agreed: of `agreements`. seconds: method -> of its jobs, one after another; operations: method -> its count. Rivals,
    which count tokens, have no job, and so no seconds: they limit no method's place on the frontier. pareto and
    pareto_operations: whether a method is on the frontier of its truth, by seconds and by operations.
    """
    table = agreed.assign(
        seconds=agreed["method"].map(seconds).astype(float), operations=agreed["method"].map(operations).astype(float)
    )
    methods = table[~table["method"].isin(headline.RIVALS)]
    for name, cost in (("pareto", "seconds"), ("pareto_operations", "operations")):
        table[name] = False
        for _, rows in methods.groupby("truth", sort=False):
            table.loc[rows.index, name] = pareto(rows[cost], rows["value"])
    return table[COLUMNS]
