"""The sections of the configuration on what is computed and shown: attribution, analysis, figures, report, W&B.

The JSON schema and docs/configuration.md are generated from these models (`make schema`).
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from icprobe.config.combined import Combined, in_order
from icprobe.config.combined import check as check_combined
from icprobe.config.types import (
    Count,
    Device,
    Dtype,
    FilePath,
    Float,
    Name,
    Pattern,
    PositiveFloat,
    Section,
    how,
)
from icprobe.errors import shown
from icprobe.formatting import OKABE_ITO

# --- attribution ------------------------------------------------------------------------------------------------


def _aggregator(value: Any) -> Any:
    if value == "mean_per_token":
        raise ValueError("write mean here, and attribution.task_likelihood: mean for likelihoods per token of the task")
    return value


Aggregator = Annotated[Literal["mean", "fraction_positive"], BeforeValidator(_aggregator)]
DEFAULT_METHODS = ["icp", "influence", "influence_log", "one_step", "length", "random"]
SHARES: dict[str, Aggregator] = {"icp": "fraction_positive", "one_step": "fraction_positive"}
Aggregators = Annotated[
    dict[str, Aggregator], BeforeValidator(lambda given: SHARES | given if isinstance(given, dict) else given)
]


class OneStep(Section):
    """One gradient step on one example."""

    learning_rate: PositiveFloat = Field(1e-4, description="Step size η of the update θ − η·g_z.")


class Icp(Section):
    """In-context probing."""

    context: Literal["text", "turns"] = Field(
        "text",
        description="How an example stands before a task. text: as text in the task's prompt, as in the paper. turns: "
        "its turns before the task's, which needs templates.format: chat.",
    )


class InfluenceEkfac(Section):
    """Influence with the Fisher matrix of the examples as Hessian, in EK-FAC's form."""

    labels: Literal["sampled", "empirical"] = Field(
        "sampled",
        description="Whose gradients make the Fisher matrix. sampled: of tokens drawn with the seed from the model's "
        "own distribution, as it is defined. empirical: of the examples' own tokens.",
    )
    damping: PositiveFloat = Field(
        0.1, description="λ of (F + λ)⁻¹, over the mean eigenvalue of a layer's F. A change leaves F as it is."
    )
    sweep: list[PositiveFloat] = Field(
        [],
        description="Further dampings, each a method of its own from the same pass: [0.01, 1] makes "
        "influence_ekfac_0.01 and influence_ekfac_1, computed behind influence_ekfac where `methods` has that, else "
        "those that it names.",
    )

    @model_validator(mode="after")
    def _each_once(self) -> "InfluenceEkfac":
        values = [self.damping, *self.sweep]
        if doubled := [value for value in self.sweep if values.count(value) > 1]:
            raise ValueError(f"sweep: {doubled[0]:g} appears twice, or is damping; each makes a method of its own")
        return self

    @property
    def swept(self) -> dict[str, float]:
        """The methods that the sweep makes, with their dampings."""
        texts = {value: repr(value).removesuffix(".0").replace("+", "") for value in self.sweep}
        return {f"influence_ekfac_{text}": value for value, text in texts.items()}


class IcpBudget(Section):
    """ICP only for examples that may still be among the best or the worst."""

    share: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.1, description="Share of the examples to find as the best, and as the worst."
    )
    round_tasks: Count = Field(10, description="Tasks tried between two decisions on which examples stop.")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Confidence level of the intervals that decide when an example stops."
    )


class IcpReverse(Section):
    """ICP turned round: the tasks stand in the context, and each example's response is read behind them."""

    tasks: Literal["all"] | Count = Field(
        "all",
        description="How many tasks stand in contexts, drawn with the seed. In one context where the model can read "
        "them with the longest example behind; else in as few as that takes, each of which costs a pass over the "
        "examples.",
    )


