"""Edits of a finished tiny experiment, and the jobs that each ought to repeat: each rule, and how many of its jobs."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from random import Random

import dag

from icprobe.artifacts import show_manifest, write_manifest

END = Counter(report=1, all=1)
# One process draws all figures of the scores and their tables.
FIGURES = Counter(plot_scores=1)
ALL_FIGURES = FIGURES + Counter(plot_sweep=1, plot_judgements=1)
CORRELATION = Counter(correlate=1, plot_sweep=1) + FIGURES + END
CHAIN = Counter(chain=1)
# one_step at a step size of the chain's own, in two shards.
STEPS = Counter(attribute_step=2, gather_steps=1)
# Every figure and table that reads all scores.
ANALYSIS = Counter(
    ["correlate", "tabulate_bins", "compare_bins", "tell_labels", "tabulate_scores", "tail_patch", "plot_sweep"]
)
ANALYSIS += FIGURES + END
TABULATION = Counter(tabulate_win_rates=1, plot_judgements=1) + END
JUDGING = Counter(judge=5) + TABULATION
GENERATION = Counter(generate=5) + JUDGING
# One process for all models of a base.
OUTCOMES = Counter(measure_outcomes=1, tabulate_held_out=1)
TRAINING = Counter(fine_tune=5) + GENERATION + OUTCOMES
# icp and random are fine-tuned on, in two bins each; a bin of random has the size of icp's.
OF_FINE_TUNED_SCORES = Counter(subset=4, fine_tune=4, generate=4, judge=4) + TABULATION + OUTCOMES
# icp, influence and one_step in two shards; length and random in one.
ATTRIBUTION = Counter(attribute=4, attribute_influence=2, attribute_without_model=2, gather_attributions=6, score=6)
OF_RANDOM = (
    CHAIN
    + Counter(attribute_without_model=1, gather_attributions=1, score=1)
    + (ANALYSIS | Counter(subset=2, fine_tune=2, generate=2, judge=2) + TABULATION + OUTCOMES)
)
OF_SCORES = ANALYSIS | OF_FINE_TUNED_SCORES
OF_ATTRIBUTIONS = ATTRIBUTION + OF_SCORES + STEPS + CHAIN
OF_TRAIN = OF_ATTRIBUTIONS + Counter(measure_lengths=1) | Counter(subset=5) + TRAINING
# influence and one_step alone.
OF_GRADIENTS = Counter(attribute=2, attribute_influence=2, gather_attributions=3, score=3) + ANALYSIS + STEPS + CHAIN
LOSSES = Counter(check_losses=1)
NOTHING = Counter()

MODULE = "\n_ADDED = 1\n"


def appended(name: str, text: str = MODULE) -> Callable:
    def change(project: dag.Project) -> None:
        with open(project.path / name, "a", encoding="utf-8") as file:
            file.write(text)

    return change


def module(name: str) -> Callable:
    return appended(f"src/icprobe/{name}.py")


def replaced(name: str, old: str, new: str) -> Callable:
    return lambda project: project.edit(name, old, new)


def config(**sections) -> Callable:
    return lambda project: sections


def older_file(project: dag.Project) -> None:
    """Another file in the place of the train file, with its own, older time, as `mv` and `cp -p` leave it."""
    project.edit("train.jsonl", '"output": "', '"output": "Well, ')
    os.utime(project.path / "train.jsonl", (1e9, 1e9))


def times_shuffled(project: dag.Project) -> None:
    """Results, models and logs as machines leave them whose clocks are up to an hour apart."""
    random = Random(0)
    for folder in ("results", "resources/models", "logs"):
        for path in (project.path / folder).rglob("*"):
            time = path.stat().st_mtime + random.uniform(-3600, 3600)
            os.utime(path, (time, time))


def times_shuffled_and_a_row_edited(project: dag.Project) -> None:
    times_shuffled(project)
    project.edit("train.jsonl", '"output": "', '"output": "Well, ')


def model_made_anew(project: dag.Project) -> None:
    """Another model in the place of the first, whatever its directory's time says."""
    folder = project.path / dag.MODEL
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["digest"]
    write_manifest(folder, **{name: fact for name, fact in manifest.items() if name != "files"}, remark="another")
    show_manifest(folder, folder.with_name(f"{folder.name}.manifest.json"))
    os.utime(folder / ".snakemake_timestamp", (1e9, 1e9))


