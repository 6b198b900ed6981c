"""In-context probing: by how much does one example in the context raise the likelihood of a task's answer?"""

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from icprobe.attribution.matrix import Inputs, Pieces, encode_tasks
from icprobe.attribution.one_shots import OneShot, OneShots
from icprobe.engine import likelihood
from icprobe.engine.batching import packed
from icprobe.engine.likelihood import Suffix, size
from icprobe.engine.models import max_positions
from icprobe.engine.network import Network
from icprobe.errors import DataError

logger = logging.getLogger(__name__)

PIECE_SECONDS = 10.0  # of work that makes one of `Inputs.pieces`
# Tokens of a row up to which each token takes less time the more there are; more would need memory alone.
ROW_TOKENS = {"cpu": 4096, "cuda": 32768}
# Tokens at the end of a context that its cache leaves out: what follows may merge with them.
AT_THE_END = 8


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    task_likelihood: str = "sum",
) -> Pieces:
    """A[z, t] = ll(target(t) | one-shot context of t given z) − ll(target(t) | query(t)), in nats.

    task_likelihood: mean divides it by the number of target(t)'s tokens: nats per token.
    Source: arXiv 2407.12259; Nuggets, arXiv 2312.10302.
    """
    probe = Probe(inputs, batch_tokens)
    divisors = probe.target_tokens if task_likelihood == "mean" else np.ones_like(probe.target_tokens)
    rows = np.concatenate(batches)
    inputs.progress.expect(len(rows) * len(inputs.tasks), "pair", probe.tokens(rows))
    for rows in batches:
        yield method, rows, probe.effects(rows, f"{method}/{rows[0]}") / divisors
    if probe.one_shots.joint:
        logger.info("%d pairs were tokenised jointly: their prefix and suffix merge", probe.one_shots.joint)


