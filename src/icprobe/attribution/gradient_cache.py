"""Gradients of some batches kept in memory, and the products of all of them with batches that stream past.

Products are formed layer by layer in the backward pass of the streamed batches, so that of these no more than one
layer's gradients exist at a time. `memory_plan` decides what is kept, and in which form.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from icprobe.attribution.contraction import Contraction, contract
from icprobe.engine.batching import spans
from icprobe.engine.gradients import (
    Factors,
    Layer,
    collect_gradients,
    grams,
    loss_backward,
    per_example_gradients,
    squared_norms,
)
from icprobe.engine.network import Network
from icprobe.engine.stepping import backward_in_step
from icprobe.texts.prompts import Encoded

# A layer's gradients [sequences, elements], parameter tensor by parameter tensor.
Gradients = list[Tensor]
# (layer index, factors, where sequences lie among their tokens, memory for the result) → what is multiplied as these
# sequences' gradients
Former = Callable[[int, Factors, list[slice], Tensor | None], Gradients]
# Of one pair of batches: contraction -> terms [examples, tasks] float32
PairProducts = dict[str, Tensor]

# What a pair's product of two formed gradients costs, in multiplications: it waits for memory (measured: 2 cores).
FORMED_PAIR_MULTIPLICATIONS = 4


class Curvature(Protocol):
    """Another basis, in which gradients are multiplied element by element with weights before they are contracted.

    layers: as the basis has them, without biases of their own. dtype: of factors there.
    """

    layers: Sequence[Layer]
    dtype: torch.dtype

    def rotated(self, index: int, factors: Sequence[Factors]) -> list[Factors]:
        """The factors of some batches in a layer, in this basis."""

    def gradients(self, index: int, factors: Factors, where: list[slice], out: Tensor | None) -> Gradients:
        """A `Former` of what is rotated."""

    def weights(self, index: int) -> Mapping[str, Tensor]:
        """Of each contraction the weights [elements of a gradient] float32."""


class GradientCache:
    """Gradients of some batches of one side, the examples or the tasks, as such or as their factors, layer by layer.

    dense: gradients are kept, not factors. all_tasks: number of all tasks, where influence alone is wanted: then the
    products of short sequences come from Gram matrices of their factors (`grams`), which are kept in any case. None:
    all products are of gradients. on_tokens: called with the tokens that have gone through the model, a layer's share
    of each batch at a time. normed: `squared_norms` of each batch are wanted, |g|² of its sequences [n] float64.
    curvature: the basis that gradients are taken in, whose layers `layers` are; None: the parameters' own. formers:
    what forms a side's gradients ("held", "streamed"), where that is not `per_example_gradients`.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[Layer],
        batches: Sequence[list[Encoded]],
        dense: bool,
        all_tasks: int | None = None,
        on_tokens: Callable[[float], object] = lambda tokens: None,
        normed: bool = False,
        curvature: Curvature | None = None,
        formers: Mapping[str, Former | None] | None = None,
    ) -> None:
        self.network, self.layers, self.dense, self.all_tasks = network, layers, dense, all_tasks
        self.on_tokens, self.curvature, self._formers = on_tokens, curvature, formers or {}
        self.where = [spans(batch) for batch in batches]
        self.dtype, self.device = curvature.dtype if curvature else network.model.dtype, network.device
        self._buffers: dict[str, Tensor] = {}
        self._passed = sum(layer.share for layer in layers)  # layers that a token passes
        # Of each batch, by layer; a mixture's expert that it does not go to is none of them.
        self.factors: list[dict[int, Factors]] = [{} for _ in batches]
        self._dense: list[dict[int, Gradients]] = [{} for _ in batches]
        self.normed, self.squared_norms = normed, [self.zeros(len(where)) for where in self.where]
        for number, batch in enumerate(batches):
            with collect_gradients(layers, self._keeper(number)):
                loss_backward(network, batch)

    def _keeper(self, number: int) -> Callable[[int, Factors], None]:
        """What takes batch `number`'s factors, layer by layer, in its backward pass."""

        def keep(index: int, factors: Factors) -> None:
            if self.curvature:
                (factors,) = self.curvature.rotated(index, [factors])
            if self.dense:
                where = factors.spans(self.where[number])
                self._dense[number][index] = self._form("held", index, factors, where)
            if not self.dense or self.all_tasks is not None:
                self.factors[number][index] = factors
            self.add_norms("held", self.squared_norms[number], index, factors, self.where[number])
            self.passed(factors)

        return keep

    def zeros(self, n: int) -> Tensor:
        """Squared norms of n sequences before any layer."""
        return torch.zeros(n, dtype=torch.float64, device=self.device)

    def add_norms(self, side: str, total: Tensor, index: int, factors: Factors, where: list[slice]) -> None:
        """Adds one layer's squared norms of some sequences of a side, where they are wanted."""
        if not self.normed:
            return
        where = factors.spans(where)
        if self._formers.get(side) is None:
            total += squared_norms(self.layers[index], factors.a, factors.delta, where)
        else:  # of what it makes there is no shorter way
            for part in self._form(side, index, factors, where):
                total += part.float().square().sum(dim=1)

    def stream(
        self, batches: Sequence[list[Encoded]], contractions: Mapping[str, Contraction], held_first: bool
    ) -> tuple[list[list[PairProducts]], list[Tensor]]:
        """Multiplies every one of `batches` with every batch in the cache; several go through the model in step.

        held_first: the cache is of the examples, the first argument of a contraction. Returns for each batch, for each
        one in the cache, {contraction: its sum over parameter tensors [examples, tasks] float32}; and the squared norms
        of each batch.
        """
        products = _Products(self, [spans(batch) for batch in batches], contractions, held_first)
        if len(batches) == 1:
            with collect_gradients(self.layers, lambda index, factors: products.add_layer(index, [factors])):
                loss_backward(self.network, batches[0])
        else:
            backward_in_step(self.network, self.layers, batches, products.add_layer)
        return products.sums, products.squared_norms

    def passed(self, factors: Factors) -> None:
        """Counts the tokens whose way through a layer these factors are."""
        self.on_tokens(len(factors.a) / self._passed)

    def holds(self, number: int, index: int) -> bool:
        """Whether batch `number` has gradients in a layer."""
        return index in (self._dense if self.dense else self.factors)[number]

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

    def _gradients(self, number: int, index: int) -> Gradients:
        """Gradients of batch `number` in one layer: kept ones, or formed in a buffer."""
        if self.dense:
            return self._dense[number][index]
        return self.formed("held", number, index, self.factors[number][index], self.where[number])

    def formed(self, side: str, number: int, index: int, factors: Factors, where: list[slice]) -> Gradients:
        """Gradients of some sequences in one layer; on a CPU in a buffer that the next layer's will overwrite.

        side: "held" or "streamed"; number: of the batch.
        """
        out = None
        if self.device.type == "cpu":
            out = self._buffer(f"{side} {number}", len(where), self.layers[index])
        return self._form(side, index, factors, factors.spans(where), out)

    def _form(
        self, side: str, index: int, factors: Factors, where: list[slice], out: Tensor | None = None
    ) -> Gradients:
        """What is multiplied as the gradients of some sequences of a side in one layer."""
        former = self.curvature.gradients if self.curvature else self._formers.get(side)
        if former:
            return former(index, factors, where, out)
        return per_example_gradients(self.layers[index], factors.a, factors.delta, where, out)

    def _buffer(self, name: str, n: int, layer: Layer) -> Tensor:
        """Memory for the gradients of n sequences in one layer, the same for all layers."""
        wanted = n * max(layer.size for layer in self.layers)
        if name not in self._buffers or self._buffers[name].numel() < wanted:
            self._buffers[name] = torch.empty(wanted, dtype=self.dtype, device=self.device)
        return self._buffers[name][: n * layer.size].view(n, layer.size)


