"""The section of the configuration on selections: by which rule examples are chosen for a data set."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from icprobe.config.types import Name, PositiveFloat, Section
from icprobe.errors import ConfigError, did_you_mean
from icprobe.formatting import parse_bin

RULES = ("per_task", "diverse", "match", "quota")
BASELINES = ("random", "random_tokens", "random_length")
OF_LENGTHS = {"random_tokens", "random_length"}


def _end(value: Any) -> str:
    """A share or number of examples, as bins write it: 10%, 200."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ConfigError("")
        return str(parse_bin(f"top {value}")).removeprefix("top ")
    except ConfigError:
        raise ValueError("write a share of the examples, such as 10%, or their number, such as 200") from None


def _whole(value: Any) -> Any:
    # YAML reads 2e6 as a text; a fraction of a token is none.
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    if isinstance(value, bool) or not 1 <= number < 2**53 or number != int(number):
        raise ValueError("a whole number of tokens is needed, such as 2e6")
    return number


def _repository(name: str) -> str:
    from huggingface_hub.utils import validate_repo_id  # raises a ValueError of its own

    validate_repo_id(name)
    return name


End = Annotated[int | str, BeforeValidator(_end)]
Part = Annotated[float, Field(gt=0, le=1)]
Repository = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$"), AfterValidator(_repository)]
Licence = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


class Diverse(Section):
    """Examples that are good and unlike each other, by maximal marginal relevance."""

    by: Literal["embedding"] = Field(
        description="embedding: examples are alike as far as the cosine of their embeddings says so, those of the "
        "method embedding.",
    )
    weight: Part = Field(
        0.3,
        description="Weight w of unlikeness: each choice has the highest (1 − w) · rank − w · cosine, the rank from 0 "
        "(worst) to 1 (best), the cosine that to the most alike of those chosen before.",
    )


class Quota(Section):
    """How much of a selection has which values of a column."""

    column: str = Field(description="The column: domain, or one of data.labels.")
    shares: dict[str, Part] = Field(
        min_length=1,
        description="Value of the column -> its share of the examples, or of the tokens. What is left of 1 is taken "
        "from the rows of all other values.",
    )

    @model_validator(mode="after")
    def _no_more_than_all(self) -> "Quota":
        total = sum(Fraction(str(share)) for share in self.shares.values())  # as they are written
        if total > 1:
            raise ValueError(f"shares: they sum to {float(total)}, which is more than 1")
        return self


