"""What the terminal says when `snakemake` ends: what was found and where it is, or what failed and why."""

import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill, wrap
from types import MappingProxyType
from typing import Any

import pandas as pd
from tabulate import tabulate

from icprobe import artifacts, paths
from icprobe.analysis import headline
from icprobe.analysis.statistics import warning_of_ties
from icprobe.config.selections import Chosen
from icprobe.errors import IcprobeError, several
from icprobe.formatting import bin_label, bound, estimate, fixed
from icprobe.report import verdicts
from icprobe.report.advice import Read, advice
from icprobe.report.wording import listed
from icprobe.tables.parquet import column_names, read_parquet
from icprobe.tracking.syncing import pending

WIDEST = 100  # characters, on a terminal that has them
# What is shown where there is room for it; a narrower terminal has the first so many.
ROOM = (8, 4, 3)
FEW = 5  # examples, of which shares say nothing


def summary(
    experiment: str,
    models: Sequence[str],
    tracked: bool,
    width: int | None = None,
    made: Collection[str] | None = None,
    reports: Sequence[str] = (paths.REPORT,),
    data_sets: Mapping[str, Chosen] = MappingProxyType({}),
    baselines: Collection[str] = headline.BASELINES,
    own_run: str | None = None,
) -> str:
    """The end of a finished experiment: headline, LDS, held-out gains, win rates, what to do, where files are, how to
    upload.

    tracked: whether W&B is on. width: characters (default: the terminal's). made: the files that the workflow's jobs
    make (default: all that are there); others may be of an earlier configuration. reports: paths of the pages to name.
    data_sets: what selections make, by their names. baselines: the methods that are `length` and `random`, and not
    external scores that are called so. own_run: the id of the workflow's own run, which is still being sent. What was
    not computed is left out.
    """
    width = width or terminal_width()
    folder = Path(paths.EXPERIMENT.format(experiment=experiment))
    whole, outdated = Path(paths.REPORT.format(experiment=experiment)), False
    blocks, kept = [f"{experiment}: finished"], []
    for model in models:
        here = folder / model

        def read(name: str, tables: Path = here / "tables") -> pd.DataFrame | None:
            return _table(tables / name) if made is None or str(tables / name) in made else None

        lines = [*([f"{model}"] if len(models) > 1 else []), *_agreement(read), *_overlap(read), *_labels(read)]
        lines += _ties(here / "tables/scores.parquet")
        blocks.append("\n".join(_wrapped(line, width) for line in lines))
        blocks.append("\n".join(_wrapped(line, width) for line in _retraining(read)))
        blocks.append(_held_out(read, width))
        blocks.append(_win_rates(read, width))
        scores = here / "tables/scores.csv"
        compared = len({*_scored(here / "tables/scores.parquet")} - {*baselines}) != 1
        known = here / "subsets", data_sets, baselines, compared
        told, file = advice(read, *known) if scores.exists() else ([], None)
        blocks.append("\n".join(_wrapped(line, width) for line in told))
        kept += [f"Scores: {scores}"] if scores.exists() else []
        kept += _files(here / "subsets", file, made)
        outdated |= any(_older(whole, own) for own in here.glob("scores/*.parquet"))
    # A path is not broken: it is there to be copied.
    pages = listed([page.format(experiment=experiment) for page in reports])
    ends = [*kept, f"Report: {pages} (with the texts of the examples)"]
    if paths.REPORT not in reports and outdated:
        ends.append(f"{whole} is of earlier scores; snakemake all renews it")
    if tracked:
        sending = f"run-{own_run}.wandb"
        runs = pending(folder / paths.WANDB)
        waiting = sum(log.name != sending or log.parent.name.startswith("offline-") for log in runs)
        command = "make sync" if experiment == "demo" else f"make sync EXPERIMENT={experiment}"
        kept_here = f"W&B: {several(waiting, 'run')} kept here and not sent; to upload, run {command}"
        ends.append(_wrapped(kept_here, width) if waiting else "")
    else:
        ends.append(_wrapped("W&B: disabled, no runs were made, nothing was sent to it", width))
    return "\n\n".join(filter(None, [*blocks, "\n".join(filter(None, ends))]))


