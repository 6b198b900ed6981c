"""The table that holds every method's scores, and what can be asked of it: correlations, and the rows of a bin."""

import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pandas as pd

from icprobe.analysis.binning import members
from icprobe.analysis.correlations import correlations
from icprobe.attribution import METHODS
from icprobe.config.types import slice_of
from icprobe.errors import ScoreError, shown
from icprobe.notebook.configuring import configured

BIN = re.compile(r"(top|bottom) +(\d+(?:\.\d+)?) *(%?)")


def scores_table(train: pd.DataFrame, lengths: pd.DataFrame, scores: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Puts every method's score beside its example: the columns of train, `n_query`, `n_target`, then one per method.

    train: `id`, texts, labels [N]; lengths: `id`, `n_query`, `n_target` in tokens; scores: method -> score [N] indexed
    by id. The rows are in train's order; `attrs["methods"]` names the methods. Raises ScoreError where the examples
    differ.
    """
    ids = pd.Index(train["id"])
    table = train.merge(lengths, on="id", how="left", validate="one_to_one")
    for method, score in scores.items():
        if len(score) != len(ids) or not score.index.isin(ids).all():
            raise ScoreError(
                f"The scores of {method} ({len(score)} examples) are not of the {len(ids)} training examples. Compute "
                "them again, or leave the method out."
            )
        table[method] = score.reindex(ids).to_numpy()
    table.attrs = {"methods": [*scores]}
    return table


def correlate(
    scores: pd.DataFrame, methods: Sequence[str] | None = None, *, seed: int = 0, **analysis: Any
) -> pd.DataFrame:
    """Correlates every pair of methods: the table of `tables/correlations.csv`, each value with its 95% interval.

    scores: what `icprobe.value` or `icprobe.load(…).scores()` gives. methods: which of its columns (default: all
    methods). analysis: keys of the configuration's section `analysis`, such as `resamples`. Returns `method_a`,
    `method_b`, `statistic` (spearman, pearson, kendall, spearman_partial_length), `value`, `low`, `high`, `interval`,
    `n`. Raises ScoreError for a method that has no column.
    """
    settings = slice_of(configured(analysis=analysis, seed=seed).analysis, "resamples", "analytic_above")
    chosen = _methods_of(scores) if methods is None else [*methods]
    for method in chosen:
        _check_column(scores, method)
    by_id = scores.set_index("id")
    known = "n_target" in by_id and by_id["n_target"].notna().all()
    return correlations(
        {method: by_id[method] for method in chosen}, by_id["n_target"] if known else None, seed=seed, **settings
    )


def select(scores: pd.DataFrame, method: str, bin: str) -> pd.DataFrame:
    """Takes the rows of a method's bin, best fitting first.

    scores: as `correlate` takes it. bin: "top 20%", "bottom 5%" (a share of all examples), "top 1000" (so many), or one
    of ICP's thresholds, such as ">0.8": of any other method as many rows as ICP has there, which needs the column
    `icp`. Equal scores are in the order of their ids. Raises ScoreError where the bin cannot be read, or holds more
    rows than the method has scored.
    """
    _check_column(scores, method)
    if bin.lstrip().startswith(("<", ">")):
        _check_column(scores, "icp")
        one, icp = (scores[["id", name]].set_axis(["id", "score"], axis=1) for name in (method, "icp"))
        ids = members(one, bin, icp)
    else:
        ids = _first(scores[["id", method]].set_axis(["id", "score"], axis=1), bin, method)
    return scores.iloc[pd.Index(scores["id"]).get_indexer(ids)].reset_index(drop=True)


def _first(scores: pd.DataFrame, bin: str, method: str) -> list[str]:
    """Finds the ids of the best or the worst, by share or number; scores: `id`, `score` [N]."""
    found = BIN.fullmatch(bin.strip())
    if not found:
        raise ScoreError(f'{bin!r} is no bin. Write "top 20%", "bottom 5%", "top 1000", or a threshold such as ">0.8".')
    end, number, percent = found.groups()
    wanted = len(scores) * Decimal(number) / 100 if percent else Decimal(number)
    k = int(wanted.quantize(Decimal(1), ROUND_HALF_UP))
    evaluated = int(scores["score"].notna().sum())
    if not 1 <= k <= evaluated or (not percent and wanted != k):
        raise ScoreError(
            f"{bin!r} would hold {wanted:f} examples; {method} has scored {evaluated} of {len(scores)}. Ask for a "
            "whole number of them, from 1 on."
        )
    # A stable sort of what is in the order of ids leaves ties in that order.
    by_id = scores.assign(id=scores["id"].astype(str)).sort_values("id", kind="stable")
    return by_id.sort_values("score", ascending=end == "bottom", kind="stable")["id"].head(k).tolist()


def _methods_of(scores: pd.DataFrame) -> list[str]:
    """Finds the methods that a table has scores of: what it says of itself, else the columns called as methods."""
    named = scores.attrs.get("methods", METHODS)
    return [name for name in named if name in scores]


def _check_column(scores: pd.DataFrame, method: str) -> None:
    if method not in scores:
        known = ", ".join(_methods_of(scores)) or "no method"
        raise ScoreError(f"There are no scores of {shown(method)}; the table has those of {known}.")
