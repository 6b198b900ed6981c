"""LESS: would a step of the optimiser on an example go where a task's gradient points, along a training of adapters?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from icprobe.attribution import chance
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.gradient_cache import Former, Gradients
from icprobe.attribution.influence import Influence, check_directions
from icprobe.attribution.matrix import Inputs, Pieces, encode_tasks
from icprobe.attribution.memory_plan import ACTIVATIONS_PER_FACTORS
from icprobe.attribution.objective import Objective
from icprobe.attribution.tracin import along
from icprobe.engine.adapters import STATE, Adam, Adapted, load_adapted
from icprobe.engine.batching import packed, packs, spans
from icprobe.engine.gradients import Factors, Layer, collect_gradients, loss_backward, per_example_gradients
from icprobe.engine.matmul import matmul_float32
from icprobe.engine.network import Network
from icprobe.texts.prompts import Encoded

SIGNS_AT_ONCE = 512  # columns of the projection that one generator draws: part of what a seed means
# The eight signs that a byte stands for.
SIGNS = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) - 1


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    memory_budget_gb: float = 3.0,
    dimension: int | None = None,
    **objective: Any,
) -> Pieces:
    """A[z, t] = Σ_c η_c cos(Γ(z, θ_c), g_t(θ_c)) over the checkpoints c of a training of adapters (arXiv 2402.04333).

    Γ is the step that Adam would take on the example from its state there, over −η (`Adam.direction`); g_z and g_t are
    gradients over the adapters' matrices. dimension: of a random projection of Γ and g_t before the cosine; None: the
    cosine itself, which that estimates. objective: whose gradients (`Objective`).

    Without a projection each checkpoint is a pass of `influence`, whose pieces it keeps and whose plan it follows.
    """
    trajectory, whose = inputs.trajectory, Objective(**objective)

    def at(of_one: Inputs, directory: str, waiting: Sequence[np.ndarray]) -> Pieces:
        adapted = load_adapted(
            directory, trajectory.base, inputs.capabilities, whose.parameters, trajectory.dtype, trajectory.device
        )
        former = _Steps(adapted.matrices, Adam(Path(directory, STATE), adapted.model.device))
        of_one = replace(of_one, model=adapted.model)
        if dimension is None:
            layers = (adapted.matrices, adapted.passed)
            return Influence(
                of_one, waiting, batch_tokens, memory_budget_gb, [method], whose, example_former=former, layers=layers
            ).pieces()
        projection = _Projection(of_one, adapted, dimension, memory_budget_gb * 1e9)
        return _projected(of_one, method, waiting, batch_tokens, whose, projection, former)

    yield from along(inputs, method, batches, at)


class _Steps:
    """The steps that an optimiser would take on examples, layer by layer, in the place of their gradients: a `Former`.

    Formed in float32, rounded once to the model's dtype. Where none of an example's tokens goes to an expert, the
    optimiser leaves its adapter alone.
    """

    def __init__(self, layers: Sequence[Layer], adam: Adam) -> None:
        self._layers, self._adam = layers, adam

    def __call__(self, index: int, factors: Factors, where: list[slice], out: Tensor | None) -> Gradients:
        layer, dtype = self._layers[index], factors.a.dtype
        (gradients,) = per_example_gradients(layer, factors.a.float(), factors.delta.float(), where)
        steps = self._adam.direction(layer, gradients)
        for step, span in zip(steps, where, strict=True):
            if span.start == span.stop:
                step.zero_()
        return [steps.to(dtype) if out is None else out[: len(where)].copy_(steps)]


class _Projection:
    """P g of gradients g over the adapters, P being `dimension` rows of random signs, which the seed alone decides.

    As many gradients as the budget [bytes] holds beside a pass share the signs that are drawn; each batch is multiplied
    by itself, so that this changes no bit. A factor of 1/√dimension is left out.
    """

    def __init__(self, inputs: Inputs, adapted: Adapted, dimension: int, budget: float) -> None:
        self._network, self._layers = Network(inputs.model, inputs.capabilities), adapted.matrices
        self._inputs, self._dimension, self._budget = inputs, dimension, budget
        self._elements = sum(layer.size for layer in self._layers)  # of a gradient
        self._width = sum(layer.width for layer in [*adapted.passed, *self._layers])

    def of(self, batches: Sequence[list[Encoded]], former: Former | None) -> Iterator[Tensor]:
        """The projections of each batch of sequences, [n, dimension] float32; former: what forms their gradients."""
        free = self._budget / self._network.model.dtype.itemsize  # elements
        free -= ACTIVATIONS_PER_FACTORS * self._width * max(map(_tokens, batches))
        groups = packed(batches, lambda batch: len(batch) * self._elements, free)
        return chain.from_iterable(self._of_group(group, former) for group in groups)

    def _of_group(self, batches: list[list[Encoded]], former: Former | None) -> list[Tensor]:
        gradients = [self._gradients(batch, former) for batch in batches]
        device = self._network.device
        found = [torch.zeros(len(batch), self._dimension, device=device) for batch in batches]
        tokens = sum(map(_tokens, batches))
        for index, layer in enumerate(self._layers):
            for start in range(0, layer.size, SIGNS_AT_ONCE):
                signs = self._signs(layer, start).to(device)
                for total, of_batch in zip(found, gradients, strict=True):
                    if index in of_batch:  # no expert that no token of the batch goes to
                        part = of_batch[index][:, start : start + SIGNS_AT_ONCE].float()
                        total += matmul_float32(part, signs[:, : part.shape[1]])
            self._inputs.progress.update(tokens * layer.size / self._elements)
        return found

    def _gradients(self, sequences: list[Encoded], former: Former | None) -> dict[int, Tensor]:
        """What stands for the gradients of these sequences, by layer."""
        found, where = {}, spans(sequences)

        def form(index: int, factors: Factors) -> None:
            among = factors.spans(where)
            if former:
                (found[index],) = former(index, factors, among, None)
            else:
                (found[index],) = per_example_gradients(self._layers[index], factors.a, factors.delta, among)

        with collect_gradients(self._layers, form):
            loss_backward(self._network, sequences)
        return found

    def _signs(self, layer: Layer, start: int) -> Tensor:
        """Columns of P, from one of a layer's on: [dimension, SIGNS_AT_ONCE] of −1 and 1."""
        drawn = chance.generator(self._inputs.seed, "less", layer.name, start)
        drawn = np.frombuffer(drawn.bytes(self._dimension * SIGNS_AT_ONCE // 8), np.uint8)
        return torch.from_numpy(SIGNS[drawn].reshape(self._dimension, SIGNS_AT_ONCE))


def _projected(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    batch_tokens: int,
    objective: Objective,
    projection: _Projection,
    former: Former,
) -> Pieces:
    """The cosines of examples' projected steps and tasks' projected gradients, batch by batch of examples."""
    documents, tasks = encode_documents(inputs, batches, objective), encode_tasks(inputs)
    of_tasks = [
        tasks[pack] for pack in packs([len(task.ids) for task in tasks], batch_tokens, not inputs.capabilities.packs)
    ]
    of_examples = [[documents[row] for row in rows] for rows in batches]
    inputs.progress.expect(sum(map(_tokens, [*of_tasks, *of_examples])), "token")
    answers = torch.cat([*projection.of(of_tasks, None)])
    check_directions(method, "task", inputs.tasks["id"], answers.norm(dim=1))
    answers = normalize(answers, dim=1)
    for rows, steps in zip(batches, projection.of(of_examples, former), strict=True):
        check_directions(method, "example", inputs.train["id"].iloc[rows], steps.norm(dim=1))
        yield method, rows, matmul_float32(normalize(steps, dim=1), answers).cpu().numpy()


def _tokens(sequences: Sequence[Encoded]) -> int:
    return sum(len(sequence.ids) for sequence in sequences)
