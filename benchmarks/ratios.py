"""What rows of a record come to beside each other; Markdown tables."""

import statistics
from typing import Any

Record = dict[str, Any]


def ratio_of(row: Record, base: Record) -> float:
    """Median over rounds of the quotient within a round; of medians where they have not as many rounds."""
    if len(row["seconds"]) == len(base["seconds"]):
        return statistics.median(a / b for a, b in zip(row["seconds"], base["seconds"], strict=True))
    return row["median"] / base["median"]


def measured(record: Record, contestant: str, name: str = "") -> Record | None:
    """The first row of a contestant that has figures (and, where given, this name)."""
    rows = (r for r in record["rows"] if r["contestant"] == contestant and name in ("", r["name"]))
    return next((r for r in rows if "median" in r), None)


def products(record: Record, row: Record) -> list[Record]:
    """The rates of the machine's matrix products that were measured in the dtype of a row."""
    rows = (r for r in record["rows"] if r["contestant"] == "matmul" and "median" in r)
    return [r for r in rows if r.get("dtype") == row.get("dtype")]


def series(record: Record) -> dict[tuple[str, str], list[Record]]:
    """Of the record `growth`: {(method, "N" or "M"): rows that were measured, by rising number}."""
    found: dict[tuple[str, str], list[Record]] = {}
    for row in record["rows"]:
        method, what = row["name"].split(", ")
        if "median" in row:
            found.setdefault((method, what[0]), []).append(row)
    return found


def number(row: Record, what: str) -> int:
    """Examples ("N") or tasks ("M") of a row."""
    return row["examples"] if what == "N" else row["tasks"]


def points(rows: list[Record], what: str) -> list[tuple[float, float]]:
    """(examples or tasks, seconds) of the rows of a series."""
    return [(number(row, what), row["median"]) for row in rows]


def memory_grown(rows: list[Record]) -> float:
    """GB by which the last row's peak exceeds the first's."""
    return (rows[-1]["peak_mb"] - rows[0]["peak_mb"]) / 1000


def line_through(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """(intercept, slope, largest relative distance of a point) of the least-squares line."""
    n, mx, my = len(points), statistics.mean(x for x, _ in points), statistics.mean(y for _, y in points)
    spread = sum((x - mx) ** 2 for x, _ in points)
    slope = sum((x - mx) * (y - my) for x, y in points) / spread if n > 1 and spread else 0.0
    intercept = my - slope * mx
    return intercept, slope, max(abs(y / (intercept + slope * x) - 1) for x, y in points)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers in its inner columns."""
    lines = [header, ["---", *["---:"] * (len(header) - 2), "---"], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
