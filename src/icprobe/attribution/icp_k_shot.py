"""In-context probing among others: what an example adds to a context in which other examples stand already."""

from collections.abc import Sequence

import numpy as np

from icprobe.attribution.contexts import Draws
from icprobe.attribution.icp import Probe
from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.attribution.one_shots import OneShot


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    task_likelihood: str = "sum",
    k: int = 4,
    draws: int = 8,
) -> Pieces:
    """A[z, t] = mean over contexts c of ll(target(t) | c, query(t)) − ll(target(t) | c without z, query(t)), in nats.

    Each example has `draws` contexts of its own, of k examples with it at a random place (`Draws`). With k = 1 this is
    icp. task_likelihood: mean divides it by the number of target(t)'s tokens: nats per token. It is an estimate of the
    mean marginal contribution to sets of this size, one term of a Shapley value (Data Shapley, arXiv 1904.02868).
    """
    probe = Marginal(inputs, batch_tokens, Draws(inputs.train["id"].tolist(), inputs.seed, k, draws))
    divisors = probe.target_tokens if task_likelihood == "mean" else np.ones_like(probe.target_tokens)
    rows = np.concatenate(batches)
    inputs.progress.expect(len(rows) * draws * len(inputs.tasks), "pair", probe.tokens(probe.contexts_of(rows)))
    for rows in batches:
        found = probe.effects(probe.contexts_of(rows), f"{method}/{rows[0]}")
        means = found.reshape(len(rows), draws, -1).mean(axis=1, dtype=np.float64)
        yield method, rows, (means / divisors).astype(np.float32)


class Marginal(Probe):
    """Computes the effects of drawn contexts, by their numbers: row of the example · draws + number of the draw."""

    def __init__(self, inputs: Inputs, batch_tokens: int, drawn: Draws) -> None:
        super().__init__(inputs, batch_tokens)
        self._drawn = drawn

    def contexts_of(self, rows: Sequence[int]) -> np.ndarray:
        """The numbers of some examples' contexts [rows · draws]."""
        return (np.asarray(rows)[:, None] * self._drawn.draws + np.arange(self._drawn.draws)).ravel()

    def tokens(self, rows: Sequence[int], tasks: Sequence[int] | slice = slice(None)) -> float:
        """Counts tokens, about: the others stand in both contexts, but for what these begin with alike."""
        drawn, examples = self._drawn, np.asarray(rows) // self._drawn.draws
        of_examples, of_all = super().tokens(examples, []), super().tokens(examples, tasks)
        return (drawn.examples_read * of_examples + drawn.contexts_read * (of_all - of_examples)) / drawn.draws

    def contexts(self, row: int, tasks: Sequence[int]) -> list[OneShot]:
        """One drawn context, and the same without its example; without any, the tasks are read alone."""
        members, place = self._drawn.context(*divmod(int(row), self._drawn.draws))
        examples = self.examples(members)
        without = [*examples[:place], *examples[place + 1 :]]
        return [self.one_shots.encode_several(some, tasks) for some in (examples, without) if some]
