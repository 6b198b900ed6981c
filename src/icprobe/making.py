"""How the results were made: the rules that ran, what each makes and needs, and how long it took. No Snakemake here."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class RuleRun(NamedTuple):
    """One job, or one rule: several rows of one rule are summed (seconds) and maximised (peak_mb)."""

    rule: str
    seconds: float | None = None  # wall clock
    peak_mb: float | None = None  # resident memory, MB
    needs: Sequence[str] = ()  # names of the rules whose output it reads


# rule -> what it makes (below results/{experiment}/, or resources/), and how.
RULES = {
    "prepare_model": ("resources/models/{model}/", "fetched, checked by SHA-256, saved as safetensors with tokenizer"),
    "prepare_train": ("data/train.parquet", "read, checked, sampled as configured; ids unique"),
    "prepare_eval": ("data/eval.parquet", "read and checked"),
    "select_tasks": ("data/tasks.parquet", "the tasks that data.tasks.select chooses"),
    "measure_lengths": ("{model}/data/lengths.parquet", "tokens of query and response of each example"),
    "attribute": (
        "{model}/attributions/{method}/{scatteritem}.parquet",
        "effect of each example of a shard on the log-likelihood of each task",
    ),
    "attribute_influence": (
        "{model}/attributions/influence{,_log}/{scatteritem}.parquet",
        "gradients of examples and tasks, multiplied layer by layer; both methods in one pass",
    ),
    "gather_attributions": ("{model}/attributions/{method}.parquet", "the shards of a method, joined"),
    "score": ("{model}/scores/{method}.parquet", "the matrix reduced over tasks by the method's aggregator"),
    "correlate": ("{model}/tables/correlations.csv", "correlations of every pair of methods with 95% intervals"),
    "compare_bins": ("{model}/tables/overlaps.csv", "examples that each method's bins share with those of icp"),
    "tell_labels": ("{model}/tables/label_aucs.csv", "how well each method tells good examples from others"),
    "subset": ("{model}/subsets/{method}/{bin}.jsonl", "the examples of a bin; as many as icp's bin of that name"),
    "fine_tune": (
        "{model}/checkpoints/{method}/{bin}/seed-{seed}/",
        "the model fine-tuned on a subset, loss on responses only",
    ),
    "generate": (
        "{model}/responses/{method}/{bin}/seed-{seed}.jsonl",
        "the fine-tuned model's response to each prompt",
    ),
    "generate_base": ("{model}/responses/base.jsonl", "the base model's response to each eval prompt"),
    "judge": (
        "{model}/judgements/{method}/{bin}/seed-{seed}.jsonl",
        "each response against the base model's: a preference from 1 (base) to 2, 1.5 a draw",
    ),
    "tabulate_win_rates": ("{model}/tables/win_rates.csv", "preferences averaged by method, bin, subset and seed"),
    "plot": ("{model}/figures/*.svg", "figures of scores, correlations, overlaps and win rates"),
    "report": ("report.html", "this page"),
}


def rule_runs(dag: Iterable[RuleRun | tuple] | None) -> pd.DataFrame | None:
    """One row per rule in order of appearance: rule, jobs, seconds, peak_mb, needs. None where there is no row.

    A rule that is only waited for has no jobs: its times are not known.
    """
    rows = [RuleRun(*row) for row in dag or ()]
    if not rows:
        return None
    names = dict.fromkeys([row.rule for row in rows] + [need for row in rows for need in row.needs])
    found: dict[str, dict[str, Any]] = {
        name: {"rule": name, "jobs": 0, "seconds": np.nan, "peak_mb": np.nan, "needs": {}} for name in names
    }
    for row in rows:
        rule = found[row.rule]
        rule["jobs"] += 1
        if row.seconds is not None and row.seconds == row.seconds:
            rule["seconds"] = np.nansum([rule["seconds"], row.seconds])
        if row.peak_mb is not None and row.peak_mb == row.peak_mb:
            rule["peak_mb"] = np.nanmax([rule["peak_mb"], row.peak_mb])
        rule["needs"] |= dict.fromkeys(row.needs)
    return pd.DataFrame(found.values()).astype({"seconds": float, "peak_mb": float})


def edges(runs: pd.DataFrame) -> list[tuple[str, str]]:
    return [(row.rule, need) for row in runs.itertuples() for need in row.needs]


def artifacts(runs: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows of the table of artifacts: those of the rules that ran, or of all rules where that is not known."""
    if runs is None:
        rows = [{"rule": rule, "jobs": None, "seconds": None, "peak_mb": None, "needs": ()} for rule in RULES]
    else:
        rows = runs.to_dict("records")
    found = []
    for row in rows:
        makes, how = RULES.get(row["rule"]) or RULES.get(row["rule"].split("_")[0]) or ("", "")
        found.append({**row, "needs": list(row["needs"]), "makes": makes, "how": how})
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as rows (name, value), inner names behind a dot."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else value))
    return rows
