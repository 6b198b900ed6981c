"""What was found with one model, in the form that the report shows: headline, tables, charts, the explorer's data."""

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icprobe.analysis import headline
from icprobe.analysis.binning import Ranking, bins, ranks
from icprobe.analysis.labels import auc_differences, beside_length, label_aucs
from icprobe.analysis.statistics import warning_of_one_task, warning_of_ties, widen
from icprobe.errors import ScoreError
from icprobe.evaluation.tabulation import left_out, prompts_of, significantly_best
from icprobe.formatting import bin_label, bin_text
from icprobe.report import charts
from icprobe.report.page import text
from icprobe.report.reading import (
    Source,
    columns_of,
    content_of,
    figure_of,
    pieces_of,
    refuse_unknown,
    rows_of,
    table_of,
)
from icprobe.tables.checking import ROW_NUMBER

TEXT_FIELDS = ("instruction", "input", "output")


@dataclass(frozen=True)
class ModelInputs:
    """What the experiment computed with one model. A table that is None or has no rows is reported as absent.

    Every `Source` is a path (.parquet or .csv) or a DataFrame with the same columns.
    """

    scores: Mapping[str, Source]  # method -> id, score; the order of the methods is that of the report
    attributions: Mapping[str, Source] = field(default_factory=dict)  # method -> id, one column per task; or id, score
    lengths: Source | None = None  # id, n_query, n_target (tokens)
    correlations: Source | None = None  # [model], method_a, method_b, statistic, value, low, high, interval, n
    bins: Source | None = None  # [model], method, bin, n, border, n_tied, n_tied_inside, n_values
    overlaps: Source | None = None  # [model], method, bin, n, n_overlap, overlap, chance
    selections: Source | None = None  # [model], method, bin, selection, baseline, n, n_tokens, ..., shared
    win_rates: Source | None = None  # [model], method, bin, subset, seed, n, win_rate, ..., n_draws
    held_out: Source | None = None  # [model], method, bin, set, subset, seed, n, nll, nll_base, gain, low, high
    held_out_differences: Source | None = None  # [model], set, bin, method_a, ..., p_value_holm
    tail_patch: Source | None = None  # [model], method, which, k, n, effect, low, high
    lds: Source | None = None  # [model], set, method, lds, low, high, n_subsets, n_seeds, n_tasks, ..., ceiling_high
    lds_differences: Source | None = None  # [model], set, method_a, method_b, n, difference, ..., p_value_holm
    removal: Source | None = None  # [model], method, n_removed, loss, low, high, ..., n_seeds, n_controls
    leave_one_out: Source | None = None  # as lds, with n_examples in place of n_subsets
    frontier: Source | None = None  # [model], truth, method, value, low, high, ..., pareto, pareto_operations
    differences: Source | None = None  # [model], bin, method_a, method_b, n, difference, ..., p_value_holm
    chain: Source | None = None  # [model], link, level, task, learning_rate, statistic, value, low, high, interval, n
    weak_link: str | Path | None = None  # text file: which link of the chain is the weak one, in words
    label_aucs: Source | None = None  # [model], label, value, method, auc, n_positive, n_negative; absent: computed
    label_auc_differences: Source | None = None  # [model], label, method_a, method_b, ..., p_value_holm
    label_correlations: Source | None = None  # [model], label, method, statistic, value, low, high, interval, n
    figures: Sequence[str | Path] = ()  # SVG files; the caption is the file's dc:title or name, and dc:description


