"""Tests the chain of the paper's argument, link by link: in-context probing ~ one step of fine-tuning ~ influence.

ll(t; θ − η·g_z) − ll(t; θ) = η·⟨g_z, g_t⟩ + O(η²): one_step/η approaches influence as η → 0, until the effects drown in
the rounding of float32. So the second link can be checked against what it must be; the first is the paper's claim.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

from icprobe.analysis.correlations import estimates, percentiles, resample_counts
from icprobe.analysis.statistics import aggregate
from icprobe.errors import ScoreError
from icprobe.formatting import estimate, link_words

COLUMNS = ["link", "level", "task", "learning_rate", "statistic", "value", "low", "high", "interval", "n"]
FIRST, SECOND, ENDS = "icp~one_step", "one_step~influence", "icp~influence"
DIFFERENCE = f"{SECOND} - {FIRST}"
STATISTICS = ("spearman", "pearson")
JACKKNIFE_GROUPS = 50  # of examples


def chain(
    icp: pd.DataFrame,
    influence: pd.DataFrame,
    one_step: Mapping[float, pd.DataFrame],
    aggregators: Mapping[str, str],
    resamples: int = 1000,
    seed: int = 0,
    analytic_above: int = 20_000,
) -> pd.DataFrame:
    """Computes the correlations of each link, and how far one_step/η is from influence, with their 95% intervals.

    icp, influence: attribution matrices [N, M], `id` and one column for each task; one_step: step size η -> its matrix.
    aggregators: method -> how its scores reduce the matrix. Returns rows `link`, `level`, `task`, `learning_rate` (η;
    NaN for icp~influence), `statistic`, `value`, `low`, `high`, `interval`, `n`. Levels:

    element: all N·M cells. task: the N cells of one task, which `task` names; task_mean: the mean of these over tasks.
    example: the N scores, as `aggregators` says; example_mean: the N means over tasks.

    Statistics: spearman, pearson; spearman_difference, by how much the second link's exceeds the first's (`link` says
    so); relative_error, ‖one_step/η − influence‖ / ‖influence‖ over all cells. Intervals: percentile bootstrap over
    examples, whose cells stay together, the same resamples for all; above `analytic_above` examples a jackknife that
    leaves out a 50th of them at a time. Raises ScoreError where matrices differ in examples or tasks.
    """
    steps = sorted(one_step)
    methods = ["icp", "influence", *["one_step"] * len(steps)]
    frames = [_aligned(matrix, icp) for matrix in (icp, influence, *(one_step[step] for step in steps))]
    tasks = list(icp.columns.drop("id"))
    cells = np.stack([frame[tasks].to_numpy(dtype=np.float64) for frame in frames])  # [2 + steps, N, M]
    n_examples, n_cells = len(icp), cells[0].size
    rows = _Rows(steps, Resampling.of(n_examples, resamples, seed, analytic_above))
    rows.add("element", rows.correlations(cells.reshape(len(cells), -1)), n_cells)
    rows.add_errors(cells)
    of_tasks = [rows.correlations(cells[:, :, j]) for j in range(len(tasks))]
    for task, found in zip(tasks, of_tasks, strict=True):
        rows.add("task", found, n_examples, task)
    means = {s: _mean([found[s] for found in of_tasks]) for s in STATISTICS}
    defined = {s: sum(~np.isnan(found[s][0]) for found in of_tasks) for s in STATISTICS}
    rows.add("task_mean", means, {s: n_examples * tasks for s, tasks in defined.items()})
    scores = [aggregate(frame, aggregators[m])["score"] for frame, m in zip(frames, methods, strict=True)]
    rows.add("example", rows.correlations(np.stack(scores)), n_examples)
    rows.add("example_mean", rows.correlations(cells.mean(axis=2)), n_examples)
    return pd.DataFrame(rows.found, columns=COLUMNS)


class _Rows:
    """The rows of the chain's table, one statistic of a link each, as `chain` describes them.

    Values stand in the order icp, influence, one_step at each step size.
    """

    def __init__(self, steps: Sequence[float], sample: "Resampling") -> None:
        self.found: list[tuple] = []
        self._steps, self._sample = steps, sample
        # (link, step size, places of the two methods)
        self._links = [(ENDS, np.nan, 0, 1)]
        for k, step in enumerate(steps, start=2):
            self._links += [(FIRST, step, 0, k), (SECOND, step, k, 1)]

    def correlations(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Computes {statistic: [1 + resamples, links]} of values [2 + steps, n]; the first row is of the data."""
        found = estimates(values, None, [(a, b) for *_, a, b in self._links], self._sample.counts)
        return {statistic: found[statistic] for statistic in STATISTICS}

    def add(
        self, level: str, found: Mapping[str, np.ndarray], n: int | Mapping[str, np.ndarray], task: str = ""
    ) -> None:
        """Adds the links' correlations at a level, and by how much the second link's exceeds the first's.

        n: of how many values they are; where links differ in it, statistic -> [links].
        """
        sizes = n if isinstance(n, Mapping) else {s: np.full(len(self._links), n) for s in STATISTICS}
        for k, (link, step, *_) in enumerate(self._links):
            for statistic in STATISTICS:
                bounds = self._sample.interval(found[statistic][:, k], np.arctanh, np.tanh)
                self.found.append((link, level, task, step, statistic, *bounds, int(sizes[statistic][k])))
        for k, step in enumerate(self._steps):
            first, second = found["spearman"][:, 1 + 2 * k], found["spearman"][:, 2 + 2 * k]
            bounds = self._sample.interval(second - first)
            n_both = int(sizes["spearman"][[1 + 2 * k, 2 + 2 * k]].min())
            self.found.append((DIFFERENCE, level, task, step, "spearman_difference", *bounds, n_both))

    def add_errors(self, cells: np.ndarray) -> None:
        """Adds how far one_step/η is from influence over all cells [2 + steps, N, M], at each step size η."""
        counts = self._sample.counts
        size = (cells[1] ** 2).sum(axis=1)
        total = counts @ size
        for step, matrix in zip(self._steps, cells[2:], strict=True):
            distance = ((matrix / step - cells[1]) ** 2).sum(axis=1)
            error = np.sqrt((counts @ distance) / np.where(total > 0, total, np.nan))
            bounds = self._sample.interval(error, np.log, np.exp)
            self.found.append((SECOND, "element", "", step, "relative_error", *bounds, matrix.size))


