"""Chooses examples for a data set by a method's scores and a rule, and random ones to compare them with.

What is chosen is an array of positions [n] in the table of scores, in the order in which they were chosen. Everywhere
equal scores are ordered by mean effect, then by id (`binning.Ranking`), and an example that was not evaluated (NaN) is
never chosen. Where tokens are counted, nor is one that fine-tuning cannot learn from, and drops: it would be free.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icprobe.analysis.binning import Ranking, size_of
from icprobe.analysis.diversity import marginal, relevance
from icprobe.artifacts import digest
from icprobe.errors import DataError, ScoreError, several, shown
from icprobe.tables.parquet import column_names, read_parquet

logger = logging.getLogger(__name__)

LENGTH_PARTS = 10  # strata of response length that `match` takes the same share from
# Strata that `random_length` draws the same number from: at most so many, of at least so many examples each.
BASELINE_PARTS, LEAST_IN_PART = 100, 10
COLUMNS = ["method", "bin", "selection", "baseline", "n", "n_tokens", "mean_tokens", "median_tokens", "shared"]


@dataclass(frozen=True)
class _Amount:
    """How much is chosen: k examples, or as many as have `tokens` in all. of, having: for messages."""

    of: str
    k: int | None
    tokens: float | None
    lengths: np.ndarray | None
    having: str = "a score"

    def first(self, order: np.ndarray) -> np.ndarray:
        """The beginning of an order of positions that is as much; all of it where it is less."""
        if self.k is not None:
            return order[: self.k]
        return order[: np.searchsorted(np.cumsum(self.lengths[order]), self.tokens, side="right")]

    def share(self, weights: Sequence[Fraction]) -> list["_Amount"]:
        """Divides it among strata: examples by largest remainder (the first of equal ones), tokens as they are."""
        if self.k is None:
            return [replace(self, tokens=float(Fraction(self.tokens) * w)) for w in weights]
        whole = [int(self.k * w) for w in weights]
        by_rest = sorted(range(len(weights)), key=lambda i: (whole[i] - self.k * weights[i], i))
        for place in by_rest[: self.k - sum(whole)]:
            whole[place] += 1
        return [replace(self, k=n) for n in whole]

    def check(self, chosen: np.ndarray, there: np.ndarray, where: str = "") -> np.ndarray:
        """The chosen. Raises ScoreError where `there`, all that could be chosen, is less than is asked for."""
        if self.k is not None and len(chosen) < self.k:
            self._refuse(several(self.k, "example") + where, f"there are only {len(there):,} with {self.having}", there)
        if self.k is None and len(chosen) == len(there) and self.lengths[there].sum() < self.tokens:
            total = int(self.lengths[there].sum())
            self._refuse(self._tokens + where, f"the examples with {self.having} have only {total:,}", there)
        if self.k is None and not len(chosen):
            raise ScoreError(
                f"{self.of}: the first example{where} has {several(int(self.lengths[there[0]]), 'token')}, and "
                f"{self._tokens} may be taken. Take more tokens."
            )
        return chosen

    @property
    def _tokens(self) -> str:
        return several(int(self.tokens), "token") if self.tokens >= 1 else "less than one token"

    def _refuse(self, asked: str, but: str, there: np.ndarray) -> None:
        if not len(there):
            raise ScoreError(
                f"{self.of}: it asks for {asked}, but no such example has {self.having}. Take none of them."
            )
        raise ScoreError(f"{self.of}: it asks for {asked}, but {but}. Take fewer, or a share of them.")


def select(
    name: str,
    rule: Mapping[str, Any],
    scores: pd.DataFrame,
    lengths: np.ndarray | None = None,
    values: Sequence[Any] | None = None,
    effects: Iterable[np.ndarray] = (),
    vectors: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Chooses examples by a rule.

    name: of the selection, for messages. rule: as the configuration's `Selection` has it. scores: `id`, `score` [N],
    and `mean_effect` where there is one. lengths: tokens that fine-tuning learns from [N], for `tokens` and `match`; an
    example that has none counts in a share of all examples, and is not chosen. values: of the quota's column [N].
    effects: the columns of the attribution matrix [N] each, for `per_task`. vectors: positions [m] -> unit vectors
    [m, d], for `diverse`. Raises ScoreError where there is less than the rule asks for.
    """
    best, of = rule["bottom"] is None, f"selections.{name}"
    k = None if rule["tokens"] else count(rule["top"] or rule["bottom"], len(scores))
    amount = _Amount(of, k, rule["tokens"], lengths)
    score = scores.set_index("id")["score"]
    if lengths is not None and not (known := _trainable(name, lengths)).all():
        score, amount = score.where(known), replace(amount, having="a score and a token to learn from")
    mean = scores.get("mean_effect")
    order = _ordered(score, mean, best)
    if k is not None and k > len(order):
        amount.check(order, order)
    if rule["per_task"]:
        # What breaks ties of a task's effects: the mean effect, of a score that is not one itself.
        by_mean = order if mean is None else _ordered(score.where(score.isna(), mean.to_numpy()), None, best)
        return _in_turn(by_mean, effects, amount, best)
    if rule["diverse"]:
        relevant = relevance(score.to_numpy()[order])
        places = marginal(relevant, lambda found: vectors(order[found]), rule["diverse"]["weight"])
        found = order[_as_long_as_it_fits(places, order, amount)]
        return amount.check(amount.first(found), found)
    if rule["match"]:
        strata = _strata(lengths, lambda some: length_strata(some, LENGTH_PARTS))
        # Tokens are shared as they are among all examples, too.
        sizes = np.bincount(strata[known], weights=lengths[known] if k is None else None).astype(int)
        weights = [Fraction(int(size), int(sizes.sum())) for size in sizes]
        return _of_strata(order, strata, amount, weights, [f" of length stratum {i + 1}" for i in range(len(sizes))])
    if rule["quota"]:
        return _of_strata(order, *_by_value(of, amount, values, **rule["quota"]))
    return amount.check(amount.first(order), order)