def rewritten(project: dag.Project) -> None:
    content = project.read("train.jsonl")
    (project.path / "train.jsonl").unlink()
    (project.path / "train.jsonl").write_bytes(content)


def touched(project: dag.Project) -> None:
    for folder in ("src", "workflow", "rules", "configs", "resources/demo"):
        for path in (project.path / folder).rglob("*"):
            path.touch()


def commented(project: dag.Project) -> None:
    for folder in ("src/icprobe", "workflow"):
        for path in (project.path / folder).rglob("*.py"):
            path.write_text(f"# more\n{path.read_text(encoding='utf-8')}\n\n\n# and more\n", encoding="utf-8")


def method_added(project: dag.Project) -> dict:
    project.edit(
        "src/icprobe/attribution/__init__.py",
        '    "random": Method(',
        '    "other": Method("icprobe.attribution.other", "tokens", "How long?", needs_model=False, per_task=False,\n'
        "        whole=True),\n"
        '    "random": Method(',
    )
    baselines = project.path / "src/icprobe/attribution/baselines.py"
    shutil.copy(baselines, baselines.with_name("other.py"))
    return {"attribution": {"methods": ["icp", "influence", "influence_log", "one_step", "length", "random", "other"]}}


def model_added(project: dag.Project) -> dict:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = {"source": "random", "architecture": "gpt2", "sizes": sizes, "corpus": "resources/demo/train.jsonl"}
    return {"models": ["tiny-llama", "tiny-gpt2"], "model_sources": {"tiny-gpt2": other}}


