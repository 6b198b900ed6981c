"""The section of the configuration on methods that are computed from the matrices of others, and what is refused."""

from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from icprobe.config.types import Name, Section
from icprobe.errors import ConfigError, did_you_mean, shown

if TYPE_CHECKING:
    from icprobe.config.sections import Attribution


class Combined(Section):
    """A method that is computed from the attribution matrices of others, by exactly one of these keys."""

    mean_rank: list[Name] | None = Field(
        None,
        description="Methods of `attribution.methods`, whose ranks of the examples (task by task, from 1/N for the "
        "worst to 1 for the best) are averaged. One that has a single score counts for every task.",
    )
    given_length: Name | None = Field(
        None,
        description="A method of `attribution.methods`: its ranks of the examples (task by task), less what the rank "
        "of the response's length explains of them by least squares.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "Combined":
        if (self.mean_rank is None) == (self.given_length is None):
            raise ValueError("write one of mean_rank: [icp, influence] and given_length: icp")
        if not self.members:
            raise ValueError("mean_rank: the list of methods is empty")
        if doubled := [name for name in self.members if self.members.count(name) > 1]:
            raise ValueError(f"mean_rank: {shown(doubled[0])} appears twice")
        return self

    @property
    def members(self) -> list[str]:
        """The methods whose matrices it is computed from."""
        return list(self.mean_rank) if self.mean_rank is not None else [str(self.given_length)]


def in_order(attribution: "Attribution") -> list[str]:
    """The combined methods that are asked for, each after those that it is computed from. Raises CycleError."""
    known = attribution.combined
    members = {name: [other for other in how.members if other in known] for name, how in known.items()}
    return [name for name in TopologicalSorter(members).static_order() if name in attribution.methods]


def check(attribution: "Attribution", methods: Collection[str]) -> None:
    """Raises ConfigError where a combined method cannot be computed; methods: the names of the registry."""
    for name, sentence in _mistakes(attribution, methods):
        raise ConfigError(f"config: attribution.combined.{name}: {sentence}")


def _mistakes(attribution: "Attribution", methods: Collection[str]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of each mistake."""
    combined, external = attribution.combined, attribution.external
    known = [*methods, *external, *combined]
    for name, how in combined.items():
        if name in methods or name in external:
            yield name, f"{shown(name)} is a method already; choose another name"
        for member in how.members:
            if member not in known:
                one_of = f"use some of {', '.join(known)}{did_you_mean(member, known)}"
                yield name, f"{shown(member)} is not a method; {one_of}"
    try:
        asked = in_order(attribution)
    except CycleError as error:
        round_it = " of ".join(reversed(error.args[1]))
        yield error.args[1][0], f"a method cannot be computed from itself ({round_it}); take another in its place"
        return
    for name in asked:
        how = combined[name]
        if attribution.aggregators.get(name) == "fraction_positive":
            ranks = "mean ranks are all above 0" if how.mean_rank else "ranks given length are no effects on a task"
            yield name, f"{ranks}, so that attribution.aggregators must say mean for it, or nothing"
        for member in how.members:
            if member not in attribution.methods:
                yield name, f"{shown(member)} is not in attribution.methods; add it there, or leave it out here"
            if member in external and external[member].allow_missing:
                yield name, f"{shown(member)} may have missing values (allow_missing), and ranks are of all examples"
