"""Makes the headline of one model from its tables, once: W&B, the terminal, the report and figures show these rows.

A table's rows over all tasks stand beside those of each domain, those over all prompts and seeds beside those of one.
The headline is what holds over all.
"""

import re
from typing import Any

import pandas as pd

from icprobe.formatting import parse_bin

ALL = "all"  # in the column `domain`: over all tasks, of whichever domain; in `seed`: over all seeds
OVERALL = "overall"  # in the column `subset`: over all prompts
PAIR = ("icp", "influence")
# What a subset of examples is worth by the number of its tokens: stands for a method in lds.csv and leave_one_out.csv.
# In label_aucs.csv the second stands beside the methods, where `length` is none of them.
RIVALS = DOCUMENT_TOKENS, RESPONSE_TOKENS = "document tokens", "response tokens"
BASELINES = ("length", "random")  # methods that cost nothing, as long as no external scores are called so
TAIL_PATCH_K = "10"  # the k of the tail patch that speaks for a method
# Statistic of the pair -> its name as a number of the headline.
AGREEMENT = {"spearman": "spearman", "spearman_partial_length": "spearman_given_length"}


def named(table: pd.DataFrame, model: str, domain: str = ALL) -> pd.DataFrame:
    """Puts the columns `model` and `domain` before the table's own, in place."""
    table.insert(0, "model", model)
    table.insert(1, "domain", domain)
    return table


def over_all_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """Takes the rows of a table that are over all tasks; every row where it knows no domains."""
    return table[table["domain"] == ALL] if "domain" in table else table


def of_pair(correlations: pd.DataFrame, method_a: str = PAIR[0], method_b: str = PAIR[1]) -> pd.DataFrame:
    """Takes the rows of two methods, whichever of them stands first."""
    pair = [method_a, method_b]
    return correlations[correlations["method_a"].isin(pair) & correlations["method_b"].isin(pair)]


def agreement(correlations: pd.DataFrame) -> dict[str, Any]:
    """Finds the rows of icp and influence, {statistic: row}; none where one of them was not scored."""
    return {row.statistic: row for row in over_all_tasks(of_pair(correlations)).itertuples()}


