"""What the report shows of which method is right: each truth that was computed, side by side."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from icprobe.analysis import headline
from icprobe.analysis.frontier import words
from icprobe.evaluation.tabulation import SIGNIFICANT
from icprobe.formatting import count, fixed, number
from icprobe.report import verdicts
from icprobe.report.findings import Findings
from icprobe.report.wording import listed, many

Number = Callable[[float | None], str]


@dataclass(frozen=True)
class Column:
    """A truth as a column of the table. rows: method -> its row; value: the number's name in it.

    n: what the number is over. footer: rows below the methods, {"ceiling" or "by chance": text}.
    """

    title: str
    unit: str
    explained: str
    n: str
    rows: Mapping[str, Mapping[str, Any]]
    value: str
    written: Number = fixed
    bold: Collection[str] = ()
    footer: Mapping[str, str] = field(default_factory=dict)

    def cell(self, method: str) -> dict[str, Any]:
        """A method's number as the page writes it; a dash where it has none."""
        row = self.rows.get(method)
        if row is None or row[self.value] != row[self.value]:
            return {"text": "–", "interval": "", "order": -1e30, "bold": False}
        text, interval = with_interval(row, self.value, self.written)
        return {"text": text, "interval": interval, "order": row[self.value], "bold": method in self.bold}


def with_interval(row: Mapping[str, Any], value: str, written: Number) -> tuple[str, str]:
    """A number and its interval: ("0.48", "[0.33, 0.59]"), without an interval ("0.48", "")."""
    known = row["low"] == row["low"]
    return written(row[value]), f"[{written(row['low'])}, {written(row['high'])}]" if known else ""


def is_shown(model: Findings) -> bool:
    """Whether training says which method is right; labels alone have a section of their own."""
    return is_retrained(model) or model.tail_patch is not None


def is_retrained(model: Findings) -> bool:
    """Whether models were trained anew to find out."""
    return any(table is not None for table in (model.lds, model.removal, model.leave_one_out))


# --- the table ------------------------------------------------------------------------------------------------------


def columns(model: Findings) -> list[Column]:
    """The truths that were computed with a model, each a column."""
    found = []
    for table, single in ((model.lds, _lds), (model.leave_one_out, _leave_one_out)):
        for name in ("tasks", "eval") if table is not None else ():
            rows = headline.of_set(table, name)
            if len(rows):
                found.append(single(model, rows, name))
    # LDS, then removal, which is retraining on subsets too; the truths that need less of it come last.
    place = sum(column.title.startswith("LDS") for column in found)
    if model.removal is not None:
        found.insert(place, _removal(model.removal))
    if model.tail_patch is not None and len(headline.tail_patch(model.tail_patch)):
        found.append(_tail_patch(model.tail_patch))
    if model.aucs is not None:
        found += [_auc(str(label), rows) for label, rows in _by_label(model.aucs)]
    return found


def methods(model: Findings, shown: Iterable[Column]) -> dict[str, str]:
    """Method of the table -> its name, in the experiment's order, then the rivals where they have a number."""
    there = {method for column in shown for method in column.rows}
    return {method: verdicts.name(method) for method in [*model.methods, *headline.RIVALS] if method in there}


def explained(shown: Iterable[Column]) -> dict[str, str]:
    """Title -> what the number is, in one sentence with its unit; then what else the table speaks of."""
    shown = list(shown)
    terms = {column.title: column.explained for column in shown}
    if any("ceiling" in column.footer for column in shown):
        terms["ceiling"] = (
            "The rank correlation that a method could reach at most: the square root of how well the mean outcome over "
            "seeds would repeat itself with other seeds, because one part of every training is noise."
        )
    if any(rival in column.rows for column in shown for rival in headline.RIVALS):
        terms[" and ".join(verdicts.RIVALS.values())] = (
            "Rivals that look at no model: a subset's worth is its number of tokens, in whole examples or in their "
            "responses; a method that does no better has only found the long examples."
        )
    others = {"LDS": "subsets", "Removal": "random removals"}
    kinds = [what for title, what in others.items() if any(column.title.startswith(title) for column in shown)]
    samples = listed([*kinds, "examples"], "or")
    terms["95% interval"] = f"In brackets: the confidence interval, how far the number would vary with other {samples}."
    return terms


def drawn(model: Findings) -> dict[str, str]:
    """Truth -> what it is called, of those that the chart of costs shows."""
    unit = {} if model.tail_patch is None else {"unit": headline.tail_patch_unit(model.tail_patch)}
    return {truth: words(truth, **unit) for truth in dict.fromkeys(model.frontier["truth"])}


