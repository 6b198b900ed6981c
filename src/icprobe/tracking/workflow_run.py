"""One invocation of Snakemake as a W&B run: what ran and why, how far it came, what it cost.

    python -m icprobe.tracking.workflow_run        reads events as JSON lines until its input ends

Snakemake's logger plugin `icprobe` (src/snakemake_logger_plugin_icprobe) starts it and writes the events.
"""

import json
import logging
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from icprobe import masking, paths
from icprobe.formatting import bin_text
from icprobe.tracking import journals, runs
from icprobe.tracking.environment import benchmark
from icprobe.tracking.lineage import CLOCK, Subject, run_name

# Snakemake's word for a job that reruns only because another one did: no cause of its own.
INHERITED = "Input files updated by another job"
# How often the runs of light jobs that have ended are written; at the end at any rate.
WRITE_EVERY_SECONDS = 60
REASON_LENGTH = 500  # characters; what a changed param was and is may be pages
JOB_COLUMNS = ["job", "rule", "method", "bin", "model", "seed", "state", "began", "seconds", "peak_mb", "why", "reason"]


@dataclass
class Job:
    """One job, from its start."""

    rule: str
    wildcards: Mapping[str, str]
    reason: str
    benchmark: str | None
    began: float  # seconds since the workflow began
    state: str = "running"  # running, done, failed
    seconds: float | None = None  # wall clock; of the benchmark file
    peak_mb: float | None = None


@dataclass
class Invocation:
    """What events have told so far. Times are seconds since the workflow began."""

    began: float
    total: int = 0
    planned: dict[str, int] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    ended: bool = False

    def take(self, event: Mapping[str, Any]) -> bool:
        """Add an event; True where the counts of jobs have changed."""
        match event["event"]:
            case "run_info":
                self.planned = {rule: n for rule, n in event["jobs"].items() if rule != "total"}
                self.total = sum(self.planned.values())
            case "job_info":
                self.jobs[event["job"]] = Job(
                    event["rule"],
                    event["wildcards"],
                    masking.mask(event["reason"]),
                    event["benchmark"],
                    event["time"] - self.began,
                )
            case "job_finished":
                self._end(event["job"], "done")
            case "job_error":
                self._end(event["job"], "failed")
            case "group_error":
                for job in event["jobs"]:
                    self._end(job, "failed")
            case "ended":
                self.ended = True
                return False
        return True

    def _end(self, number: int, state: str) -> None:
        job = self.jobs.get(number)
        if job is None:
            return
        job.state = state
        if state == "done" and job.benchmark:
            job.seconds, job.peak_mb = benchmark(Path(job.benchmark))

    def counts(self) -> dict[str, int]:
        """Jobs that are done, failed, running, and planned in all."""
        states = Counter(job.state for job in self.jobs.values())
        return {"total": self.total, **{state: states[state] for state in ("done", "failed", "running")}}

    def outcome(self) -> str:
        """done, failed (a job did, or some are left), or killed (Snakemake was, before it could say how it ended)."""
        if not self.ended:
            return "killed"
        counts = self.counts()
        return "done" if counts["done"] >= counts["total"] and not counts["failed"] else "failed"

    def job_table(self) -> pd.DataFrame:
        """A row for each job that began, in order: JOB_COLUMNS."""
        rows = []
        for job in self.jobs.values():
            words = {name: bin_text(value) if name == "bin" else value for name, value in job.wildcards.items()}
            rows.append(
                {
                    "job": run_name(job.rule, job.wildcards),
                    "rule": job.rule,
                    **{name: words.get(name) for name in ("method", "bin", "model", "seed")},
                    "state": job.state,
                    "began": round(job.began, 1),
                    "seconds": job.seconds,
                    "peak_mb": job.peak_mb,
                    "why": cause(job.reason),
                    "reason": job.reason[:REASON_LENGTH],
                }
            )
        return pd.DataFrame(rows, columns=JOB_COLUMNS)

    def rule_table(self) -> pd.DataFrame:
        """A row for each rule, planned or run: rule, planned, done, failed, seconds (sum), peak_mb (largest)."""
        jobs = self.job_table()
        rows = []
        for rule in dict.fromkeys([*self.planned, *jobs["rule"]]):
            own = jobs[jobs["rule"] == rule]
            rows.append(
                {
                    "rule": rule,
                    "planned": self.planned.get(rule, len(own)),
                    "done": int((own["state"] == "done").sum()),
                    "failed": int((own["state"] == "failed").sum()),
                    "seconds": own["seconds"].astype(float).sum(min_count=1),
                    "peak_mb": own["peak_mb"].astype(float).max(),
                }
            )
        return pd.DataFrame(rows, columns=["rule", "planned", "done", "failed", "seconds", "peak_mb"])

    def stale_table(self) -> pd.DataFrame:
        """What was stale and why: why, rule, jobs; the most frequent cause first."""
        counted = Counter((cause(job.reason), job.rule) for job in self.jobs.values())
        rows = [(why, rule, n) for (why, rule), n in counted.most_common()]
        return pd.DataFrame(rows, columns=["why", "rule", "jobs"])


