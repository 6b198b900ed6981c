"""The configuration as a whole: what its sections must agree upon.

`load` turns the raw mapping (YAML, as Snakemake merged it) into a validated, frozen `Config`; `stands_alone` says
whether that mapping is laid over config.yaml, the demo, at all.
"""

import json
from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from icprobe import paths
from icprobe.artifacts import digest
from icprobe.config.estimate import Estimate
from icprobe.config.raw import Plain, mistake, sentence
from icprobe.config.sections import Analysis, Attribution, Figures, Report, Synthetic, Wandb
from icprobe.config.selections import Export, Selection, data_sets
from icprobe.config.selections import check as check_selections
from icprobe.config.sources import SMOLLM2, SMOLLM2_SOURCE, Data, EvalTable, ModelSource
from icprobe.config.templates import Templates
from icprobe.config.training import Evaluation, Finetune
from icprobe.config.truth import Truth
from icprobe.config.types import Bin, Name, Section, Seed
from icprobe.errors import did_you_mean, shown
from icprobe.formatting import parse_bin

__all__ = ["Attribution", "Config", "Evaluation", "Templates", "load"]

NULL_SWITCHES_OFF = {"wandb": {"mode": "disabled"}, "evaluation": {"judge": "none"}}

# The bins where none are said: the paper's, where the icp score is a share of tasks, and the two ends of a ranking.
THRESHOLDS = ["<=0.5", ">0.5", ">0.8", ">0.85", ">0.9"]
ENDS = ["bottom 20%", "top 20%"]
# What no method may be called, and why: tables hold these beside methods' names, and are put side by side.
RESERVED = {"all": "all data in the tables", "control-": "a random removal in the tables"}
RESERVED |= dict.fromkeys(("id", "row_number", "instruction", "input", "output", "domain"), "a column of the examples")
# The methods that are fine-tuned on where none are said, as far as they are scored.
FINE_TUNED = ("icp", "influence", "random")
# A learning rate of all weights, which are about 0.02 in size: there the steps of bfloat16 are 1e-4.
ROUNDED_BELOW = 1e-6


def _default_bins(known: dict[str, Any]) -> list[str]:
    """The bins where none are said; known: the sections before them, of which a wrong one is absent."""
    return THRESHOLDS if "attribution" in known and known["attribution"].icp_is_share else ENDS