class Findings:
    """The tables of one model, in the form that the page shows."""

    def __init__(
        self,
        name: str,
        inputs: ModelInputs,
        train: pd.DataFrame,
        labels: Sequence[str],
        sound_labels: Mapping[str, Sequence[str]],
        top: int,
        baselines: Sequence[str] = headline.BASELINES,
        asked: Mapping[str, str] | None = None,
    ):
        self.name, self.baselines = name, baselines
        self.methods = list(inputs.scores)
        self._attributions = dict(inputs.attributions)
        self._train = train
        tables = {m: _scores(source, train["id"], f"{name}, {m}") for m, source in inputs.scores.items()}
        self.ties = [*filter(None, (warning_of_ties(method, table) for method, table in tables.items()))]
        decided = (
            warning_of_one_task(method, pieces_of(source), tables[method].reset_index(), asked)
            for method, source in inputs.attributions.items()
            if method in tables
        )
        self.decided_by_one = [*filter(None, decided)]
        self.scores = {method: table["score"] for method, table in tables.items()}
        self.ranks = {method: ranks(score).reset_index(drop=True) for method, score in self.scores.items()}
        self._tables = tables
        lengths = table_of(inputs.lengths)
        if lengths is not None and lengths["n_target"].isna().all():
            lengths = None  # no texts, or no model to count their tokens
        self.lengths = None if lengths is None else lengths.astype({"id": str}).set_index("id").reindex(train["id"])
        self.correlations = self._own(inputs.correlations)
        self.bins = self._own(inputs.bins)
        self.overlaps, self.selections = self._own(inputs.overlaps), self._own(inputs.selections)
        distinct = {} if self.overlaps is None else headline.distinct_bins(self.overlaps, self.bins)
        # bin -> all bins that hold the same examples as it.
        self.equal_bins = {bin_: equal for equal in distinct.values() for bin_ in equal}
        self.win_rates = self._own(inputs.win_rates)
        if self.win_rates is not None and "length_controlled_win_rate" not in self.win_rates:
            self.win_rates["length_controlled_win_rate"] = np.nan
        self.differences = self._own(inputs.differences)
        self.held_out = self._own(inputs.held_out)
        self.held_out_differences = self._own(inputs.held_out_differences)
        self.tail_patch = self._own(inputs.tail_patch)
        self.lds, self.lds_differences = self._own(inputs.lds), self._own(inputs.lds_differences)
        self.removal, self.leave_one_out = self._own(inputs.removal), self._own(inputs.leave_one_out)
        self.frontier = self._own(inputs.frontier)
        self.chain = self._own(inputs.chain)
        self.weak_link = "" if inputs.weak_link is None else content_of(Path(inputs.weak_link)).decode().strip()
        aucs, self.auc_differences = self._own(inputs.label_aucs), self._own(inputs.label_auc_differences)
        if aucs is None:
            sound = {label: values for label, values in sound_labels.items() if label in labels}
            rated = beside_length(self.scores, None if self.lengths is None else self.lengths["n_target"], baselines)
            known = train[["id", *labels]]
            aucs, self.auc_differences = label_aucs(rated, known, sound), auc_differences(rated, known, sound)
        self.aucs = aucs if len(aucs) else None
        self.label_correlations = self._own(inputs.label_correlations)
        self.figures = [figure_of(Path(path)) for path in inputs.figures]
        self._orders = {}  # positions of the evaluated examples, the best first
        self._ranked_by = {}  # of every example: its score, and its mean effect where there is one
        for method, table in tables.items():
            ranking = Ranking(table["score"], table.get("mean_effect"))
            self._orders[method] = ranking.first("top 100%", ranking.evaluated).tolist()
            self._ranked_by[method] = [table[name] for name in ("score", "mean_effect") if name in table]
        self.best, self.worst = {}, {}
        for method, order in self._orders.items():
            most = min(top, max(1, len(order) // 4))  # of a few, what stands in the middle is neither
            self.best[method], self.worst[method] = order[:most], order[::-1][:most]

    def _own(self, source: Source | None) -> pd.DataFrame | None:
        """The rows of a table that are of this model and over all tasks; None where there are none."""
        table = table_of(source)
        if table is None:
            return None
        if "model" in table.columns:
            table = table[table["model"] == self.name]
        table = headline.over_all_tasks(table)
        return table.reset_index(drop=True) if len(table) else None

    def lowest(self, label: str, good: Collection[str]) -> dict[str, tuple[float, int, int]]:
        """Counts by method how many of the n examples that are not good are among the n with the lowest scores.

        Of equal scores of which not all are among the n, each counts by the share of them that is. Returns method ->
        (how many, n, of how many examples), over the labelled ones that it has evaluated.
        """
        if label not in self._train or not good:
            return {}
        values, found = self._train[label], {}
        for method, order in self._orders.items():
            ranked = [at for at in order if pd.notna(values.iloc[at])]
            bad = {at for at in ranked if values.iloc[at] not in good}
            if n := len(bad):
                value = [*zip(*self._ranked_by[method], strict=True)]
                tied = [at for at in ranked if value[at] == value[ranked[-n]]]
                below = [at for at in ranked[-n:] if value[at] != value[ranked[-n]]]
                hits = len(bad.intersection(below)) + (n - len(below)) * len(bad.intersection(tied)) / len(tied)
                found[method] = hits, n, len(ranked)
        return found

    # --- for the template

    def auc_tables(self) -> list[dict[str, Any]]:
        """One table for each label: methods × what stands against the good value."""
        tables = []
        for label, rows in [] if self.aucs is None else self.aucs.groupby("label", sort=False):
            columns = list(dict.fromkeys(rows["value"].astype(str)))
            cells = {(row.method, str(row.value)): row for row in rows.itertuples()}
            methods = list(dict.fromkeys(rows["method"]))
            sizes = rows.assign(value=rows["value"].astype(str)).groupby("value")[["n_positive", "n_negative"]].max()
            table = {"label": label, "columns": columns, "methods": methods, "cells": cells}
            tables.append({**table, "sizes": {row.Index: row for row in sizes.itertuples()}})
        return tables

    def correlation_rows(self) -> list[dict[str, Any]]:
        """One row for each pair of methods: statistic -> row of the table."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for row in self.correlations.itertuples():
            rows.setdefault((row.method_a, row.method_b), {})[row.statistic] = row
        return [{"a": a, "b": b, "n": next(iter(found.values())).n, "of": found} for (a, b), found in rows.items()]

    def interval_kind(self) -> str:
        return " and ".join(sorted(set(self.correlations["interval"].astype(str))))

    def chain_rows(self) -> dict[float, dict[tuple[str, str], Any]]:
        """Step size -> (level, link) -> row of the chain's rank correlations; ("error", "") -> its relative error."""
        rows: dict[float, dict[tuple[str, str], Any]] = {}
        for row in self.chain[self.chain["learning_rate"].notna()].itertuples():
            if row.statistic == "spearman":
                rows.setdefault(row.learning_rate, {})[row.level, row.link] = row
            elif row.statistic == "relative_error":
                rows.setdefault(row.learning_rate, {})["error", ""] = row
        return dict(sorted(rows.items()))

    def bin_names(self, bin_: str) -> str:
        """A bin as people read it, with the bins that hold the same examples as it."""
        return ", ".join(map(bin_label, self._equal_to(bin_)))

    def _equal_to(self, bin_: str) -> list[str]:
        return self.equal_bins.get(bin_text(str(bin_)), [str(bin_)])

    def overlap_bins(self) -> dict[str, float]:
        """bin -> overlap expected by chance; equal bins once."""
        return {row.bin: row.chance for row in self.overlaps.itertuples() if row.bin == self._equal_to(row.bin)[0]}

    def overlap_rows(self) -> dict[str, dict[str, Any]]:
        """method -> bin -> row of the table."""
        rows: dict[str, dict[str, Any]] = {}
        for row in self.overlaps.itertuples():
            rows.setdefault(row.method, {})[row.bin] = row
        return rows

    def win_rate_rows(self, overall: bool) -> list[Any]:
        """The rows over all prompts and seeds, or all; of bins that hold the same examples those of one.

        Each has `n_prompts` (seeds judge the same prompts again), and `leads`: whether it is significantly the best of
        its bin.
        """
        rows = self.win_rates
        first = rows["bin"].map(lambda bin_: self._equal_to(bin_)[0])
        rows = rows[~rows[["method", "subset", "seed"]].assign(bin=first).duplicated()]
        best = set() if self.differences is None else significantly_best(self.win_rates, self.differences)
        over_all = rows.index.isin(headline.overall(rows).index)
        leads = [
            whole and (row.method, row.bin) in best for whole, row in zip(over_all, rows.itertuples(), strict=True)
        ]
        rows = rows.assign(n_prompts=prompts_of(rows), leads=leads)
        return list((rows[over_all] if overall else rows).itertuples())

    def without_length_control(self) -> list[str]:
        """Why there is no length-controlled win rate, method by method and bin by bin."""
        return left_out(self.win_rates)

    def charts(self, number: int, colors: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Name -> specification of this model's charts."""
        found = {}
        if self.correlations is not None:
            table = self.correlations
            drawn = [method for method in self.methods if method in {*table["method_a"], *table["method_b"]}]
            found[f"heat-map-{number}"] = charts.heat_map(table, drawn, self.name)
        if self.win_rates is not None:
            rows = [row for row in self.win_rate_rows(overall=True) if row.n > 0]
            if rows:
                conditions = [
                    bin_label("all") if row.bin == "all" else f"{row.method} {self.bin_names(row.bin)}" for row in rows
                ]
                drawn = pd.DataFrame(rows)[["method", "win_rate", "low", "high"]].round(3).assign(condition=conditions)
                found[f"win-rates-{number}"] = charts.win_rates(drawn, self.methods, self.name, colors)
        if self.frontier is not None:
            rows = self.frontier[~self.frontier["method"].isin(headline.RIVALS)]
            if rows["value"].notna().any():
                found[f"frontier-{number}"] = charts.frontier(rows, self.methods, self.name, colors)
        return found

    def example(self, row: int, method: str) -> dict[str, Any]:
        """One example in full, with its score and rank by a method."""
        example = self._train.iloc[row]
        return {
            "id": example["id"],
            "score": self.scores[method].iloc[row],
            "row_number": example.get(ROW_NUMBER),
            "rank": int(self.ranks[method].iloc[row]),
            "length": None if self.lengths is None else self.lengths["n_target"].iloc[row],
            **{name: text(example[name]) for name in TEXT_FIELDS},
            "row": example,
        }

    # --- for the explorer

    def matrix_columns(self, tasks: pd.DataFrame) -> dict[str, list[str]]:
        """Method -> tasks of its attribution matrix, for methods that have values per task."""
        known = set(tasks["id"])
        found = {}
        for method, source in self._attributions.items():
            columns = columns_of(source)
            if "score" in columns:  # one number over all tasks, beside it perhaps n_tasks; no task is called so
                continue
            if unknown := [column for column in columns if column != "id" and column not in known]:
                raise ScoreError(
                    f"{self.name}, {method}: the attribution matrix has the task {unknown[0]!r}, which the tasks lack. "
                    "Compute it again from the same data."
                )
            found[method] = [column for column in columns if column != "id"]
        return found

    def explorer(self, explored: np.ndarray, tasks: pd.DataFrame) -> dict[str, Any]:
        """Scores, ranks, bins and matrices of the explored examples, as plain values.

        `order` has each example's place from the best on, NaN where not evaluated: scores may be equal.
        """
        matrices = {}
        for method, columns in self.matrix_columns(tasks).items():
            ids, known = self._train["id"].iloc[explored], self._train["id"]
            table = rows_of(self._attributions[method], ids, known, f"{self.name}, {method}")
            values = table.reindex(index=ids)[columns].to_numpy(np.float32)
            place = {task: number for number, task in enumerate(tasks["id"])}
            matrices[method] = {"tasks": [place[column] for column in columns], **_packed(values)}
        return {
            "methods": self.methods,
            "scores": {m: _plain(score.iloc[explored], digits=6) for m, score in self.scores.items()},
            "ranks": {m: _plain(rank.iloc[explored], whole=True) for m, rank in self.ranks.items()},
            "order": {
                m: _plain(_places(order, len(self._train))[explored], whole=True) for m, order in self._orders.items()
            },
            "mean_effects": {
                m: _plain(table["mean_effect"].iloc[explored])
                for m, table in self._tables.items()
                if "mean_effect" in table
            },
            "n_target": None if self.lengths is None else _plain(self.lengths["n_target"].iloc[explored], whole=True),
            "n_query": None if self.lengths is None else _plain(self.lengths["n_query"].iloc[explored], whole=True),
            "bins": self._bins(explored),
            "matrices": matrices,
        }

    def _bins(self, explored: np.ndarray) -> dict[str, dict[str, list[int]]]:
        """Bins, equal ones once -> method -> positions, among the explored, of its members; empty where no table names
        bins."""
        if self.bins is None:
            return {}
        names = {self.bin_names(name): name for name in reversed([*map(bin_label, dict.fromkeys(self.bins["bin"]))])}
        # Evaluated in part, a method's bins need not exist.
        tables = {m: table.reset_index() for m, table in self._tables.items() if table["score"].notna().all()}
        position = {identity: i for i, identity in enumerate(self._train["id"].iloc[explored])}
        found: dict[str, dict[str, list[int]]] = {shown: {} for shown in reversed(names)}
        for method, table in tables.items():
            members = bins(tables.get("icp"), table, list(names.values()))
            for shown, name in names.items():
                found[shown][method] = sorted(position[i] for i in members[name] if i in position)
        return found


class Sweep:
    """icp against influence over models and domains: the figure (SVG) and the rows of the CSV beside it."""

    def __init__(self, path: Path):
        self.figure = figure_of(path)
        self.rows = list(table_of(path.with_suffix(".csv")).itertuples())


def _scores(source: Source, ids: pd.Series, what: str) -> pd.DataFrame:
    """A table of scores in the order of the examples, indexed by id; NaN where an example has none."""
    table = table_of(source)
    table = table.assign(id=table["id"].astype(str), score=widen(table["score"].to_numpy())).set_index("id")
    refuse_unknown(table.index, ids, what)
    return table.reindex(pd.Index(ids, name="id"))


def _places(order: list[int], n: int) -> np.ndarray:
    """The place of each of n examples [N] in an order of positions; NaN of those that it lacks."""
    places = np.full(n, np.nan)
    places[order] = np.arange(len(order))
    return places


def _plain(values: pd.Series | np.ndarray, digits: int = 6, whole: bool = False) -> list[float | int | None]:
    """Numbers for JSON, at most `digits` significant ones; None for NaN."""
    if whole:
        return [None if value != value else int(value) for value in values]
    return [None if value != value else float(f"{value:.{digits}g}") for value in values]


def _packed(values: np.ndarray) -> dict[str, Any]:
    """A matrix [n, m] as float16 in base64, row by row, and the factor that restores its unit.

    The largest entry becomes 60,000: 11 significant bits (3.3 digits) over nine decades below it. NaN stays NaN.
    """
    largest = float(np.nanmax(np.abs(values), initial=0.0, where=np.isfinite(values))) if values.size else 0.0
    unit = largest / 60_000 or 1.0
    half = (values.astype(np.float64) / unit).astype("<f2")
    return {"unit": unit, "values": base64.b64encode(half.tobytes()).decode()}
