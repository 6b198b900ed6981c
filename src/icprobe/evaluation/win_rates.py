"""Win rates against the base model, by AlpacaEval's definitions, and the differences between methods."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import t as student

from icprobe.analysis.holm import with_holm
from icprobe.errors import DataError, several

FEWEST = 6  # prompts: of fewer, all signs agree by chance in more than 5%
# The sign-flip test: up to so many prompts that differ all signs are tried (8,192). Of more they are drawn, in batches
# of as many, until so many flips reach a pair's difference, or so many were drawn for each pair: at 5% by Holm, 20 do.
EXACT_PROMPTS = 13
ENOUGH = 100
DRAWS_PER_PAIR = 400
MEASURES = ["win_rate", "standard_error", "low", "high", "discrete_win_rate"]
COUNTS = ["n_wins", "n_wins_base", "n_draws"]
COLUMNS = ["method", "bin", "subset", "seed", "n", *MEASURES, *COUNTS]
DIFFERENCE_COLUMNS = [
    "bin",
    "method_a",
    "method_b",
    "n",
    "difference",
    "low",
    "high",
    "p_value",
    "p_value_holm",
]


def win_rate(preferences: np.ndarray | pd.Series) -> dict[str, float | int]:
    """The win rate of one set of judgements, in percent.

    preferences: [n] in [1, 2], above 1.5 a win of the fine-tuned model, 1.5 a draw; NaN (unreadable) is
    left out. win_rate = 100·mean(preference − 1); standard_error = 100·std(preference − 1, ddof=1)/√n, NaN
    below two; low and high are win_rate ± t·standard_error within [0, 100], with Student's t of n − 1 degrees of
    freedom (1.96 for many prompts), wider where all prompts end alike
    (`_with_the_unseen`); discrete_win_rate = 100·(n_wins + n_draws/2)/n. Without judgements every rate is NaN and every
    count 0. Raises DataError outside of [1, 2]. Source: AlpacaEval (github.com/tatsu-lab/alpaca_eval,
    metrics/winrate.py).
    """
    preferences = np.asarray(preferences, dtype=np.float64)
    preferences = preferences[~np.isnan(preferences)]
    outside = preferences[(preferences < 1) | (preferences > 2)]
    if outside.size:
        raise DataError(
            f"{several(outside.size, 'preference')} outside of [1, 2], the first is {outside[0]}: "
            "1 means that the base model wins, 2 that the fine-tuned one does. Judge again."
        )
    n = len(preferences)
    n_wins, n_draws = int((preferences > 1.5).sum()), int((preferences == 1.5).sum())
    rate = 100 * float((preferences - 1).mean()) if n else np.nan
    error = 100 * float((preferences - 1).std(ddof=1)) / np.sqrt(n) if n > 1 else np.nan
    counts = {"n": n, "n_wins": n_wins, "n_wins_base": n - n_wins - n_draws, "n_draws": n_draws}
    half = float(student.ppf(0.975, n - 1)) * error if n > 1 else np.nan
    low, high = _with_the_unseen(rate - half, rate + half, rate, counts, n)
    return counts | {
        "win_rate": rate,
        "standard_error": float(error),
        "low": _within(low),
        "high": _within(high),
        "discrete_win_rate": 100 * (n_wins + n_draws / 2) / n if n else np.nan,
    }


def _with_the_unseen(low: float, high: float, rate: float, counts: dict, prompts: int) -> tuple[float, float]:
    """The interval [low, high] of a win rate, wider where all judgements are wins, all losses, or all draws.

    Such judgements do not show how other prompts would end, and errors that are made of how they spread come out as
    nothing. At 95%, up to `most_unlike(prompts)` of other prompts end otherwise: the interval reaches as far as these
    would take the rate. prompts: how many were judged; seeds repeat them.
    """
    if prompts < 1 or np.isnan(low) or counts["n"] not in (counts["n_wins"], counts["n_wins_base"], counts["n_draws"]):
        return low, high
    unlike = most_unlike(prompts)
    # Of prompts that are not lost the least is a draw, of those that are not won the most.
    worst, best = 50.0 * (counts["n_wins_base"] > 0), 100 - 50.0 * (counts["n_wins"] > 0)
    alike = (1 - unlike) * rate
    return min(low, alike + unlike * worst), max(high, alike + unlike * best)


def most_unlike(n: int) -> float:
    """The largest share of others that n draws may leave unseen: the upper end of the 95% interval of 0 of n.

    Exact (Clopper and Pearson, Biometrika 26, 1934), for graded values too: whatever these are, no more than that share
    of them is of another kind than all that were drawn.
    """
    return 1 - 0.025 ** (1 / n)


def win_rate_table(judgements: pd.DataFrame, conditions: Iterable[tuple[str, str, object]] = ()) -> pd.DataFrame:
    """The rows of win_rates.csv, without its column `model`.

    judgements: `method`, `bin`, `subset`, `seed`, `id`, `preference`. conditions: the (method, bin, seed)
    that were asked for, so that one without judgements (an empty bin) is a row that says 0. For each method
    and bin there is every subset and then "overall", and in each every seed and then "all".

    "all" is the mean over the seeds that have judgements, with their counts summed. With two seeds or more
    its standard error and interval are those of `crossed_error`, for other seeds and other prompts, and the
    interval is as `win_rate`'s where all prompts end alike; with one seed both are that seed's own. Raises
    DataError where a prompt is judged twice.
    """
    judgements = _checked(judgements)
    conditions = [(method, bin_, str(seed)) for method, bin_, seed in conditions]
    asked = dict.fromkeys([*conditions, *judgements[["method", "bin", "seed"]].itertuples(index=False, name=None)])
    seeds = {}
    for method, bin_, seed in asked:
        seeds.setdefault((method, bin_), set()).add(seed)
    subsets = [*judgements["subset"].dropna().unique(), "overall"]

    by_prompt = judgements.set_index("id")
    groups = dict(list(by_prompt.groupby(["method", "bin", "subset", "seed"])["preference"]))
    groups |= {
        (method, bin_, "overall", seed): group
        for (method, bin_, seed), group in by_prompt.groupby(["method", "bin", "seed"])["preference"]
    }
    nothing = pd.Series(dtype=np.float64)
    rows = []
    for (method, bin_), of_condition in seeds.items():
        for subset in subsets:
            ordered = sorted(of_condition, key=lambda seed: (len(seed), seed))  # 2 before 10
            each = [groups.get((method, bin_, subset, seed), nothing) for seed in ordered]
            rates = [win_rate(preferences) for preferences in each]
            for seed, row in zip([*ordered, "all"], [*rates, _over_seeds(rates, each)], strict=True):
                rows.append({"method": method, "bin": bin_, "subset": subset, "seed": seed, **row})
    return pd.DataFrame(rows, columns=COLUMNS)


def _over_seeds(rates: list[dict], preferences: list[pd.Series]) -> dict[str, float | int]:
    judged = [rate for rate in rates if rate["n"]]
    if len(judged) < 2:
        return judged[0] if judged else win_rate([])
    each = np.array([rate["win_rate"] for rate in judged])
    table = pd.concat([p for p, rate in zip(preferences, rates, strict=True) if rate["n"]], axis=1).dropna(how="all")
    values = 100 * table.to_numpy()
    mean, error, half = float(each.mean()), crossed_error(values)[0], crossed_half_width(values)
    summed = {name: sum(rate[name] for rate in judged) for name in ["n", *COUNTS]}
    low, high = _with_the_unseen(mean - half, mean + half, mean, summed, len(table))
    return summed | {
        "win_rate": mean,
        "standard_error": error,
        "low": _within(low),
        "high": _within(high),
        "discrete_win_rate": float(np.mean([rate["discrete_win_rate"] for rate in judged])),
    }


def crossed_error(values: np.ndarray) -> tuple[float, float]:
    """The standard error of the mean over seeds of values [prompts, seeds], and its degrees of freedom.

    Prompts and seeds are random: y_ps = μ + prompt_p + seed_s + rest_ps, NaN where a seed has not judged a prompt; each
    row and each column has a judgement. Var(mean) = (MS_prompts + MS_seeds)/(prompts·seeds), the mean squares of the
    two-way table, with Satterthwaite's degrees of freedom (Searle, Casella and McCulloch, Variance Components, 1992).
    The unbiased estimate takes MS_rest off; with few seeds what is left of MS_seeds is then often below 0, and taking
    that for 0 held the truth in 87 to 94% of simulated cases, with longer intervals. Where judgements are missing, a
    prompt's part is what its deviations add to the mean of the seeds' means (Liang and Zeger, Biometrika 73, 1986, each
    prompt a cluster), and those means differ by their prompts, too: longer intervals. NaN below two prompts or seeds.
    """
    prompts, seeds = values.shape
    if min(prompts, seeds) < 2:
        return np.nan, np.nan
    judged = ~np.isnan(values)
    means = np.nanmean(values, axis=0)
    parts = np.where(judged, values - means, 0) / judged.sum(axis=0) / seeds
    of_prompts = float((parts.sum(axis=1) ** 2).sum()) * prompts / (prompts - 1)
    of_seeds = float(means.var(ddof=1)) / seeds
    return _summed_error([(of_prompts, prompts - 1), (of_seeds, seeds - 1)])


def _summed_error(parts: list[tuple[float, int]]) -> tuple[float, float]:
    """The standard error whose square is the sum of variances, and Satterthwaite's degrees of freedom.

    parts: (variance, its degrees of freedom).
    """
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0, float(parts[0][1])
    return float(np.sqrt(total)), float(total**2 / sum(variance**2 / freedom for variance, freedom in parts))


def crossed_half_width(values: np.ndarray) -> float:
    """Half the 95% interval of the mean of values [prompts, seeds], by `crossed_error` and Student's t."""
    error, degrees = crossed_error(values)
    return float(student.ppf(0.975, degrees)) * error


