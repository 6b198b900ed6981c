"""docs/performance.md and its figures from benchmarks/results/*.json; the text around the tables stays as it is.

python -m benchmarks.tables: what stands between `<!-- table: NAME -->` and `<!-- end -->` is written anew.
"""

import csv
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.goals import goals
from benchmarks.ratios import (
    Record,
    line_through,
    markdown,
    measured,
    memory_grown,
    number,
    points,
    products,
    ratio_of,
    series,
)
from benchmarks.texts import ROOT

FLOORS = ("training-step", "step-and-forwards")
WHOLE = (52_002, 100)  # the paper's examples and tasks
TEMPLATE = "# Performance\n\nAll figures on this page come from `make bench`.\n"


def write(results: Path, page: Path) -> None:
    """Fills the page's tables from all records there are and draws the figures beside it."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    records = {name: record for name, record in found.items() if "comparison" in record}  # not those of scaling.py
    text = page.read_text(encoding="utf-8") if page.is_file() else TEMPLATE
    made = {name: MAKERS.get(name, comparison)(record) for name, record in records.items()}
    if records:
        made["machine"] = conditions(records)
        made["goals"] = goals(records)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(filled(text, made), encoding="utf-8")
    figures = page.parent / "figures"
    if "growth" in records:
        _growth_csv(records["growth"], results / "growth.csv")
        growth_figure(records["growth"], figures / "growth.svg")
    if records.get("budget", {}).get("rows"):
        budget_figure(records["budget"], figures / "budget.svg")


def filled(text: str, made: dict[str, str]) -> str:
    """The page with each table between its markers; one without markers is put at the end."""
    for name, table in made.items():
        block = f"<!-- table: {name} -->\n{table.strip()}\n<!-- end -->"
        pattern = re.compile(rf"<!-- table: {re.escape(name)} -->.*?<!-- end -->", re.DOTALL)
        if pattern.search(text):
            text = pattern.sub(lambda _, block=block: block, text)
        else:
            text = f"{text.rstrip()}\n\n{block}\n"
    return text


# --- one comparison ---------------------------------------------------------------------------------------------


def comparison(record: Record) -> str:
    """Table of a comparison's rows, then what they come to in sentences."""
    first = next((row for row in record["rows"] if "median" in row and "rate" not in row["facts"]), None)
    rows = [_cells(row, first) for row in record["rows"]]
    rows += [[name, "–", "–", "–", "–", reason] for name, reason in record["cannot"].items()]
    sizes = ""
    if first:
        tokens = first["tokens"]
        sizes = (
            f"{first['examples']} examples ({tokens['examples']:,} tokens) × {first['tasks']} tasks "
            f"({tokens['tasks']:,} tokens), {_dtype(record)}, {record['settings']['rounds']} round(s).\n\n"
        )
    table = markdown(
        ["", "seconds (lowest to highest)", "× the first row", "peak memory, GB", "largest difference", "remarks"], rows
    )
    sentences = " ".join(s for s in (*_rates(record), *_against_floors(record), *_gpu(record), record["text"]) if s)
    return f"**{record['title']}.** {sizes}{table}\n\n{sentences}".strip()


def _dtype(record: Record) -> str:
    return record["settings"]["dtype"]


def _cells(row: Record, first: Record | None) -> list[str]:
    if "cannot" in row:
        return [row["name"], "–", "–", "–", "–", row["cannot"]]
    remarks = [row["note"]] if row["note"] else []
    if first and row["examples"] != first["examples"]:
        remarks.append(f"{row['examples']:,} examples")
    if row["scaled"]:
        facts = row["facts"]
        part = [
            f"{facts[f'measured_{side}']:g} {side}" for side in ("examples", "tasks") if f"measured_{side}" in facts
        ]
        remarks.append(f"scaled from {statistics.median(row['measured_seconds']):.1f} s for {' × '.join(part)}")
    if "rate" in row["facts"]:
        seconds, ratio = f"{row['facts']['rate'] / 1e9:,.1f} GFLOP/s", "–"
    else:
        seconds = f"{row['median']:.2f}"
        if len(row["seconds"]) > 1:
            seconds += f" ({min(row['seconds']):.2f} to {max(row['seconds']):.2f})"
        ratio = f"{ratio_of(row, first):.2f}"
    memory = row["peak_gpu_mb"] or row["peak_mb"]
    error = "–" if row["error"] is None else f"{row['error']:.0e}"
    return [row["name"], seconds, ratio, f"{memory / 1000:.2f}", error, "; ".join(remarks)]