def strictest_bin(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Takes each method's row of the smallest bin of best examples that is not empty; no row where there is none.

    Of thresholds that is the highest: of two that hold the same examples, too.
    """
    rows = over_all_tasks(overlaps)
    rows = rows[(rows["n"] > 0) & rows["bin"].map(lambda name: parse_bin(name).is_best).astype(bool)]
    sizes = rows.groupby("bin")["n"].max()
    return rows[rows["bin"] == min(sizes.index, key=lambda name: (sizes[name], -parse_bin(name).number), default="")]


def size_of_strictest(strictest: pd.DataFrame, bins: pd.DataFrame | None) -> int:
    """How many examples icp's bin has of which these rows of overlaps tell (`strictest_bin`).

    bins: bins.csv; a method that has evaluated fewer examples may have fewer in its own bin.
    """
    rows = strictest if bins is None else bins[(bins["method"] == "icp") & (bins["bin"] == strictest["bin"].iloc[0])]
    return int((rows if len(rows) else strictest)["n"].max())


def distinct_bins(overlaps: pd.DataFrame, bins: pd.DataFrame | None = None) -> dict[str, list[str]]:
    """Finds the bins that hold different examples: {the first of its kind: all bins that hold the same as it}.

    Bins of one side, such as `>0.8` and `>0.9`, are cut from one ranking, so that those of one size are equal. bins:
    bins.csv. It has the sizes of all methods' bins; overlaps are of no more examples than icp has evaluated.
    """
    rows = over_all_tasks(overlaps)
    known = bins is not None and set(rows["bin"]) <= set(bins["bin"])
    of_methods, columns = (bins, ["n"]) if known else (rows, ["n", "chance"])
    sizes = of_methods.pivot_table(index="bin", columns="method", values=columns, sort=False)
    equal: dict[tuple, list[str]] = {}
    for bin_ in dict.fromkeys(rows["bin"]):
        side = re.match(r"[^\d.]*", bin_)[0].strip()
        equal.setdefault((side, *sizes.loc[bin_].fillna(-1)), []).append(bin_)
    return {bins[0]: bins for bins in equal.values()}


def good_against_others(label_aucs: pd.DataFrame) -> pd.DataFrame:
    """Takes one row for each label and method: the good values against all others."""
    return over_all_tasks(label_aucs).drop_duplicates(["label", "method"])


def overall(win_rates: pd.DataFrame) -> pd.DataFrame:
    """Takes one row for each method and bin: over all prompts and seeds."""
    rows = over_all_tasks(win_rates)
    return rows[(rows["subset"].astype(str) == OVERALL) & (rows["seed"].astype(str) == ALL)]


def of_set(table: pd.DataFrame, name: str = "tasks") -> pd.DataFrame:
    """Takes the rows of lds.csv or a table like it that are over all of "tasks", or of "eval"."""
    rows = over_all_tasks(table)
    return rows[rows["set"] == name]


def best_predictor(lds: pd.DataFrame) -> Any | None:
    """Finds the method with the highest LDS; no rival is one. lds: rows of one set; None where no LDS is defined."""
    rows = lds[~lds["method"].isin(RIVALS) & lds["lds"].notna()]
    return None if rows.empty else next(rows.sort_values("lds", ascending=False, kind="stable").itertuples())


def tail_patch(table: pd.DataFrame, which: str = "best") -> pd.DataFrame:
    """Takes one row for each method: the effect of one step on its best, on its worst, or on random examples."""
    rows = over_all_tasks(table)
    return rows[(rows["k"].astype(str) == TAIL_PATCH_K) & (rows["which"] == which)]


def tail_patch_unit(table: pd.DataFrame) -> str:
    """What the effects of tail_patch.csv are in; tables of earlier versions do not say, and are in nats."""
    return table["unit"].iloc[0] if "unit" in table and len(table) else "nats"


# --- as numbers with names, for W&B's table of runs; undefined ones are left out --------------------------------------


def of_correlations(table: pd.DataFrame) -> dict[str, float]:
    """spearman/{a}~{b} of all pairs; of icp and influence also spearman, spearman_given_length, each _low and _high."""
    rows = over_all_tasks(table).query("statistic == 'spearman'")
    numbers = {f"spearman/{row.method_a}~{row.method_b}": row.value for row in rows.itertuples()}
    found = agreement(table)
    for row, name in ((found[statistic], name) for statistic, name in AGREEMENT.items() if statistic in found):
        numbers |= {name: row.value, f"{name}_low": row.low, f"{name}_high": row.high}
    return _defined(numbers)


def of_overlaps(table: pd.DataFrame) -> dict[str, float]:
    """overlap/{method}/{bin}."""
    return _defined({f"overlap/{row.method}/{row.bin}": row.overlap for row in over_all_tasks(table).itertuples()})


def of_label_aucs(table: pd.DataFrame) -> dict[str, float]:
    """auc/{label}/{method}."""
    return _defined({f"auc/{row.label}/{row.method}": row.auc for row in good_against_others(table).itertuples()})


def of_chain(table: pd.DataFrame) -> dict[str, float]:
    """chain/{link}/{step size}, and chain/icp~influence, which knows no step size: Spearman over all cells."""
    rows = over_all_tasks(table).query("level == 'element' and statistic == 'spearman'")
    step = ("" if row.learning_rate != row.learning_rate else f"/{row.learning_rate}" for row in rows.itertuples())
    return _defined({f"chain/{row.link}{eta}": row.value for row, eta in zip(rows.itertuples(), step, strict=True)})


def of_win_rates(table: pd.DataFrame) -> dict[str, float]:
    """win_rate/{method}/{bin}, in percent."""
    return _defined({f"win_rate/{row.method}/{row.bin}": row.win_rate for row in overall(table).itertuples()})


def of_lds(table: pd.DataFrame, name: str = "lds") -> dict[str, Any]:
    """{name}/{method} of the tasks, and their ceiling; of other answers {name}/{set}/{method} and ceiling/{set}.

    Of the best method over tasks, which no rival is, also {name}, {name}_low, {name}_high, and its name, {name}_best.
    """
    numbers: dict[str, Any] = {}
    for row in over_all_tasks(table).itertuples():
        of_others = "" if row.set == "tasks" else f"/{row.set}"
        numbers |= {f"{name}{of_others}/{row.method}": row.lds, f"ceiling{of_others}": row.ceiling}
    best = best_predictor(of_set(table))
    if best is not None:
        numbers |= {name: best.lds, f"{name}_low": best.low, f"{name}_high": best.high, f"{name}_best": best.method}
    return _defined(numbers)


def of_removal(table: pd.DataFrame) -> dict[str, float]:
    """removal/{method}: what the tasks lose without its best examples, in nats, more than without others."""
    return _defined({f"removal/{row.method}": row.loss for row in over_all_tasks(table).itertuples()})


def of_held_out(table: pd.DataFrame) -> dict[str, float]:
    """held_out_gain/{set}/{method}/{bin}, in nats per token; set: tasks or eval."""
    rows = overall(table).itertuples()
    return _defined({f"held_out_gain/{row.set}/{row.method}/{row.bin}": row.gain for row in rows})


def _defined(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if value == value}