class IcpKShot(Section):
    """ICP among other examples: what an example adds to contexts that are drawn at random."""

    k: Count = Field(4, description="Examples in a context; with 1 it is icp.")
    draws: Count = Field(
        4, description="How often the others are drawn, for all examples at once. Each costs about as much as icp."
    )


class Tracin(Section):
    """TracIn: gradients at checkpoints of a training, of the experiment's own or of one that was done elsewhere."""

    checkpoints: Count = Field(
        3,
        description="Checkpoints of a fine-tuning on all examples, done for tracin and less as `finetune` says, with "
        "its first seed; evenly spaced over the steps, the last one at the end.",
    )
    directories: list[FilePath] = Field(
        [],
        description="Checkpoints to take instead: directories of peft adapters or whole models, as transformers and "
        "peft save them, of the one model in `models`. Nothing is trained then.",
    )
    learning_rates: list[PositiveFloat] = Field(
        [], description="The learning rate in effect at each of these directories, in their order."
    )

    @model_validator(mode="after")
    def _a_rate_for_each(self) -> "Tracin":
        if len(self.learning_rates) != len(self.directories):
            raise ValueError(
                f"learning_rates: there are {len(self.learning_rates)}, of {len(self.directories)} directories; give "
                "one for each directory"
            )
        return self


class Less(Section):
    """LESS: steps of the optimiser, along the same training of adapters as tracin (`tracin.checkpoints`)."""

    dimension: Count | None = Field(
        None,
        description="Numbers that gradients are projected to at random, with the seed, before their cosine is taken; "
        "8192 in the paper. null: the exact cosine, which a projection only estimates; it costs less unless there are "
        "very many tasks.",
    )