def _rates(record: Record) -> list[str]:
    sentences = []
    for row in record["rows"]:
        if "median" in row and "operations" in row["facts"]:
            rate = row["facts"]["operations"] / row["median"]
            floors = products(record, row)
            share = "".join(f", {rate / floor['facts']['rate']:.2f} of the {floor['name']}" for floor in floors)
            peak = record["settings"]["peak_flops"]
            mfu = f", {rate / peak:.1%} of the device's peak" if peak else ""
            if floors or peak:
                sentences.append(f"{row['name']}: {rate / 1e9:,.1f} GFLOP/s{share}{mfu}.")
    return sentences


def _against_floors(record: Record) -> list[str]:
    floor = next((r for c in FLOORS if (r := measured(record, c))), None)
    if floor is None:
        return []
    mine = [r for r in record["rows"] if r["contestant"].startswith("icprobe") and "median" in r]
    return [f"{row['name']} takes {ratio_of(row, floor):.2f}× the {floor['name'].split(':')[-1]}." for row in mine]


def _gpu(record: Record) -> list[str]:
    """Examples × tasks per second, and hours for the paper's size."""
    if not record["comparison"].startswith("gpu"):
        return []
    sentences = []
    for row in record["rows"]:
        if row["contestant"].startswith("icprobe") and "median" in row:
            pairs = row["examples"] * row["tasks"]
            hours = row["median"] * (WHOLE[0] * WHOLE[1] / pairs) / 3600
            sentences.append(
                f"{row['name']}: {pairs / row['median']:,.0f} examples × tasks per second; "
                f"at that rate {hours:.2f} hours for {WHOLE[0]:,} × {WHOLE[1]} (reckoned, not measured)."
            )
    return sentences


# --- tables of their own kind -----------------------------------------------------------------------------------


def conditions(records: dict[str, Record]) -> str:
    """What machine and versions the figures come from, as far as the records agree."""
    lines = []
    for record in records.values():
        if "machine" not in record:
            continue
        machine, packages = record["machine"], record["versions"]
        line = (
            f"{machine.get('gpu', machine['processor'])}, {machine['threads']} threads of {machine['cores']} cores, "
            f"{machine['memory_gb']:.0f} GB, {machine['system']}, Python {machine['python']}; "
            + ", ".join(f"{name} {number}" for name, number in packages.items())
        )
        if line not in lines:
            lines.append(line)
    return "\n".join(f"- {line}." for line in lines)


def growth(record: Record) -> str:
    header = ["method", "examples", "tasks", "tokens of the varied side", "seconds", "peak memory, GB", "off the line"]
    rows, sentences = [], []
    for (method, what), members in series(record).items():
        intercept, slope, off = line_through(points(members, what))
        for row in members:
            expected = intercept + slope * number(row, what)
            side = row["tokens"]["examples" if what == "N" else "tasks"]
            rows.append(
                [
                    method,
                    str(row["examples"]),
                    str(row["tasks"]),
                    f"{side:,}",
                    f"{row['median']:.2f}",
                    f"{row['peak_mb'] / 1000:.2f}",
                    f"{row['median'] / expected - 1:+.1%}",
                ]
            )
        sentences.append(f"{method} in {what}: at most {off:.1%} off a straight line.")
        if what == "N" and len(members) > 1:
            few, many = members[0], members[-1]
            sentences.append(
                f"{method} with {number(many, 'N') // number(few, 'N')} times the examples holds "
                f"{memory_grown(members):+.2f} GB."
            )
    return markdown(header, rows) + "\n\n" + " ".join(sentences)


def budget(record: Record) -> str:
    if "cannot" in record:
        return f"Not measured: {record['cannot']}."
    header = [
        "effects from",
        "tasks per round",
        "confidence",
        "cost",
        "top decile found",
        "bottom decile found",
        "at that cost, same tasks for all",
    ]
    rows = []
    for row in record["rows"]:
        same = [other for other in record["same_for_all"] if other["source"] == row["source"]]
        nearest = min(same, key=lambda other, cost=row["cost"]: abs(other["cost"] - cost))
        shares = (row["cost"], row["recovered"], row["recovered_bottom"], nearest["recovered"])
        settings = [row["source"], str(row["round_tasks"]), f"{row['confidence']:g}"]
        rows.append([*settings, *(f"{share:.1%}" for share in shares)])
    sizes = record["settings"]
    return f"{sizes['examples']:,} examples × {sizes['tasks']} tasks, simulated.\n\n{markdown(header, rows)}"


def startup(record: Record) -> str:
    rows = [
        [row["name"], row["cannot"], ""]
        if "cannot" in row
        else [row["name"], f"{row['median']:.2f}", f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}"]
        for row in record["rows"]
    ]
    return markdown(["job", "seconds until ready", "lowest to highest"], rows)


