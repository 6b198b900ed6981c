"""The section of the configuration on retraining: the truth that methods are held against."""

from typing import Annotated, Literal

from pydantic import Field

from icprobe.config.types import Count, Name, Section, Seed

Share = Annotated[float, Field(gt=0, lt=1)]
Number = Annotated[int, Field(ge=0, lt=2**31)]


class Truth(Section):
    """Which method is right: trains the model on other sets of examples, as `finetune` says, and asks it the tasks."""

    subsets: Number = Field(0, description="Random subsets to train on, for the LDS; 0 means none.")
    share: Share = Field(0.5, description="Share of the examples in each random subset.")
    seeds: list[Seed] = Field(
        [0, 1], min_length=1, description="Trainings on each subset; two or more tell the ceiling, what noise leaves."
    )
    removals: list[Name] = Field(
        [], description="Methods whose best examples are removed, to see what the tasks lose; none if empty."
    )
    drop: Share = Field(0.1, description="Share of the examples that a removal takes away.")
    removal: Literal["score", "per_task"] = Field(
        "score",
        description="score: one removal for each method, by its score. per_task: one for each task, of methods that "
        "have values per task.",
    )
    controls: Annotated[Count, Field(ge=2)] = Field(
        8, description="Random removals of the same size, which the methods' removals are compared with."
    )
    leave_one_out: Number = Field(
        0, description="Examples, drawn at random, that a training on all examples leaves out, one at a time; 0: none."
    )
    in_all: bool = Field(False, description="Whether `all` includes these trainings; `snakemake truth` always does.")

    @property
    def parts(self) -> list[str]:
        """What is trained: "subsets", "removals" and "left_out", as far as the configuration asks for them."""
        asked = {"subsets": self.subsets, "removals": self.removals, "left_out": self.leave_one_out}
        return [part for part, wanted in asked.items() if wanted]
