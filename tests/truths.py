"""Made-up tables of retraining, as the rules of the truth write them: for the tests of what a reader sees."""

from itertools import combinations

import numpy as np
import pandas as pd

RIVALS = ("document tokens", "response tokens")
# Method -> LDS over tasks; the intervals reach 0.13 to either side.
PREDICTED = {
    "icp": 0.18, "influence": 0.42, "influence_log": 0.48, "one_step": 0.31, "random": np.nan,
    "document tokens": 0.05, "response tokens": 0.22,
}  # fmt: skip


def lds(
    predicted=PREDICTED,
    model="smollm2",
    seeds=2,
    ceiling=0.62,
    sets=("tasks", "eval"),
    domains=("all", "law"),
    spread=0.7,
):
    """Rows of lds.csv; with one seed no ceiling, for eval prompts half of each value, for a domain 0.07."""
    ceiling = np.nan if seeds == 1 else ceiling
    rows = []
    for name in sets:
        for domain in domains if name == "tasks" else ("all",):
            for method, value in predicted.items():
                value = 0.07 if domain != "all" else value / (1 if name == "tasks" else 2)
                n = 0 if value != value else 64
                reliability = ceiling**2
                rows.append(
                    (
                        *(model, name, domain, method, value, value - 0.13, value + 0.13, n, seeds, 12),
                        *(reliability / 2, reliability, ceiling, ceiling - 0.1, ceiling + 0.1, spread),
                    )
                )
    return pd.DataFrame(
        rows,
        columns=[
            *("model", "set", "domain", "method", "lds", "low", "high", "n_subsets", "n_seeds", "n_tasks"),
            *("reliability", "reliability_of_mean", "ceiling", "ceiling_low", "ceiling_high", "spread"),
        ],
    )


def lds_differences(predicted=PREDICTED, model="smollm2", apart=0.2, sets=("tasks", "eval")):
    """Rows of lds_differences.csv: pairs that are `apart` or more have a p-value of 0.001, others of 0.5."""
    known = [method for method, value in predicted.items() if value == value]
    rows = []
    for name in sets:
        for a, b in combinations(known, 2):
            d = predicted[a] - predicted[b]
            p = 0.001 if abs(d) >= apart else 0.5
            rows.append((model, name, "all", a, b, 64, d, d - 0.1, d + 0.1, p / 2, p))
            rows.append((model, name, "law", a, b, 64, d, d - 0.1, d + 0.1, 1e-5, 1e-5))
    return pd.DataFrame(
        rows,
        columns=[
            *("model", "set", "domain", "method_a", "method_b", "n", "difference", "low", "high"),
            *("p_value", "p_value_holm"),
        ],
    )


def removal(model="smollm2"):
    """Rows of removal.csv: influence's best cost 1.25 nats, beyond chance; icp's 0.3, not; icp_budget's help."""
    rows = [("icp", 0.3, 0.2), ("influence", 1.25, 0.001), ("length", -2.0, 0.01)]
    return pd.DataFrame(
        [(model, "all", m, 11, loss, loss - 0.5, loss + 0.5, p, p, 12, 2, 8) for m, loss, p in rows],
        columns=[
            *("model", "domain", "method", "n_removed", "loss", "low", "high", "p_value", "p_value_holm"),
            *("n_tasks", "n_seeds", "n_controls"),
        ],
    )


def leave_one_out(model="smollm2"):
    """Rows of leave_one_out.csv, of tasks alone."""
    table = lds({"icp": 0.1, "influence": 0.25, "response tokens": 0.02}, model, sets=("tasks",))
    return table.rename(columns={"n_subsets": "n_examples"}).assign(n_examples=24)


def tail_patch(model="smollm2"):
    """Rows of tail_patch.csv: the best 10 of icp 0.5, of influence 1.5, at random 0.2 nats."""
    rows = [
        (method, which, k, 10, effect * (1 if k == "10" else 9), -0.1, 2.0)
        for method, best in (("icp", 0.5), ("influence", 1.5))
        for k in ("10", "10%")
        for which, effect in (("best", best), ("worst", -0.4), ("random", 0.2))
    ]
    table = pd.DataFrame(rows, columns=["method", "which", "k", "n", "effect", "low", "high"])
    return table.assign(model=model, domain="all")


def label_aucs(model="smollm2"):
    """Rows of label_aucs.csv: one label, all others and one other value."""
    rows = [
        (model, "all", "planted", value, method, auc, auc - 0.1, auc + 0.1, 81, n)
        for value, n, shift in (("others", 27, 0), ("truncated", 13, 0.05))
        for method, auc in (("icp", 0.6), ("influence", 0.7), ("influence_log", 0.55), ("random", 0.5))
    ]
    columns = ["model", "domain", "label", "value", "method", "auc", "low", "high", "n_positive", "n_negative"]
    return pd.DataFrame(rows, columns=columns)


def tables(model="smollm2"):
    """Name -> table, all of them."""
    made = (lds, lds_differences, removal, leave_one_out, tail_patch, label_aucs)
    return {make.__name__: make(model=model) for make in made}
