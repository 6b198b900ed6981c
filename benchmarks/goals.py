"""The goals of docs/performance.md, and what the records say of each."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.comparisons import BOTH
from benchmarks.ratios import Record, line_through, markdown, measured, memory_grown, points, products, ratio_of, series

INFLUENCE, STEP = "icprobe-influence", "training-step"
MODEL_GB = 0.54  # SmolLM2-135M in float32


@dataclass(frozen=True)
class Goal:
    """`figure` of the record `key` is at least, or at most, `bound`; None: the record does not tell."""

    text: str
    key: str
    figure: Callable[[Record], float | None]
    bound: float
    at_least: bool
    unit: str = "×"

    def row(self, records: dict[str, Record]) -> list[str]:
        value = self.figure(records[self.key]) if self.key in records else None
        sign = "≥" if self.at_least else "≤"
        goal = f"{self.text} {sign} {self.bound:g}{self.unit}"
        if value is None:
            return [goal, "–", "not measured"]
        met = value >= self.bound if self.at_least else value <= self.bound
        return [goal, f"{value:.2f}{self.unit}", "yes" if met else "no"]


def ratio(above: str, below: str, name: str = "", of: str = "") -> Callable[[Record], float | None]:
    """Seconds of one contestant over those of another; name, of: their rows', where they have several."""

    def figure(record: Record) -> float | None:
        a, b = measured(record, above, name), measured(record, below, of)
        return ratio_of(a, b) if a and b else None

    return figure


def rate(name: str = "") -> Callable[[Record], float | None]:
    """icprobe's operations a second over those of the fastest matrix products of the machine in its dtype.

    name: as in `ratio`.
    """

    def figure(record: Record) -> float | None:
        mine = measured(record, "icprobe-icp", name)
        if mine is None:
            return None
        rates = [floor["facts"]["rate"] for floor in products(record, mine)]
        return mine["facts"]["operations"] / mine["median"] / max(rates) if rates else None

    return figure


def memory(record: Record) -> float | None:
    row = measured(record, INFLUENCE)
    return row["peak_mb"] / 1000 if row else None


def memory_growth(record: Record) -> float | None:
    """GB by which the peak grows from the fewest to the most examples, of the method that grows most."""
    members = [rows for (_, what), rows in series(record).items() if what == "N" and len(rows) > 1]
    return max(map(memory_grown, members), default=None)


def off_the_line(record: Record) -> float | None:
    """Per cent by which the farthest point of all series is off its line."""
    found = [line_through(points(rows, what))[2] for (_, what), rows in series(record).items() if len(rows) > 2]
    return 100 * max(found) if found else None


def start(kind: str) -> Callable[[Record], float | None]:
    """Seconds until the slowest job of a kind is ready."""

    def figure(record: Record) -> float | None:
        return max((r["median"] for r in record["rows"] if r["name"].startswith(kind) and "median" in r), default=None)

    return figure


ALONE = "icprobe: influence"
GOALS = [
    Goal("ICP, 12 tasks: of the machine's fastest matrix products", "icp-12", rate(), 0.85, True),
    Goal("ICP, 32 tasks: of the machine's fastest matrix products", "icp-32", rate(), 0.75, True),
    Goal("ICP in bfloat16: of its products in bfloat16", "precision", rate("icp, bfloat16"), 0.7, True),
    Goal("ICP, 12 tasks: lm-eval's time", "icp-12", ratio("lm-eval", "icprobe-icp"), 3, True),
    Goal("ICP, 32 tasks: lm-eval's time", "icp-32", ratio("lm-eval", "icprobe-icp"), 1.8, True),
    Goal("icp_reverse, 12 tasks: icp's time", "icp_reverse-12", ratio("icprobe-icp", "icprobe-icp-reverse"), 3, True),
    Goal("influence, 12 tasks: of a plain training step", "influence-12", ratio(INFLUENCE, STEP, ALONE), 1.15, False),
    Goal("influence, 32 tasks: of a plain training step", "influence-32", ratio(INFLUENCE, STEP, ALONE), 1.4, False),
    Goal("with influence_log: of a plain training step", "influence-12", ratio(INFLUENCE, STEP, BOTH.name), 2, False),
    *(
        Goal(
            f"influence, {m} tasks{held}: {peer}'s time",
            f"influence-{m}",
            ratio(peer, INFLUENCE, of=ALONE),
            least,
            True,
        )
        for m, held, least in ((12, "", 1.5), (100, " within 8 GB", 3))
        for peer in ("kronfluence", "bergson")
    ),
    Goal("influence: the paper's loop's time", "influence-12", ratio("paper", INFLUENCE, of=ALONE), 25, True),
    Goal(
        "with influence_log: the paper's loop's time", "influence-12", ratio("paper", INFLUENCE, of=BOTH.name), 25, True
    ),
    *(
        Goal(
            f"influence_mean, {m} tasks: of a plain step, unpadded",
            f"influence_mean-{m}",
            ratio("icprobe-influence-mean", STEP),
            1.1,
            False,
        )
        for m in (12, 32)
    ),
    Goal("one_step: of its plain passes", "one_step-12", ratio("icprobe-one-step", "step-and-forwards"), 1.2, False),
    Goal("peak memory: model, 3 GB budget and 1 GB", "influence-12", memory, MODEL_GB + 4, False, " GB"),
    Goal("memory from N to 4 N examples: grows by", "growth", memory_growth, 0.3, False, " GB"),
    Goal("growth in examples and tasks: off a straight line", "growth", off_the_line, 10, False, "%"),
    Goal("a heavy job is ready after", "import", start("heavy"), 8, False, " s"),
    Goal("a light job is ready after", "import", start("light"), 1.5, False, " s"),
]


def goals(records: dict[str, Record]) -> str:
    """The table of all goals."""
    return markdown(["goal", "measured", "met"], [goal.row(records) for goal in GOALS])
