"""Products of all gradients of two sides, examples and tasks, when memory holds but one side or a part of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from icprobe.attribution.contraction import Contraction, contract
from icprobe.engine.gradients import (
    Layer,
    collect_gradients,
    grams,
    loss_backward,
    parameters,
    per_example_gradients,
    spans,
)
from icprobe.engine.network import Network
from icprobe.engine.stepping import backward_in_step
from icprobe.texts.prompts import Encoded

# Bytes of activations that a backward pass keeps, as a multiple of its layers' inputs and outputs (measured: SmolLM2).
ACTIVATIONS = 1.7
# Parts of the budget that are tried for what is held, where the rest is for batches that go in step.
SHARES = (0.25, 0.5, 0.75, 0.9)
# What a pair's product of two formed gradients costs, in multiplications: it waits for memory (measured: 2 cores).
FORMED_PAIR_MULTIPLICATIONS = 4


@dataclass(frozen=True)
class SequenceBatches:
    """Sequences in batches, each of which goes through the model as one packed row."""

    batches: list[list[Encoded]]

    def tokens(self, batch: int) -> int:
        return sum(len(sequence.ids) for sequence in self.batches[batch])

    @property
    def all_tokens(self) -> int:
        return sum(self.tokens(batch) for batch in range(len(self.batches)))

    @property
    def longest(self) -> int:
        """Most sequences in one batch."""
        return max((len(batch) for batch in self.batches), default=0)


@dataclass(frozen=True)
class Plan:
    """Whose gradients are held, in which form, in how many tiles; each tile costs one pass over the other side.

    dense: gradients themselves [sequences, elements]; else their factors (inputs and output gradients of each layer,
    tokens × (d_in + d_out)), from which a layer's gradients are formed anew for each group of batches streaming past.
    groups: batches of the other side that go in step, at the price of a second forward pass where they are several.
    cost: in tokens of a forward and backward pass, the unit in which a training step is counted. fits: whether what is
    held, the buffers and what is under way stay within the budget; if no plan does, the smallest is taken.
    """

    hold: Literal["tasks", "examples"]
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
    ) -> "Plan":
        """The plan of least cost that fits the budget [bytes].

        factors: whether dense gradients are held with their factors. per_token: elements that a token in step keeps
        (`stepping.activations_per_token`); None where no batches go in step.
        """
        elements = sum(layer.size for layer in layers)
        width = sum(layer.width for layer in layers)
        widest = max(layer.size for layer in layers)
        most = max(side.tokens(batch) for side in (examples, tasks) for batch in range(len(side.batches)))
        room = budget - ACTIVATIONS * most * width * itemsize
        plans = []

        def add(hold: str, dense: bool, together: int | None, share: float = 1.0) -> None:
            held, streamed = (tasks, examples) if hold == "tasks" else (examples, tasks)
            # Beside what is held, one layer's gradients: of a batch or group that streams past, and of held factors.
            sizes = [
                itemsize
                * (len(batch) * (elements if dense else widest) + held.tokens(i) * width * (factors or not dense))
                for i, batch in enumerate(held.batches)
            ]
            left = room - (0 if together else streamed.longest * widest * itemsize)
            tiles = split_by_size(sizes, share * left)
            largest = max((sum(sizes[i] for i in tile) for tile in tiles), default=0)
            steps = [
                itemsize * (streamed.tokens(i) * together + len(batch) * widest) if together else 0
                for i, batch in enumerate(streamed.batches)
            ]
            groups = split_by_size(steps, left - largest if together else 0)
            under_way = max((sum(steps[i] for i in group) for group in groups), default=0)
            passes = len(tiles) * streamed.all_tokens * (4 / 3 if together else 1)
            rebuilt = 0 if dense else len(groups) * held.all_tokens / 3
            cost = held.all_tokens + passes + rebuilt
            plans.append(Plan(hold, dense, tiles, groups, cost, largest, largest + under_way <= left))

        for hold in ("tasks", "examples"):
            add(hold, True, None)
            add(hold, False, None)
            if per_token:
                for share in SHARES:
                    add(hold, False, per_token, share)
        fitting = [plan for plan in plans if plan.fits]
        if not fitting:
            return min(plans, key=lambda plan: (plan.held_bytes, plan.cost))
        # Within a hundredth tasks are held: their tiles finish, and are saved, example by example.
        return min(fitting, key=lambda plan: (plan.cost * (1.0 if plan.hold == "tasks" else 1.01), plan.held_bytes))

    def sentence(self, budget_gb: float) -> str:
        """The choice, for the log."""
        form = "gradients" if self.dense else "factors of the gradients"
        other = "examples" if self.hold == "tasks" else "tasks"
        more = "" if self.fits else " (one batch alone needs more: lower attribution.batch_tokens)"
        batches = sum(map(len, self.groups))
        together = f", {batches} batches in {len(self.groups)} groups" if len(self.groups) < batches else ""
        return (
            f"{form} of the {self.hold} are held, {self.held_bytes / 1e9:.2f} GB within {budget_gb:g} GB{more}; "
            f"{len(self.tiles)} pass(es) over the {other}{together}"
        )


def split_by_size(sizes: Sequence[int], room: float) -> list[list[int]]:
    """Consecutive batches whose sizes fit the room together, at least one each."""
    tiles: list[list[int]] = []
    used = 0
    for batch, size in enumerate(sizes):
        if not tiles or used + size > room or room <= 0:
            tiles.append([])
            used = 0
        tiles[-1].append(batch)
        used += size
    return tiles


class GradientCache:
    """Some batches of one side, their gradients or factors kept layer by layer.

    all_tasks: number of tasks, where ⟨g_z, g_t⟩ alone is wanted; pairs of short sequences then take `grams`. None: all
    gradients are formed. told: called with the tokens that have come through, a layer's part of each batch at a time.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[Layer],
        batches: Sequence[list[Encoded]],
        dense: bool,
        all_tasks: int | None = None,
        told: Callable[[float], object] = lambda tokens: None,
    ) -> None:
        self.network, self.layers, self.dense, self.all_tasks = network, layers, dense, all_tasks
        self._told = told
        self.where = [spans(batch) for batch in batches]
        self.kept: list[list] = [[None] * len(layers) for _ in batches]
        self.dtype, self.device = network.model.dtype, network.device
        self._buffers: dict[str, Tensor] = {}
        for kept, where, batch in zip(self.kept, self.where, batches, strict=True):

            def keep(index: int, a: Tensor, delta: Tensor, kept: list = kept, where: list = where) -> None:
                gradients = None
                if dense:
                    out = torch.empty(len(where), layers[index].size, dtype=self.dtype, device=self.device)
                    gradients = per_example_gradients(layers[index], a, delta, where, out)
                kept[index] = (None if dense and all_tasks is None else (a, delta), gradients)
                told(len(a) / len(layers))

            with collect_gradients(layers, keep):
                loss_backward(network, batch)

    def stream(
        self, batches: Sequence[list[Encoded]], contractions: Mapping[str, Contraction], held_first: bool
    ) -> list[list[dict[str, Tensor]]]:
        """Σ over parameter tensors of each contraction between every one of `batches` and every held batch.

        Several go in step. held_first: the held side is the examples, the first argument of a contraction. Returns for
        each batch, for each held one, {name: [examples, tasks] float32}.
        """
        spans_of = [spans(batch) for batch in batches]
        sums = [
            [
                {name: torch.zeros(shape if held_first else shape[::-1], device=self.device) for name in contractions}
                for shape in ((len(where), len(batch)) for where in self.where)
            ]
            for batch in batches
        ]

        def multiply(index: int, rows: list[tuple[Tensor, Tensor]]) -> None:
            add_products(index, rows)
            self._told(sum(len(a) for a, _ in rows) / len(self.layers))

        def add_products(index: int, rows: list[tuple[Tensor, Tensor]]) -> None:
            layer, pairs = self.layers[index], []
            for n, (row, where) in enumerate(zip(rows, spans_of, strict=True)):
                for i, own in enumerate(self.where):
                    if not self._by_grams(layer, own, where, held_first):
                        pairs.append((i, n))
                        continue
                    sides = [(*self.kept[i][index][0], own), (*row, where)]
                    first, second = sides if held_first else reversed(sides)
                    for total in sums[n][i].values():
                        total += grams(layer, *first, *second)
            if not pairs:
                return
            held = {i: self._gradients(i, index) for i in {i: None for i, _ in pairs}}
            streamed = {
                n: per_example_gradients(
                    layer, *rows[n], spans_of[n], self._buffer(f"streamed {n}", len(spans_of[n]), layer)
                )
                for n in {n: None for _, n in pairs}
            }
            for part in parameters(layer):
                sides = [{key: g[:, part] for key, g in side.items()} for side in (held, streamed)]
                if held_first:
                    terms = contract(contractions, *sides, pairs)
                else:
                    terms = contract(contractions, *reversed(sides), [(n, i) for i, n in pairs])
                for name, of_pairs in terms.items():
                    for pair, term in of_pairs.items():
                        i, n = pair if held_first else pair[::-1]
                        sums[n][i][name] += term

        if len(batches) == 1:
            with collect_gradients(self.layers, lambda index, a, delta: multiply(index, [(a, delta)])):
                loss_backward(self.network, batches[0])
        else:
            backward_in_step(self.network, self.layers, batches, multiply)
        return sums

    def _by_grams(self, layer: Layer, held: list[slice], streamed: list[slice], held_first: bool) -> bool:
        """Whether two Gram matrices cost less than gradients, the tasks' at hand and the examples' serving all of them.

        By shapes alone, so that neither the budget nor the number of shards changes a bit of the result.
        """
        if self.all_tasks is None:
            return False
        examples, tasks = (held, streamed) if held_first else (streamed, held)
        z, t = examples[-1].stop, tasks[-1].stop  # tokens
        formed = z * len(tasks) / self.all_tasks + FORMED_PAIR_MULTIPLICATIONS * len(examples) * len(tasks)
        return z * t * (layer.d_in + layer.d_out) < formed * layer.weight_size

    def _gradients(self, number: int, index: int) -> Tensor:
        factors, gradients = self.kept[number][index]
        if gradients is not None:
            return gradients
        a, delta = factors
        where = self.where[number]
        return per_example_gradients(
            self.layers[index], a, delta, where, self._buffer(f"held {number}", len(where), self.layers[index])
        )

    def _buffer(self, name: str, n: int, layer: Layer) -> Tensor:
        """Memory for the gradients of n sequences in one layer, the same for all layers."""
        wanted = n * max(layer.size for layer in self.layers)
        if name not in self._buffers or self._buffers[name].numel() < wanted:
            self._buffers[name] = torch.empty(wanted, dtype=self.dtype, device=self.device)
        return self._buffers[name][: n * layer.size].view(n, layer.size)