def _files(subsets: Path, advised: Path | None, made: Collection[str] | None) -> list[str]:
    """Where the subsets are: one by its path, to be copied, and how many more there are. advised: the one to take."""
    found = sorted(path for path in subsets.glob("*/*.jsonl") if made is None or str(path) in made)
    found = [p for p in found if p.parent.name != "all" and not {".messages", ".scores"} & {*p.suffixes}]
    if not found:
        return []
    # The best before the worst, and influence's before others'.
    worst = ("bottom", "le-")
    first = min(found, key=lambda p: (p != advised, p.stem.startswith(worst), p.parent.name != "influence"))
    beside = [path.name for path in found if path.parent == first.parent and path != first]
    others = len(found) - 1 - len(beside)
    line = f"Subsets: {', '.join([str(first), *beside])}{f' and {others} more in {subsets}' if others else ''}"
    return [line, *_lost(first)]


def _lost(subset: Path) -> list[str]:
    """What a trainer does not learn from the file, and from the one beside it does: other turns, line breaks."""
    beside = subset.with_suffix(".messages.jsonl")
    if not beside.is_file():
        return []
    flat = 0
    with open(subset, encoding="utf-8") as rows, open(beside, encoding="utf-8") as talks:
        for row, talk in zip(map(json.loads, rows), map(json.loads, talks), strict=False):
            if not isinstance(row["completion"], str):
                return [f"  A trainer learns its last answers; of all turns, from {beside.name} (docs/training.md)"]
            flat += "\n" in str(talk["messages"][-1]["content"]).strip() and "\n" not in row["completion"].strip()
    if not flat:
        return []
    flattened = f"The templates have made spaces of line breaks in {several(flat, 'response')} of {subset.name}"
    return [f"  {flattened}; {beside.name} keeps them (docs/training.md)"]


def _older(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.stat().st_mtime < other.stat().st_mtime


def terminal_width() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST)


def _wrapped(text: str, width: int) -> str:
    return fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _table(path: Path) -> pd.DataFrame | None:
    try:
        return artifacts.read_csv(path)
    except (OSError, ValueError):
        return None


def _agreement(read: Read) -> list[str]:
    table = read("correlations.csv")
    found = {} if table is None else headline.agreement(table)
    if "spearman" not in found:
        return []
    plain, partial = found["spearman"], found.get("spearman_partial_length")
    lines = [f"Spearman of icp and influence: {_estimate(plain, plain.value)} over {plain.n} examples"]
    if partial is not None:
        lines.append(f"Given response length: {_estimate(partial, partial.value)}")
    return lines


def _estimate(row: Any, value: float) -> str:
    """A value with its interval, where it has one: two examples of one score leave an AUC without."""
    if value != value:
        return "undefined"
    return estimate(value, row.low, row.high) if row.low == row.low else fixed(value)


def _scored(scores: Path) -> list[str]:
    """The methods that the table of scores has."""
    try:
        return [name.removeprefix("score_") for name in column_names(scores) if name.startswith("score_")]
    except IcprobeError:
        return []


def _ties(scores: Path) -> list[str]:
    """Which scores are too coarse to rank the examples."""
    try:
        columns = [name for name in column_names(scores) if name.startswith(("score_", "mean_effect_"))]
        table = read_parquet(scores, columns=columns)
    except (OSError, IcprobeError):
        return []
    told = []
    for column in columns:
        method = column.removeprefix("score_")
        if method != column:
            names = {column: "score", f"mean_effect_{method}": "mean_effect"}
            told.append(warning_of_ties(method, table.rename(columns=names)))
    return [*filter(None, told)]


def _overlap(read: Read) -> list[str]:
    """The overlaps with ICP's strictest bin, with their 95% intervals."""
    table = read("overlaps.csv")
    chosen = pd.DataFrame() if table is None else headline.strictest_bin(table)
    if chosen.empty:
        return []
    (bin_, chance), size = chosen[["bin", "chance"]].iloc[0], headline.size_of_strictest(chosen, read("bins.csv"))
    if size < FEW:
        return [f"icp's bin {bin_} holds {several(size, 'example')}, too few to compare bins by (see overlaps.csv)"]
    shares = ", ".join(
        f"{_estimate(row, row.overlap)} {f'of its {row.n}' if row.n < size else 'for'} {row.method}"
        for row in chosen.itertuples()
    )
    shared = f"Of the {several(size, 'example')} in icp's bin {bin_}, the share that another method's bin holds, too"
    return [f"{shared}: {shares}, and {fixed(chance)} by chance"]