@dataclass(frozen=True)
class Resampling:
    """Makes intervals from resamples.

    counts: how often each example is in each, [1 + resamples, N]; the first row is all ones. kind: their name.
    """

    counts: np.ndarray
    kind: str

    @classmethod
    def of(cls, n: int, resamples: int, seed: int, analytic_above: int) -> "Resampling":
        if n <= analytic_above:
            counts, kind = resample_counts(n, resamples, seed), "bootstrap"
        else:
            group = np.random.default_rng(seed).permutation(n) % JACKKNIFE_GROUPS
            counts, kind = (group[None] != np.arange(JACKKNIFE_GROUPS)[:, None]).astype(np.float32), "jackknife"
        return cls(np.vstack([np.ones((1, n), dtype=np.float32), counts]), kind)

    def interval(
        self, values: np.ndarray, scale: Callable = np.asarray, back: Callable = np.asarray
    ) -> tuple[float, float, float, str]:
        """Forms (value, low, high, kind) from the statistic [1 + resamples]; NaN where it is undefined.

        scale, back: to where the jackknife's draws are about normal, and from there. Its variance is
        (G − 1)/G·Σ(z_g − mean)² (Efron and Stein 1981), with Student's t of G − 1 degrees of freedom.
        """
        value, draws = float(values[0]), values[1:]
        if np.isnan(value):
            return value, np.nan, np.nan, self.kind
        if self.kind == "bootstrap":
            return value, *percentiles(draws), self.kind
        with np.errstate(divide="ignore", invalid="ignore"):
            z, middle = scale(draws), scale(np.float64(value))
            half = student.ppf(0.975, JACKKNIFE_GROUPS - 1) * np.sqrt((JACKKNIFE_GROUPS - 1) * z.var())
            low, high = (float(back(middle + side)) for side in (-half, half))
        return value, low, high, self.kind


