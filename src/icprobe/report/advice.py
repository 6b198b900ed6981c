"""What to do with what was found: which method to trust, and which data set to train on, as far as anything tells."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from icprobe.analysis import headline
from icprobe.config.selections import Chosen
from icprobe.evaluation.tabulation import SIGNIFICANT
from icprobe.formatting import bin_name, bound, fixed, parse_bin
from icprobe.paths import SELECTED
from icprobe.report.wording import listed

ANSWERS = {"eval": "eval prompts", "tasks": "tasks"}  # those first whose answers no method has seen
RETRAIN = "Retraining would measure it (truth: {subsets: 64})."
Read = Callable[[str], pd.DataFrame | None]  # a table of a model by its name; None where there is none


def advice(
    read: Read,
    subsets: Path,
    data_sets: Mapping[str, Chosen],
    baselines: Collection[str] = headline.BASELINES,
    several: bool = True,
) -> tuple[list[str], Path | None]:
    """Sentences on one model, which method predicts training best and which data set to take; and that one's file.

    read: gives a table by its name. subsets: the model's folder of these. data_sets: what selections of
    good examples make, by the names that stand for methods. baselines: the methods that are `length` and `random`, and
    not external scores that are called so; several: whether there are more methods than one. Where the LDS tells of the
    method, it is said beside it, and not here.
    """
    lds, found = read("lds.csv"), read("held_out.csv")
    trained = pd.DataFrame() if found is None else headline.overall(found)
    trained = trained[trained["gain"].notna()] if len(trained) else trained
    best_predictor = None if lds is None else headline.best_predictor(headline.of_set(lds))
    told = best_predictor is not None and best_predictor.low == best_predictor.low
    told |= any(read(name) is not None for name in ("removal.csv", "leave_one_out.csv"))
    if trained.empty:
        judged = read("win_rates.csv")
        if judged is not None and len(judged):
            # They tell of the data sets, as far as they do.
            found = [] if told or not several else ["Which method predicts training best is not told here: " + RETRAIN]
            return found, None
        alone = "which method predicts training best, nor " if several else "whether the scores predict training, nor "
        what, how = ("", "finetune") if told else (alone, "truth, finetune")
        return [f"Nothing here tells {what}which data set to train on: that takes trainings ({how})."], None
    name = next(name for name in ANSWERS if name in set(trained["set"]))
    rows, compared = trained[trained["set"] == name], _compared(read("held_out_differences.csv"), name)
    best = _best(rows, data_sets, baselines)
    sentences = [] if told else [_method(compared, baselines)]
    if best is None:
        return [*sentences, "Which data set to take is not told: no model was trained on the best of a method."], None
    file = subsets / best.method / f"{best.bin if best.bin == SELECTED else bin_name(best.bin)}.jsonl"
    return [*sentences, _data_set(best, rows, compared, ANSWERS[name], data_sets, baselines)], file


def _best(rows: pd.DataFrame, data_sets: Mapping[str, Chosen], baselines: Collection[str]) -> Any | None:
    """The row of the largest gain among data sets that a method's scores chose as good."""

    def chosen(row: Any) -> bool:
        if row.bin == SELECTED:
            return row.method in data_sets and not data_sets[row.method].baseline
        return row.method not in (*baselines, headline.ALL) and row.bin != "all" and parse_bin(row.bin).is_best

    found = [row for row in rows.itertuples() if chosen(row)]
    return max(found, key=lambda row: row.gain, default=None)


def _method(compared: Sequence[Any], baselines: Collection[str]) -> str:
    """Which method's best examples train better than chance's, by the held-out comparison."""
    ahead: dict[str, Any] = {}
    told = False
    for row in compared:
        chosen = row.bin != SELECTED and parse_bin(row.bin).is_best and row.method_a not in baselines
        if chosen and row.method_b == "random" and "random" in baselines:
            told = True
            if _better(row):
                ahead[row.method_a] = max(ahead.get(row.method_a, row), row, key=lambda one: one.difference)
    if not ahead:
        why = (
            "of no method the best examples train better than random ones, by held-out answers (Holm, 5%)"
            if told
            else "no method's best examples were compared with random ones in a bin"
        )
        return f"Which method predicts training best is not told here: {why}. {RETRAIN}"
    row = max(ahead.values(), key=lambda one: one.difference)
    others = [method for method in ahead if method != row.method_a]
    also = f", and so do those of {listed(others)}" if others else ""
    return (
        f"By held-out answers the best examples of {row.method_a} gain most over random ones: bin {row.bin} gains "
        f"{_nats(row)} nats per token more{also} (Holm, 5%). Retraining would judge whole rankings (truth: "
        "{subsets: 64})."
    )


def _data_set(
    best: Any,
    rows: pd.DataFrame,
    compared: Sequence[Any],
    answers: str,
    data_sets: Mapping[str, Chosen],
    baselines: Collection[str],
) -> str:
    """Which data set to take, and how it does against its baseline and all data."""
    drawn = [other for other, of in data_sets.items() if of.selection == best.method and of.baseline]
    random = drawn if best.bin == SELECTED else {"random"} & {*baselines}
    against = [r for r in compared if (r.method_a, r.bin) == (best.method, best.bin) and r.method_b in random]
    name = best.method if best.bin == SELECTED else f"{best.method} {best.bin}"
    gain = f"gains {fixed(best.gain, 4)} nats per token on the answers of {best.n} {answers}"
    sentence, none = f"Take {name}: it {gain}", f"Take no data set of these: {name}, the best, {gain}"
    if best.gain <= 0:
        sentence = none
    if against:
        row = against[0]
        (turned,) = [r for r in compared if (r.bin, r.method_a, r.method_b) == (row.bin, row.method_b, row.method_a)]
        why = "significant" if _better(row) else "not significant"
        if _better(turned):
            sentence, why = none, "significant"
        more = f"{_nats(row)} more" if row.difference >= 0 else f"{_nats(turned)} less"
        sentence += f", {more} than {row.method_b} ({why}: Holm, 5%)"
    else:
        sentence += ", with no random data set of its size to compare"
    every = rows.loc[rows["method"] == "all", "gain"]
    return f"{sentence}; all data gain {fixed(every.iloc[0], 4)}." if (every > best.gain).any() else f"{sentence}."


def _compared(differences: pd.DataFrame | None, name: str) -> list[Any]:
    """The comparisons of two models on these answers, each as it stands and turned round."""
    if differences is None or differences.empty:
        return []
    rows = headline.of_set(differences, name)
    rows = rows[rows["p_value_holm"].notna()]
    other = {"method_a": rows["method_b"], "method_b": rows["method_a"], "difference": -rows["difference"]}
    turned = rows.assign(**other, low=-rows["high"], high=-rows["low"])
    return [*pd.concat([rows, turned]).itertuples()]


def _better(row: Any) -> bool:
    return bool(row.difference > 0 and row.p_value_holm < SIGNIFICANT)


def _nats(row: Any) -> str:
    return f"{fixed(row.difference, 4)} [{bound(row.low, 4)}, {bound(row.high, 4)}]"