class ExternalScores(Section):
    """Scores or an attribution matrix that somebody else computed: parquet, CSV, JSON, JSONL, npy, npz or .pt."""

    path: FilePath | list[FilePath] = Field(description="The file, or its parts as a list of files, in order.")
    key: str | None = Field(
        None, description="Name of the array in an npz, .pt or JSON file, or of the column in a table."
    )
    orientation: Literal["scores", "examples_by_tasks", "tasks_by_examples"] = Field(
        description="scores: one number for each example; otherwise what the rows and columns of the matrix are."
    )
    parts: Literal["examples", "tasks"] = Field("examples", description="What is divided among several files.")
    join: Literal["order", "id"] = Field(
        "order",
        description="order: row i is example i; id: by the file's ids. If the examples came without ids, files with no "
        "ids (a table: with nothing beside the scores that could be ids), or with numbers, join by row number, from 0.",
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

    methods: list[Name] = Field(DEFAULT_METHODS, min_length=1, description="Methods to compute.")
    dtype: Dtype = Field("bfloat16", description="Arithmetic of the model; one_step always computes in float32.")
    device: Device = Field("auto", description="auto uses CUDA if available.")
    tf32: bool = Field(False, description="Allow TF32 matrix products in float32 on CUDA.")
    aggregators: Aggregators = Field(
        SHARES,
        description="How to reduce a method's matrix over tasks. A method that is not named keeps its default: the "
        "share of tasks helped for icp and one_step, mean for all others.",
    )
    shards: Literal["auto"] | Count = Field(
        "auto",
        description="Jobs into which each method's work is split; results do not depend on it. auto: about half an "
        "hour each, estimated from the sizes of files and model and the speed expected of `device` (docs/clusters.md).",
    )
    memory_budget_gb: PositiveFloat = how(
        3, "Memory for gradients and caches in addition to the model, in GB (10^9 bytes)."
    )
    batch_tokens: Count = Field(
        1024, description="Approximate number of tokens, of examples or of tasks, that go through the model together."
    )
    train_loss: Literal["document", "response"] = Field(
        "document",
        description="An example's loss, whose gradient is taken. document: over all tokens after the first, as in the "
        "paper. response: as in fine-tuning, over the response and the end of sequence (by a chat template over all "
        "turns of the assistant), cut off after finetune.max_length.",
    )
    reduction: Literal["sum", "mean"] = Field(
        "sum",
        description="That loss is the sum over these tokens, or the mean; so is the likelihood in icp_reverse.",
    )
    task_likelihood: Literal["sum", "mean"] = Field(
        "sum",
        description="Log-likelihood of a task's answer in icp, icp_k_shot, one_step and the task's side of influence: "
        "the sum over its tokens, or the mean (nats per token).",
    )
    parameters: Pattern = Field(
        "all",
        description="The linear layers that gradients are taken over, and that one_step updates. all: every one in the "
        "blocks. attention, mlp (with a mixture's experts): by their names, where these tell. Anything else is a "
        "regular expression that matches somewhere in a layer's name, such as `layers\\.(0|1)\\.` or `down_proj`.",
    )
    icp: Icp = Field(Icp(), description="Settings of the methods icp, icp_budget, icp_reverse and icp_k_shot.")
    one_step: OneStep = Field(OneStep(), description="Settings of the method one_step.")
    external: dict[Name, ExternalScores] = Field(
        {},
        description="Scores computed elsewhere, each a method with its own name; one with a built-in method's name "
        "replaces it.",
    )
    combined: dict[Name, Combined] = Field(
        {},
        description="Methods computed from the matrices of others, each with a name of its own: "
        "{best: {mean_rank: [icp, influence]}, icp_at_length: {given_length: icp}}. Those that `methods` names are "
        "computed, without a model.",
    )
    influence_ekfac: InfluenceEkfac = Field(InfluenceEkfac(), description="Settings of the method influence_ekfac.")
    icp_budget: IcpBudget = Field(IcpBudget(), description="Settings of the method icp_budget.")
    icp_reverse: IcpReverse = Field(IcpReverse(), description="Settings of the method icp_reverse.")
    icp_k_shot: IcpKShot = Field(IcpKShot(), description="Settings of the method icp_k_shot.")
    tracin: Tracin = Field(Tracin(), description="Settings of the method tracin.")
    less: Less = Field(Less(), description="Settings of the method less.")

    @model_validator(mode="after")
    def _with_the_sweep(self) -> "Attribution":
        swept = self.influence_ekfac.swept
        if taken := [name for _, name in self.named_here if name in swept]:
            raise ValueError(
                f"influence_ekfac.sweep: {shown(taken[0])} is the name of a method of yours; choose another name"
            )
        if swept and not {"influence_ekfac", *swept} & {*self.methods}:
            raise ValueError(
                "influence_ekfac.sweep: influence_ekfac is not in methods; add it there, or leave sweep out"
            )
        if swept and "influence_ekfac" in self.methods:
            place = self.methods.index("influence_ekfac") + 1
            self.methods[place:place] = [name for name in swept if name not in self.methods]
        return self

    @property
    def named_here(self) -> list[tuple[str, str]]:
        """The names that the configuration gives to methods of its own, each with its section's."""
        return [(key, name) for key in ("external", "combined") for name in getattr(self, key)]

    @property
    def combined_in_order(self) -> dict[str, Combined]:
        """The combined methods that `methods` names, each after those that it is computed from."""
        return {name: self.combined[name] for name in in_order(self)}

    def known_methods(self, registry: list[str]) -> list[str]:
        """All names that `methods` may choose. Raises ConfigError where a combined method cannot be computed."""
        registry = [*registry, *self.influence_ekfac.swept]
        check_combined(self, registry)
        return [*registry, *(name for _, name in self.named_here)]

    @property
    def icp_is_share(self) -> bool:
        """Whether the icp score is the share of tasks that an example helps, as thresholds take it to be."""
        given = self.external.get("icp")
        published = given is not None and given.orientation == "scores"
        return "icp" in self.methods and (published or self.aggregators.get("icp") == "fraction_positive")


# --- analysis ---------------------------------------------------------------------------------------------------


class Chain(Section):
    """The chain icp ~ one_step ~ influence, which is analysed if all three are computed."""

    learning_rates: list[PositiveFloat] = Field(
        [],
        description="Further step sizes η for one_step, in addition to attribution.one_step.learning_rate; each costs "
        "as much as the method one_step.",
    )

    @model_validator(mode="after")
    def _each_once(self) -> "Chain":
        doubled = [eta for eta in self.learning_rates if self.learning_rates.count(eta) > 1]
        if doubled:
            raise ValueError(f"learning_rates: {doubled[0]:g} appears twice")
        return self


class Analysis(Section):
    """Correlations and their intervals."""

    resamples: Count = Field(
        1000,
        description="Bootstrap resamples over examples; held-out gains and win rates have 10,000 over answers.",
    )
    analytic_above: Count = Field(
        20_000, description="Rows above which intervals are analytic instead (for the chain: a jackknife)."
    )
    chain: Chain = Field(Chain(), description="The chain of the paper's argument.")


class Synthetic(Section):
    """Linear regression in context: a small transformer trained here, icp and influence against closed forms."""

    in_all: bool = Field(False, description="Whether `all` includes it; `snakemake synthetic` always runs it.")
    dimensions: list[Count] = Field([1, 2, 4, 8], min_length=1, description="Dimensions of x.")
    noise: list[Float] = Field(
        [0.0, 0.25, 0.5, 1.0, 2.0], min_length=1, description="Standard deviations σ of the noise in y."
    )
    points: Count = Field(8, description="Points of a function in a prompt, each of which is valued.")
    functions: Count = Field(400, description="Held-out functions for each dimension and noise level.")
    width: Count = Field(64, description="Hidden size of the transformer.")
    layers: Count = Field(3, description="Blocks of the transformer.")
    heads: Count = Field(4, description="Attention heads of a block; must divide the width.")
    steps: Count = Field(8_000, description="Training steps.")
    batch_size: Count = Field(64, description="Functions in a training step.")
    learning_rate: PositiveFloat = Field(1e-3, description="Peak learning rate of AdamW, with cosine decay.")

    @model_validator(mode="after")
    def _can_be_made(self) -> "Synthetic":
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide a width of {self.width}")
        for key in ("dimensions", "noise"):
            values = getattr(self, key)
            doubled = [value for value in values if values.count(value) > 1]
            if doubled:
                raise ValueError(f"{key}: {doubled[0]} appears twice")
        return self


class Figures(Section):
    """How figures look and which are drawn."""

    scatter: Literal["all"] | list[Annotated[list[Name], Field(min_length=2, max_length=2)]] = Field(
        "all", description="Pairs of methods to draw against each other: all, or a list such as [[icp, influence]]."
    )
    sweep: bool | None = Field(
        None,
        description="Whether to draw the experiment's figure of icp against influence by model and by domain of task; "
        "null draws it if there are several models, or several domains in a local task file.",
    )
    colors: list[Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]] = Field(
        [*OKABE_ITO],
        min_length=1,
        description="Colour cycle, as #rrggbb; the default is Okabe and Ito's, safe for the colour-blind.",
    )


class Report(Section):
    """What the HTML report shows."""

    examples: Count = Field(20, description="Best and worst examples shown for each method.")


class Wandb(Section):
    """Weights & Biases; `wandb: null` switches it off. No result depends on it, so a change here reruns nothing."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "offline",
        description="auto is online if a key is found, otherwise offline. The variable WANDB_MODE overrides all but "
        "disabled.",
    )
    project: Name = Field("icprobe", description="W&B project.")
    entity: str | None = Field(None, description="W&B user or team; null uses the key's default.")
    texts: bool = Field(
        False,
        description="Whether runs also contain texts of rows: examples, tasks, prompts, responses, the report. By "
        "default they contain only numbers, figures, ids and labels.",
    )