def paired_differences(judgements: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How much the win rates of two methods in the same bin differ, prompt by prompt.

    judgements: as for `win_rate_table`; a prompt's preference is its mean over seeds. Returns `bin`, `method_a`,
    `method_b`, `n` (prompts that both have), `difference` (a − b, in percentage points), `low`, `high` (95%
    percentile bootstrap over prompts; where a method has two seeds or more, the interval of `over_seeds_too`; below
    six prompts it holds 0 always, for no test could tell; where all prompts differ alike, what `most_unlike` of others
    may do), `p_value` (two-sided, of `sign_flip_p_values`; where a
    method has two seeds or more, the larger of that and of `over_seeds_too`) and `p_value_holm` (Holm's correction
    over the whole table). Below two shared prompts all of them are NaN but n. Raises DataError where a prompt is
    judged twice.
    """
    judgements = _checked(judgements)
    tables = {}
    for bin_ in judgements["bin"].unique():
        here = judgements[judgements["bin"] == bin_]
        table = here.groupby(["id", "method"])["preference"].mean().unstack("method")  # [prompts, methods]
        pairs = list(combinations([method for method in here["method"].unique() if method in table], 2))
        if pairs:
            tables[bin_] = here, table, pairs
    tests = sum(len(pairs) for _, _, pairs in tables.values())
    rows = []
    for bin_, (here, table, pairs) in tables.items():
        differences = np.stack([100 * (table[a] - table[b]).to_numpy() for a, b in pairs], axis=1)  # [prompts, pairs]
        both = ~np.isnan(differences)
        differences = np.where(both, differences, 0)
        prompts = len(differences)
        counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), resamples)
        with np.errstate(invalid="ignore"):  # a resample without a shared prompt has no mean, and is dropped
            draws = (counts @ differences) / (counts @ both.astype(np.float64))  # [resamples, pairs]
        variances = _seed_variances(here)
        p_values = sign_flip_p_values(differences, max(resamples, DRAWS_PER_PAIR * tests), seed)
        for k, (a, b) in enumerate(pairs):
            shared = differences[both[:, k], k]
            row = {"bin": bin_, "method_a": a, "method_b": b, "n": len(shared)}
            if len(shared) > 1:
                low, high = np.percentile(draws[~np.isnan(draws[:, k]), k], [2.5, 97.5])
                p_value = p_values[k]
                if of_seeds := [variances[method] for method in (a, b) if method in variances]:
                    low, high, over_seeds = over_seeds_too(shared, of_seeds)
                    p_value = max(p_value, over_seeds)
                if len(shared) < FEWEST:
                    low, high = min(low, 0), max(high, 0)
                if np.ptp(shared) < 1e-9:  # prompts that all differ alike do not show how others would
                    unlike = most_unlike(len(shared))
                    alike = (1 - unlike) * float(shared.mean())
                    low, high = min(low, alike - 100 * unlike), max(high, alike + 100 * unlike)
                row |= {"difference": shared.mean(), "low": low, "high": high, "p_value": p_value}
            rows.append(row)
    return with_holm(pd.DataFrame(rows, columns=DIFFERENCE_COLUMNS))


def sign_flip_p_values(differences: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """Two-sided p-values [pairs] of differences [prompts, pairs], 0 where a prompt says nothing.

    Were two methods the same, each prompt's difference would as likely have the other sign: p is the share of all ways
    to flip the signs whose sum is at least as far from 0 as that of the data (Fisher's randomisation test; Dwass 1957).
    So n prompts cannot give less than 2/2ⁿ. All flips are tried up to 13 prompts that differ. Above, at most `draws`
    are drawn, and fewer for a pair once a hundred of them reach its sum (Besag and Clifford, Biometrika 78, 1991); the
    data count as one of them, so that p is never 0 (Phipson and Smyth 2010).
    """
    observed = np.abs(differences.sum(axis=0))
    least = observed - 1e-9 * np.abs(differences).sum(axis=0)  # sums of the same terms differ by rounding
    p_values = np.full(len(observed), np.nan)
    differing = differences != 0
    exact = differing.sum(axis=0) <= EXACT_PROMPTS
    for pair in np.flatnonzero(exact):
        values = differences[differing[:, pair], pair]
        flips = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)  # [2ⁿ, n]
        p_values[pair] = np.mean(np.abs(flips @ values) >= least[pair])

    generator = np.random.default_rng([seed, 2])
    left, reached, drawn = np.flatnonzero(~exact), np.zeros(len(observed), dtype=int), 0
    while len(left):
        batch = min(2**EXACT_PROMPTS, draws - drawn)
        flips = 1.0 - 2.0 * generator.integers(0, 2, (batch, len(differences)), dtype=np.int8)
        reached[left] += (np.abs(flips @ differences[:, left]) >= least[left]).sum(axis=0)
        drawn += batch
        p_values[left] = (1 + reached[left]) / (1 + drawn)
        left = left[reached[left] < ENOUGH] if drawn < draws else left[:0]
    return p_values


def over_seeds_too(
    differences: np.ndarray, of_seeds: list[tuple[float, int]], limit: float = 100.0
) -> tuple[float, float, float]:
    """(low, high, two-sided p-value) of the mean of differences [prompts], for other prompts and other seeds.

    of_seeds: what `_seed_variances` gives for each of the two methods that has several seeds; limit: no difference is
    larger. Variances add up as in `crossed_error`, and Student's t. Simulated without a difference, 5% of p-values lie
    below 0.01 to 0.06.
    """
    n, mean = len(differences), float(differences.mean())
    error, degrees = _summed_error([(float(differences.var(ddof=1)) / n, n - 1), *of_seeds])
    if error == 0:
        return mean, mean, 0.0
    half = float(student.ppf(0.975, degrees)) * error
    return max(-limit, mean - half), min(limit, mean + half), float(2 * student.sf(abs(mean) / error, degrees))


def _seed_variances(judgements: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """Method -> the variance that its seeds add to its win rate, and seeds − 1; only methods with two or more."""
    found = {}
    for method, rows in judgements.groupby("method", sort=True):
        table = rows.pivot(index="id", columns="seed", values="preference").dropna(axis=1, how="all")
        seeds = table.shape[1]
        if seeds > 1:
            found[method] = float((100 * table.mean()).var(ddof=1)) / seeds, seeds - 1
    return found


def _checked(judgements: pd.DataFrame) -> pd.DataFrame:
    """The judgements with seeds as text, so that 0 from a path and 0 from a column are one seed."""
    judgements = judgements.assign(seed=judgements["seed"].astype(str))
    twice = judgements.duplicated(["method", "bin", "seed", "id"])
    if twice.any():
        row = judgements[twice].iloc[0]
        raise DataError(
            f"Judgements of {row['method']}, {row['bin']}, seed {row['seed']}: prompt {row['id']!r} is "
            f"judged twice ({several(twice.sum(), 'such row')}). Give each prompt one judgement."
        )
    return judgements


def _within(rate: float) -> float:
    return float(np.clip(rate, 0, 100))
