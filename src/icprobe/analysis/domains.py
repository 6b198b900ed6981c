"""Splits tasks by domain: every table says what holds over all tasks, and over those of each domain alone."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from icprobe.analysis.headline import ALL, named, of_pair
from icprobe.analysis.statistics import aggregate
from icprobe.errors import some
from icprobe.tables.parquet import read_parquet

logger = logging.getLogger(__name__)

Scores = Mapping[str, pd.Series]  # method -> score [N] indexed by id


def task_domains(tasks: pd.DataFrame) -> dict[str, list[str]]:
    """Groups the tasks by domain: {domain: ids}, in the table's order; empty where they have no domain, or one.

    That would say no more than all tasks do. tasks: `id` and, where the data have it, `domain` (null = of none).
    """
    if "domain" not in tasks:
        return {}
    found = {name: list(ids) for name, ids in tasks.groupby("domain", sort=False)["id"]}
    return {} if any(len(ids) == len(tasks) for ids in found.values()) else found


def score_sets(*arguments: Any, **options: Any) -> Iterator[tuple[str, Scores]]:
    """Gives `score_tables` as mappings of methods to scores [N] indexed by id."""
    for domain, tables in score_tables(*arguments, **options):
        yield domain, {method: table["score"] for method, table in tables.items()}


def score_tables(
    methods: Sequence[str],
    scores: Sequence[str | Path],
    matrices: Sequence[str | Path],
    tasks: str | Path,
    aggregators: Mapping[str, str],
    without_tasks: Sequence[str] = (),
    may_skip: Sequence[str] = (),
) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Gives ("all", the tables of scores), then for each domain its name and those over its tasks alone.

    A table is indexed by id, and has `score` and what `statistics.aggregate` gives beside it. scores: files of all
    methods; matrices: those of the methods that `aggregators` names, which are aggregated here as it says (may_skip:
    those whose NaN means "not evaluated"); tasks: file of the tasks. without_tasks: methods whose score depends on no
    task; it stands in every domain. Any other method has one number over all tasks, of which nothing can be said by
    domain: it is left out there.
    """
    overall = {m: read_parquet(path).set_index("id") for m, path in zip(methods, scores, strict=True)}
    yield ALL, overall
    matrix_of = dict(zip(aggregators, matrices, strict=True))
    for domain, ids in task_domains(read_parquet(tasks)).items():
        found = {}
        for method, table in overall.items():
            if method in without_tasks:
                found[method] = table
            elif method in matrix_of:
                matrix = read_parquet(matrix_of[method], columns=["id", *ids])
                own = aggregate(matrix, aggregators[method], allow_missing=method in may_skip)
                found[method] = own.set_index("id")
        yield domain, found


def by_domain(model: str, sets: Iterable[tuple[str, Any]], table_of: Callable[[Any], pd.DataFrame]) -> pd.DataFrame:
    """Puts the tables of all domains one below the other, with the columns `model` and `domain` before their own."""
    tables = [named(table_of(scores), model, domain) for domain, scores in sets]
    # An empty table would turn whole numbers of the others into floats.
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def sweep_table(
    correlations: pd.DataFrame, tasks: pd.DataFrame, train: pd.DataFrame, in_domain: Sequence[str] | None = None
) -> pd.DataFrame:
    """Collects the rank correlation of icp and influence by model and domain, and says which domains are in-domain.

    correlations: rows of correlations.csv, of all models; tasks, train: the tables, `domain` where they have it.
    in_domain: domains that the training examples are of; None takes those that they carry. Returns `model`, `domain`,
    `kind` (all, in-domain, out-of-domain; empty where it is not known), `n_tasks`, `value`, `low`, `high`, `interval`,
    `n`: for each model all tasks first, then what is in-domain, then the rest.
    """
    if in_domain is None and "domain" in train and train["domain"].notna().any():
        in_domain = train["domain"].dropna().unique()
    if in_domain and "domain" in tasks:
        known = {*pd.concat([table["domain"].dropna() for table in (tasks, train) if "domain" in table])}
        if known and (unknown := [name for name in in_domain if name not in known]):
            logger.warning("data.in_domain: no task and no example here is of %s", some(unknown))
    rows = of_pair(correlations).query("statistic == 'spearman'")
    sizes = {ALL: len(tasks), **{domain: len(ids) for domain, ids in task_domains(tasks).items()}}

    def kind(domain: str) -> str:
        if domain == ALL:
            return ALL
        return "" if in_domain is None else "in-domain" if domain in in_domain else "out-of-domain"

    rows = rows.assign(kind=rows["domain"].map(kind), n_tasks=rows["domain"].map(sizes))
    place = {model: k for k, model in enumerate(dict.fromkeys(rows["model"]))}
    order = {name: k for k, name in enumerate((ALL, "in-domain", "out-of-domain", ""))}
    rows = rows.sort_values(
        ["model", "kind"], key=lambda c: c.map(place if c.name == "model" else order), kind="stable"
    )
    return rows[["model", "domain", "kind", "n_tasks", "value", "low", "high", "interval", "n"]].reset_index(drop=True)
