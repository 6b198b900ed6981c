"""Products of all gradients of two sides, examples and tasks, when memory holds but one side or a part of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from icprobe.gradients import Layer, form, grams, loss_backward, parameters, spans, tapped
from icprobe.packing import Network
from icprobe.prompts import Encoded

# Bytes of activations that a backward pass keeps, as a multiple of its layers' inputs and outputs (measured: SmolLM2).
ACTIVATIONS = 1.4
# What a pair's product of two formed gradients costs, in multiplications: it waits for memory (measured: 2 cores).
WAIT = 4

# name → (gradients of examples [n, p], of tasks [m, p], both of one parameter tensor) → term [n, m] float32
Contractions = Mapping[str, Callable[[Tensor, Tensor], Tensor]]


@dataclass(frozen=True)
class Side:
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
    tokens × (d_in + d_out)), from which a layer's gradients are formed anew for every batch that streams past.
    cost: in tokens of a forward and backward pass, the unit in which a training step is counted. fits: whether what is
    held, the buffers and the activations of one batch stay within the budget; if no plan does, the smallest is taken.
    """

    hold: Literal["tasks", "examples"]
    dense: bool
    tiles: list[list[int]]
    cost: float
    held_bytes: int
    fits: bool

    @staticmethod
    def cheapest(
        examples: Side, tasks: Side, layers: Sequence[Layer], budget: float, itemsize: int, factors: bool = False
    ) -> "Plan":
        """The plan of least cost that fits the budget [bytes]. factors: whether dense gradients are held with them."""
        elements = sum(layer.size for layer in layers)
        widths = sum(layer.d_in + layer.d_out for layer in layers)
        widest = max(layer.size for layer in layers)
        most = max(side.tokens(batch) for side in (examples, tasks) for batch in range(len(side.batches)))
        activations = ACTIVATIONS * most * widths * itemsize
        plans = []
        for hold, held, streamed in (("tasks", tasks, examples), ("examples", examples, tasks)):
            for dense in (True, False):
                buffers = streamed.longest * widest + (0 if dense else held.longest * widest)
                sizes = [
                    itemsize * (len(batch) * elements * dense + held.tokens(i) * widths * (factors or not dense))
                    for i, batch in enumerate(held.batches)
                ]
                room = budget - buffers * itemsize - activations
                tiles = _tiles(sizes, room)
                rebuilt = 0 if dense else len(streamed.batches) * held.all_tokens / 3
                cost = held.all_tokens + len(tiles) * streamed.all_tokens + rebuilt
                largest = max((sum(sizes[i] for i in tile) for tile in tiles), default=0)
                plans.append(Plan(hold, dense, tiles, cost, largest, largest <= room))
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
        return (
            f"{form} of the {self.hold} are held, {self.held_bytes / 1e9:.2f} GB within {budget_gb:g} GB{more}; "
            f"{len(self.tiles)} pass(es) over the {other}"
        )


def _tiles(sizes: Sequence[int], room: float) -> list[list[int]]:
    """Consecutive batches whose sizes fit the room together, at least one each."""
    tiles: list[list[int]] = []
    used = 0
    for batch, size in enumerate(sizes):
        if not tiles or used + size > room:
            tiles.append([])
            used = 0
        tiles[-1].append(batch)
        used += size
    return tiles


class Held:
    """Some batches of one side, their gradients or factors kept layer by layer.

    all_tasks: number of tasks, where ⟨g_z, g_t⟩ alone is wanted; pairs of short sequences then take `grams`. None: all
    gradients are formed.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[Layer],
        batches: Sequence[list[Encoded]],
        dense: bool,
        all_tasks: int | None = None,
    ) -> None:
        self.network, self.layers, self.dense, self.all_tasks = network, layers, dense, all_tasks
        self.where = [spans(batch) for batch in batches]
        self.kept: list[list] = [[None] * len(layers) for _ in batches]
        self.dtype, self.device = network.model.dtype, network.device
        self._buffers: dict[str, Tensor] = {}
        for kept, where, batch in zip(self.kept, self.where, batches, strict=True):

            def keep(index: int, a: Tensor, delta: Tensor, kept: list = kept, where: list = where) -> None:
                gradients = None
                if dense:
                    out = torch.empty(len(where), layers[index].size, dtype=self.dtype, device=self.device)
                    gradients = form(layers[index], a, delta, where, out)
                kept[index] = (None if dense and all_tasks is None else (a, delta), gradients)

            with tapped(network, layers, keep):
                loss_backward(network, batch)

    def stream(self, batch: list[Encoded], contract: Contractions, held_first: bool) -> list[dict[str, Tensor]]:
        """Σ over parameter tensors of each contraction between `batch` and every held batch.

        held_first: the held side is the examples, the first argument of a contraction. Returns for each held batch
        {name: [examples, tasks] float32}.
        """
        n = len(batch)
        shapes = [(len(where), n) if held_first else (n, len(where)) for where in self.where]
        sums = [{name: torch.zeros(shape, device=self.device) for name in contract} for shape in shapes]
        streamed_where = spans(batch)

        def multiply(index: int, a: Tensor, delta: Tensor) -> None:
            layer = self.layers[index]
            streamed = None
            for number, total in enumerate(sums):
                if self._by_grams(layer, self.where[number], streamed_where, held_first):
                    sides = [(*self.kept[number][index][0], self.where[number]), (a, delta, streamed_where)]
                    first, second = sides if held_first else reversed(sides)
                    for products in total.values():
                        products += grams(layer, *first, *second)
                    continue
                if streamed is None:
                    streamed = form(layer, a, delta, streamed_where, self._buffer("streamed", n, layer))
                held = self._gradients(number, index)
                first, second = (held, streamed) if held_first else (streamed, held)
                for part in parameters(layer):
                    for name, contraction in contract.items():
                        total[name] += contraction(first[:, part], second[:, part])

        with tapped(self.network, self.layers, multiply):
            loss_backward(self.network, batch)
        return sums

    def _by_grams(self, layer: Layer, held: list[slice], streamed: list[slice], held_first: bool) -> bool:
        """Whether two Gram matrices cost less than gradients, the tasks' at hand and the examples' serving all of them.

        By shapes alone, so that neither the budget nor the number of shards changes a bit of the result.
        """
        if self.all_tasks is None:
            return False
        examples, tasks = (held, streamed) if held_first else (streamed, held)
        z, t = examples[-1].stop, tasks[-1].stop  # tokens
        formed = z * len(tasks) / self.all_tasks + WAIT * len(examples) * len(tasks)
        return z * t * (layer.d_in + layer.d_out) < formed * layer.weight_size

    def _gradients(self, number: int, index: int) -> Tensor:
        factors, gradients = self.kept[number][index]
        if gradients is not None:
            return gradients
        a, delta = factors
        where = self.where[number]
        return form(self.layers[index], a, delta, where, self._buffer("held", len(where), self.layers[index]))

    def _buffer(self, name: str, n: int, layer: Layer) -> Tensor:
        """Memory for the gradients of n sequences in one layer, the same for all layers."""
        wanted = n * max(layer.size for layer in self.layers)
        if name not in self._buffers or self._buffers[name].numel() < wanted:
            self._buffers[name] = torch.empty(wanted, dtype=self.dtype, device=self.device)
        return self._buffers[name][: n * layer.size].view(n, layer.size)
