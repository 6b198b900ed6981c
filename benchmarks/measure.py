"""One comparison: texts dealt, contestants started, rounds alternated, matrices compared; a record for its JSON."""

import datetime
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparisons import Comparison, Entry
from benchmarks.process import Contestant, machine, scratch, versions
from benchmarks.texts import Source, Work, dealt

Say = Callable[[str], None]


def measure(comparison: Comparison, source: Source, options: Any, say: Say) -> dict[str, Any]:
    """The comparison's record. options: run.py's. say: is told what happens."""
    rounds = min(options.repeats, comparison.rounds or options.repeats)
    with scratch() as scratch_folder:
        folder = Path(scratch_folder)
        works = {entry.name: work_of(comparison, entry, source, options, folder) for entry in comparison.entries}
        rows = _alternate(comparison, works, folder, rounds, options.patience, say)
        matrices = {name: _load(row) for name, row in rows.items()}
        _compare(comparison, rows, matrices)
        analysis = precision(matrices) if comparison.key == "precision" else None
    return {
        "comparison": comparison.key,
        "title": comparison.title,
        "text": comparison.text,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(options.threads, options.device),
        "versions": versions(),
        "settings": {
            "model": comparison.shape or options.shape or Path(options.model).name,
            "random_weights": bool(comparison.shape or options.shape),
            "data": "Alpaca" if source.alpaca else Path(options.data).name,
            "dtype": options.dtype,
            "device": options.device,
            "batch_tokens": options.batch_tokens,
            "rounds": rounds,
            "peak_flops": options.peak_flops,
        },
        "rows": [_row(entry, works[entry.name], rows[entry.name]) for entry in comparison.entries],
        "cannot": comparison.cannot,
        "analysis": analysis,
    }


def work_of(comparison: Comparison, entry: Entry, source: Source, options: Any, folder: Path) -> Work:
    n = entry.n or max(2, round(options.examples * comparison.share))
    m = entry.m or comparison.m or options.tasks
    longest = None if options.device == "cuda" else options.max_tokens
    if comparison.dealt:
        train, tasks = dealt(source.examples(max(n, 40), longest), n), source.dealt_tasks(m)
    else:
        train, tasks = source.examples(n, longest), source.tasks(m)
    return Work(
        train,
        tasks,
        options.model,
        comparison.shape or options.shape,
        entry.dtype or options.dtype,
        options.device,
        options.threads,
        options.batch_tokens,
        str(folder),
        {name: value for name, value in entry.settings.items() if value is not None},
    )


def _alternate(
    comparison: Comparison, works: dict[str, Work], folder: Path, rounds: int, patience: float, say: Say
) -> dict[str, dict[str, Any]]:
    """{entry: {"contestant", "answers"}}; A B C A B C …, or one after another where there is one round."""
    started: dict[str, Contestant] = {}
    answers: dict[str, list[dict[str, Any]]] = {entry.name: [] for entry in comparison.entries}

    def start(entries: Sequence[Entry]) -> None:
        for entry in entries:
            started[entry.name] = Contestant(entry.contestant, works[entry.name], folder, patience)
        for entry in entries:
            started[entry.name].wait()

    def go(entry: Entry, number: int) -> None:
        answer = started[entry.name].round()
        if answer:
            answers[entry.name].append(answer)
        shown = f"{answer['measured_seconds']:.1f} s" if answer else started[entry.name].failed
        say(f"{comparison.key}, round {number + 1}: {entry.name}: {shown}")

    try:
        if rounds > 1:
            start(comparison.entries)
        for number in range(rounds):
            for entry in comparison.entries:
                if rounds == 1:
                    start([entry])
                if number == 0 or not entry.once:
                    go(entry, number)
                if rounds == 1 or entry.once:
                    started[entry.name].close()
    finally:
        for contestant in started.values():
            contestant.close()
    return {name: {"contestant": started[name], "answers": answers[name]} for name in started}


def _load(row: dict[str, Any]) -> np.ndarray | None:
    path = row["answers"][-1]["matrix"] if row["answers"] else None
    return np.load(path) if path else None


def _compare(comparison: Comparison, rows: dict[str, dict[str, Any]], matrices: dict[str, np.ndarray | None]) -> None:
    """Sets each row's "error": its largest difference from the reference, relative to the reference's largest entry."""
    first = comparison.entries[0].name
    for entry in comparison.entries:
        against = first if entry.against is None else entry.against
        mine, reference = matrices[entry.name], matrices.get(against)
        if entry.name == against or mine is None or reference is None:
            continue
        last = rows[entry.name]["answers"][-1]
        chosen = reference
        if last["rows"] is not None:
            chosen = chosen[last["rows"]]
        if last["columns"] is not None:
            chosen = chosen[:, last["columns"]]
        rows[entry.name]["error"] = float(np.abs(mine - chosen).max() / np.abs(reference).max())


def _row(entry: Entry, work: Work, row: dict[str, Any]) -> dict[str, Any]:
    contestant, answers = row["contestant"], row["answers"]
    record = {
        "name": entry.name,
        "contestant": entry.contestant,
        "note": entry.note,
        "settings": work.settings,
        "dtype": work.dtype,
        "examples": len(work.train),
        "tasks": len(work.tasks),
        "tokens": {
            "examples": sum(len(s.ids) for s in work.documents),
            "tasks": sum(len(s.ids) for s in work.targets),
        },
    }
    if contestant.failed:
        return {**record, "cannot": contestant.failed}
    seconds = [answer["seconds"] for answer in answers]
    return {
        **record,
        "seconds": seconds,
        "median": statistics.median(seconds),
        "measured_seconds": [answer["measured_seconds"] for answer in answers],
        "cpu_seconds": [answer["cpu_seconds"] for answer in answers],
        "scaled": any(a["seconds"] > 1.001 * a["measured_seconds"] for a in answers),
        "peak_mb": max(answer["peak_mb"] for answer in answers),
        "peak_gpu_mb": answers[-1]["peak_gpu_mb"],
        "error": row.get("error"),
        "facts": {
            name: statistics.median(answer["facts"][name] for answer in answers) for name in answers[-1]["facts"]
        },
    }


def precision(matrices: dict[str, np.ndarray | None]) -> dict[str, Any]:
    """What rounding changes: for each method the entries whose sign flips, and the order of the scores."""
    found = {}
    for method, reduce in (("icp", lambda a: (a > 0).mean(axis=1)), ("influence", lambda a: a.mean(axis=1))):
        exact, rough = matrices.get(f"{method}, float32"), matrices.get(f"{method}, bfloat16")
        if exact is None or rough is None:
            continue
        flips = (exact > 0) != (rough > 0)
        size = np.abs(exact)
        found[method] = {
            "entries": int(exact.size),
            "flips": int(flips.sum()),
            "largest_that_flips": float(size[flips].max()) if flips.any() else 0.0,
            "median_size": float(np.median(size)),
            "flips_above_median_size": int((flips & (size > np.median(size))).sum()),
            "spearman_of_entries": order_kept(exact.ravel(), rough.ravel()),
            "spearman_of_scores": order_kept(reduce(exact), reduce(rough)),
        }
    return found


def order_kept(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's correlation; None where one side is constant."""
    from scipy.stats import spearmanr

    return None if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)
