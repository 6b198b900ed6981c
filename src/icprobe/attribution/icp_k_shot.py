"""In-context probing among others: what an example adds to a context in which other examples stand already."""

from collections.abc import Sequence

import numpy as np

from icprobe.attribution.contexts import Draws
from icprobe.attribution.icp import AT_THE_END, Probe
from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.attribution.one_shots import OneShot
from icprobe.engine.likelihood import log_likelihoods


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    task_likelihood: str = "sum",
    k: int = 4,
    draws: int = 4,
) -> Pieces:
    """A[z, t] = mean over drawn contexts c of ll(target(t) | c, z, query(t)) − ll(target(t) | c, query(t)), in nats.

    c: k − 1 other examples, in each draw the same for all z that are not among them (`Draws`), so that c is read once
    and its keys and values are kept, and examples are compared behind the same c. With k = 1 this is icp.
    task_likelihood: mean divides it by the number of target(t)'s tokens: nats per token. It is an estimate of the mean
    marginal contribution to sets of k − 1, one term of a Shapley value (Data Shapley, arXiv 1904.02868).
    """
    probe = Behind(inputs, batch_tokens)
    divisors = probe.target_tokens if task_likelihood == "mean" else np.ones_like(probe.target_tokens)
    drawn, order = Draws(inputs.train["id"].tolist(), inputs.seed, k, draws), np.concatenate(batches)
    inputs.progress.expect(len(order) * draws * len(inputs.tasks), "pair", draws * probe.tokens(order))
    # By what they are read behind: one context's keys and values at a time.
    parts: dict[tuple[int, tuple[int, ...]], list[tuple[str, list[int]]]] = {}
    of_batch: dict[int, list[tuple[str, list[int]]]] = {rows[0]: [] for rows in batches}
    for rows in batches:
        for draw in range(draws):
            for others, members in drawn.parted(rows, draw).items():
                part = f"{method}/{rows[0]}/{draw}/{members[0]}", members
                parts.setdefault((draw, others), []).append(part)
                of_batch[rows[0]].append(part)
    for (_, others), behind in parts.items():
        for name, members in behind:
            if name in inputs.pieces:
                inputs.progress.found(inputs.pieces[name].size, probe.tokens(members))
            else:
                probe.stand_behind(others)
                inputs.pieces[name] = probe.effects(members, name)
    for rows in batches:
        total = np.zeros((len(rows), len(inputs.tasks)))
        for name, members in of_batch[rows[0]]:
            total[np.isin(rows, members)] += inputs.pieces.pop(name)
        yield method, rows, (total / draws / divisors).astype(np.float32)


class Behind(Probe):
    """Computes effects behind other examples, which stand before the one that is asked for."""

    _others: tuple[int, ...] = ()

    def stand_behind(self, others: tuple[int, ...]) -> None:
        """Puts the examples of these rows before those that are asked for from now on."""
        if others == self._others:
            return
        self._others = others
        # Its own tokens alone: no bit depends on which examples are asked for.
        prefix, suffixes = self.one_shots.encode_several(self.examples([*others]), range(len(self.target_tokens)))
        self.base = self.network.cache_prefix(prefix[:-AT_THE_END])
        self.zero_shot = log_likelihoods(self.network, prefix, suffixes, limit=self.row_tokens)

    def context(self, row: int, tasks: Sequence[int]) -> OneShot:
        return self.one_shots.encode_several(self.examples([*self._others, row]), tasks)