class Probe:
    """Computes how likely the tasks are: zero-shot at once, and one-shot behind the examples that are asked for."""

    def __init__(self, inputs: Inputs, batch_tokens: int) -> None:
        self.batch_tokens = batch_tokens
        self.examples, self.pieces, self.progress = inputs.examples, inputs.pieces, inputs.progress
        # About a hundred examples of all, the same ones in every shard; another method's contexts begin as these do.
        some = self.examples(slice(None, None, max(1, len(inputs.train) // 100)))
        self.network = Network(inputs.model, inputs.capabilities, forward_only=True)
        self.row_tokens = max(batch_tokens, ROW_TOKENS[self.network.device.type])  # at most
        self._limit = max_positions(inputs.model.config)
        tasks = encode_tasks(inputs)
        self.target_tokens = np.array([task.n_target for task in tasks], dtype=np.float32)  # [M]
        self._task_tokens = np.array([len(task.ids) for task in tasks])
        self._example_tokens = (inputs.lengths["n_query"] + inputs.lengths["n_target"]).to_numpy()
        zero_shot = [Suffix(task.ids, task.n_context) for task in tasks]
        self.zero_shot = likelihood.log_likelihoods(self.network, (), zero_shot, limit=self.row_tokens)  # [M]
        self.one_shots = OneShots(inputs.tokenizer, inputs.prompts, inputs.tasks.to_dict("records"))
        self.base = self.network.cache_prefix(self.one_shots.beginning(some))

    def tokens(self, rows: Sequence[int], tasks: Sequence[int] | slice = slice(None)) -> float:
        """Counts the tokens, about, that some examples and some tasks (default: all) put into the model."""
        return float(self._example_tokens[rows].sum() + len(rows) * self._task_tokens[tasks].sum())

    def effects(self, rows: Sequence[int], name: str, tasks: Sequence[int] | None = None) -> np.ndarray:
        """Computes A[z, t] of some examples and some tasks (default: all): [rows, tasks] float32, in nats.

        name: of this call among `Inputs.pieces`. What some seconds of passes give is a piece there, named by the place
        of its first row, until all is there; so a pack begins where it would have begun without an interruption.
        """
        tasks = range(len(self._task_tokens)) if tasks is None else tasks
        names: list[str] = []
        passes, place = None, 0
        while place < len(rows):
            names.append(f"{name}/{place}")
            if names[-1] in self.pieces:
                passes = None
                piece = self.pieces[names[-1]]
                self.progress.found(piece.size, self.tokens(rows[place : place + len(piece)], tasks))
            else:
                passes = passes or self._passes(rows[place:], tasks)
                self.pieces[names[-1]] = self._next_piece(passes, rows[place:], tasks)
            place += len(self.pieces[names[-1]])
        return np.concatenate([self.pieces.pop(piece) for piece in names])

    def _next_piece(self, passes: Iterator[np.ndarray], rows: Sequence[int], tasks: Sequence[int]) -> np.ndarray:
        """Runs passes over rows for PIECE_SECONDS, or to their end: their effects [some rows, tasks]."""
        started, effects, place = time.monotonic(), [], 0
        for of_pass in passes:
            effects.append(of_pass)
            self.progress.update(of_pass.size, self.tokens(rows[place : place + len(of_pass)], tasks))
            place += len(of_pass)
            if time.monotonic() - started >= PIECE_SECONDS:
                break
        return np.concatenate(effects)

    def context(self, row: int, tasks: Sequence[int]) -> OneShot:
        """The context in which the tasks are read for one row of the matrix."""
        return self.one_shots.encode(self.examples([row])[0], tasks)

    def _checked(self, row: int, tasks: Sequence[int]) -> OneShot:
        """`context`. Raises DataError where it is longer than the model takes.

        Rows were fitted to it with one example each (`tables.fitting`); where they were not, the model would read on.
        """
        prefix, suffixes = self.context(row, tasks)
        longest = len(prefix) + max(len(suffix.ids) for suffix in suffixes)
        if self._limit is not None and longest > self._limit:
            raise DataError(
                f"row {self.examples([row])[0]['id']}: with a task behind it there are {longest} tokens where the "
                f"model takes {self._limit}; shorten this row or the task, or leave it out."
            )
        return prefix, suffixes

    def _passes(self, rows: Sequence[int], tasks: Sequence[int]) -> Iterator[np.ndarray]:
        """Computes effects [some rows, tasks] pack by pack; texts are tokenised when their pack's turn comes."""
        shared = self.base.ids if self.base else ()
        zero_shot = self.zero_shot[list(tasks)]

        def tokens(group: OneShot) -> int:
            """Those that it puts into the model, behind the base where it begins with that."""
            prefix, suffixes = group
            return size(self.network, prefix[len(shared) :] if prefix[: len(shared)] == shared else prefix, suffixes)

        waiting: list[Arriving] = []
        for groups in packed((self._checked(row, tasks) for row in rows), tokens, self.batch_tokens):
            # An example that does not begin as the others do (its tokens merge early) stands without the base.
            base = self.base if all(prefix[: len(shared)] == shared for prefix, _ in groups) else None
            behind = [(prefix[len(shared) :] if base else prefix, suffixes) for prefix, suffixes in groups]
            if sum(size(self.network, *one) for one in behind) > self.row_tokens:
                results = [likelihood.log_likelihoods(self.network, *one, base, self.row_tokens) for one in behind]
            else:
                results = likelihood.packed_log_likelihoods(self.network, behind, base)
            waiting.append(Arriving(torch.stack(results) - zero_shot))  # [rows, tasks]
            # Another device computes a pass while texts and rows of the next are made here.
            if len(waiting) > (self.network.device.type != "cpu"):
                yield waiting.pop(0).here()
        for results in waiting:
            yield results.here()


class Arriving:
    """A tensor on its way from the device on which it is computed, for which nobody waits yet."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if tensor.device.type == "cuda" else None
        if self._arrived:
            self._arrived.record()

    def here(self) -> np.ndarray:
        """Waits for it: float32."""
        if self._arrived:
            self._arrived.synchronize()
        return self._copy.numpy().astype(np.float32)
