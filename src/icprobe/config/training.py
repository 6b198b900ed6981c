"""The sections of the configuration on fine-tuned models: how they are trained, what they answer, and who judges it."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from icprobe import masking
from icprobe.config.types import (
    Bin,
    Count,
    Device,
    Dtype,
    FilePath,
    Float,
    Fraction,
    Name,
    OrLeftOut,
    PositiveFloat,
    Section,
    Seed,
    how,
)

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
PLACEHOLDERS = ("model", "method", "bin", "seed")  # in a model's name at an endpoint


# Of finetune with `lora`, where they are not said: the paper's are for all weights and thousands of examples.
OF_ADAPTERS = {"learning_rate": 2e-4, "accumulation": 1, "warmup_ratio": 0.0}


class Lora(Section):
    """Low-rank adapters (peft) on every linear layer of the transformer blocks."""

    rank: Count = Field(16, description="Rank r of the update.")
    alpha: PositiveFloat = Field(32, description="Scale; the update is multiplied by alpha / rank.")
    dropout: Fraction = Field(0.0, description="Dropout on the adapter's input.")
    init_seed: Seed | None = Field(
        None, description="Seed of the adapters' initial weights, for trainings that begin alike; null: the training's."
    )


class Finetune(Section):
    """One fine-tuned model per method × bin or selection, × seed, with trl's SFTTrainer and completion-only loss."""

    methods: list[Name] | None = Field(
        None,
        description="Methods whose bins to fine-tune on; null means those of icp, influence and random that are in "
        "attribution.methods, or all of attribution.methods if none of them is.",
    )
    bins: list[Bin] | None = Field(None, description="Bins to fine-tune on; null means all of `bins`.")
    selections: list[Name] | None = Field(
        None,
        description="Selections to fine-tune on, each with its baselines; null means all of `selections`.",
    )
    seeds: list[Seed] = Field([0], min_length=1, description="One model for each seed.")
    all_data: bool = Field(True, description="Also fine-tune on all examples, as a baseline.")
    learning_rate: PositiveFloat = Field(
        2e-7,
        description="Peak learning rate of AdamW. The default is the paper's, for all weights; adapters (`lora`), "
        "which begin at zero and would stay there, have 2e-4 unless you say otherwise.",
    )
    epochs: PositiveFloat = Field(3, description="Passes over the subset.")
    batch_size: Count = Field(8, description="Examples per forward pass, over all processes together.")
    accumulation: Count = Field(4, description="Forward passes per optimiser step; with `lora` 1 by default.")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="Learning-rate schedule."
    )
    warmup_ratio: Fraction = Field(
        0.03,
        description="Share of the steps that warm up, rounded up; the first of them has a rate of 0. With `lora` 0 by "
        "default. None do with the scheduler `constant`.",
    )
    weight_decay: Float = Field(0.0, description="AdamW's weight decay.")
    max_length: Count = Field(512, description="Maximum tokens of query and response; the rest is cut off.")
    dtype: Dtype = Field("float32", description="Arithmetic of training.")
    device: Device = Field("auto", description="auto uses CUDA if available.")
    generate: bool = Field(
        True,
        description="Whether fine-tuned models answer the eval prompts, for win rates; false leaves them with the "
        "held-out gain, the likelihood of answers that are there.",
    )
    lora: Lora | None = Field(None, description="Train adapters instead of all weights; null trains all weights.")
    processes: Count = Field(
        1,
        description="Processes that share a training on one machine, each with a GPU of its own where there are any; "
        "batch_size is shared among them, and has to divide the number of examples. The trainings of `truth`, `tracin` "
        "and `less` take one process each, whatever is said here.",
    )
    accelerate: FilePath | None = Field(
        None,
        description="A configuration file of accelerate for them, such as one for FSDP; null: data-parallel. Its "
        "mixed_precision counts for nothing: `dtype` says what is trained in.",
    )
    checkpoint_minutes: PositiveFloat = how(2, "Most work that a killed training can lose, approximately, in minutes.")

    @model_validator(mode="before")
    @classmethod
    def _adapters_have_defaults_of_their_own(cls, given: Any) -> Any:
        """Gives adapters a rate and steps of which they learn, where none are said."""
        if isinstance(given, dict) and given.get("lora") is not None:
            return {**OF_ADAPTERS, **given}
        return given

    @model_validator(mode="after")
    def _constant_has_no_warmup(self) -> Self:
        if self.scheduler == "constant" and self.warmup_ratio > 0 and "warmup_ratio" in self.model_fields_set:
            raise ValueError(
                "warmup_ratio: scheduler: constant has no warm-up; set scheduler: constant_with_warmup, or "
                "warmup_ratio: 0"
            )
        return self

    @model_validator(mode="after")
    def _accelerate_is_for_several(self) -> Self:
        if self.accelerate is not None and self.processes == 1:
            raise ValueError(
                "accelerate: the file is for several processes, and processes is 1; set processes, or leave accelerate "
                "out"
            )
        return self


