"""The configuration as a whole: what its sections must agree upon, and what is said of mistakes.

`load` turns the raw mapping (YAML, as Snakemake merged it) into a validated, frozen `Config`.
"""

from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from icprobe import paths
from icprobe.artifacts import digest
from icprobe.config.sections import Analysis, Attribution, Evaluation, Figures, Finetune, Report, Synthetic, Wandb
from icprobe.config.sources import Data, ModelSource, Templates
from icprobe.config.types import Name, Section, Seed, Threshold
from icprobe.errors import ConfigError, did_you_mean, several, shown

__all__ = ["Attribution", "Config", "Evaluation", "Templates", "load"]

MAX_DEPTH = 30  # levels of the configuration; its own are 4
MAX_SIZE = 100_000  # values in the configuration
# Parameters of requests to a judge, which null leaves out: here it does not take the key away.
NULL_SAYS = {("evaluation", "llm", "temperature"), ("evaluation", "llm", "json_schema")}


class Config(Section):
    """One experiment."""

    experiment: Name = Field(description="Plain name; results are in results/{experiment}/.")
    seed: Seed = Field(0, description="Seed of everything that has no seed of its own.")
    models: list[Name] = Field(min_length=1, description="Models to run, by their names in model_sources.")
    model_sources: dict[Name, ModelSource] = Field(description="Where each model comes from.")
    data: Data
    templates: Templates = Templates()
    attribution: Attribution = Attribution()
    bins: list[Threshold] = Field(["<=0.5", ">0.5", ">0.8", ">0.85", ">0.9"], description="Bins of the icp score.")
    analysis: Analysis = Analysis()
    figures: Figures = Figures()
    synthetic: Synthetic = Synthetic()
    finetune: Finetune = Finetune()
    evaluation: Evaluation = Evaluation()
    report: Report = Report()
    wandb: Wandb = Wandb()

    @model_validator(mode="after")
    def _chosen_things_exist(self) -> "Config":
        for what, names in (
            ("models", self.models),
            ("attribution.methods", self.attribution.methods),
            ("bins", self.bins),
            ("data.labels", self.data.labels),
            ("finetune.methods", self.finetune.methods),
            ("finetune.bins", self.finetune.bins or []),
            ("finetune.seeds", self.finetune.seeds),
        ):
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"{what}: {shown(doubled[0])} stands there twice")
        for model in self.models:
            if model not in self.model_sources:
                raise ValueError(
                    f"models: {model!r} is not defined in model_sources{did_you_mean(model, self.model_sources)}"
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
        if self.figures.sweep and not {"icp", "influence"} <= set(methods):
            raise ValueError("figures.sweep: it shows icp against influence, so attribution.methods needs both")
        for name in (self.finetune.bins or []) if self.finetune.methods else []:
            if name not in self.bins:
                raise ValueError(f"finetune.bins: {name!r} is not among bins {self.bins}")
        icp = self.attribution.external.get("icp")
        shares = icp is not None and icp.orientation == "scores"
        shares = shares or self.attribution.aggregators.get("icp") == "fraction_positive"
        if self.bins and ("icp" not in methods or not shares):
            raise ValueError(
                "bins: they are thresholds on the icp score, so attribution.methods needs icp and "
                "attribution.aggregators needs icp: fraction_positive; or set bins: []"
            )
        return self

    @model_validator(mode="after")
    def _no_name_means_something_else(self) -> "Config":
        for model in self.models:
            if model in paths.FOLDERS:
                raise ValueError(f"models: {model!r} is a folder of the experiment; choose another name")
        if "all" in self.attribution.external:
            raise ValueError('attribution.external: "all" means all data in the tables; choose another name')
        for name, note in self.evaluation.annotations.items():
            if (note.method or name) == "all" and (note.method is None or note.bin != "all"):
                raise ValueError(
                    f'evaluation.annotations.{name}: "all" means all data in the tables; choose another method, or set '
                    "method: all and bin: all where these are responses of a model that was fine-tuned on all data"
                )
        if self.data.eval and "overall" in self.data.eval.subsets:
            raise ValueError('data.eval.subsets: "overall" means all subsets in the tables; choose another name')
        return self

    @model_validator(mode="after")
    def _what_is_fine_tuned_is_there(self) -> "Config":
        here = [model for model in self.models if self.model_sources[model].source != "external"]
        if self.data.tasks and str(self.data.tasks.select).startswith("kmeans") and not here:
            raise ValueError(
                f"data.tasks.select: {self.data.tasks.select!r} needs a model that is here, to read the candidates"
            )
        judged = self.evaluation.judge != "annotations"
        absent = [
            what
            for what, there in (
                ("data.train", self.data.train),
                ("data.eval", self.data.eval),
                ("a model that is here", len(here) == len(self.models)),
            )
            if not there
        ]
        if absent and judged and (self.finetune.methods or self.finetune.all_data):
            raise ValueError(
                f"finetune: fine-tuning needs {' and '.join(absent)}; or set finetune.methods: [] and "
                "finetune.all_data: false"
            )
        return self

    @property
    def finetune_bins(self) -> list[str]:
        """Bins that are fine-tuned on, as thresholds."""
        return self.bins if self.finetune.bins is None else self.finetune.bins

    def model_directory(self, model: str) -> str:
        """Where a model is kept when it is prepared, by its name and its source."""
        source = self.model_sources[model].model_dump(mode="json", exclude_defaults=True)
        return paths.MODEL.format(model=model, source=digest(source)[:12])

    def as_yaml(self, exclude: set[str]) -> str:
        """The configuration as YAML, defaults spelled out, without some sections and without how jobs compute."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude=exclude), sort_keys=False, allow_unicode=True)


def load(raw: dict[str, Any], known_methods: Iterable[str]) -> Config:
    """The validated configuration.

    raw: the merged YAML mapping; a key whose value is null counts as absent, but those of `NULL_SAYS`, and `wandb:
    null` as W&B switched off. known_methods: names that attribution.methods may choose. Raises ConfigError, one
    sentence for the first mistake and the number of others.
    """
    if isinstance(raw, dict) and raw.get("wandb", {}) is None:
        # Taken away, it would come back with its default, which sends.
        raw = {**raw, "wandb": {"mode": "disabled"}}
    plain, _ = _Plain().of(raw)
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        raise _sentence(error, plain) from None
    known_methods = [*known_methods, *config.attribution.external]
    for key, methods in (("methods", config.attribution.methods), ("aggregators", config.attribution.aggregators)):
        for method in methods:
            if method not in known_methods:
                raise _mistake(
                    ["attribution", key], f"{shown(method)} is no method; known are {', '.join(known_methods)}"
                )
    return config


class _Plain:
    """Raw values without keys that are null (but `NULL_SAYS`); only what JSON can hold, of bounded size and depth."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Any, int] | None] = {}

    def of(self, value: Any, where: tuple[str, ...] = ()) -> tuple[Any, int]:
        """(value, number of values in it). YAML's aliases: what stands in many places is looked at once."""
        if len(where) > MAX_DEPTH:
            raise _mistake(where, "it is nested too deeply")
        if not isinstance(value, dict | list):
            return _scalar(value, where), 1
        if id(value) not in self.seen:
            self.seen[id(value)] = None
            if isinstance(value, dict):
                for key in value:
                    if not isinstance(key, str):
                        raise _mistake(where, f"the key {shown(key)} must be a text; put quotation marks around it")
                    _scalar(key, where)
                said = {k: v for k, v in value.items() if v is not None or (*where, k) in NULL_SAYS}
                parts = {k: self.of(v, (*where, k[:60])) for k, v in said.items()}
                size = 1 + sum(size for _, size in parts.values())
                self.seen[id(value)] = {k: v for k, (v, _) in parts.items()}, size
            else:
                found = [self.of(v, (*where, str(i))) for i, v in enumerate(value)]
                size = 1 + sum(size for _, size in found)
                self.seen[id(value)] = [v for v, _ in found], size
            if size > MAX_SIZE:
                raise _mistake(where, f"it holds {size} values; {MAX_SIZE} are enough for any experiment")
        result = self.seen[id(value)]
        if result is None:
            raise _mistake(where, "it contains itself")
        return result


def _scalar(value: Any, where: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise _mistake(where, f"{shown(value)} holds half a surrogate pair, which is no text")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise _mistake(where, "the number is too large")
    elif not isinstance(value, int | float | None):
        kind = type(value).__name__
        raise _mistake(where, f"{shown(value)} is of YAML's type {kind}; put quotation marks around it")
    return value


def _mistake(where: Iterable[str], what: str) -> ConfigError:
    place = ".".join(list(where)[:5])
    return ConfigError(f"config: {place + ': ' if place else ''}{what}")


def _sentence(error: ValidationError, raw: Any) -> ConfigError:
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    keys = _keys(first["loc"], raw)
    if first["type"] == "extra_forbidden":
        what = f"unknown key{did_you_mean(keys[-1], _siblings(first['loc']))}"
    elif first["type"] == "missing":
        keys.append(str(first["loc"][-1]))
        what = "this key is missing"
    else:
        message = "a mapping is needed" if first["type"] == "model_type" else first["msg"][:400]
        seen = first.get("input")
        what = message.removeprefix("Value error, ")
        # What stands where the name of a key's variable should is often the key itself.
        hidden = isinstance(seen, dict | BaseModel) or keys[-1:] == ["key_variable"]
        what += "" if hidden else f", not {shown(seen)}"
    more = f" ({several(len(mistakes) - 1, 'more mistake')})" if len(mistakes) > 1 else ""
    return _mistake([key[:60] for key in keys], what + more)


def _keys(location: tuple, raw: Any) -> list[str]:
    """The part of a location that is in the file: pydantic adds the branches of unions that it tried."""
    keys = []
    for part in location:
        if (isinstance(raw, dict) and part in raw) or (isinstance(raw, list) and isinstance(part, int)):
            raw = raw[part]
            keys.append(str(part))
    return keys


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
