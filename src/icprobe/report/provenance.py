"""How the results were made: the rules that ran, what each makes and needs, and how long it took."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from icprobe import paths


class RuleRun(NamedTuple):
    """One job, or one rule: several rows of one rule are summed (seconds) and maximised (peak_mb)."""

    rule: str
    seconds: float | None = None  # wall clock
    peak_mb: float | None = None  # resident memory, MB
    needs: Sequence[str] = ()  # names of the rules whose output it reads
    makes: str = ""  # its first output, a pattern
    message: str = ""  # what Snakemake says when it runs; shown for rules that HOW lacks


# rule -> how it makes what it makes.
HOW = {
    "prepare_model": "fetched, checked by SHA-256, saved as safetensors with tokenizer",
    "find_duplicates": "training examples that repeat an earlier one, exactly or nearly, which are dropped",
    "fetch_gguf": "a quantised file of the model, fetched and checked by SHA-256, for the server that writes responses",
    "name_model": "the name without digest that leads to the model's files",
    "count_repeated": "rows that occur more than once, in one table or in several",
    "prepare_train": "read, checked, sampled as configured; ids unique",
    "prepare_eval": "read and checked",
    "check_dtype": "checks that the model can be used in the dtype of the attributions",
    "check_section_dtype": "checks that the model can be used in the dtype of training, or of responses",
    "check_parameters": "checks that the model has the linear layers that gradients are to be taken over",
    "check_losses": "checks that every example has a token of response within what fine-tuning reads",
    "check_responses": "checks that of every response there is a token that counts for ifd",
    "check_contexts": "checks that the model can read the contexts in which several examples or tasks stand",
    "check_labels": "checks that labels have the values that mark good examples",
    "check_bins": "checks that there are as many examples as the bins ask for",
    "check_prompts": "checks that the prompts contain what the judge needs, such as gold answers",
    "select_tasks": "the tasks that data.tasks.select chooses",
    "name_rows": "numbers for the rows of scores that come without texts",
    "measure_lengths": "tokens of query and response of each example, each of which must fit with the longest task",
    "measure_prompts": "tokens of each eval prompt; a response must fit after it",
    "attribute": "effect of each example of a shard on the log-likelihood of each task",
    "attribute_without_model": "a method's values of all examples, computed from their texts, lengths or a seed",
    "sum_covariances": "covariances of inputs and output gradients of each linear layer over a part of the examples",
    "fisher_bases": "their eigenvectors over all examples: the basis of the Fisher matrix",
    "sum_eigenvalues": "squared gradients of a part of the examples in that basis",
    "fisher_eigenvalues": "their mean: the eigenvalues of the Fisher matrix",
    "attribute_ekfac": "influence with the Fisher matrix, of all its dampings in one pass",
    "attribute_influence": "gradients of examples and tasks, multiplied layer by layer, of all influences in one pass",
    "read_external": "scores that others computed, checked against the examples and tasks",
    "combine": "a method computed from the matrices of others: their mean ranks, or the ranks of one given length",
    "gather_attributions": "the shards of a method, joined",
    "score": "the matrix reduced over tasks by the method's aggregator",
    "tabulate_scores": "every example with its texts, labels, lengths, scores and ranks",
    "correlate": "correlations of every pair of methods with 95% intervals",
    "tabulate_bins": "the score at which each method's bins end, and how many examples share it",
    "compare_bins": "examples that each method's bins share with those of icp",
    "tail_patch": "what one step of training on each method's best, worst and random examples does",
    "draw_sets": "which examples are in which random subset, or are left out",
    "choose_removals": "the best examples of each method, and random ones, to be left out",
    "retrain": "the model trained on each set, and how likely it then finds the answers",
    "gather_retrained": "those of all trainings without some examples, joined",
    "gather_subsets": "those of all trainings on random subsets, joined",
    "tabulate_lds": "how well each method's sums over a subset predict them (LDS)",
    "tabulate_removal": "what tasks lose without each method's best examples, against random removals",
    "tabulate_left_out": "how well each method predicts what training without one example loses",
    "train_regressor": "a transformer trained on linear functions, where the truth is known",
    "value_points": "what each point of a linear function is worth, by each method and exactly",
    "correlate_points": "correlations of these values",
    "plot_points": "the figures of them",
    "frontier": "each method's agreement with each truth beside what its jobs took, and the operations counted for it",
    "plot_truth": "that agreement against seconds and operations",
    "tell_labels": "how well each method tells good examples from others, and follows numeric labels",
    "attribute_step": "one_step at another step size, for the chain",
    "gather_steps": "the shards of a step size, joined",
    "chain": "correlations of icp, one_step and influence, link by link and by step size",
    "plot_scores": "all figures of the scores and of the tables made from them",
    "plot_judgements": "the win rates of all methods and bins, with their intervals",
    "plot_sweep": "icp against influence by model and by domain of task",
    "subset": "the examples of a bin; for a threshold as many as in icp's bin of that name",
    "check_selection": "checks that there are as many examples as a selection asks for",
    "count_learnt": "how many tokens of each example fine-tuning learns from",
    "select_examples": "the examples of a selection",
    "draw_baseline": "as many examples drawn at random, as a selection's baseline says",
    "tabulate_selections": "length, labels and likeness of each selection beside its baselines",
    "export": "the selections as one data set, with the files of every trainer",
    "embed_examples": "the direction of each example's mean hidden state, by which a selection is made diverse",
    "describe_selection": "how a selection is loaded into trainers, and what every method says of its examples",
    "train_trajectory": "the model fine-tuned on all examples, with checkpoints on the way, for tracin and less",
    "list_checkpoints": "the checkpoints that are given, with the learning rates in effect there, for tracin",
    "fine_tune": "the model fine-tuned on a subset, loss on responses only",
    "measure_outcomes": "how likely the base model and each fine-tuned one find the answers of tasks and eval prompts",
    "tabulate_held_out": "by how much fine-tuning raised that, per token, by method, bin, subset and seed",
    "generate": "the fine-tuned model's response to each prompt",
    "generate_base": "the base model's response to each eval prompt",
    "take_base_responses": "the base responses that the eval table gives",
    "judge": "each response compared with the base model's: a preference from 1 (base) to 2; 1.5 is a draw",
    "read_annotations": "preferences that others have collected",
    "tabulate_win_rates": "preferences averaged by method, bin, subset and seed",
    "report": "this page",
    "report_scores": "this page, for the scores alone",
    "report_truth": "this page, for the scores and what holds them against retraining",
}


def behind(target: str, dag: Any, name: Callable[[str], str] = str) -> dict[str, dict[str, Any]]:
    """Each rule that the job of `target` rests on, in the rules' order: what it needs, says, makes, its jobs' logs.

    name: of one of the workflow's rules, what our files call it.

    dag: Snakemake's. The files of earlier jobs lie beside these, of bins and shards that are no more: it alone knows
    which count. The target is still to run: what lies beside its log is of the one before.
    """
    from snakemake.io import strip_wildcard_constraints  # not above: the report's job needs no Snakemake

    found: dict[str, dict[str, Any]] = {}
    left = [job for job in dag.jobs if name(job.rule.name) == target]
    seen = set(left)
    while left:
        job = left.pop()
        needed = set(dag.dependencies[job])
        left += needed - seen
        seen |= needed
        makes = strip_wildcard_constraints(str(next(iter(job.rule.output), "")))
        facts = {"needs": set(), "message": str(job.rule.message or ""), "makes": makes, "logs": set()}
        rule = name(job.rule.name)
        facts = found.setdefault(rule, facts)
        facts["needs"] |= {name(other.rule.name) for other in needed}
        facts["logs"] |= set(map(str, job.log)) if rule != target else set()
    # In a fixed order: it is a param, and the picture.
    order = [rule for rule in map(name, (rule.name for rule in dag.workflow.rules)) if rule in found]
    return {name: {**found[name], **{key: sorted(found[name][key]) for key in ("needs", "logs")}} for name in order}


def rule_runs(dag: Iterable[RuleRun | tuple] | None) -> pd.DataFrame | None:
    """One row per rule in order of appearance: rule, jobs, seconds, peak_mb, needs. None where there is no row.

    A rule that is only waited for has no jobs: its times are not known.
    """
    rows = [RuleRun(*row) for row in dag or ()]
    if not rows:
        return None
    names = dict.fromkeys([row.rule for row in rows] + [need for row in rows for need in row.needs])
    found: dict[str, dict[str, Any]] = {
        name: {"rule": name, "jobs": 0, "seconds": np.nan, "peak_mb": np.nan, "needs": {}, "makes": "", "message": ""}
        for name in names
    }
    for row in rows:
        rule = found[row.rule]
        rule["jobs"] += 1
        if row.seconds is not None and row.seconds == row.seconds:
            rule["seconds"] = np.nansum([rule["seconds"], row.seconds])
        if row.peak_mb is not None and row.peak_mb == row.peak_mb:
            rule["peak_mb"] = np.nanmax([rule["peak_mb"], row.peak_mb])
        rule["needs"] |= dict.fromkeys(row.needs)
        rule["makes"], rule["message"] = row.makes or rule["makes"], row.message or rule["message"]
    return pd.DataFrame(found.values()).astype({"seconds": float, "peak_mb": float})


def edges(runs: pd.DataFrame) -> list[tuple[str, str]]:
    return [(row.rule, need) for row in runs.itertuples() for need in row.needs]


def artifacts(runs: pd.DataFrame | None, experiment: str) -> list[dict[str, Any]]:
    """Rows of the table of artifacts: those of the rules that ran; none where that is not known."""
    # A rule without wildcards, such as the report's, names the experiment.
    folder = re.compile(rf"^{paths.RESULTS}/(\{{experiment\}}|{re.escape(experiment)})/")
    return [
        {
            **row,
            "needs": list(row["needs"]),
            "makes": folder.sub("", row["makes"]),
            # "Drawing {wildcards.method_a} against …": a message names its wildcards.
            "how": HOW.get(row["rule"]) or re.sub(r"\{wildcards\.(\w+)\}", r"{\1}", row["message"]),
        }
        for row in ([] if runs is None else runs.to_dict("records"))
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as rows (name, value), inner names behind a dot."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else value))
    return rows