def _labels(read: Read) -> list[str]:
    """How well each method tells a label's good values from all others, and follows labels that are numbers."""
    table = read("label_aucs.csv")
    lines = []
    for label, rows in () if table is None else headline.good_against_others(table).groupby("label", sort=False):
        sizes = f"{rows['n_positive'].max()} sound examples against {rows['n_negative'].max()} others"
        rows = rows.assign(n=rows["n_positive"] + rows["n_negative"])
        told = ", ".join(f"{row.method} {_estimate(row, row.auc)}{_of_fewer(row, rows)}" for row in rows.itertuples())
        lines.append(f"AUC of {label}, {sizes}: {told}")
    table = read("label_correlations.csv")
    found = (
        ()
        if table is None
        else headline.over_all_tasks(table).query("statistic == 'spearman'").groupby("label", sort=False)
    )
    for label, rows in found:
        told = ", ".join(f"{row.method} {_estimate(row, row.value)}{_of_fewer(row, rows)}" for row in rows.itertuples())
        lines.append(f"Spearman with {label}, {rows['n'].max()} examples: {told}")
    return lines


def _of_fewer(row: Any, rows: pd.DataFrame) -> str:
    """Over how many examples a method's number is, where others have more."""
    return f" (of {row.n} examples)" if row.n < rows["n"].max() else ""


def _retraining(read: Read) -> list[str]:
    """Which method predicts retraining best, of which ceiling, and whom the subsets tell it apart from; whose best
    examples cost most, and who foretells what single ones do.
    """
    table, differences = read("lds.csv"), read("lds_differences.csv")
    removal, left_out = read("removal.csv"), read("leave_one_out.csv")
    lds, told = pd.DataFrame() if table is None else headline.of_set(table), []
    if len(lds):
        apart = verdicts.told_apart(lds, None if differences is None else headline.of_set(differences))
        first, *more = verdicts.verdict(lds)
        told = [f"LDS: {first}", " ".join([*more, *apart])]
    if removal is not None and len(removal):
        told.append(verdicts.removal(headline.over_all_tasks(removal)))
    if left_out is not None and len(headline.of_set(left_out)):
        told.append(verdicts.left_out(headline.of_set(left_out)))
    return told


def _held_out(read: Read, width: int) -> str:
    """Held-out gains over all answers and seeds, in nats per token: of tasks, and of eval prompts."""
    table = read("held_out.csv")
    rows = pd.DataFrame() if table is None else headline.overall(table)
    if rows.empty:
        return ""
    conditions = list(dict.fromkeys(zip(rows["method"], rows["bin"], strict=True)))
    shown = _conditions(conditions)
    for name in dict.fromkeys(rows["set"]):
        of_set = {(row.method, row.bin): row for row in rows[rows["set"] == name].itertuples()}
        found = [of_set[condition] for condition in conditions]
        shown[name] = [fixed(row.gain, 4) for row in found]
        shown[f"95% ({name})"] = _intervals(found, 4)
    sizes = [len(shown.columns), *range(len(shown.columns) - 1, 2, -1)]
    title = _wrapped("Held-out gain against the base model, nats per token", width)
    warned = "".join(f"\n\n{_wrapped(sentence, width)}" for sentence in verdicts.hardly_trained(rows))
    return f"{title}\n\n{_fitting(shown, sizes, width)}{warned}"


