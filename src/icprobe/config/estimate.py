"""The section of the configuration on what an experiment is going to cost."""

from typing import Literal

from pydantic import Field

from icprobe.config.types import Float, PositiveFloat, Section

Target = Literal[
    *("all", "scores", "subsets", "attributions", "analysis", "checkpoints", "held_out", "win_rates", "report"),
    *("truth", "synthetic"),
]


class Prices(Section):
    """What an hour costs, in whichever currency: of one core, and of one GPU. A job on a GPU pays for both."""

    cpu_hour: Float | None = Field(None, description="Price of an hour of one core; null: cores cost nothing.")
    gpu_hour: Float | None = Field(None, description="Price of an hour of one GPU; null: GPUs cost nothing.")


class Estimate(Section):
    """What `snakemake estimate` tells: the cost of what is still to be done. No result depends on it."""

    rate: PositiveFloat | None = Field(
        None,
        description="Floating-point operations that a job gets done in a second, where you know; null measures it, on "
        "the machine on which the jobs would run.",
    )
    prices: Prices = Field(Prices(), description="Prices; the table has a column of money if one of them is given.")
    targets: list[Target] = Field(["all"], min_length=1, description="What is to be made, as `snakemake` is told it.")