def check(
    name: str, rule: Mapping[str, Any], ids: Sequence[str], lengths: np.ndarray | None, values: Sequence[Any] | None
) -> int:
    """Counts what a rule would choose at most, of all examples, as if each were evaluated and the shortest the best.

    Raises what `select` does where there are too few examples, whatever their scores.
    """
    scores = pd.DataFrame({"id": ids, "score": np.zeros(len(ids)) if lengths is None else -lengths})
    # Nor can what is alike make more of them than there are.
    return len(select(name, {**rule, "diverse": None}, scores, lengths, values, [scores["score"].to_numpy()]))


def tied(score: pd.Series, chosen: np.ndarray, lengths: np.ndarray | None = None) -> tuple[int, int]:
    """How many examples have the last chosen one's score, and how many of these are chosen. score, lengths: [N]."""
    same = (score == score.iloc[chosen[-1]]).to_numpy() & (True if lengths is None else lengths > 0)
    return int(same.sum()), int(same[chosen].sum())


def count(end: str, n: int) -> int:
    """How many of n examples "10%" or "200" are; as bins round it."""
    return int(end) if end.isdecimal() else size_of(f"top {end}", n)


def _trainable(name: str, lengths: np.ndarray) -> np.ndarray:
    """Whether fine-tuning learns from each example [N]. Says in the log if from some not; ScoreError: if from none."""
    known, why = lengths > 0, "the query alone fills finetune.max_length, or the model's context"
    if not known.any():
        raise ScoreError(
            f"selections.{name}: fine-tuning cannot learn from any of the {several(len(known), 'example')}, because "
            f"{why}. Shorten the queries, or raise finetune.max_length where it cuts them."
        )
    if not known.all():
        logger.warning(
            "selections.%s: %d of %d examples are left out, because fine-tuning cannot learn from them: %s",
            *(name, np.count_nonzero(~known), len(known), why),
        )
    return known


def _ordered(score: pd.Series, mean_effect: pd.Series | None, best: bool) -> np.ndarray:
    """The positions of the evaluated examples, the best (or the worst) first."""
    ranking = Ranking(score, mean_effect)
    return ranking.first(f"{'top' if best else 'bottom'} 100%", ranking.evaluated)


def _as_long_as_it_fits(places: Iterator[int], order: np.ndarray, amount: _Amount) -> list[int]:
    """The first places that are as much as is asked for, with the first that is too much where tokens are counted."""
    if amount.k is not None:
        return [*islice(places, amount.k)]
    taken, total = [], 0
    while total <= amount.tokens and (place := next(places, None)) is not None:
        taken.append(place)
        total += amount.lengths[order[place]]
    return taken


# --- strata -----------------------------------------------------------------------------------------------------


def length_strata(lengths: np.ndarray, parts: int) -> np.ndarray:
    """The stratum [N] of each length [N], from 0: as even parts as equal lengths, which stay together, allow."""
    borders = np.unique(np.quantile(lengths, np.arange(1, parts) / parts, method="inverted_cdf"))
    # Where the last border is the longest of all, nothing lies above it; other strata are never empty.
    return np.searchsorted(borders, lengths, side="left")


