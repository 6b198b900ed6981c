"""What the tables of retraining say in sentences: which method predicts it best, and whom the subsets tell it from."""

from typing import Any

import pandas as pd

from icprobe.analysis import headline
from icprobe.evaluation.tabulation import SIGNIFICANT
from icprobe.formatting import estimate, fixed, number
from icprobe.report.wording import listed, many

TELLING = 0.5  # below this ceiling, retraining repeats itself too badly to tell much
# Where outcomes of whole answers differ by less, in nats, or all gains are below, trainings hardly changed the model.
HARDLY, HARDLY_PER_TOKEN = 0.01, 1e-3
RAISE = "raise finetune.learning_rate, finetune.epochs, or the number of steps."
NAMED = 6  # methods that a sentence names; of more it says which are left out
NEXT = 3  # methods that the sentence names after the best; the table holds all
RIVALS = {rival: f"number of {rival}" for rival in headline.RIVALS}


def name(method: str) -> str:
    """A method's name, or a rival's in words."""
    return RIVALS.get(method, method)


def verdict(lds: pd.DataFrame) -> list[str]:
    """The best LDS, of which ceiling, and what comes next. lds: rows of one set over all domains."""
    best = headline.best_predictor(lds)
    if best is None:
        return ["No method has an LDS: it is undefined, or values are missing."]
    ceiling = f" of a ceiling of {ceiling_text(lds)}" if best.ceiling == best.ceiling else ""
    others = lds[(lds["method"] != best.method) & lds["lds"].notna()].sort_values("lds", ascending=False, kind="stable")
    rivals = others[others["method"].isin(RIVALS)]
    named = [*others.drop(rivals.index).head(NEXT).itertuples(), *rivals.itertuples()]
    told = ", ".join(f"{name(row.method)} {_estimate(row)}" for row in named)
    found = [f"{best.method} predicts retraining best: {_estimate(best)}{ceiling}{f'; {told}' if told else ''}."]
    above = rivals[rivals["lds"] >= best.lds]
    if len(above):
        found.append(f"No method does better than the {name(above.iloc[0]['method'])} in a subset.")
    if best.high < 0:
        found.append("It is below 0: the best method ranks subsets against what training does.")
    if best.low != best.low:
        found.append(
            f"There is no interval of {many(best.n_subsets, 'subset')}: this order may be chance, and shows of no "
            "method that it predicts anything (truth.subsets: 64)."
        )
    if best.low <= 0 <= best.high:
        found.append("The interval of the best method includes 0: these subsets do not show that it predicts anything.")
    if not ceiling:
        found.append(
            "There is no ceiling with one seed: how much of the rest is the noise of training is not known."
            if best.n_seeds < 2
            else "The ceiling is undefined."
        )
    elif best.ceiling < TELLING:
        found.append(
            f"The ceiling is below {TELLING}: the trainings are too small or too noisy to tell much about any method."
        )
    if (spread := lds["spread"].max()) < HARDLY:
        found.append(
            "These trainings hardly changed the model: by which examples it saw, an answer's log-likelihood differs by "
            f"{number(spread)} nats (standard deviation). Such outcomes say little of a training that teaches; {RAISE}"
        )
    return found


def left_out(table: pd.DataFrame) -> str:
    """Which method predicts best what single examples do. table: leave_one_out.csv's rows of one set, all domains."""
    best = headline.best_predictor(table)
    if best is None:
        return "Leave-one-out: no method has a correlation; it is undefined, or values are missing."
    others = table[(table["method"] != best.method) & table["lds"].notna()]
    others = others.sort_values("lds", ascending=False, kind="stable").head(NEXT)
    told = ", ".join(f"{name(row.method)} {_estimate(row)}" for row in others.itertuples())
    doubt = "; the interval includes 0" if best.low <= 0 <= best.high else ""
    return (
        f"Of {many(best.n_examples, 'example')} left out of training one at a time, {best.method} predicts best what "
        f"that does: {_estimate(best)}{doubt}{f'; {told}' if told else ''}."
    )


def hardly_trained(gains: pd.DataFrame) -> list[str]:
    """Says so where no fine-tuned model is told from its base by what it gives answers.

    gains: rows of held_out.csv. That all data, in more steps, changed the model says nothing of the others.
    """
    compared = gains[gains["method"] != "all"]
    largest = (gains if compared.empty else compared)["gain"].abs().max()
    if not largest < HARDLY_PER_TOKEN:
        return []
    but = "" if gains["gain"].abs().max() <= largest else " but that of all data"
    return [
        f"No gain or loss{but} is above {number(largest)} nats per token: these trainings hardly changed the model, so "
        f"that comparing them says little of the examples; {RAISE}"
    ]