def _lds(model: Findings, rows: pd.DataFrame, name: str) -> Column:
    return Column(
        "LDS" if name == "tasks" else "LDS, eval prompts",
        "rank correlation, −1 to 1",
        "Linear datamodeling score: the rank correlation, over random subsets of the examples, between the sum of a "
        f"method's values of a subset and the log-likelihood of {_answers(name)} after training on it"
        + (", mean over tasks." if name == "tasks" else ", mean over prompts, of the method's score over all tasks."),
        f"{verdicts.trained(rows)}, {many(rows['n_tasks'].max(), 'task' if name == 'tasks' else 'prompt')}",
        _rows(rows),
        "lds",
        bold=verdicts.leader(rows, _differences(model.lds_differences, name)),
        footer={"ceiling": verdicts.ceiling_text(rows), "by chance": "0"},
    )


def _leave_one_out(model: Findings, rows: pd.DataFrame, name: str) -> Column:
    return Column(
        "Leave-one-out" if name == "tasks" else "Leave-one-out, eval prompts",
        "rank correlation, −1 to 1",
        "The rank correlation, over single examples that were left out of training, between a method's value of an "
        f"example and by how many nats {_answers(name)} is less likely without it.",
        f"{many(rows['n_examples'].max(), 'example')} × {many(rows['n_seeds'].max(), 'seed')}",
        _rows(rows),
        "lds",
        footer={"ceiling": verdicts.ceiling_text(rows), "by chance": "0"},
    )


def _removal(rows: pd.DataFrame) -> Column:
    costly = rows[(rows["p_value_holm"] < SIGNIFICANT) & (rows["loss"] > 0)]
    controls = many(rows["n_controls"].max(), "random removal")
    return Column(
        "Removal",
        "nats per task",
        "By how many nats of log-likelihood the tasks' answers become less likely when a method's best examples are "
        "left out of training, beyond what leaving out as many random ones costs; mean over tasks.",
        f"{many(rows['n_removed'].max(), 'example')} removed, {controls} × {many(rows['n_seeds'].max(), 'seed')}",
        _rows(rows),
        "loss",
        number,
        bold=set(costly["method"]),
        footer={"by chance": "0"},
    )


def _tail_patch(table: pd.DataFrame) -> Column:
    rows, drawn = headline.tail_patch(table), headline.tail_patch(table, "random")
    # Methods that evaluated few examples have their own random ones; the most say what chance gives.
    most = drawn.sort_values("n", ascending=False, kind="stable").iloc[0]
    unit = headline.tail_patch_unit(table)
    return Column(
        "Tail patch",
        f"{unit} per task" if unit == "nats" else f"{unit}, mean over tasks",
        f"By how many {unit} one step of training on one of a method's 10 best examples raises the log-likelihood of a "
        "task's answer, mean over these examples and the tasks.",
        many(rows["n"].max(), "best example"),
        _rows(rows),
        "effect",
        number,
        footer={"by chance": " ".join(with_interval(most, "effect", number)).strip()},
    )


def _auc(label: str, rows: pd.DataFrame) -> Column:
    told = f"How often an example with a good value of {label} scores above one with another value (0.5 is chance)."
    n = rows["n_positive"] + rows["n_negative"]
    if len(fewer := rows["method"][n < n.max()]):
        have = "they have" if len(fewer) > 1 else "it has"
        told += f" Of {listed(fewer)} over the fewer examples that {have} values for."
    return Column(
        f"AUC of {label}",
        "0 to 1",
        told,
        f"{count(rows['n_positive'].max())} against {count(rows['n_negative'].max())} examples",
        _rows(rows),
        "auc",
        footer={"by chance": "0.50"},
    )


def _by_label(aucs: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    return headline.good_against_others(aucs).groupby("label", sort=False)


def _rows(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in table.to_dict("records")}


def _answers(name: str) -> str:
    return "a task's answer" if name == "tasks" else "a prompt's answer"


# --- what the numbers say --------------------------------------------------------------------------------------------


def sentences(model: Findings) -> list[str]:
    """Which method predicts retraining, whether the subsets tell it from the others, and what the rest says."""
    found = []
    if model.lds is not None:
        found += [
            *verdicts.verdict(headline.of_set(model.lds)),
            *verdicts.told_apart(headline.of_set(model.lds), _differences(model.lds_differences)),
        ]
    if model.removal is not None:
        found += [verdicts.removal(model.removal)]
    if model.leave_one_out is not None:
        found += [verdicts.left_out(headline.of_set(model.leave_one_out))]
    if not is_retrained(model):
        found.append(
            "The check that counts, retraining, is not in this report (snakemake truth does it, by the lines in "
            "docs/which-method.md); what follows are weaker ones."
        )
    return found


def _differences(table: pd.DataFrame | None, name: str = "tasks") -> pd.DataFrame | None:
    return None if table is None else headline.of_set(table, name)