def _conditions(conditions: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """What models were fine-tuned on, for tables: method and bin."""
    return pd.DataFrame(
        {
            "method": [bin_label("all") if method == "all" else method for method, _ in conditions],
            "bin": ["" if bin_ == "all" else bin_label(str(bin_)) for _, bin_ in conditions],
        }
    )


def _intervals(rows: Sequence[Any], digits: int) -> list[str]:
    return [f"{bound(row.low, digits)} to {bound(row.high, digits)}" if row.low == row.low else "–" for row in rows]


def _fitting(shown: pd.DataFrame, sizes: Sequence[int], width: int) -> str:
    """A table of as many of its first columns as fit. sizes: how many to try, the most first."""
    for n in sizes:
        columns = list(shown)[:n]
        align = ["left" if name in ("method", "bin") else "right" for name in columns]
        options = {"tablefmt": "simple", "colalign": align, "disable_numparse": True}
        text = tabulate(shown[columns], headers="keys", showindex=False, **options)
        if max(map(len, text.splitlines())) <= width:
            break
    return text


def _win_rates(read: Read, width: int) -> str:
    table = read("win_rates.csv")
    if table is None:
        return ""
    rows = headline.overall(table)
    if rows.empty:
        return ""
    shown = _conditions(list(zip(rows["method"], rows["bin"], strict=True))).assign(
        **{
            "win rate, %": [fixed(row.win_rate, 1) for row in rows.itertuples()],
            "95% interval": _intervals(list(rows.itertuples()), 1),
            "n": rows["n"].to_list(),
            "wins": rows["n_wins"].to_list(),
            "draws": rows["n_draws"].to_list(),
            "losses": rows["n_wins_base"].to_list(),
        }
    )
    return f"Win rates against the base model\n\n{_fitting(shown, ROOM, width)}"


# --- failures ---------------------------------------------------------------------------------------------------


Failed = tuple[str, Mapping[str, str], Sequence[str]]  # a job's rule, wildcards and log files


def failures(groups: Iterable[Sequence[Failed]], began: float = 0.0, width: int | None = None) -> str:
    """The end of a failed workflow: of each failed job its rule, what it was about, its one sentence, and its log.

    groups: the jobs that failed, those together that a cluster runs as one: Snakemake does not know which of them did.
    began: when the workflow did, by the clock that dates its logs; older ones are of earlier workflows. Empty where no
    job failed.
    """
    width = width or terminal_width()
    blocks = []
    for rule, wildcards, logs, sentence in (job for group in groups for job in _to_blame(group, began)):
        what = " ".join(f"{name}={value}" for name, value in wildcards.items())
        lines = wrap(
            f"{rule} failed{f' ({what})' if what else ''}: {sentence}",
            width,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        blocks.append("\n".join([*lines, *(f"  log: {log}" for log in logs)]))
    if not blocks:
        return ""
    again = "To resume, run the same command again; finished work is kept."
    return "\n\n".join([*blocks, _wrapped(again, width)])


def _to_blame(group: Sequence[Failed], began: float) -> Iterator[tuple[str, Mapping[str, str], Sequence[str], str]]:
    """The jobs of a group that failed, each with its logs and its sentence: those that have one in a log, or else those
    that did not come to their end; of these, where some began, they alone.
    """
    # Snakemake removes a job's log only when the job begins.
    group = [(rule, wildcards, [log for log in logs if _since(log, began)]) for rule, wildcards, logs in group]
    found = [(*job, next(filter(None, map(sentence_of, job[2])), "")) for job in group]
    if told := [job for job in found if job[3]]:
        yield from told
        return
    left = [job for job in group if not any(map(_ended, job[2]))]
    why = (
        "it ended without a message, perhaps killed for memory"
        if left
        else "it did its work, but its files were not seen in time (a slow file system: --latency-wait)"
    )
    begun = [job for job in left if job[2]]
    yield from ((*job, why) for job in begun or left or group)


def _since(log: str | Path, began: float) -> bool:
    """Whether a log is there, and not of before."""
    try:
        return Path(log).stat().st_mtime >= began
    except OSError:
        return False


def _ended(log: str | Path) -> bool:
    """Whether a job's log ends as that of one that did its work."""
    try:
        lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return bool(lines) and re.match(r"\S+ \S+ done after ", lines[-1]) is not None


def sentence_of(log: str | Path) -> str:
    """Why a job failed, from its log: its own sentence, or the last line of a traceback; empty where there is none."""
    try:
        text = Path(log).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    if found := re.findall(r"^\S+ \S+ error: (.*(?:\n(?!\d{4}-).*)*)", text, re.MULTILINE):
        return " ".join(found[-1].split())
    if "Traceback (most recent call last)" in text:
        traceback = text[text.rindex("Traceback (most recent call last)") :]
        # The first line that is neither indented nor one of the log's own.
        ends = [line for line in traceback.splitlines()[1:] if line and not line[0].isspace()]
        return f"a bug, {ends[0]}" if ends else "a bug"
    if ended := re.findall(r"^\S+ \S+ terminated by (SIG\w+)", text, re.MULTILINE):
        return f"it was ended from outside, by {ended[-1]}"
    return ""