def told_apart(lds: pd.DataFrame, differences: pd.DataFrame | None) -> list[str]:
    """Whom the subsets tell the best method apart from, by Holm's p-values, and whom not."""
    best = headline.best_predictor(lds)
    found = {} if best is None or differences is None else against(best.method, differences)
    apart = [name(other) for other, (by, p) in found.items() if p < SIGNIFICANT and by >= 0]
    ahead = [name(other) for other, (by, p) in found.items() if p < SIGNIFICANT and by < 0]
    not_apart = [name(other) for other, (_, p) in found.items() if not p < SIGNIFICANT]
    if not found:
        return []
    subjects, sentences = trained(lds), []
    whole = found.keys() == set(lds["method"]) - {best.method}
    if whole and len(apart) > NAMED >= len(not_apart) and not ahead:
        rest = f" but {listed(not_apart)}" if not_apart else ""
        sentences.append(f"{subjects} tell {best.method} apart from all others{rest} (Holm, 5%).")
    elif apart:
        rest = f", but not from {listed(not_apart)}" if not_apart else ""
        sentences.append(f"{subjects} tell {best.method} apart from {listed(apart)} (Holm, 5%){rest}.")
    elif not_apart:
        whom = "these" if ahead else "any other"
        sentences.append(f"{subjects} do not tell {best.method} apart from {whom} (Holm, 5%): {listed(not_apart)}.")
    if ahead:
        do = "does" if len(ahead) == 1 else "do"
        sentences.append(f"{listed(ahead)} {do} significantly better than {best.method} (Holm, 5%).")
    return sentences


def removal(table: pd.DataFrame) -> str:
    """Whose best examples cost more than random ones when they are left out."""
    costly = table[(table["p_value_holm"] < SIGNIFICANT) & (table["loss"] > 0)]
    told = listed(f"{row.method} ({number(row.loss)} nats)" for row in costly.itertuples())
    size = many(table["n_removed"].max(), "example")
    if table["p_value_holm"].isna().all():
        return f"The random removals cost the tasks alike, so that nothing can be held against them; {RAISE}"
    if told:
        return f"Leaving out the best {size} of {told} costs the tasks more than leaving out random ones (Holm, 5%)."
    return f"Leaving out the best {size} of no method costs the tasks significantly more than random ones (Holm, 5%)."


def leader(rows: pd.DataFrame, differences: pd.DataFrame | None) -> set[str]:
    """The best method, where it is significantly above all others and both rivals; else none."""
    best = headline.best_predictor(rows)
    if best is None or differences is None:
        return set()
    found = against(best.method, differences)
    others = set(rows.loc[rows["lds"].notna(), "method"]) - {best.method}
    ahead = {other for other, (difference, p) in found.items() if difference > 0 and p < SIGNIFICANT}
    return {best.method} if others and others <= ahead else set()


def against(method: str, differences: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Other method -> how far it is below this one, and Holm's p-value; where there is one.

    differences: method_a, method_b, difference, p_value_holm.
    """
    found = {}
    for row in differences[differences["p_value_holm"].notna()].itertuples():
        if row.method_a == method:
            found[row.method_b] = row.difference, row.p_value_holm
        elif row.method_b == method:
            found[row.method_a] = -row.difference, row.p_value_holm
    return found


def trained(rows: pd.DataFrame) -> str:
    """How many trainings: "64 subsets × 2 seeds"."""
    return f"{many(rows['n_subsets'].max(), 'subset')} × {many(rows['n_seeds'].max(), 'seed')}"


def ceiling_text(rows: pd.DataFrame) -> str:
    """The ceiling with its interval; "unknown" with one seed."""
    known = rows[rows["ceiling"].notna()]
    if known.empty:
        return "unknown"
    row = known.iloc[0]
    has_interval = row["ceiling_low"] == row["ceiling_low"]
    return estimate(row["ceiling"], row["ceiling_low"], row["ceiling_high"]) if has_interval else fixed(row["ceiling"])


def _estimate(row: Any) -> str:
    return estimate(row.lds, row.low, row.high) if row.low == row.low else fixed(row.lds)
