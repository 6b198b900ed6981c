"""What labels of the examples say of the methods, in sentences."""

from collections.abc import Collection, Mapping

import pandas as pd

from icprobe.analysis import headline
from icprobe.evaluation.tabulation import SIGNIFICANT
from icprobe.formatting import count, estimate, fixed
from icprobe.report import verdicts
from icprobe.report.wording import listed, many

FEW_EXAMPLES = 5  # of fewer, any order comes about by chance in more than 5%


def is_length(method: str, baselines: Collection[str]) -> bool:
    """Whether what stands for a method is the length of the response."""
    return method == headline.RESPONSE_TOKENS or (method == "length" and method in baselines)


def labels(
    label: str,
    good: str,
    rows: pd.DataFrame,
    differences: pd.DataFrame | None = None,
    baselines: Collection[str] = headline.BASELINES,
) -> list[str]:
    """Which methods rank the good examples of a label above the others, and which of them does so best.

    rows: one AUC for each method, and of response length; differences: of every two of them. baselines: the methods
    that are `length` and `random`, and not external scores that are called so.
    """
    told = {}
    for row in rows.itertuples():
        value = estimate(row.auc, row.low, row.high) if row.low == row.low else fixed(row.auc)
        told[row.method] = f"{verdicts.name(row.method)} ({value})"
    groups = {
        "{} rank{s} {good} examples above the others more often than chance would.": rows[rows["low"] > 0.5],
        "{} rank{s} the others above the {good} ones more often than chance would.": rows[rows["high"] < 0.5],
        "The interval{many} of {} include{s} 0.5: these examples do not show that {it} better or worse than chance.": (
            rows[(rows["low"] <= 0.5) & (rows["high"] >= 0.5)]
        ),
        "There is no interval of {}: there are too few examples, or all have the same score.": rows[rows["low"].isna()],
    }
    n_good, n_others = rows["n_positive"].max(), rows["n_negative"].max()
    sentences = [
        f"By the label {label}, {many(n_good, 'example')} {'is' if n_good == 1 else 'are'} labelled {good} and "
        f"{count(n_others)} {'is' if n_others == 1 else 'are'} not.",
        f"In parentheses after each method is its AUC with a 95% interval: how often one of the {good} examples scores "
        "above one of the others (0.5 is chance, 1 is without error).",
    ]
    for words, of_group in groups.items():
        ordered = of_group.sort_values("auc", ascending=False, kind="stable")["method"]
        if len(ordered):
            one = len(ordered) == 1
            names = listed(told[method] for method in ordered)
            it = "it tells them apart" if one else "they tell them apart"
            sentence = words.format(names, s="s" if one else "", many="" if one else "s", it=it, good=good)
            starts_with_words = words.startswith("{}") and ordered.iloc[0] in headline.RIVALS
            sentences.append(sentence[0].upper() + sentence[1:] if starts_with_words else sentence)
    return sentences + _the_best(rows, differences, baselines) + _beside_length(rows, differences, baselines)


def _the_best(rows: pd.DataFrame, differences: pd.DataFrame | None, baselines: Collection[str]) -> list[str]:
    """Whom the examples tell the method with the highest AUC apart from, by Holm's p-values, and whom not.

    Not `random`: that a method is better than chance is what its own interval says, and not one draw of chance.
    """
    methods = rows[~rows["method"].isin(headline.RIVALS)].sort_values("auc", ascending=False, kind="stable")
    if differences is None or methods.empty or not methods["low"].iloc[0] > 0.5:
        return []
    best = methods["method"].iloc[0]
    ties = methods["method"][methods["auc"] == methods["auc"].iloc[0]].tolist()
    # Beside a length whose short ones are the good, every method looks better: `_beside_length` speaks of that.
    reversed_ = [row.method for row in rows.itertuples() if row.auc < 0.5 and is_length(row.method, baselines)]
    no_rivals = {*ties, *reversed_, *({"random"} & {*baselines})}
    against = {name: of for name, of in verdicts.against(best, differences).items() if name not in no_rivals}
    apart = [verdicts.name(other) for other, (by, p) in against.items() if p < SIGNIFICANT and by > 0]
    behind = [verdicts.name(other) for other, (by, p) in against.items() if p < SIGNIFICANT and by < 0]
    open_ = [verdicts.name(other) for other, (_, p) in against.items() if not p < SIGNIFICANT]
    clauses = [f"is better than {listed(apart)}"] if apart else []
    clauses += [f"is worse than {listed(behind)} on the examples that both have evaluated"] if behind else []
    clauses += [f"is not shown to differ from {listed(open_)} by these examples"] if open_ else []
    tested = "(paired test of DeLong, corrected for their number, 5%)"
    told = f"{', but '.join(clauses)} {tested}." if clauses else ""
    if len(ties) > 1:
        shared = f"Of the methods, {listed(ties)} share the highest AUC."
        return [f"{shared} {best} {told}" if told else shared]
    said = f"Of the methods, {best} has the highest AUC and" if len(methods) > 1 else best
    return [f"{said} {told}"] if told else []