class _Products:
    """Sums of the products of streamed batches with those in a cache, to which each layer adds its terms.

    streamed: where each batch's sequences lie in its row. sums: of each streamed batch, of each one in the cache.
    """

    def __init__(
        self,
        cache: GradientCache,
        streamed: list[list[slice]],
        contractions: Mapping[str, Contraction],
        held_first: bool,
    ) -> None:
        self._cache, self._streamed, self._contractions, self._held_first = cache, streamed, contractions, held_first
        self.sums = [[self._zeros(len(held), len(where)) for held in cache.where] for where in streamed]
        self.squared_norms = [cache.zeros(len(where)) for where in streamed]

    def _zeros(self, held: int, streamed: int) -> PairProducts:
        shape = (held, streamed) if self._held_first else (streamed, held)
        return {name: torch.zeros(shape, device=self._cache.device) for name in self._contractions}

    def add_layer(self, index: int, factors: list[Factors | None]) -> None:
        """Adds the terms of one layer. factors: of each streamed batch; None: it has none, so that its terms are 0."""
        cache, by_gradients = self._cache, []
        if cache.curvature:
            rotated = iter(cache.curvature.rotated(index, [one for one in factors if one is not None]))
            factors = [one and next(rotated) for one in factors]
        held_spans = {
            i: factors_of[index].spans(cache.where[i])
            for i, factors_of in enumerate(cache.factors)
            if index in factors_of
        }
        for n, of_batch in enumerate(factors):
            if of_batch is None:
                continue
            streamed = of_batch.spans(self._streamed[n])
            for i in range(len(cache.where)):
                if not cache.holds(i, index):
                    continue
                if cache._by_grams(cache.layers[index], held_spans.get(i, []), streamed, self._held_first):
                    self._add_grams(i, n, index, of_batch)
                else:
                    by_gradients.append((i, n))
            cache.add_norms("streamed", self.squared_norms[n], index, of_batch, self._streamed[n])
            cache.passed(of_batch)
        if by_gradients:
            self._add_contractions(by_gradients, index, factors)

    def _add_grams(self, i: int, n: int, index: int, factors: Factors) -> None:
        """Adds the terms of batch i in the cache and streamed batch n, without their gradients."""
        of_held = self._cache.factors[i][index]
        held = (of_held.a, of_held.delta, of_held.spans(self._cache.where[i]))
        streamed = (factors.a, factors.delta, factors.spans(self._streamed[n]))
        first, second = self._in_order(held, streamed)
        for total in self.sums[n][i].values():
            total += grams(self._cache.layers[index], *first, *second)

    def _add_contractions(self, pairs: list[tuple[int, int]], index: int, factors: list[Factors | None]) -> None:
        """Adds the terms of these pairs (i, n), parameter tensor by parameter tensor, from their gradients."""
        cache = self._cache
        held = {i: cache._gradients(i, index) for i in dict.fromkeys(i for i, _ in pairs)}
        streamed = {
            n: cache.formed("streamed", n, index, factors[n], self._streamed[n])
            for n in dict.fromkeys(n for _, n in pairs)
        }
        ordered = [self._in_order(*pair) for pair in pairs]
        weights = cache.curvature.weights(index) if cache.curvature else None
        layer = cache.layers[index]
        # What a bias without a gradient has is rounding, which a logarithm would make as much of as of a gradient.
        for part in range(2 if layer.bias and not layer.still_bias else 1):
            sides = [{number: gradients[part] for number, gradients in side.items()} for side in (held, streamed)]
            terms = contract(self._contractions, *self._in_order(*sides), ordered, weights)
            for name, of_pairs in terms.items():
                for pair, term in of_pairs.items():
                    i, n = self._in_order(*pair)
                    self.sums[n][i][name] += term

    def _in_order(self, held, streamed):
        """(held, streamed) as (examples, tasks), and the other way round."""
        return (held, streamed) if self._held_first else (streamed, held)