def waiting(record: Record) -> str:
    """Seconds alone and beside a busy process, of each setting."""
    conditions = list(record["rows"][0]["median"]) if record["rows"] else []
    rows = [
        [row["name"], *(f"{row['median'][c]:.1f} ({min(s):.1f} to {max(s):.1f})" for c, s in row["seconds"].items())]
        for row in record["rows"]
    ]
    sizes = record["settings"]
    head = f"ICP, {sizes['examples']} examples × {sizes['tasks']} tasks, {sizes['dtype']}, {sizes['rounds']} round(s)."
    return f"{head}\n\n{markdown(['setting', *(f'seconds {c} (lowest to highest)' for c in conditions)], rows)}"


def precision(record: Record) -> str:
    rows = [
        [
            method,
            f"{values['flips']} of {values['entries']}",
            f"{values['flips'] / values['entries']:.1%}",
            f"{values['flips_above_median_size']}",
            f"{values['largest_that_flips']:.3g} (median {values['median_size']:.3g})",
            *(
                "–" if (kept := values[f"spearman_of_{what}"]) is None else f"{kept:.4f}"
                for what in ("entries", "scores")
            ),
        ]
        for method, values in (record["analysis"] or {}).items()
    ]
    header = [
        "method",
        "signs that flip",
        "share",
        "flips above the median size",
        "largest entry that flips",
        "Spearman of entries",
        "Spearman of scores",
    ]
    return f"{comparison(record)}\n\n{markdown(header, rows)}"


MAKERS: dict[str, Callable[[Record], str]] = {
    "growth": growth,
    "budget": budget,
    "import": startup,
    "precision": precision,
    "waiting": waiting,
}


# --- figures ----------------------------------------------------------------------------------------------------


def _growth_csv(record: Record, path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "varied", "examples", "tasks", "seconds", "peak_mb"])
        for (method, what), members in series(record).items():
            for row in members:
                varied = "examples" if what == "N" else "tasks"
                values = [f"{row['median']:.3f}", f"{row['peak_mb']:.1f}"]
                writer.writerow([method, varied, row["examples"], row["tasks"], *values])


def _axes(count: int) -> tuple[Any, Any]:
    import matplotlib

    from icprobe.figures.style import STYLE, grid

    matplotlib.rcParams.update(STYLE)
    return grid(count, 2.3)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def growth_figure(record: Record, path: Path) -> None:
    """Seconds against examples and against tasks, each with the straight line through its points."""
    from icprobe.figures.style import MARKERS
    from icprobe.formatting import OKABE_ITO

    figure, axes = _axes(2)
    methods = sorted({method for method, _ in series(record)})
    for (method, what), members in series(record).items():
        axis, style = axes[what == "M"], methods.index(method)
        shown = points(members, what)
        intercept, slope, _ = line_through(shown)
        xs = [0, max(x for x, _ in shown)]
        axis.plot(xs, [intercept + slope * x for x in xs], color=OKABE_ITO[style], linewidth=0.8)
        axis.plot(*zip(*shown, strict=True), MARKERS[style], color=OKABE_ITO[style], label=method)
        other = "tasks" if what == "N" else "examples"
        axis.set_xlabel(f"{'examples' if what == 'N' else 'tasks'} ({members[0][other]} {other})")
        axis.set_ylabel("seconds")
        axis.legend()
    for axis in axes:
        axis.set_ylim(bottom=0)  # last: it freezes the upper end
    _save(figure, path)


def budget_figure(record: Record, path: Path) -> None:
    """Share of the top decile that is found against the share of the cost, one panel for each matrix."""
    from icprobe.figures.style import GREY, MARKERS
    from icprobe.formatting import OKABE_ITO

    sources = list(dict.fromkeys(row["source"] for row in record["rows"]))
    figure, axes = _axes(len(sources))

    def line(axis: Any, rows: list[Record], marker: str, **style: Any) -> None:
        rows = sorted(rows, key=lambda row: row["cost"])
        axis.plot([row["cost"] for row in rows], [row["recovered"] for row in rows], marker, **style)

    for axis, source in zip(axes, sources, strict=False):
        same = [row for row in record["same_for_all"] if row["source"] == source]
        line(axis, same, "-", color=GREY, label="same tasks for all")
        mine = [row for row in record["rows"] if row["source"] == source]
        for style, size in enumerate(sorted({row["round_tasks"] for row in mine})):
            of_size = [row for row in mine if row["round_tasks"] == size]
            line(axis, of_size, MARKERS[style] + "-", color=OKABE_ITO[style], label=f"icp_budget, {size} a round")
        axis.set_title(f"effects from {source}")
        axis.set_xlabel("share of the cost of all pairs")
        axis.set_ylabel("share of the top decile found")
        axis.set_xlim(0, 1)
        axis.legend(loc="lower right")
    _save(figure, path)


if __name__ == "__main__":
    write(ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md")