class LlmJudge(Section):
    """A language model as judge, behind any OpenAI-compatible endpoint (OpenAI, vLLM, Ollama, llama.cpp)."""

    base_url: str = Field(description="The endpoint, such as https://api.openai.com/v1.", pattern=r"^https?://")
    model: str = Field(description="The judge's name at the endpoint; use a dated one for a reproducible experiment.")
    key_variable: VariableName | None = how(
        None, "Name of the environment variable that holds the key, never the key itself; null sends none."
    )
    mode: Literal["weighted", "plain"] = Field(
        "weighted",
        description="weighted: one token, whose probabilities weight the responses; plain: a structured answer.",
    )
    top_logprobs: Count = Field(
        20, description="weighted: number of likeliest tokens to read; OpenAI gives at most 20."
    )
    order: Literal["hash", "both"] = Field(
        "hash", description="hash: a hash of the prompt decides which response comes first; both: each way, averaged."
    )
    least_mass: Fraction = Field(
        0.01,
        description="weighted: minimum total probability of the tokens m and M; below it the judge was about to say "
        "something else, such as <think>, and the answer counts as unreadable.",
    )
    temperature: OrLeftOut = Field(
        0.0, description="Sampling temperature; null or false omits it, for endpoints that refuse it."
    )
    json_schema: bool | None = Field(
        True,
        description="plain: require JSON with the verdict's schema; null or false omits that, for endpoints that "
        "refuse it, and the verdict is searched for in the judge's answer.",
    )
    concurrency: Count = how(
        8, "Maximum number of parallel requests; one job at a time sends them, whatever `--cores` says."
    )
    attempts: Count = how(6, "Times to send a request if the endpoint fails, with growing pauses.")
    timeout_seconds: PositiveFloat = how(120, "Time for one answer, in seconds.")
    max_answer_tokens: Count = Field(64, description="plain: maximum tokens of an answer.")
    limit_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the endpoint calls the limit on an answer's tokens."
    )
    price_input: Float | None = how(
        None, "Price of a million input tokens, in dollars; null: unknown, 0: the endpoint costs nothing."
    )
    price_output: Float | None = how(None, "Price of a million output tokens, in dollars; likewise.")
    max_cost: Float | None = how(
        None,
        "Budget for the experiment's judgements, in dollars, over all jobs and runs whose answers are kept in "
        "`.cache/`; a request that might exceed it is not sent. Needs both prices. The cost of interrupted requests is "
        "unknown and not counted.",
    )

    @model_validator(mode="after")
    def _a_budget_needs_prices(self) -> "LlmJudge":
        if self.max_cost is not None and None in (self.price_input, self.price_output):
            raise ValueError(
                "max_cost: set price_input and price_output too (0 if the endpoint costs nothing); without prices no "
                "budget can be kept"
            )
        return self


class Annotations(Section):
    """Existing judgements: AlpacaEval's annotations of one model's responses, as JSON or JSONL."""

    path: FilePath | list[FilePath] = Field(description="The file, or a list of files to read in order.")
    generator: str | None = Field(
        None, description="Which generator_2 to read; needed if the files hold several models' responses."
    )
    method: Name | None = Field(None, description="Method in the table; null uses the annotations' own name.")
    bin: Bin | Literal["all"] = Field("all", description="Bin in the table.")
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


class Endpoint(Section):
    """An OpenAI-compatible server that writes responses: one that icprobe starts for each model, or one that runs."""

    start: list[str] | None = Field(
        None,
        min_length=1,
        description="Command that serves one model, as a list of arguments: {model} stands for a folder with its "
        "weights (adapters merged, in `dtype`) and tokenizer, {port} for a free port. It runs for one model at a time "
        "and is ended with all that it has started; null: a server runs already.",
    )
    base_url: str | None = Field(
        None,
        description="The endpoint; null, with start: http://127.0.0.1:{port}/v1.",
        pattern=r"^https?://",
    )
    model: str | None = Field(
        None,
        description="Name of a fine-tuned model at the endpoint, such as one of vLLM's adapters; it may contain "
        "{model}, {method}, {bin} and {seed}, as they are in paths. null, with start: the one that the server lists.",
    )
    base_model: str | None = Field(
        None, description="Name of the base model at the endpoint, which may contain {model}; null: that of `model`."
    )
    prompts: Literal["tokens", "text"] = Field(
        "tokens",
        description="How prompts are sent: tokens, which is exact, or text, for servers that take no token ids.",
    )
    key_variable: VariableName | None = how(
        None, "Name of the environment variable that holds the key, never the key itself; null sends none."
    )
    start_seconds: PositiveFloat = how(600, "Time for a server to start and read its model, in seconds.")
    concurrency: Count = how(8, "Maximum number of parallel requests.")
    attempts: Count = how(6, "Times to send a request if the endpoint fails, with growing pauses.")
    timeout_seconds: PositiveFloat = how(600, "Time for one response, in seconds.")

    @model_validator(mode="after")
    def _the_server_is_known(self) -> "Endpoint":
        if self.start is None:
            if self.base_url is None or self.model is None:
                raise ValueError("write start, a command that serves {model} at {port}, or base_url and model")
        elif not any("{model}" in word for word in self.start):
            raise ValueError("start: nothing says {model}, the folder of the model to serve")
        elif "{port}" not in (self.base_url or "{port}"):
            raise ValueError("base_url: with start it has to say {port}, a free port, as start does")
        elif not any("{port}" in word for word in self.start):
            raise ValueError("start: nothing says {port}, the port to serve the model at")
        if self.start and (name := masking.secret_in(self.start)):
            raise ValueError(
                f"start: the value of {name} would be kept in records, runs and the report; set it in the environment, "
                "which the server inherits (key_variable names the key that is sent to it)"
            )
        for key, allowed in (("model", PLACEHOLDERS), ("base_model", PLACEHOLDERS[:1])):
            for name in re.findall(r"{[^}]*}?|}", getattr(self, key) or ""):
                if name[1:-1] not in allowed:
                    known = ", ".join(f"{{{one}}}" for one in allowed)
                    raise ValueError(f"{key}: {name} stands for nothing; it may contain {known}")
        return self

    def name(self, model: str, condition: tuple[str, str, str] | None) -> str | None:
        """The name of a model at the endpoint; None where it is what the server lists.

        condition: method, bin and seed of a fine-tuned model, as they are in paths; None for the base model.
        """
        pattern = self.model if condition or self.base_model is None else self.base_model
        values = dict(zip(PLACEHOLDERS, (model, *(condition or ())), strict=False))
        for key, value in values.items():
            pattern = pattern and pattern.replace(f"{{{key}}}", value)
        return pattern


