"""The plan for influence within a memory budget: which gradients stay in memory, and which are made when needed.

Every example's gradient is multiplied with every task's, and seldom do all of them fit. So one side, the tasks or the
examples, is *held*: its gradients are computed once and stay (`gradient_cache.GradientCache`). The other side is
*streamed*: its batches pass through the model, and each is multiplied with all that is held. Where the held side is too
large for the budget, it is cut into tiles that are held one after another, each for one pass over the streamed side.

A plan changes time and memory, never a result: any plan multiplies the same pairs of batches in the same way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from icprobe.engine.batching import split_by_size
from icprobe.engine.gradients import Layer
from icprobe.errors import several
from icprobe.texts.prompts import Encoded

# What a backward pass keeps of activations, as a multiple of the inputs and output gradients of its linear layers, both
# in bytes (measured with SmolLM2).
ACTIVATIONS_PER_FACTORS = 1.7
# Shares of the free memory that are tried for the held side, where batches in step take the rest.
HELD_SHARES = (0.25, 0.5, 0.75, 0.9)

Side = Literal["tasks", "examples"]


@dataclass(frozen=True)
class SequenceBatches:
    """All tasks or all examples in batches, each of which goes through the model at once.

    padded: as rows of one length, that of its longest; else as one packed row.
    """

    batches: list[list[Encoded]]
    padded: bool = False

    def tokens(self, batch: int) -> int:
        return sum(len(sequence.ids) for sequence in self.batches[batch])

    def computed(self, batch: int) -> int:
        """The tokens that a batch takes memory for, those of padding included."""
        lengths = [len(sequence.ids) for sequence in self.batches[batch]]
        return len(lengths) * max(lengths) if self.padded else sum(lengths)

    @property
    def all_tokens(self) -> int:
        return sum(self.tokens(batch) for batch in range(len(self.batches)))

    @property
    def longest(self) -> int:
        """Most sequences in one batch."""
        return max((len(batch) for batch in self.batches), default=0)


@dataclass(frozen=True)
class Plan:
    """What is held in memory, and how the other side is streamed past it. Batches are named by their indices.

    hold: the side that is held. dense: it is held as gradients [sequences, elements]; else as their factors, the inputs
    and output gradients of each layer (tokens × (d_in + d_out)), from which a layer's gradients are formed anew for
    each group that streams past. tiles: the held batches that are in memory together; each tile costs a pass over the
    streamed side. groups: the streamed batches that go through the model in step (`engine.stepping`), at the price of a
    second forward pass where they are several.

    cost: in tokens of a forward and backward pass, the unit in which a training step is counted. held_bytes: of the
    largest tile. fits: whether the tile, the buffers and the activations stay within the budget.
    """

    hold: Side
    dense: bool
    tiles: list[list[int]]
    groups: list[list[int]]
    cost: float
    held_bytes: int
    fits: bool

    @staticmethod
    def cheapest(
        examples: SequenceBatches,
        tasks: SequenceBatches,
        layers: Sequence[Layer],
        budget: float,
        itemsize: int,
        factors: bool = False,
        per_token: int | None = None,
        passed: Sequence[Layer] = (),
    ) -> "Plan":
        """Chooses the plan of least cost that fits the budget [bytes]; where none does, the one of least memory.

        itemsize: bytes of an element. factors: whether dense gradients are held together with their factors. per_token:
        elements that a token of a batch in step keeps (`stepping.activations_per_token`); None where none go in step.
        passed: all layers that tokens go through, where gradients are taken over some of them.
        """
        planner = _Planner(examples, tasks, layers, budget, itemsize, factors, passed or layers)
        plans = [plan for hold in ("tasks", "examples") for plan in planner.plans(hold, per_token)]
        fitting = [plan for plan in plans if plan.fits]
        if not fitting:
            return min(plans, key=lambda plan: (plan.held_bytes, plan.cost))
        # Within a hundredth tasks are held: their tiles finish, and are saved, example by example.
        return min(fitting, key=lambda plan: (plan.cost * (1.0 if plan.hold == "tasks" else 1.01), plan.held_bytes))

    def sentence(self, budget_gb: float) -> str:
        """Says the choice, for the log."""
        what = "gradients" if self.dense else "factors of the gradients"
        other = "examples" if self.hold == "tasks" else "tasks"
        more = "" if self.fits else " (one batch alone needs more: lower attribution.batch_tokens)"
        batches = sum(map(len, self.groups))
        in_step = f", {batches} batches in {len(self.groups)} groups" if len(self.groups) < batches else ""
        return (
            f"{what} of the {self.hold} are held, {self.held_bytes / 1e9:.2f} GB within {budget_gb:g} GB{more}; "
            f"{several(len(self.tiles), 'pass', 'passes')} over the {other}{in_step}"
        )


class _Planner:
    """Counts the memory and the cost of each way to hold one side; arguments as `Plan.cheapest` takes them."""

    def __init__(
        self,
        examples: SequenceBatches,
        tasks: SequenceBatches,
        layers: Sequence[Layer],
        budget: float,
        itemsize: int,
        factors: bool,
        passed: Sequence[Layer],
    ) -> None:
        self._sides = {"tasks": tasks, "examples": examples}
        self._itemsize, self._with_factors = itemsize, factors
        self._elements = sum(layer.size for layer in layers)  # of a sequence's gradient
        self._widest = max(layer.size for layer in layers)  # elements of it in the largest layer
        self._width = math.ceil(sum(layer.width for layer in layers))  # elements of a token's factors
        most_tokens = max(side.computed(i) for side in (examples, tasks) for i in range(len(side.batches)))
        # What the backward pass of one batch leaves of the budget.
        of_pass = math.ceil(sum(layer.width for layer in passed))
        self._free_bytes = budget - ACTIVATIONS_PER_FACTORS * most_tokens * of_pass * itemsize

    def plans(self, hold: Side, per_token: int | None) -> list[Plan]:
        """All ways to hold this side."""
        plans = [self._one_by_one(hold, dense=True), self._one_by_one(hold, dense=False)]
        return plans + [self._in_step(hold, per_token, share) for share in HELD_SHARES if per_token]

    def _one_by_one(self, hold: Side, dense: bool) -> Plan:
        """Streamed batches go through the model alone; a buffer takes their gradients of one layer."""
        streamed = self._streamed(hold)
        free = self._free_bytes - streamed.longest * self._widest * self._itemsize
        tiles, largest = self._tiles(hold, dense, free)
        groups = [[i] for i in range(len(streamed.batches))]
        cost = self._cost(hold, dense, tiles, groups, passes=1)
        return Plan(hold, dense, tiles, groups, cost, largest, largest <= free)

    def _in_step(self, hold: Side, per_token: int, share: float) -> Plan:
        """Factors are held in a share of the memory, and as many streamed batches as the rest takes go in step."""
        streamed = self._streamed(hold)
        tiles, largest = self._tiles(hold, False, share * self._free_bytes)
        sizes = [
            self._itemsize * (streamed.computed(i) * per_token + len(batch) * self._widest)
            for i, batch in enumerate(streamed.batches)
        ]
        groups = split_by_size(sizes, self._free_bytes - largest)
        cost = self._cost(hold, False, tiles, groups, passes=4 / 3)  # two forward passes, and a backward pass of two
        fits = largest + _largest(sizes, groups) <= self._free_bytes
        return Plan(hold, False, tiles, groups, cost, largest, fits)

    def _streamed(self, hold: Side) -> SequenceBatches:
        return self._sides["examples" if hold == "tasks" else "tasks"]

    def _tiles(self, hold: Side, dense: bool, free: float) -> tuple[list[list[int]], int]:
        """The held batches in tiles of at most `free` bytes, and the bytes of the largest tile.

        Held gradients need no more memory; those that are formed from factors take a buffer for one layer.
        """
        held = self._sides[hold]
        sizes = []
        for i, batch in enumerate(held.batches):
            gradients = len(batch) * (self._elements if dense else self._widest)
            factors = held.computed(i) * self._width if self._with_factors or not dense else 0
            sizes.append(self._itemsize * (gradients + factors))
        tiles = split_by_size(sizes, free)
        return tiles, _largest(sizes, tiles)

    def _cost(self, hold: Side, dense: bool, tiles: list[list[int]], groups: list[list[int]], passes: float) -> float:
        """Tokens of a training step. passes: what streaming costs; forming gradients is a third of a step."""
        held, streamed = self._sides[hold], self._streamed(hold)
        formed = 0 if dense else len(groups) * held.all_tokens / 3
        return held.all_tokens + len(tiles) * streamed.all_tokens * passes + formed


def _largest(sizes: Sequence[int], lists: Sequence[Sequence[int]]) -> int:
    """The most that the batches of one list take together."""
    return max((sum(sizes[i] for i in batches) for batches in lists), default=0)