def weak_link(table: pd.DataFrame) -> str:
    """Says which link of the chain is the weak one, in sentences from the rows that `chain` gives over all tasks.

    A link is called weaker at a step size where the interval of the two links' difference excludes 0. The numbers are
    those at the step size whose one_step/η is nearest to influence, which is where the second link is what it says.
    """
    rows = {(row.level, row.link, row.statistic, row.learning_rate): row for row in table.itertuples()}
    errors = {eta: row for (*_, statistic, eta), row in rows.items() if statistic == "relative_error"}
    known = [eta for eta, row in errors.items() if not np.isnan(row.value)]
    if not known:
        return "Influence is 0, or not a number, everywhere, so the weak link cannot be determined."
    best = min(known, key=lambda eta: errors[eta].value)
    weak = {eta: _weaker(rows["element", DIFFERENCE, "spearman_difference", eta]) for eta in errors}

    def links(level: str) -> list:
        return [rows[level, link, "spearman", best] for link in (FIRST, SECOND)]

    first, second = (_shown(row) for row in links("element"))
    n_examples = links("example")[0].n
    where = f"element by element ({n_examples} examples × {links('element')[0].n // n_examples} tasks, η = {best:g})"
    gap = _shown(rows["element", DIFFERENCE, "spearman_difference", best])
    opening = (
        f"Of the two links between icp and influence, {link_words(weak[best])} is the weaker one"
        if weak[best]
        else "These data do not show which of the two links between icp and influence is the weaker one"
    )
    sentences = [
        f"{opening}: {where} the Spearman correlation of icp and one_step is {first}; for one_step and influence it is "
        f"{second}, which is {gap} more."
    ]
    others = {
        link: [eta for eta in sorted(weak) if eta != best and weak[eta] == link] for link in (FIRST, SECOND, None)
    }
    if len(weak) > 1 and not any(etas for link, etas in others.items() if link != weak[best]):
        sentences.append("This holds at every step size.")
    else:
        for link, etas in others.items():
            if etas and link != weak[best]:
                at = ", ".join(f"{eta:g}" for eta in etas)
                sentences.append(
                    f"At η = {at} it is {link_words(link)}." if link else f"At η = {at} they do not show it."
                )
    by_score = " and ".join(_shown(row) for row in links("example"))
    by_mean = " and ".join(_shown(row) for row in links("example_mean"))
    sentences.append(f"Example by example the two are {by_score} for scores, and {by_mean} for means over tasks.")
    sentences.append(_error_sentence({eta: errors[eta].value for eta in sorted(known)}, best))
    return " ".join(sentences)


def _weaker(difference) -> str | None:
    if difference.low > 0:
        return FIRST
    return SECOND if difference.high < 0 else None


def _shown(row) -> str:
    return estimate(row.value, row.low, row.high)


def _error_sentence(errors: Mapping[float, float], best: float) -> str:
    """Says how the relative error goes with η; errors: η, ascending -> its error."""
    share = {eta: f"{float(f'{100 * error:.2g}'):g}%" for eta, error in errors.items()}
    least = f"one_step/η is {share[best]} off influence at η = {best:g}"
    smallest, largest = min(errors), max(errors)
    if len(errors) == 1:
        return f"{least}."
    if best == smallest:
        return f"{least}, the smallest step, and {share[largest]} at η = {largest:g}, the largest."
    rest = f"; at η = {smallest:g} it is {share[smallest]}, because effects drown in float32's rounding there."
    above = f" and {share[largest]} at η = {largest:g}" if best != largest else ""
    return least + above + rest


def _aligned(matrix: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Puts the examples and tasks of a matrix into the order of another one's."""
    if set(matrix["id"]) != set(reference["id"]) or set(matrix.columns) != set(reference.columns):
        raise ScoreError(
            f"The chain needs matrices of the same examples and tasks; one is {len(matrix)} × {matrix.shape[1] - 1}, "
            f"that of icp {len(reference)} × {reference.shape[1] - 1}. Compute them from the same data."
        )
    return matrix.set_index("id").loc[reference["id"]].reset_index()[list(reference.columns)]


def _mean(stacks: Sequence[np.ndarray]) -> np.ndarray:
    """Averages over tasks, without those in which a statistic is undefined; NaN where it is so in all."""
    values = np.stack(stacks)
    defined = (~np.isnan(values)).sum(axis=0)
    return np.where(defined, np.nansum(values, axis=0) / np.maximum(defined, 1), np.nan)
