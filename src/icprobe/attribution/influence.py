"""Influence with the identity as Hessian: does an example's gradient point where a task's does?"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from icprobe.attribution.contraction import CONTRACTIONS, PRODUCT
from icprobe.attribution.cosines import COSINES
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.gradient_cache import Curvature, Former, GradientCache
from icprobe.attribution.matrix import Inputs, Pieces, encode_tasks
from icprobe.attribution.memory_plan import Plan, SequenceBatches
from icprobe.attribution.objective import Objective
from icprobe.engine.batching import packed, packs
from icprobe.engine.gradients import Layer, layers_of
from icprobe.engine.network import Network
from icprobe.engine.stepping import activations_per_token
from icprobe.errors import ScoreError, several, some

logger = logging.getLogger(__name__)

# Groups of batches in step are split so that none takes much longer than two minutes, which is what a killed job may
# lose. The rate is that at which gradients to be held were made; in step a second forward pass comes on top, a third.
GROUP_SECONDS = 90.0


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    memory_budget_gb: float = 3.0,
    methods: Sequence[str] = ("influence", "influence_log"),
    **objective: Any,
) -> Pieces:
    """A[z, t] = ⟨g_z, g_t⟩, with signed logarithms per parameter tensor, and as cosine, from one pass over both sides.

    influence: TracIn (arXiv 2002.08484) with one checkpoint, first order. influence_log: Σ_p sign(d_p)·ln|d_p| with
    d_p = ⟨clamp(g_z,p), clamp(g_t,p)⟩, 0 where d_p = 0: what the code released with arXiv 2407.12259 computes. cosine:
    ⟨g_z, g_t⟩ / (|g_z| |g_t|). Raises ScoreError for cosine where a gradient is zero.

    objective: whose gradients (`Objective`).

    One side's gradients are held within the budget, the other's stream past; `memory_plan.Plan` chooses. Whatever it
    chooses, the same pairs of batches are multiplied layer by layer in the same order: the budget changes no bit of the
    result.
    """
    yield from Influence(inputs, batches, batch_tokens, memory_budget_gb, methods, Objective(**objective)).pieces()


class Influence:
    """The products of all examples' gradients with all tasks', tile by tile and group by group of a plan.

    What a pair of batches gives is put into `inputs.pieces`, so that a killed job loses no more than a group's work; it
    is named by the example batch and the tasks' pack, so that a job goes on under another plan, too.

    curvature: makes of a network and its layers the basis in which gradients are multiplied, where that is not the
    parameters' own; it has weights for each of `methods`. example_former: what forms the examples' gradients, where
    these are not taken as they are. layers: those that gradients are taken over, and all those that tokens pass; None:
    as the objective says, and the model's.
    """

    def __init__(
        self,
        inputs: Inputs,
        batches: Sequence[np.ndarray],
        batch_tokens: int,
        memory_budget_gb: float,
        methods: Sequence[str],
        objective: Objective,
        curvature: Callable[[Network, Sequence[Layer]], Curvature] | None = None,
        example_former: Former | None = None,
        layers: tuple[Sequence[Layer], Sequence[Layer]] | None = None,
    ) -> None:
        self.inputs, self.batches, self.methods = inputs, batches, methods
        self.network = Network(inputs.model, inputs.capabilities)
        self.layers, passed = layers or (layers_of(self.network, objective.parameters), layers_of(self.network))
        self.example_former, self.curvature = example_former, curvature and curvature(self.network, self.layers)
        self.layers = self.curvature.layers if self.curvature else self.layers
        dtype = self.curvature.dtype if self.curvature else self.network.model.dtype
        documents = encode_documents(inputs, batches, objective)
        tasks = encode_tasks(inputs, objective.task_likelihood)
        padded = not inputs.capabilities.packs
        self.examples = SequenceBatches([[documents[row] for row in rows] for rows in batches], padded)
        self.packs = packs([len(task.ids) for task in tasks], batch_tokens, padded)
        self.tasks = SequenceBatches([tasks[pack] for pack in self.packs], padded)
        # The contraction that a method's matrix is made of.
        self.made_of = {method: COSINES.get(method, method) for method in methods}
        self.cosine = next((method for method in methods if method in COSINES), None)
        self.contractions = {name: PRODUCT if self.curvature else CONTRACTIONS[name] for name in self.made_of.values()}
        # Gram matrices serve where influence is wanted alone: influence_log needs the elements of gradients.
        self.all_tasks = len(tasks) if [*self.contractions] == ["influence"] else None
        self.plan = Plan.cheapest(
            self.examples,
            self.tasks,
            self.layers,
            memory_budget_gb * 1e9,
            dtype.itemsize,
            self.all_tasks is not None,
            activations_per_token(self.network, passed),
            passed,
        )
        logger.info("%s", self.plan.sentence(memory_budget_gb))
        self.holds_examples = self.plan.hold == "examples"
        sides = (self.examples, self.tasks)
        self.held, self.streamed = sides if self.holds_examples else reversed(sides)

    def pieces(self) -> Pieces:
        """The matrix, batch by batch of examples, each as soon as all its products are there."""
        self._expect_tokens()
        for tile in self.plan.tiles:
            for group in self._groups_done(tile):
                if not self.holds_examples and tile is self.plan.tiles[-1]:
                    yield from self._finished(group)
            if self.holds_examples:
                yield from self._finished(tile)
        for pack in range(len(self.tasks.batches)):
            self.inputs.pieces.pop(self._norms(pack, False), None)

    def _expect_tokens(self) -> None:
        """Tells the progress how many tokens are to go through the model."""
        tokens = 0
        for tile in self.plan.tiles:
            waiting = self._waiting(tile, range(len(self.streamed.batches)))
            if waiting:
                tokens += sum(map(self.held.tokens, tile)) + sum(map(self.streamed.tokens, waiting))
        self.inputs.progress.expect(tokens, "token")

    def _groups_done(self, tile: list[int]) -> Iterable[list[int]]:
        """Multiplies the held batches of a tile with all streamed ones; gives each group when it is done."""
        cache = None
        for group in self.plan.groups:
            waiting = self._waiting(tile, group)
            if waiting:
                if cache is None:
                    cache, tokens_per_second = self._cached(tile)
                for part in packed(waiting, self.streamed.tokens, GROUP_SECONDS * tokens_per_second):
                    self._multiply(cache, tile, part)
            yield group

    def _cached(self, tile: list[int]) -> tuple[GradientCache, float]:
        """The gradients of a tile, and at which rate they were made, in tokens per second."""
        started = time.monotonic()
        cache = GradientCache(
            self.network,
            self.layers,
            [self.held.batches[i] for i in tile],
            self.plan.dense,
            self.all_tasks,
            self.inputs.progress.update,
            self.cosine is not None,
            self.curvature,
            {"held" if self.holds_examples else "streamed": self.example_former},
        )
        return cache, sum(map(self.held.tokens, tile)) / (time.monotonic() - started)

    def _multiply(self, cache: GradientCache, tile: list[int], streamed: list[int]) -> None:
        """Keeps the products of a tile with some streamed batches, which go through the model in step."""
        batches = [self.streamed.batches[n] for n in streamed]
        products, squared_norms = cache.stream(batches, self.contractions, self.holds_examples)
        if cache.normed:
            self._keep_norms(tile, cache.squared_norms, self.holds_examples)
            self._keep_norms(streamed, squared_norms, not self.holds_examples)
        for n, of_batch in zip(streamed, products, strict=True):
            for i, of_pair in zip(tile, of_batch, strict=True):
                for method, product in of_pair.items():
                    self.inputs.pieces[self._name(method, *self._pair(i, n))] = product.cpu().numpy()

    def _keep_norms(self, numbers: Sequence[int], squared: Sequence[torch.Tensor], of_examples: bool) -> None:
        """Keeps the norms of some batches of one side, before the products that are divided by them.

        Raises ScoreError as `check_directions` does.
        """
        for number, values in zip(numbers, squared, strict=True):
            name, norms = self._norms(number, of_examples), values.sqrt()
            table, rows = (self.inputs.train, self.batches) if of_examples else (self.inputs.tasks, self.packs)
            check_directions(self.cosine, "example" if of_examples else "task", table["id"].iloc[rows[number]], norms)
            if name not in self.inputs.pieces:
                self.inputs.pieces[name] = norms.cpu().numpy()

    def _norms(self, number: int, of_examples: bool) -> str:
        """The name among `inputs.pieces` of the norms of a batch of examples, or of a pack of tasks."""
        return f"norms/examples/{self.batches[number][0]}" if of_examples else f"norms/tasks/{number}"

    def _waiting(self, tile: list[int], group: Iterable[int]) -> list[int]:
        """Those streamed batches of a group whose products with a tile are not all kept yet."""

        def done(n: int) -> bool:
            names = [self._name(name, *self._pair(i, n)) for name in self.contractions for i in tile]
            if self.cosine:
                names += [self._norms(n, not self.holds_examples), *(self._norms(i, self.holds_examples) for i in tile)]
            return all(name in self.inputs.pieces for name in names)

        return [n for n in group if not done(n)]

    def _pair(self, held: int, streamed: int) -> tuple[int, int]:
        """(batch of examples, pack of tasks) of a held and a streamed batch."""
        return (held, streamed) if self.holds_examples else (streamed, held)

    def _name(self, contraction: str, batch: int, pack: int) -> str:
        """The name among `inputs.pieces` of what a batch of examples and a pack of tasks give."""
        return f"{contraction}/{self.batches[batch][0]}/{pack}"

    def _finished(self, example_batches: Iterable[int]) -> Pieces:
        """Puts the products of these batches of examples with all packs of tasks side by side."""
        for batch in example_batches:
            products = {}
            for name in self.contractions:
                names = [self._name(name, batch, pack) for pack in range(len(self.tasks.batches))]
                products[name] = np.concatenate([self.inputs.pieces.pop(each) for each in names], axis=1)
            for method in self.methods:
                values = products[self.made_of[method]]
                yield method, self.batches[batch], self._cosines(batch, values) if method in COSINES else values

    def _cosines(self, batch: int, products: np.ndarray) -> np.ndarray:
        """The products of a batch of examples with all tasks, divided by the norms of both: [n, tasks] float32."""
        of_tasks = [self.inputs.pieces[self._norms(pack, False)] for pack in range(len(self.tasks.batches))]
        norms = np.outer(self.inputs.pieces.pop(self._norms(batch, True)), np.concatenate(of_tasks))
        return (products / norms).astype(np.float32)


def check_directions(method: str, kind: str, ids: pd.Series, norms: torch.Tensor) -> None:
    """Raises ScoreError naming the rows whose gradients are zero. kind: example or task; norms: of their gradients."""
    zero = ids[(norms == 0).cpu().numpy()].tolist()
    if zero:
        raise ScoreError(
            f"{method}: {several(len(zero), kind)} with a gradient of zero, which has no direction: {some(zero)}; "
            f"leave {'it' if len(zero) == 1 else 'them'} out, or the method."
        )