class Config(Section):
    """One experiment."""

    experiment: Name = Field(description="Plain name; results are in results/{experiment}/.")
    seed: Seed = Field(
        0,
        description="Seed of everything that has no seed of its own; but for the intervals of held-out gains, win "
        "rates and the tail patch, which are always resampled alike.",
    )
    models: list[Name] = Field([SMOLLM2], min_length=1, description="Models to run, by their names in model_sources.")
    model_sources: dict[Name, ModelSource] = Field(
        {SMOLLM2: SMOLLM2_SOURCE},
        description="Where each model comes from. The default is small and needs no account.",
    )
    data: Data
    templates: Templates = Templates()
    attribution: Attribution = Attribution()
    bins: list[Bin] = Field(
        default_factory=_default_bins,
        description="Bins. `top 20%`, `bottom 5%`, `top 1000`: a share of the examples (rounded to whole ones, at "
        "least one), or that many of them, at one end of each method's own ranking. `>x` and `<=x`: the examples "
        "whose icp score, the share of tasks that they help, meets that limit; the same number for every other method. "
        "Default: "
        f"{json.dumps(THRESHOLDS)} if icp is such a share, otherwise {json.dumps(ENDS)}.",
    )
    selections: dict[Name, Selection] = Field(
        {}, description="Data sets by other rules than bins: each name is one, chosen by a method's scores."
    )
    export: Export = Export()
    analysis: Analysis = Analysis()
    figures: Figures = Figures()
    synthetic: Synthetic = Synthetic()
    finetune: Finetune = Field(
        Finetune(methods=[], all_data=False, selections=[]),
        description="Fine-tuned models; without this key, or with `finetune: null`, there are none.",
    )
    truth: Truth = Truth()
    evaluation: Evaluation = Evaluation()
    report: Report = Report()
    estimate: Estimate = Estimate()
    wandb: Wandb = Wandb()

    @model_validator(mode="after")
    def _thresholds_have_their_score(self) -> "Config":
        trained = self.finetune.bins if self.finetune_methods else None
        of_icp = [name for name in [*self.bins, *(trained or [])] if parse_bin(name).is_threshold]
        if of_icp and not self.attribution.icp_is_share:
            unscored = set(self.finetune.methods or []) - set(self.attribution.methods)
            away = [f"{key}: null" for key, wrong in (("methods", unscored), ("bins", trained)) if wrong]
            where = "bins" if of_icp[0] in self.bins else "finetune.bins"
            raise ValueError(
                f"{where}: {of_icp[0]!r} is a threshold on the icp score; add icp to attribution.methods and "
                f"icp: fraction_positive to attribution.aggregators, or write bins: {json.dumps(ENDS)}"
                + (f" and finetune: {{{', '.join(away)}}}" if away else "")
            )
        return self

    @model_validator(mode="after")
    def _chosen_things_exist(self) -> "Config":
        for what, names in (
            ("models", self.models),
            ("attribution.methods", self.attribution.methods),
            ("bins", self.bins),
            ("data.labels", self.data.labels),
            ("finetune.methods", self.finetune.methods or []),
            ("finetune.bins", self.finetune.bins or []),
            ("finetune.seeds", self.finetune.seeds),
            ("truth.seeds", self.truth.seeds),
            ("truth.removals", self.truth.removals),
        ):
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"{what}: {shown(doubled[0])} appears twice")
        for model in self.models:
            if model not in self.model_sources:
                raise ValueError(
                    f"models: {model!r} is not defined in model_sources{did_you_mean(model, self.model_sources)}"
                )
        methods = self.attribution.methods
        for method in self.finetune.methods or []:
            if method not in methods:
                raise ValueError(
                    f"finetune.methods: {method!r} is not scored; add it to attribution.methods or remove it here "
                    "(null means those that are scored)"
                )
        for method in self.truth.removals:
            if method not in methods:
                raise ValueError(f"truth.removals: {method!r} is not in attribution.methods")
        for pair in [] if self.figures.scatter == "all" else self.figures.scatter:
            for method in pair:
                if method not in methods:
                    raise ValueError(f"figures.scatter: {method!r} is not in attribution.methods")
        if self.figures.sweep and not {"icp", "influence"} <= set(methods):
            raise ValueError("figures.sweep: add icp and influence to attribution.methods; the figure compares them")
        for name in (self.finetune.bins or []) if self.finetune_methods else []:
            if name not in self.bins:
                raise ValueError(
                    f"finetune.bins: {name!r} is not among bins {self.bins}; choose from these, or set finetune.bins "
                    "to null for all"
                )
        return self

    _selections_can_be_made = model_validator(mode="after")(check_selections)

    @model_validator(mode="after")
    def _turns_have_a_chat_template(self) -> "Config":
        if self.attribution.icp.context == "turns" and self.templates.format != "chat":
            raise ValueError(
                "attribution.icp.context: turns are those of a chat template; set templates.format: chat, or write "
                "context: text"
            )
        return self

    @model_validator(mode="after")
    def _no_name_means_something_else(self) -> "Config":
        for model in self.models:
            if model in paths.FOLDERS:
                raise ValueError(f"models: {model!r} is a folder of the experiment; choose another name")
        for key, name in self.attribution.named_here:
            if means := RESERVED.get("control-" if name.startswith("control-") else name):
                raise ValueError(f'attribution.{key}: "{name}" means {means}; choose another name')
        for name, note in self.evaluation.annotations.items():
            if (note.method or name) == "all" and (note.method is None or note.bin != "all"):
                raise ValueError(
                    f'evaluation.annotations.{name}: "all" means all data in the tables; choose another method, or set '
                    "method: all and bin: all if these are responses of a model that was fine-tuned on all data"
                )
        if self.evaluation.judge == "annotations" and len(self.models) > 1:
            raise ValueError(
                f"evaluation.annotations: they do not say of which model they are, and there are {len(self.models)} "
                "models; name one in models"
            )
        if self.data.eval and "overall" in self.data.eval.subsets:
            raise ValueError('data.eval.subsets: "overall" means all subsets in the tables; choose another name')
        return self

    @model_validator(mode="after")
    def _what_is_fine_tuned_is_there(self) -> "Config":
        here = [model for model in self.models if self.model_sources[model].source != "external"]
        if self.data.tasks and str(self.data.tasks.select).startswith("kmeans") and not here:
            raise ValueError(
                f"data.tasks.select: {self.data.tasks.select!r} needs a non-external model to read the candidates"
            )
        absent = [
            what
            for what, there in (
                ("data.train", self.data.train),
                ("data.eval", self.data.eval or self.evaluation.judge == "none" or not self.finetune.generate),
                ("models that are not external", len(here) == len(self.models)),
            )
            if not there
        ]
        if absent and self._trains:
            ways = "`finetune: null` for none"
            if absent == ["data.eval"]:
                ways = "data: {eval: {path: my_prompts.jsonl}}, or `evaluation: null` to skip evaluation, or " + ways
            raise ValueError(f"finetune: fine-tuning and its evaluation need {' and '.join(absent)}; write {ways}")
        return self

    @model_validator(mode="after")
    def _truth_can_be_trained(self) -> "Config":
        if not self.truth.parts:
            if "truth" in self.estimate.targets:
                raise ValueError("estimate.targets: truth trains nothing yet; write truth: {subsets: 64} for so many")
            return self
        if "finetune" not in self.model_fields_set:
            raise ValueError(
                "truth: models are trained as finetune says; write finetune: {methods: [], all_data: false, epochs: 1, "
                "lora: {rank: 16}} with the settings of your training"
            )
        for key, table in (("data.train", self.data.train), ("data.tasks", self.data.tasks)):
            if table is None:
                raise ValueError(
                    f"truth: {key} is needed, the texts to train on and to ask for; write truth: null for none"
                )
        away = [model for model in self.models if self.model_sources[model].source == "external"]
        if away:
            raise ValueError(f"truth: {away[0]!r} is external and cannot be trained; write truth: null for none")
        return self

    @model_validator(mode="after")
    def _quantised_models_are_adapted(self) -> "Config":
        few_bits = [model for model in self.models if self.quantization(model) != "none"]
        if not few_bits or not (self.truth.parts or self._trains):
            return self
        why = f"model_sources.{few_bits[0]}.load.quantization is {self.quantization(few_bits[0])}, and "
        if self.finetune.lora is None:
            raise ValueError(
                f"finetune.lora: {why}quantised weights are not trained: write lora: {{rank: 16}} and learning_rate: "
                "2e-4 for adapters, or `finetune: null` for no training"
            )
        if self.finetune.processes > 1:
            raise ValueError(f"finetune.processes: {why}a quantised model is trained in one process; set it to 1")
        return self

    @model_validator(mode="after")
    def _responses_show_what_was_learned(self) -> "Config":
        tuned, asked = self.finetune, self.evaluation
        elsewhere = asked.engine == "endpoint" and asked.endpoint.start is None  # which has an arithmetic of its own
        exact = asked.dtype == "float32" or elsewhere
        rounded = not exact and tuned.lora is None and tuned.learning_rate < ROUNDED_BELOW
        if rounded and tuned.generate and asked.judge in ("reference", "llm") and self._trains:
            raise ValueError(
                f"evaluation.dtype: {asked.dtype} rounds off most of what weights learn at finetune.learning_rate "
                f"{tuned.learning_rate:g}; write evaluation: {{dtype: float32}}"
            )
        return self

    @property
    def _trains(self) -> bool:
        """Whether models are fine-tuned, rather than judged by what others have annotated."""
        return self.evaluation.judge != "annotations" and bool(
            self.finetune_methods or self.finetune.all_data or self.finetune_selections
        )

    def quantization(self, model: str) -> str:
        """How many bits a model's linear layers are kept in: none (as they are), 8bit or 4bit."""
        return load.quantization if (load := getattr(self.model_sources[model], "load", None)) else "none"

    @property
    def finetune_methods(self) -> list[str]:
        """Methods whose bins are fine-tuned on; by default those of FINE_TUNED that are scored, or all if none is."""
        scored = self.attribution.methods
        if self.finetune.methods is not None:
            return self.finetune.methods
        return [method for method in FINE_TUNED if method in scored] or scored

    @property
    def finetune_bins(self) -> list[str]:
        """Bins that are fine-tuned on."""
        return self.bins if self.finetune.bins is None else self.finetune.bins

    @property
    def finetune_selections(self) -> list[str]:
        """The data sets of selections that are fine-tuned on, baselines included."""
        names = self.selections if self.finetune.selections is None else self.finetune.selections
        return [name for name, of in data_sets(self.selections).items() if of.selection in names]

    def model_directory(self, model: str) -> str:
        """Where a model is kept when it is prepared, by its name and its source."""
        source = self.model_sources[model].model_dump(mode="json", exclude_defaults=True)
        return paths.MODEL.format(model=model, source=digest(source)[:12])

    def as_yaml(self, exclude: set[str]) -> str:
        """The configuration as YAML, defaults spelled out, without some sections and without how jobs compute."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude=exclude), sort_keys=False, allow_unicode=True)


def stands_alone(raw: Any) -> bool:
    """Whether a configuration brings data or scores of its own: nothing of the demo belongs under it then.

    raw: what was given besides config.yaml. Mistakes in it are left to `load`.
    """

    def within(value: Any, *keys: str) -> Any:
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    origins = [within(raw, "data", t, origin) for t in ("train", "tasks", "eval") for origin in EvalTable.origins]
    return any([*origins, within(raw, "attribution", "external")])


def load(raw: dict[str, Any], known_methods: Iterable[str]) -> Config:
    """The validated configuration.

    raw: the merged YAML mapping; a key whose value is null counts as absent, but those of `NULL_SAYS` and
    `NULL_SWITCHES_OFF`. known_methods: names that attribution.methods may choose. Raises ConfigError, one
    sentence for the first mistake and the number of others.
    """
    if isinstance(raw, dict):
        # Taken away, these would come back with their defaults, which send and judge.
        raw = {**raw, **{key: off for key, off in NULL_SWITCHES_OFF.items() if raw.get(key, off) is None}}
    plain, _ = Plain().of(raw)
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        raise sentence(error, plain, Config) from None
    known_methods = config.attribution.known_methods([*known_methods])
    for key, methods in (("methods", config.attribution.methods), ("aggregators", config.attribution.aggregators)):
        for method in methods:
            if method not in known_methods:
                raise mistake(
                    ["attribution", key],
                    f"{shown(method)} is not a method; use one of {', '.join(known_methods)}"
                    + did_you_mean(method, known_methods),
                )
    for name in data_sets(config.selections):
        if name in (*known_methods, "all"):
            raise mistake(["selections"], f"{shown(name)} is the name of a method or of all data; choose another")
    return config