def _strata(lengths: np.ndarray, strata_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The stratum [N] of each length [N] that is not 0, among these; −1 of the others."""
    strata = np.full(len(lengths), -1)
    strata[lengths > 0] = strata_of(lengths[lengths > 0])
    return strata


def _by_value(
    of: str, amount: _Amount, values: Sequence[Any], column: str, shares: Mapping[str, float]
) -> tuple[np.ndarray, _Amount, list[Fraction], list[str]]:
    """Strata by the values of a column: one for each that has a share, and one for all others."""
    place = {value: i for i, value in enumerate(shares)}
    texts = pd.Series(values, dtype=object).dropna().map(str)
    strata = texts.map(place).reindex(range(len(values))).fillna(len(place)).to_numpy(dtype=np.intp)
    for value, i in place.items():
        if not (strata == i).any():
            raise DataError(f"{of}.quota: no example has the value {shown(value)} in the column {shown(column)}.")
    weights = [Fraction(str(share)) for share in shares.values()]
    left = 1 - sum(weights)
    if abs(left) < 1e-9:  # three times a third
        weights, left = [weight / sum(weights) for weight in weights], Fraction(0)
    weights.append(max(left, Fraction(0)))
    if weights[-1] and not (strata == len(place)).any():
        raise DataError(
            f"{of}.quota: no example has another value in the column {shown(column)} than those that have shares, and "
            f"these sum to {float(1 - weights[-1]):g}. Make them sum to 1."
        )
    told = [f" in which {column} is {value}" for value in shares]
    return strata, amount, weights, [*told, f" in which {column} is something else"]


def _of_strata(
    order: np.ndarray, strata: np.ndarray, amount: _Amount, weights: Sequence[Fraction], told: Sequence[str]
) -> np.ndarray:
    """Takes each stratum's share from its best. strata: [N], from 0; weights, told: of each stratum."""
    own = strata[order]
    inside = np.zeros(len(order), dtype=bool)
    for number, (part, weight) in enumerate(zip(amount.share(weights), weights, strict=True)):
        places = np.flatnonzero(own == number)
        if weight:
            there = order[places]
            inside[places[: len(part.check(part.first(there), there, told[number]))]] = True
    return order[inside]


# --- tasks in turn ----------------------------------------------------------------------------------------------


def _in_turn(order: np.ndarray, effects: Iterable[np.ndarray], amount: _Amount, best: bool) -> np.ndarray:
    """Lets tasks take turns, in the order of the matrix's columns; each takes its best of those left.

    order: positions of all that may be chosen, by what breaks ties. A task that has evaluated nothing more passes.
    """
    most = amount.k
    if most is None:  # no more examples can be taken than the shortest that fit, and one that does not
        most = 1 + int(np.searchsorted(np.cumsum(np.sort(amount.lengths[order])), amount.tokens, side="right"))
    lists = []
    for column in effects:
        values = column[order].astype(np.float64)
        places = np.argsort(-values if best else values, kind="stable")[: min(most, int((~np.isnan(values)).sum()))]
        lists.append(order[places].astype(np.int32))  # of which others take less than `most`
    taken, chosen = np.zeros(order.max(initial=0) + 1, dtype=bool), []
    places, waiting = [0] * len(lists), [*range(len(lists))]
    while waiting and len(chosen) < most:
        for task in [*waiting]:
            own, place = lists[task], places[task]
            while place < len(own) and taken[own[place]]:
                place += 1
            places[task] = place + 1
            if place == len(own):
                waiting.remove(task)
            elif len(chosen) < most:
                taken[own[place]] = True
                chosen.append(int(own[place]))
    found = np.array(chosen, dtype=np.intp)
    return amount.check(amount.first(found), found)


# --- what is random ---------------------------------------------------------------------------------------------


def baseline(
    name: str, kind: str, chosen: np.ndarray, ids: Sequence[str], lengths: np.ndarray | None, seed: int
) -> np.ndarray:
    """Draws examples at random to compare a selection with, of all that there are.

    name: of the selection. chosen: its positions. ids: of all examples [N]; with seed and name they decide what is
    drawn, in whichever order they stand. kind: random, as many; random_tokens, so many that their responses have about
    as many tokens, half an example away at most, but one at least; random_length, from each of `baseline_strata` as
    many as are chosen of it. lengths: [N], where these matter to it or to the selection; what fine-tuning cannot learn
    from is then neither drawn nor counted among the chosen. Raises ScoreError where it can learn from none.
    """
    key = digest([seed, name, kind])
    drawn = np.argsort([hashlib.sha256(f"{key} {one}".encode()).digest() for one in ids], kind="stable")
    if lengths is not None:
        drawn, chosen = drawn[_trainable(name, lengths)[drawn]], chosen[lengths[chosen] > 0]
    if kind == "random":
        return drawn[: len(chosen)]
    if kind == "random_tokens":
        sums = np.cumsum(lengths[drawn])
        return drawn[: 1 + np.abs(sums - lengths[chosen].sum()).argmin()]
    strata = _strata(lengths, baseline_strata)
    wanted = np.bincount(strata[chosen], minlength=strata.max(initial=0) + 1)
    own = strata[drawn]
    by_stratum = np.argsort(own, kind="stable")
    starts = np.searchsorted(own[by_stratum], np.arange(len(wanted)))
    nth = np.empty(len(drawn), dtype=np.intp)  # which one of its stratum each drawn example is
    nth[by_stratum] = np.arange(len(drawn)) - starts[own[by_stratum]]
    return drawn[nth < wanted[own]]


def baseline_strata(lengths: np.ndarray) -> np.ndarray:
    """The stratum [N] of each length [N], from 0: at most a hundred, of ten examples or more (all, where they are
    fewer), each as short a range of lengths as this allows; equal lengths stay together."""
    least = max(LEAST_IN_PART, -(-len(lengths) // BASELINE_PARTS))
    values, counts = np.unique(lengths, return_counts=True)
    firsts, inside, left = [0], 0, len(lengths)
    for place, count in enumerate(counts):
        if inside >= least and left >= least:
            firsts.append(place)
            inside = 0
        inside, left = inside + count, left - count
    return np.searchsorted(values[firsts[1:]], lengths, side="right")


# --- what rules read --------------------------------------------------------------------------------------------


def lengths_of(path: str | Path | None, ids: pd.Series) -> np.ndarray | None:
    """Reads how many tokens fine-tuning learns from in each example [N] in the order of ids; None without a path."""
    if not path:
        return None
    return _column(path, "n_learnt", ids).to_numpy(dtype=np.int64)


def values_of(path: str | Path, rule: Mapping[str, Any], ids: pd.Series) -> np.ndarray | None:
    """Reads the quota's column [N] of the train table in the order of ids; None where the rule has no quota.

    Raises DataError where there is no such column.
    """
    if not rule["quota"]:
        return None
    column = rule["quota"]["column"]
    if column not in column_names(path):
        raise DataError(f"selections: quota: the examples have no column {shown(column)}; take one that they have.")
    return _column(path, column, ids).to_numpy(dtype=object)


def effects_of(path: str | Path, ids: pd.Series) -> Iterator[np.ndarray]:
    """Reads an attribution matrix, whose rows are those of ids, one column [N] after the other."""
    own = read_parquet(path, columns=["id"])["id"]
    if not own.equals(ids):
        raise ScoreError(f"{path}: its rows are not those of the scores. Compute the scores again.")
    for name in column_names(path):
        if name != "id":
            yield read_parquet(path, columns=[name])[name].to_numpy()


def vectors_of(path: str | Path, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Reads embeddings as they are asked for: positions [m] -> [m, d]. rows: of each score [N], its row in the file."""
    whole = np.load(path, mmap_mode="r")
    first, size = whole.offset, whole[:1].nbytes

    def read(positions: np.ndarray) -> np.ndarray:
        # Not from the mapped file: the pages about each row would count as this process's memory.
        with open(path, "rb") as file:
            found = (os.pread(file.fileno(), size, first + size * row) for row in rows[positions].tolist())
            return np.frombuffer(b"".join(found), dtype=whole.dtype).reshape(len(positions), -1)

    return read


def _column(path: str | Path, name: str, ids: pd.Series) -> pd.Series:
    table = read_parquet(path, columns=["id", name])
    if not table["id"].equals(ids):
        if len(table) != len(ids) or not table["id"].isin(ids).all():
            raise ScoreError(
                f"{path}: its {len(table)} rows are not those of the {len(ids)} scores. Compute both again."
            )
        table = table.set_index("id").loc[ids]
    return table[name]


# --- what was chosen --------------------------------------------------------------------------------------------


def tabulate(chosen: Mapping[str, tuple[str, str, Sequence[str]]], lengths: pd.Series, bin: str) -> pd.DataFrame:
    """How long the responses of each data set are, beside those of all examples, and what baselines share with theirs.

    chosen: name -> its selection, which baseline of it ("" if none), and its ids; a selection before its baselines.
    lengths: tokens that fine-tuning learns from [N], NaN where unknown, indexed by id. bin: what stands for a bin in
    the rows. Returns `method` (the name; "all" in the last row, of all examples), `bin`, `selection`, `baseline`, `n`,
    `n_tokens`, `mean_tokens`, `median_tokens`, and `shared`, the share of it that is in its selection.
    """
    rows = []
    for name, (selection, kind, ids) in {**chosen, "all": ("", "", lengths.index)}.items():
        own = lengths.loc[list(ids)]
        known = (own.sum(), own.mean(), own.median()) if own.notna().all() else (np.nan,) * 3
        shared = pd.Index(ids).isin(chosen[selection][2]).mean() if selection else np.nan
        rows.append((name, "all" if name == "all" else bin, selection, kind, len(own), *known, shared))
    return pd.DataFrame(rows, columns=COLUMNS)
