"""What an experiment makes, and from what, as its configuration decides it before anything has run.

The rules ask a `Plan`; they name the files, and bind what is Snakemake's. Nothing here looks at a file that the
experiment makes.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from icprobe.config.selections import Chosen, data_sets
from icprobe.config.sources import local_files
from icprobe.config.training import Annotations
from icprobe.config.types import slice_of
from icprobe.errors import ConfigError, reason
from icprobe.formatting import bin_name, bin_of, parse_bin
from icprobe.paths import SELECTED
from icprobe.tables import checking
from icprobe.workflow.planned_methods import MethodsPlan

LABEL_TABLES = ("label_aucs.csv", "label_auc_differences.csv", "label_correlations.csv")
TEMPLATES = ("query", "target", "one_shot_prefix", "separator")
LINKS = ("icp", "one_step", "influence")  # of the chain of the paper's argument

Condition = tuple[str, str, int]  # a fine-tuned model: method, bin (as configured, "all", or SELECTED), seed


def bin_folder(bin: str) -> str:
    """A bin's name in paths; "all" is that of all data, SELECTED that of a selection."""
    return bin if bin in ("all", SELECTED) else bin_name(bin)


def _read_template(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: templates.chat_template: {file}: cannot be read ({reason(error)})") from None


class Plan(MethodsPlan):
    """The decisions that a configuration implies."""

    # --- models and tables --------------------------------------------------------------------------------------

    def is_here(self, model: str) -> bool:
        """Whether a model can be run; of one whose source is `external` only what others computed is known."""
        return self.config.model_sources[model].source != "external"

    @cached_property
    def models_here(self) -> list[str]:
        """The experiment's models that can be run."""
        return [model for model in self.config.models if self.is_here(model)]

    def model_files(self, model: str) -> list[str]:
        """The local files that a model is made from: a random model's corpus, a local model's directory."""
        source = self.config.model_sources[model]
        if source.source == "local":
            return sorted(str(file) for file in Path(source.path).glob("*") if file.is_file())
        return [source.corpus] if source.source == "random" else []

    def model_decides(self, table: str) -> bool:
        """Whether the first model decides which rows "train", "tasks" or "eval" has.

        By its tokens, where a sample is drawn from short rows; by its representations, where k-means selects tasks.
        """
        section = getattr(self.config.data, table)
        if table == "tasks":
            return self.selection.startswith("kmeans")
        return bool(section and section.sample and section.sample.max_tokens)

    def readers(self, table: str) -> list[str]:
        """The models that decide which rows "train", "tasks" or "eval" has.

        Where a row that is too long is an error, no other model than the first does: `measure_lengths` and
        `measure_prompts` refuse it, each for its own model, so that one model more makes no table anew, and nothing of
        the models before it. Eval prompts are never cut or dropped.
        """
        if table != "eval" and self.config.data.on_too_long != "error":
            return self.models_here
        return self.models_here[:1] if self.model_decides(table) else []

    @property
    def selection(self) -> str:
        """How tasks are selected, in one text: "all", "kmeans:100", or a list of ids as Python writes it."""
        return str(self.config.data.tasks.select) if self.config.data.tasks else "all"

    @property
    def selection_draws(self) -> bool:
        """Whether tasks are drawn at random; "first:n", "all" and a list of ids draw nothing."""
        return self.selection.startswith(("random", "kmeans"))

    @cached_property
    def named_by(self) -> dict[str, str | None]:
        """Tables that have no texts: the external scores whose rows, or columns, are numbered instead."""
        return {
            table: next(
                (m for m, scores in self.external.items() if table == "train" or scores.orientation != "scores"), None
            )
            for table in ("train", "tasks")
            if getattr(self.config.data, table) is None
        }

    def text_settings(self, *templates: str) -> dict[str, Any]:
        """How rows become texts and tokens: these templates (all, if none is named), and what control tokens are.

        By a chat template these are its file's text, and how an example stands in a prompt where contexts are made.
        """
        said, special = self.config.templates, {"special_tokens": self.config.data.special_tokens}
        if said.format == "jinja":
            chosen = slice_of(said, *(templates or TEMPLATES), "bos")
            return {**chosen, **special}
        own = _read_template(said.chat_template) if said.chat_template else None
        context = {} if templates else {"context": self.config.attribution.icp.context}
        if context.get("context") == "text":
            context |= slice_of(said, *TEMPLATES)
        return {"format": "chat", "chat_template": own, **context, **special}

    # --- analysis -----------------------------------------------------------------------------------------------

    @cached_property
    def chain(self) -> bool:
        """Whether the chain of the paper's argument is looked at: where nothing of it comes from elsewhere."""
        return set(LINKS) <= set(self.computed)

    @property
    def tail_patch(self) -> list[str]:
        """The methods whose best and worst examples one_step judges, where it is computed here, task by task.

        Neither itself nor what is combined of it and others: it would judge itself.
        """
        asked = self.config.attribution.methods if "one_step" in self.computed else []
        return [method for method in asked if "one_step" not in self.made_of(method)]

    @cached_property
    def step_sizes(self) -> dict[str, float]:
        """The chain's step sizes of one_step besides its own, by their names in paths."""
        own, sizes = self.config.attribution.one_step.learning_rate, self.config.analysis.chain.learning_rates
        return {str(eta): eta for eta in sizes if self.chain and eta != own}

    @cached_property
    def domains(self) -> dict[str, Any]:
        """How scores over the tasks of one domain are made, as `icprobe.analysis.domains.score_sets` takes it."""
        return {
            "aggregators": {method: self.aggregator(method) for method in self.per_task},
            "without_tasks": [m for m in self.config.attribution.methods if not self.reads_tasks(m)],
            "may_skip": [method for method in self.per_task if self.methods[method].may_skip],
        }

    @property
    def sound_labels(self) -> dict[str, list[str]]:
        """The good values of each label; one without any marks no side of an AUC."""
        data = self.config.data
        return {label: good for label, good in data.sound_labels.items() if label in data.labels and good}

    @cached_property
    def sweep(self) -> bool:
        """Whether models and domains are compared in a figure: where there are several of either, or as it is said."""
        if self.config.figures.sweep is not None:
            return self.config.figures.sweep
        tasks = self.config.data.tasks
        if not {"icp", "influence"} <= set(self.config.attribution.methods):
            return False
        # What comes from elsewhere is not known before it is read.
        columns = tasks.columns if tasks else {}
        return len(self.config.models) > 1 or len(checking.values(local_files(tasks), columns, "domain")) > 1

    @property
    def counted_bins(self) -> list[str]:
        """The bins that hold a number of examples, of which there must be as many."""
        known = {bin: parse_bin(bin) for bin in self.config.bins}
        return [bin for bin, found in known.items() if not found.is_threshold and not found.percent]

    def by_icp(self, bin: str) -> bool:
        """Whether the icp score decides how many examples a bin holds; bin: its name in paths."""
        return bin != "all" and parse_bin(bin_of(bin)).is_threshold

    @property
    def tables(self) -> list[str]:
        """A model's tables that need no judgements."""
        methods, bins = self.config.attribution.methods, self.config.bins
        several = len(methods) > 1
        return [
            *(["correlations.csv"] if several else []),
            *(LABEL_TABLES if self.config.data.labels else []),
            *(["bins.csv"] if bins else []),
            *(["overlaps.csv"] if bins and several and "icp" in methods else []),
            *(["chain.csv", "weak_link.txt"] if self.chain else []),
            *(["tail_patch.csv"] if self.tail_patch else []),
            *(["selections.csv"] if self.data_sets else []),
        ]

    @property
    def subsets(self) -> list[tuple[str, str]]:
        """All subsets that bins and selections make, as (method, bin)."""
        of_bins = [(method, bin) for method in self.config.attribution.methods for bin in self.config.bins]
        return of_bins + [(name, SELECTED) for name in self.data_sets]

    @cached_property
    def data_sets(self) -> dict[str, Chosen]:
        """What selections make, by the names that stand for methods."""
        return data_sets(self.config.selections)

    @property
    def advisable(self) -> dict[str, Chosen]:
        """Of these, selections of the best by a method that is neither chance nor length, and their baselines."""
        asked = self.config.selections
        good = [n for n, of in asked.items() if of.bottom is None and of.method not in self.baselines]
        return {name: of for name, of in self.data_sets.items() if of.selection in good}

    def checked_bin(self, bin: str) -> str:
        """A bin's name in paths. Raises ConfigError where no bin of the configuration has this name."""
        known = {bin_folder(name): name for name in [*self.config.bins, *self.config.finetune_bins]}
        known |= {bin_folder(note.bin): note.bin for note in self.config.evaluation.annotations.values()}
        if bin not in known and bin != "all":
            there = ", ".join(f"{folder} ({name})" for folder, name in known.items()) or "none"
            raise ConfigError(f"config: bins: none of them is called {bin}; there are {there}")
        return bin

    # --- fine-tuned models --------------------------------------------------------------------------------------

    @cached_property
    def fine_tuned(self) -> list[Condition]:
        """The models to fine-tune."""
        settings = self.config.finetune
        chosen = [(method, bin) for method in self.config.finetune_methods for bin in self.config.finetune_bins]
        chosen += [(name, SELECTED) for name in self.config.finetune_selections]
        chosen += [("all", "all")] if settings.all_data else []
        return [(method, bin, seed) for method, bin in chosen for seed in settings.seeds]

    @cached_property
    def annotations(self) -> dict[str, Annotations]:
        """Judgements that exist already, by their names in the configuration."""
        return self.config.evaluation.annotations if self.config.evaluation.judge == "annotations" else {}

    @cached_property
    def judged(self) -> list[Condition]:
        """What stands in the table of win rates: what others have judged, or the fine-tuned models where they are."""
        if self.config.evaluation.judge == "none":
            return []
        annotated = [(note.method or name, note.bin, note.seed) for name, note in self.annotations.items()]
        return annotated or (self.fine_tuned if self.config.finetune.generate else [])

    @property
    def judged_tables(self) -> list[str]:
        """A model's tables that need judgements; none where nothing is judged."""
        return ["win_rates.csv", "differences.csv"] if self.judged else []

    @cached_property
    def held_out_sets(self) -> list[str]:
        """The tables whose answers are held out: eval prompts where their outputs are gold answers, no model's."""
        gold = self.config.data.eval and self.config.evaluation.base_responses != "given"
        return [*(["tasks"] if self.config.data.tasks else []), *(["eval"] if gold else [])]

    @cached_property
    def held_out(self) -> list[Condition]:
        """The fine-tuned models that are asked for the likelihood of held-out answers."""
        return self.fine_tuned if self.held_out_sets and not self.annotations else []

    @property
    def held_out_tables(self) -> list[str]:
        """A model's tables that need held-out answers."""
        return ["held_out.csv", "held_out_differences.csv"] if self.held_out else []

    @property
    def reads_eval(self) -> bool:
        """Whether anything that is made reads the eval prompts."""
        asked = (self.held_out or self.truth_parts) and "eval" in self.held_out_sets
        return bool(self.config.data.eval and (self.judged or asked))

    @property
    def unjudged(self) -> list[Condition]:
        """Fine-tuned models that nothing else of the experiment asks for."""
        return [] if self.judged else self.fine_tuned

    # --- retraining ---------------------------------------------------------------------------------------------

    @property
    def truth_parts(self) -> list[str]:
        """What is trained anew: "subsets", "removals", "left_out"."""
        return self.config.truth.parts

    @property
    def truth_tables(self) -> list[str]:
        """A model's tables that need retraining."""
        of_part = {
            "subsets": ["lds.csv", "lds_differences.csv"],
            "removals": ["removal.csv"],
            "left_out": ["leave_one_out.csv"],
        }
        tables = [name for part in self.truth_parts for name in of_part[part]]
        return [*tables, *(["frontier.csv"] if tables else [])]

    def removed_by_task(self, method: str) -> bool:
        """Whether a method's best examples are removed task by task."""
        return self.config.truth.removal == "per_task" and method in self.per_task

    def truth_sets(self, part: str, tasks: float) -> float:
        """How many sets a part trains on; tasks: how many there are, about."""
        truth = self.config.truth
        if part != "removals":
            return truth.subsets if part == "subsets" else 1 + truth.leave_one_out
        return truth.controls + sum(tasks if self.removed_by_task(method) else 1 for method in truth.removals)

    # --- judgements ---------------------------------------------------------------------------------------------

    def annotation(self, method: str, bin: str, seed: str) -> Annotations:
        """The annotations that make the judgements of these wildcards. Raises ConfigError where there are none."""
        for (name, of_note, number), note in zip(self.judged, self.annotations.values(), strict=True):
            if (name, bin_folder(of_note), str(number)) == (method, bin, seed):
                return note
        raise ConfigError(f"there are no annotations of {method}, {bin}, seed {seed}")

    @cached_property
    def names_of_methods(self) -> list[str]:
        """What stands for a method in paths: methods, "all" (all data), selections, and what others have judged."""
        judged = (method for method, _, _ in self.judged)
        return [*dict.fromkeys([*self.config.attribution.methods, "all", *self.data_sets, *judged])]
