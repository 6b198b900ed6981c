"""The tables of win rates that people read: Markdown and LaTeX, the best in bold only where it is significantly so."""

from collections.abc import Callable
from typing import Any

import pandas as pd
from tabulate import tabulate

from icprobe.analysis import headline
from icprobe.formatting import bin_words, fixed

SIGNIFICANT = 0.05
FEW_PROMPTS = 100  # of fewer, a length-controlled win rate is a hint and no more
CAUTION = (
    f"† Caution: this uses fewer than {FEW_PROMPTS} prompts. The regression behind a length-controlled win rate is "
    "unstable with so few; take it as a hint."
)
NOTE = "The best of a bin is in bold if its difference from the next is significant (sign-flip test, Holm, 5%)."
# The columns before those of the subsets; the last is n.
READABLE = ("bin", "method", "win rate", "95% interval", "± s.e.", "length-controlled", "discrete")
ESCAPED = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "≤": r"$\leq$", "±": r"$\pm$", "–": "--",
    "†": r"$^\dagger$",
}  # fmt: skip


def significantly_best(table: pd.DataFrame, differences: pd.DataFrame) -> set[tuple[str, str]]:
    """(method, bin) that lead their bin by a significant difference to the next best.

    table: rows of win_rates.csv; differences: of `paired_differences`, both of one model. What counts is the overall
    win rate over all seeds and Holm's p-value below 5%.
    """
    best = set()
    for bin_, rows in headline.overall(table).query("n > 0").groupby("bin", sort=False):
        first_two = rows.sort_values("win_rate", ascending=False, kind="stable")["method"].tolist()[:2]
        if len(first_two) < 2:
            continue
        first, second = first_two
        for row in differences[differences["bin"] == bin_].itertuples():
            if {row.method_a, row.method_b} == {first, second} and row.p_value_holm < SIGNIFICANT:
                lead = row.difference if row.method_a == first else -row.difference
                if lead > 0:
                    best.add((first, bin_))
    return best


def prompts_of(table: pd.DataFrame) -> pd.Series:
    """How many prompts each row of win_rates.csv is over [rows], by its index; seeds judge the same ones again."""
    keys = ["method", "bin", "subset"]
    of_seeds = table[table["seed"].astype(str) != headline.ALL].groupby(keys)["n"].max()
    found = of_seeds.reindex(pd.MultiIndex.from_frame(table[keys]))
    return pd.Series(found.to_numpy(), table.index).fillna(table["n"])


def readable(table: pd.DataFrame, differences: pd.DataFrame, bold: Callable[[str], str]) -> pd.DataFrame:
    """Texts, one row for each method and bin: overall win rate with its interval and error, then each subset's.

    table: rows of win_rates.csv of one model. bold: marks a cell. A bin without judgements says so.
    """
    table = table.assign(n_prompts=prompts_of(table))
    table = table[table["seed"].astype(str) == headline.ALL]
    subsets = [subset for subset in dict.fromkeys(table["subset"]) if subset != headline.OVERALL]
    best = significantly_best(table, differences)
    by_key = {(row.method, row.bin, row.subset): row for row in table.itertuples()}
    rows = []
    for bin_ in dict.fromkeys(table["bin"]):
        for method in dict.fromkeys(table.loc[table["bin"] == bin_, "method"]):
            found = by_key[method, bin_, headline.OVERALL]
            rate = "none judged" if not found.n else _percent(found.win_rate)
            of_subsets = [by_key.get((method, bin_, subset)) for subset in subsets]
            rows.append(
                [
                    bin_words(bin_),
                    method,
                    bold(rate) if (method, bin_) in best else rate,
                    f"{_percent(found.low)} to {_percent(found.high)}",
                    _percent(found.standard_error),
                    _length_controlled(found),
                    _percent(found.discrete_win_rate),
                    *(_percent(row.win_rate) if row else "–" for row in of_subsets),
                    str(found.n),
                ]
            )
    # A subset may be called as one of our own columns is.
    named = [f"{subset} (subset)" if subset in {*READABLE, "n"} else subset for subset in subsets]
    return pd.DataFrame(rows, columns=[*READABLE, *named, "n"])


def _length_controlled(row: Any) -> str:
    rate = getattr(row, "length_controlled_win_rate", float("nan"))
    return _percent(rate) + ("†" if rate == rate and row.n_prompts < FEW_PROMPTS else "")


def left_out(table: pd.DataFrame) -> list[str]:
    """Why there is no length-controlled win rate: one line for each method and bin that has judgements and none."""
    table = headline.overall(table)
    notes = table.get("length_control_note", pd.Series("", index=table.index)).fillna("")
    return [
        f"{method}, {bin_words(bin_)}: {note}"
        for method, bin_, note in zip(table["method"], table["bin"], notes, strict=True)
        if note
    ]


def markdown(table: pd.DataFrame, differences: pd.DataFrame) -> str:
    """The readable table as Markdown, with a line on what bold means, and why length-controlled rates are left out."""
    texts = readable(table, differences, lambda cell: f"**{cell}**")
    aligned = ["left", "left", *["right"] * (texts.shape[1] - 2)]
    escaped = texts.map(lambda cell: cell.replace("|", "\\|"))
    lines = tabulate(
        escaped.values.tolist(), list(texts.columns), tablefmt="pipe", colalign=aligned, disable_numparse=True
    )
    missing = left_out(table)
    notes = [f"Win rates against the base model in percent. {NOTE}", *_cautions(texts)]
    reasons = ["", "Without a length-controlled win rate:", "", *(f"- {line}" for line in missing)] if missing else []
    return "\n".join([lines, "", "\n\n".join(notes), *reasons]) + "\n"


def latex(table: pd.DataFrame, differences: pd.DataFrame) -> str:
    """The readable table as a LaTeX tabular with booktabs' rules (`\\usepackage{booktabs}`)."""
    texts = readable(table, differences, lambda cell: f"\0{cell}\1")
    lines = [
        *(f"% {note}" for note in (NOTE, *_cautions(texts))),
        *(f"% Without a length-controlled win rate: {line}." for line in left_out(table)),
        rf"\begin{{tabular}}{{ll{'r' * (texts.shape[1] - 2)}}}",
        r"\toprule",
        " & ".join(_escaped(name) for name in texts.columns) + r" \\",
    ]
    before = None
    for row in texts.itertuples(index=False, name=None):
        if row[0] != before:
            lines.append(r"\midrule")
        lines.append(" & ".join(_escaped(cell) for cell in row) + r" \\")
        before = row[0]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _cautions(texts: pd.DataFrame) -> list[str]:
    return [CAUTION] if texts["length-controlled"].str.endswith("†").any() else []


def _escaped(text: str) -> str:
    marks = {"\0": r"\textbf{", "\1": "}"}
    return "".join(marks.get(c) or ESCAPED.get(c, c) for c in text)


def _percent(value: float) -> str:
    return fixed(value, 1)