class Evaluation(Section):
    """Responses of each fine-tuned model, judged against those of the base model."""

    judge: Literal["reference", "llm", "annotations", "none"] = Field(
        "reference",
        description="reference: chrF against the gold answer of each eval prompt; llm: a language model; annotations: "
        "existing judgements, so nothing is fine-tuned for the table; none, or `evaluation: null`: fine-tuned models "
        "are kept but give no responses.",
    )
    base_responses: Literal["generate", "given"] = Field(
        "generate",
        description="generate: the base model answers the prompts; given: the eval table's output is its response.",
    )
    draw_margin: Float = Field(1.0, description="reference judge: a chrF difference below this is a draw, in points.")
    llm: LlmJudge | None = Field(None, description="Settings of the judge llm.")
    annotations: dict[Name, Annotations] = Field(
        {}, description="What the judge annotations reads: each name is a row of the table."
    )
    engine: Literal["transformers", "endpoint", "vllm"] = Field(
        "transformers",
        description="Who writes the responses. transformers; endpoint: an OpenAI-compatible server; vllm: vLLM, within "
        "the job.",
    )
    endpoint: Endpoint | None = Field(None, description="Settings of the engine endpoint.")
    max_new_tokens: Count = Field(128, description="Maximum tokens of a response.")
    batch_size: Count = Field(8, description="Prompts generated together.")
    dtype: Dtype = Field("float32", description="Arithmetic of generation.")
    device: Device = Field("auto", description="auto uses CUDA if available.")

    @model_validator(mode="after")
    def _llm_is_described(self) -> "Evaluation":
        if self.judge == "llm" and self.llm is None:
            raise ValueError("the judge llm needs a mapping llm with base_url and model")
        if self.engine == "endpoint" and self.endpoint is None:
            raise ValueError(
                "the engine endpoint needs a mapping endpoint, with start (a command that serves {model} at {port}) or "
                "with base_url and model"
            )
        if self.judge == "annotations" and not self.annotations:
            raise ValueError("the judge annotations needs a mapping annotations of names to files")
        rows = [(note.method or name, note.bin, note.seed) for name, note in self.annotations.items()]
        for row in rows:
            if rows.count(row) > 1:
                method, bin_, seed = row
                raise ValueError(f"annotations: method {method}, bin {bin_}, seed {seed} appears twice")
        if self.llm is not None and "judge" not in self.model_fields_set:
            raise ValueError("llm: it describes a judge, and reference judges by default; write judge: llm beside it")
        if self.annotations and "judge" not in self.model_fields_set:
            raise ValueError(
                "annotations: reference judges by default, and reads none; write judge: annotations beside them"
            )
        if self.endpoint is not None and "engine" not in self.model_fields_set:
            raise ValueError(
                "endpoint: it writes responses, and transformers does by default; write engine: endpoint beside it"
            )
        if self.base_responses == "given" and self.judge == "reference":
            raise ValueError(
                "base_responses: choose judge: llm, because given uses the output of the eval table as the base "
                "model's response and leaves the judge reference no gold answer"
            )
        return self

    @property
    def judge_settings(self) -> dict[str, Any]:
        """What judgements of the chosen judge depend upon, as plain values, without other judges' settings."""
        own = {"reference": {"draw_margin"}, "llm": {"llm"}, "annotations": {"annotations"}, "none": set()}[self.judge]
        return self.model_dump(mode="json", include={"judge", *own})