def among_the_lowest(found: Mapping[str, tuple[float, int, int]], good: str) -> list[str]:
    """How many of the examples that are not good are among as many with the lowest scores, as `Findings.lowest` counts.

    Methods that have evaluated the same examples share a sentence.
    """
    groups: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for method, (hits, n, evaluated) in found.items():
        said = count(int(hits)) if hits == int(hits) else fixed(hits, 1)
        groups.setdefault((n, evaluated), []).append((method, said))
    # Not at the top: figures and the terminal read this module, too, and scipy.stats takes a second.
    from scipy.stats import hypergeom

    sentences = []
    for (n, evaluated), ((first, hits), *others) in groups.items():
        low, high = map(int, hypergeom(evaluated, n, n).interval(0.95))
        told = [f"{first} has {hits} among its {count(n)} lowest scores"]
        told += [f"{method} {hits}" for method, hits in others]
        sentences.append(
            f"That is about whole rankings. At the lowest end alone: of the {many(n, 'example')} that "
            f"{'is' if n == 1 else 'are'} not {good}, {listed(told)}; chance would give {fixed(n * n / evaluated, 1)}, "
            f"and {low} to {high} in 95% of cases."
        )
    return sentences


def _beside_length(rows: pd.DataFrame, differences: pd.DataFrame | None, baselines: Collection[str]) -> list[str]:
    """Which methods tell examples apart, but are not shown to do so better than response length alone.

    Where the good ones are the shorter, that is said whoever does better: then a method that prefers short responses
    is better than the AUC of length says.
    """
    known = rows[rows["low"].notna()].assign(told=(rows["auc"] - 0.5).abs())
    known = known[(known["low"] > 0.5) | (known["high"] < 0.5)].set_index("method")
    lengths = [name for name in known.index if is_length(name, baselines)]
    if not lengths:
        return []
    length = lengths[0]
    # Of AUCs below 0.5, on either side, the sign of a difference does not say who tells the examples better.
    comparable = known.index[known["auc"] > 0.5]
    against = {} if differences is None or length not in comparable else verdicts.against(length, differences)

    def is_ahead(name: str) -> bool:
        if name in against and name in comparable:
            by, p = against[name]
            return by < 0 and p < SIGNIFICANT
        return known["told"][name] > known["told"][length]

    methods = known.index.difference([*lengths, *headline.RIVALS], sort=False)
    behind = [name for name in methods if not is_ahead(name)]
    shown = f"it is not shown that {listed(behind)} {'does' if len(behind) == 1 else 'do'} better"
    if length not in comparable and len(methods):
        return [
            "The good ones are the shorter here: with the shortest first, length alone has an AUC of "
            f"{fixed(1 - known['auc'][length])}{f', and {shown}' if behind else ''}. A method may see no more than "
            "that; given_length takes it out of a method's ranks (docs/methods.md)."
        ]
    if not behind:
        return []
    it = "it does" if len(behind) == 1 else "they do"
    return [
        f"The length of the response alone ({verdicts.name(length)}) tells them apart, too, and {shown}: {it} perhaps "
        "no more than see how long an example is."
    ]


def numbers(label: str, rows: pd.DataFrame) -> list[str]:
    """Which methods' scores follow a label that is a number. rows: one rank correlation for each method."""
    most = rows["n"].max()
    few, known = most < FEW_EXAMPLES, rows[rows["low"].notna()]
    apart = known[((known["low"] > 0) | (known["high"] < 0)) & (known["n"] >= FEW_EXAMPLES)]
    told = [
        f"{row.method} ({estimate(row.value, row.low, row.high)}{f' over {count(row.n)}' if row.n < most else ''})"
        for row in known.itertuples()
    ]
    sentences = [
        f"Spearman correlation of each method's scores with {label} over {many(most, 'example')}, with its "
        f"95% interval: {listed(told) or 'undefined'}."
    ]
    if few:
        return [*sentences, undecided(most)]
    if len(apart):
        verb = "interval of {} excludes" if len(apart) == 1 else "intervals of {} exclude"
        return [*sentences, f"The {verb.format(listed(apart['method']))} 0."]
    return [*sentences, "Every interval includes 0: these examples show no correlation."] if len(known) else sentences


def undecided(n: float) -> str:
    return f"{many(n, 'example')} cannot tell a correlation from chance."