def cause(reason: str) -> str:
    """The first cause of its own that Snakemake's reason gives for a job, without the files and values that follow."""
    heads = [part.split(":")[0].strip().rstrip(".") for part in re.split(r"; (?=[A-Z])", reason)]
    return next((head for head in heads if head != INHERITED), INHERITED)


def follow(lines: Iterable[str]) -> None:
    """Log the events of one invocation, given as JSON lines, as they come; then its tables and charts.

    Jobs that leave journals have their runs written here, where wandb is at work anyway.
    """
    chosen = runs.settings()
    events = map(json.loads, lines)
    header, plan = next(events, None), next(events, None)
    if header is None or plan is None:
        return
    invocation = Invocation(header["time"])
    invocation.take(plan)
    if not invocation.total:
        return
    latest = plan["time"]
    # The target is the rule that nothing else needs, planned last by Snakemake.
    target = next(reversed(invocation.planned), "")
    subject = Subject(
        f"workflow-{header['id']}",
        f"workflow {target}, {invocation.total} job{'s' if invocation.total != 1 else ''}",
        "workflow",
        ["workflow"],
        config={
            "experiment": chosen["experiment"],
            "command": masking.command(header["command"]),
            "snakemake": header["snakemake"],
            "planned": invocation.planned,
        },
    )
    run = runs.begin(subject, chosen)
    _point(run, invocation, latest)
    kept, written = Path(paths.EXPERIMENT.format(experiment=chosen["experiment"]), paths.WANDB), time.monotonic()
    for event in events:
        latest = event.get("time", latest)
        if invocation.take(event):
            _point(run, invocation, latest)
        if time.monotonic() - written > WRITE_EVERY_SECONDS:
            journals.write_all(kept, alone=False)
            written = time.monotonic()
    journals.write_all(kept, alone=False)
    _conclude(run, invocation, latest)


def _point(run: runs.Run, invocation: Invocation, time: float) -> None:
    counts = {f"workflow/{name}": n for name, n in invocation.counts().items()}
    run.log(counts, round(time - invocation.began, 1), CLOCK)


def _conclude(run: runs.Run, invocation: Invocation, time: float) -> None:
    rules, stale = invocation.rule_table(), invocation.stale_table()
    run.table("jobs", invocation.job_table(), rows=10_000)
    run.table("rules", rules)
    run.table("stale", stale)
    run.bars("seconds_by_rule", rules, "rule", "seconds", "Seconds by rule")
    run.bars("peak_memory_by_rule", rules, "rule", "peak_mb", "Peak memory by rule, MB")
    causes = stale.groupby("why", sort=False, as_index=False)["jobs"].sum()
    run.bars("stale_by_cause", causes, "why", "jobs", "Jobs by why they ran")
    outcome = invocation.outcome()
    run.finish(
        0 if outcome == "done" else 1,
        outcome=outcome,
        wall_seconds=round(time - invocation.began, 1),
        **{f"jobs/{name}": n for name, n in invocation.counts().items()},
        **{f"seconds/{row.rule}": row.seconds for row in rules.dropna(subset="seconds").itertuples()},
        **{f"peak_mb/{row.rule}": row.peak_mb for row in rules.dropna(subset="peak_mb").itertuples()},
        **{f"stale/{row.why}": row.jobs for row in causes.itertuples()},
    )


class _Once(logging.Filter):
    """Lets the first record pass: one line on the terminal is enough for a run that no result depends on."""

    def filter(self, record: logging.LogRecord) -> bool:
        passed, self.passed = getattr(self, "passed", False), True
        return not passed


def main() -> None:
    """Follow standard input. What goes wrong is one line, and no traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Once())
    handler.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        follow(sys.stdin)
    except Exception as error:
        logging.warning("W&B: no run of the workflow (%s: %s)", type(error).__name__, error)


if __name__ == "__main__":
    main()