# What is edited → (how, what would rerun).
CASES: dict[str, tuple[Callable, Counter]] = {
    "nothing": (lambda project: None, NOTHING),
    # --- the configuration
    "a model's load, spelled out": (
        config(model_sources={"tiny-llama": {"load": {"quantization": "none", "device_map": "none"}}}),
        NOTHING,
    ),
    "finetune.learning_rate": (config(finetune={"learning_rate": 1e-3}), TRAINING),
    "finetune.seeds": (
        config(finetune={"seeds": [0, 1]}),
        Counter(fine_tune=5, generate=5, judge=5) + TABULATION + OUTCOMES,
    ),
    "a bin is fine-tuned on besides": (
        config(finetune={"bins": ["<=0.5", ">0.8", ">0.5"]}),
        Counter(subset=2, fine_tune=2, generate=2, judge=2) + TABULATION + OUTCOMES,
    ),
    "a bin is no longer fine-tuned on": (config(finetune={"bins": [">0.8"]}), TABULATION + OUTCOMES),
    "no responses are generated": (
        config(finetune={"generate": False}),
        END,
    ),
    "bins": (
        config(bins=["<=0.5", ">0.5", ">0.8"]),
        Counter(tabulate_bins=1, compare_bins=1, tail_patch=1) + FIGURES + END,
    ),
    "the aggregator of one_step": (
        config(attribution={"aggregators": {"one_step": "mean"}}),
        Counter(score=1) + ANALYSIS - Counter(tail_patch=1) + CHAIN,  # it judges no method by itself
    ),
    "attribution.dtype": (
        config(attribution={"dtype": "bfloat16"}),
        Counter(check_dtype=1, attribute=2, attribute_influence=2, gather_attributions=3, score=3)
        + (ANALYSIS | OF_FINE_TUNED_SCORES)
        + CHAIN,
    ),
    "attribution.one_step.learning_rate": (
        config(attribution={"one_step": {"learning_rate": 1e-3}}),
        Counter(attribute=2, gather_attributions=1, score=1) + ANALYSIS + CHAIN,
    ),
    # The gradients are of another loss, icp's likelihoods are not; a bin of random and its training stand.
    "attribution.train_loss": (config(attribution={"train_loss": "response"}), LOSSES + OF_GRADIENTS),
    "attribution.reduction": (config(attribution={"reduction": "mean"}), OF_GRADIENTS),
    "attribution.parameters, spelled out": (config(attribution={"parameters": "all"}), NOTHING),
    "attribution.parameters": (
        config(attribution={"parameters": "attention"}),
        Counter(check_parameters=1) + OF_GRADIENTS,
    ),
    "finetune.max_length": (config(finetune={"max_length": 256}), TRAINING),
    "attribution.task_likelihood": (
        config(attribution={"task_likelihood": "mean"}),
        Counter(attribute=4, attribute_influence=2, gather_attributions=4, score=4)
        + (ANALYSIS | OF_FINE_TUNED_SCORES)
        + STEPS
        + CHAIN,
    ),
    "a step size of the chain is added": (
        config(analysis={"chain": {"learning_rates": [1e-5, 1e-6]}}),
        STEPS + CHAIN + FIGURES + END,
    ),
    "how jobs compute": (
        config(attribution={"memory_budget_gb": 2}, finetune={"checkpoint_minutes": 5}),
        NOTHING,
    ),
    "evaluation.max_new_tokens": (
        config(evaluation={"max_new_tokens": 4}),
        Counter(measure_prompts=1, generate_base=1) + GENERATION,
    ),
    "evaluation.draw_margin": (config(evaluation={"draw_margin": 2.0}), JUDGING),
    "analysis.resamples": (
        config(analysis={"resamples": 10}),
        CORRELATION + CHAIN + Counter(tell_labels=1),
    ),
    "figures.colors": (
        config(figures={"colors": ["#112233"]}),
        ALL_FIGURES + END,
    ),
    "data.special_tokens": (
        config(data={"special_tokens": "token"}),
        OF_TRAIN + Counter(["select_tasks", "prepare_train", "count_repeated", "measure_prompts", "generate_base"]),
    ),
    "data.sound_labels": (
        config(data={"sound_labels": {"planted": ["sound", "scrambled"]}}),
        Counter(check_labels=1, tell_labels=1) + END,
    ),
    "data.in_domain": (config(data={"in_domain": ["code"]}), Counter(plot_sweep=1) + END),
    "report.examples": (config(report={"examples": 3}), END),
    "wandb.project": (config(wandb={"project": "another", "mode": "offline"}), NOTHING),
    # Of the methods random alone draws; the first tasks of a file are chosen without a seed, resamples with one.
    "seed": (config(seed=1), OF_RANDOM),
    # A figure's looks go by the place of a method among all: that of the win rates is drawn anew, too.
    "a method is added": (
        method_added,
        Counter(["attribute_without_model", "gather_attributions", "score", "plot_judgements"]) + ANALYSIS,
    ),
    "a model is added": (
        model_added,
        # Jobs of that model alone, and what shows all models.
        OF_TRAIN + Counter(prepare_model=1, measure_prompts=1, generate_base=1, check_section_dtype=1),
    ),
    # --- files
    "a row of the train file": (
        replaced("train.jsonl", '"output": "', '"output": "Well, '),
        OF_TRAIN + Counter(prepare_train=1, count_repeated=1, check_labels=1),
    ),
    "an older file in the place of the train file": (
        older_file,
        OF_TRAIN + Counter(prepare_train=1, count_repeated=1, check_labels=1),
    ),
    "the train file, written anew with the same content": (rewritten, NOTHING),
    "every source, configuration and demo file, touched": (touched, NOTHING),
    "a row of the task file": (
        replaced("resources/demo/tasks.jsonl", '"output": "', '"output": "Well, '),
        OF_TRAIN + Counter(prepare_train=1, select_tasks=1, count_repeated=1),
    ),
    "a row of the eval file": (
        replaced("resources/demo/eval.jsonl", '"output": "', '"output": "Well, '),
        # Nothing is trained anew.
        Counter(prepare_eval=1, count_repeated=1, check_prompts=1, measure_prompts=1, generate_base=1)
        + GENERATION
        + OUTCOMES,
    ),
    "the times of all results, shuffled": (times_shuffled, NOTHING),
    "the times of all results, shuffled, and a row of the train file": (
        times_shuffled_and_a_row_edited,
        OF_TRAIN + Counter(prepare_train=1, count_repeated=1, check_labels=1),
    ),
    "another model in the place of the first": (
        model_made_anew,
        # The tables stand, and so does the subset of all examples.
        OF_TRAIN + Counter(measure_prompts=1, generate_base=1, check_section_dtype=1) - Counter(subset=1),
    ),
    "a result is removed": (
        lambda project: (project.path / dag.RESULTS / "tables/correlations.csv").unlink(),
        CORRELATION,
    ),
    # --- code
    "the method registry's line of influence": (
        replaced("src/icprobe/attribution/__init__.py", '"nats²"', '"squared nats"'),
        # Names of axes alone.
        FIGURES + END,
    ),
    "attribution/icp.py": (
        module("attribution/icp"),
        Counter(attribute=2, gather_attributions=1, score=1) + (ANALYSIS | OF_FINE_TUNED_SCORES) + CHAIN,
    ),
    "attribution/influence.py": (
        module("attribution/influence"),
        Counter(attribute_influence=2, gather_attributions=2, score=2) + ANALYSIS + CHAIN,
    ),
    "attribution/one_step.py": (
        module("attribution/one_step"),
        Counter(attribute=2, gather_attributions=1, score=1) + ANALYSIS + STEPS + CHAIN,
    ),
    "gradients.py": (module("engine/gradients"), OF_GRADIENTS),
    "completions.py": (module("texts/completions"), OF_GRADIENTS | TRAINING),
    "likelihood.py": (
        module("engine/likelihood"),
        Counter(attribute=4, attribute_influence=2, gather_attributions=4, score=4)
        + (ANALYSIS | OF_FINE_TUNED_SCORES)
        + STEPS
        + CHAIN,
    ),
    "prompts.py": (
        module("texts/prompts"),
        OF_TRAIN
        + Counter(generate_base=1)
        + Counter(
            [
                *("select_tasks", "prepare_train", "prepare_eval", "count_repeated", "check_prompts"),
                *("prepare_model", "measure_prompts", "check_section_dtype"),
            ]
        ),
    ),
    "attribution/gathering.py": (
        module("attribution/gathering"),
        Counter(gather_attributions=6, gather_steps=1, score=6) + OF_SCORES + CHAIN,
    ),
    "statistics.py": (module("analysis/statistics"), Counter(score=6) + OF_SCORES + CHAIN),
    "correlations.py": (module("analysis/correlations"), CORRELATION + CHAIN + Counter(tell_labels=1)),
    "domains.py": (
        module("analysis/domains"),
        CORRELATION + CHAIN + Counter(compare_bins=1, tell_labels=1),
    ),
    "chain.py": (module("analysis/chain"), CHAIN + FIGURES + END),
    "headline.py": (
        module("analysis/headline"),
        # What logs, draws or shows numbers of it; the scores and the bins stand.
        CORRELATION
        + CHAIN
        + Counter(["compare_bins", "tell_labels", "tabulate_held_out", "tabulate_win_rates", "plot_judgements"]),
    ),
    "figures/scatter.py": (module("figures/scatter"), FIGURES + END),
    "figures/sweep.py": (module("figures/sweep"), Counter(plot_sweep=1) + END),
    "figures/drawing.py": (module("figures/drawing"), ALL_FIGURES + END),
    "finetuning.py": (module("training/fine_tune"), TRAINING),
    "generation.py": (module("evaluation/generation"), Counter(generate_base=1) + GENERATION),
    "outcomes.py": (module("evaluation/outcomes"), OUTCOMES + END),
    "held_out.py": (module("evaluation/held_out"), Counter(tabulate_held_out=1) + END),
    "tail_patch.py": (module("analysis/tail_patch"), Counter(tail_patch=1) + END),
    "judging.py": (module("evaluation/judges/__init__"), JUDGING + Counter(check_prompts=1)),
    "llm_judge.py, which is not chosen": (module("evaluation/judges/llm"), NOTHING),
    "endpoint.py, which is not chosen": (module("evaluation/engines/endpoint"), NOTHING),
    "win_rates.py": (module("evaluation/win_rates"), TABULATION + Counter(tabulate_held_out=1)),
    "report.py": (module("report/build"), END),
    "charts.py": (module("report/charts"), END),
    "the report's style sheet": (appended("src/icprobe/report/templates/report.css", "\n/* more */\n"), END),
    "the LLM judge's template, which is not chosen": (
        appended("src/icprobe/evaluation/judges/templates/weighted.jinja", "\n"),
        NOTHING,
    ),
    "jobs.py": (module("workflow/jobs"), NOTHING),
    "tracking.py": (module("tracking/runs"), NOTHING),
    "progress.py": (module("progress"), NOTHING),
    "errors.py": (module("errors"), NOTHING),
    "the script of score": (appended("workflow/scripts/attribution/score.py"), Counter(score=6) + OF_SCORES),
    "the script that draws": (appended("workflow/scripts/figures/plot.py"), ALL_FIGURES + END),
    "a comment in every module and script": (commented, NOTHING),
    "a docstring": (replaced("src/icprobe/attribution/icp.py", '"""', '"""Said otherwise. '), NOTHING),
    "the message of an error": (
        replaced("src/icprobe/tables/checking.py", "no row has an output.", "no row!"),
        NOTHING,
    ),
}