class Selection(Section):
    """How many examples are chosen by a method's scores, and by which rule."""

    method: Name = Field(description="The method whose scores choose, one of attribution.methods.")
    top: End | None = Field(None, description="The best: a share of the examples (`10%`) or their number (`200`).")
    bottom: End | None = Field(None, description="The worst: a share of the examples or their number.")
    tokens: Annotated[PositiveFloat, BeforeValidator(_whole)] | None = Field(
        None,
        description="The best, one after the other, for as long as fine-tuning learns from no more tokens than this in "
        "all: those of their responses, with the ends of sequence, up to finetune.max_length where there is finetune. "
        "One of top, bottom and tokens is needed.",
    )
    per_task: Literal["round_robin"] | None = Field(
        None,
        description="round_robin: the tasks take turns, and each takes the example that is best for it of those left.",
    )
    diverse: Diverse | None = Field(
        None, description="Each choice is good and unlike those before it, by embeddings of the examples."
    )
    match: Literal["length"] | None = Field(
        None,
        description="length: the same share of the examples (or of their tokens) is taken from each tenth of the "
        "response lengths, counted as for tokens, so that the selection is as long as all examples are.",
    )
    quota: Quota | None = Field(None, description="Shares of the selection by the values of a column.")
    baselines: list[Literal["random", "random_tokens", "random_length"]] = Field(
        [],
        description="Random choices that the selection is compared with, each a data set of its own, called "
        "{selection}-{baseline}. random: as many examples; random_tokens: as many tokens that fine-tuning learns from, "
        "within half an example, but one example at least; random_length: as many examples of each of up to 100 strata "
        "of response length, in such tokens, of ten examples or more each.",
    )

    @model_validator(mode="after")
    def _one_size_and_one_rule(self) -> "Selection":
        sizes = [key for key in ("top", "bottom", "tokens") if getattr(self, key) is not None]
        if len(sizes) != 1:
            raise ValueError(f"write one of top, bottom and tokens, not {' and '.join(sizes) or 'none'}")
        rules = [key for key in RULES if getattr(self, key) is not None]
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} cannot be combined; choose one")
        if doubled := [one for one in self.baselines if self.baselines.count(one) > 1]:
            raise ValueError(f"baselines: {doubled[0]} appears twice")
        return self

    def as_written(self) -> dict[str, Any]:
        """The keys that are not their defaults, as plain values."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def counts_tokens(self) -> bool:
        """Whether which examples it holds depends upon the lengths of responses."""
        return self.tokens is not None or self.match is not None

    @property
    def needs_lengths(self) -> bool:
        """Whether it, or a baseline of it, does."""
        return self.counts_tokens or bool(OF_LENGTHS & {*self.baselines})

    @property
    def in_words(self) -> str:
        """What was asked for: how much, by which method and rule."""
        if self.tokens is not None:
            told = f"the best by {self.method}, up to {self.tokens:,.0f} tokens"
        else:
            told = f"the {'best' if self.top else 'worst'} {self.top or self.bottom} by {self.method}"
        if self.per_task:
            told += ", tasks in turn"
        if self.diverse:
            told += f", unlike each other (weight {self.diverse.weight:g})"
        if self.match:
            told += ", as much from each tenth of the response lengths"
        if self.quota:
            shares = (f"{100 * share:g}% {value}" for value, share in self.quota.shares.items())
            told += f", {self.quota.column}: {', '.join(shares)}"
        return told


BASELINES_IN_WORDS = {
    "random": "as many examples as {}, at random",
    "random_tokens": "as many tokens as {}, at random",
    "random_length": "as many examples as {} from each range of response lengths, at random",
}


class Export(Section):
    """The selections as one data set for others (`snakemake export`), and where it goes (`snakemake publish`)."""

    hub: Repository | None = Field(
        None, description="Name of a data set on the Hugging Face hub, owner/name, that publish makes or updates."
    )
    private: bool = Field(True, description="Whether only its owner sees it there.")
    licence: Licence | None = Field(
        None, description="Licence of the source, as the hub names it (such as cc-by-4.0); stands in the card."
    )


class Chosen(NamedTuple):
    """A data set that selections make: one of them, or a baseline of it ("" where it is none)."""

    selection: str
    baseline: str


def data_sets(selections: Mapping[str, Selection]) -> dict[str, Chosen]:
    """All data sets that selections make, by the names that stand for methods in paths and tables.

    Raises ValueError where two have one name.
    """
    found: dict[str, Chosen] = {}
    for name, selection in selections.items():
        for baseline in ("", *selection.baselines):
            called = f"{name}-{baseline}" if baseline else name
            if called in found:
                raise ValueError(f"selections: two data sets would be called {called!r}; choose another name")
            found[called] = Chosen(name, baseline)
    return found


def in_words(selections: Mapping[str, Selection]) -> dict[str, str]:
    """What each data set that selections make is."""
    return {
        name: BASELINES_IN_WORDS[of.baseline].format(of.selection) if of.baseline else selections[name].in_words
        for name, of in data_sets(selections).items()
    }


def check(config: Any) -> Any:
    """What selections must agree upon with other sections; config: a `Config`, which it returns."""
    known, train = config.attribution.methods, config.data.train
    away = [model for model in config.models if config.model_sources[model].source == "external"]
    absent = f"{away[0]!r} is external" if away else "data.train is absent" if train is None else ""
    for name, selection in config.selections.items():
        here = f"selections.{name}"
        if selection.method not in known:
            raise ValueError(
                f"{here}.method: {selection.method!r} is not in attribution.methods"
                + did_you_mean(selection.method, known)
            )
        if selection.needs_lengths and absent:
            raise ValueError(f"{here}: it needs the lengths of responses, which nobody knows, for {absent}")
        if selection.diverse and absent:
            raise ValueError(f"{here}.diverse: it needs the examples' embeddings, and {absent}")
        asked = selection.top or selection.bottom
        there = train.sample.n if train and train.sample else None
        if there is not None and asked and asked.isdecimal() and int(asked) > there:
            raise ValueError(f"{here}: it asks for {asked} examples, but data.train.sample takes {there}; take fewer")
        if selection.quota and selection.quota.column not in ("domain", *config.data.labels):
            raise ValueError(
                f"{here}.quota.column: {selection.quota.column!r} is no column that is kept; list it in data.labels"
            )
    tables = [f"{model}-{called}" for model in config.models for called in data_sets(config.selections)]
    if twice := [called for called in tables if tables.count(called) > 1]:
        raise ValueError(f"selections: two tables of an export would be called {twice[0]!r}; choose another name")
    judged = [note.method or name for name, note in config.evaluation.annotations.items()]
    for called in data_sets(config.selections):
        if called in judged:
            raise ValueError(f"selections: {called!r} is the name of annotations, too; choose another")
    for name in config.finetune.selections or []:
        if name not in config.selections:
            raise ValueError(f"finetune.selections: {name!r} is no selection{did_you_mean(name, config.selections)}")
    return config
