"""In-context probing: by how much does one example in the context raise the likelihood of a task's answer?"""

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from icprobe.attribution.matrix import Inputs, Pieces, encode_tasks
from icprobe.engine.batching import packed
from icprobe.engine.likelihood import Suffix, log_likelihoods, packed_log_likelihoods
from icprobe.engine.network import Network
from icprobe.texts import control_tokens

logger = logging.getLogger(__name__)

PIECE_SECONDS = 10.0  # of work that makes one of `Inputs.pieces`

# The token ids that an example's contexts begin with, and what each task puts behind them.
OneShot = tuple[tuple[int, ...], list[Suffix]]


def attribute(inputs: Inputs, method: str, batches: Sequence[np.ndarray], batch_tokens: int = 1024) -> Pieces:
    """A[z, t] = ll(target(t) | one-shot context of t given z) − ll(target(t) | query(t)), in nats.

    Source: arXiv 2407.12259; Nuggets, arXiv 2312.10302.
    """
    probe = Probe(inputs, batch_tokens)
    rows = np.concatenate(batches)
    inputs.progress.expect(len(rows) * len(inputs.tasks), "pair", probe.tokens(rows))
    for rows in batches:
        yield method, rows, probe.effects(rows, f"{method}/{rows[0]}")
    if probe.joint:
        logger.info("%d pairs were tokenised jointly: their prefix and suffix merge", probe.joint)


class Probe:
    """Computes how likely the tasks are: zero-shot at once, and one-shot behind the examples that are asked for."""

    def __init__(self, inputs: Inputs, batch_tokens: int) -> None:
        self.prompts, self.tokenizer, self.batch_tokens = inputs.prompts, inputs.tokenizer, batch_tokens
        self.examples, self.pieces, self.progress = inputs.examples, inputs.pieces, inputs.progress
        # About a hundred examples of all, the same ones in every shard.
        some = self.examples(slice(None, None, max(1, len(inputs.train) // 100)))
        self.network = Network(inputs.model, inputs.capabilities, packed_weights=True)
        self.joint = 0  # pairs whose prefix and suffix merge into one token
        tasks = encode_tasks(inputs)
        zero_shot = [Suffix(task.ids, task.n_context) for task in tasks]
        self._task_tokens = np.array([len(task.ids) for task in tasks])
        self._example_tokens = (inputs.lengths["n_query"] + inputs.lengths["n_target"]).to_numpy()
        self.zero_shot = log_likelihoods(self.network, (), zero_shot)  # [M]
        rows = inputs.tasks.to_dict("records")
        self._texts = [(self.prompts.separator + self.prompts.query(t), self.prompts.target(t)) for t in rows]
        self.base = self.network.cache_prefix(self.beginning(some))

    def tokens(self, rows: Sequence[int], tasks: Sequence[int] | slice = slice(None)) -> float:
        """Counts the tokens, about, that some examples and some tasks (default: all) put into the model."""
        return float(self._example_tokens[rows].sum() + len(rows) * self._task_tokens[tasks].sum())

    def effects(self, rows: Sequence[int], name: str, tasks: Sequence[int] | None = None) -> np.ndarray:
        """Computes A[z, t] of some examples and some tasks (default: all): [rows, tasks] float32, in nats.

        name: of this call among `Inputs.pieces`. What some seconds of passes give is a piece there, named by the place
        of its first row, until all is there; so a pack begins where it would have begun without an interruption.
        """
        tasks = range(len(self._texts)) if tasks is None else tasks
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

    def _passes(self, rows: Sequence[int], tasks: Sequence[int]) -> Iterator[np.ndarray]:
        """Computes effects [some rows, tasks] pack by pack; texts are tokenised when their pack's turn comes."""
        shared = self.base.ids if self.base else ()
        zero_shot = self.zero_shot[list(tasks)]

        def tokens(group: OneShot) -> int:
            return len(group[0]) + sum(len(suffix.ids) for suffix in group[1])

        groups = (self.one_shot(self.examples([row])[0], tasks) for row in rows)
        for pack in packed(groups, tokens, self.batch_tokens):
            # An example that does not begin as the others do (its tokens merge early) stands without the base.
            if all(prefix[: len(shared)] == shared for prefix, _ in pack):
                behind = [(prefix[len(shared) :], suffixes) for prefix, suffixes in pack]
                results = packed_log_likelihoods(self.network, behind, self.base)
            else:
                results = packed_log_likelihoods(self.network, pack)
            yield (torch.stack(results) - zero_shot).numpy().astype(np.float32)

    def beginning(self, examples: list[dict]) -> tuple[int, ...]:
        """Finds the token ids that the one-shot contexts of these examples begin with alike."""
        found = control_tokens.token_ids(
            self.tokenizer, [self.prompts.one_shot_prefix(example) for example in examples]
        )
        prefixes = [tuple(ids) for ids in found]
        # One token less than they share: each context needs a token of its own behind the base.
        return prefixes[0][: min(common_length(prefixes), *(len(p) - 1 for p in prefixes))]

    def one_shot(self, example: dict, tasks: Sequence[int]) -> OneShot:
        """Tokenises an example's contexts: (prefix ids, suffixes of the tasks).

        Prefix and suffix together are the tokens of the whole text, which is checked. Where a tokenizer merges across
        the border, the prefix is shortened to the tokens that all pairs share.
        """
        prefix_text = self.prompts.one_shot_prefix(example)
        contexts = [prefix_text + self._texts[t][0] for t in tasks]
        wholes = [context + self._texts[t][1] for context, t in zip(contexts, tasks, strict=True)]
        ids = control_tokens.token_ids(self.tokenizer, [prefix_text, *contexts, *wholes])
        prefix, rest = tuple(ids[0]), ids[1:]
        n = len(tasks)
        shared = len(prefix)
        for whole in rest[n:]:
            alike = common_length([prefix, whole])
            if alike < len(prefix):
                self.joint += 1
                shared = min(shared, alike)
        suffixes = [
            Suffix(tuple(whole[shared:]), len(context) - shared)
            for context, whole in zip(rest[:n], rest[n:], strict=True)
        ]
        return prefix[:shared], suffixes


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Counts the tokens that all sequences begin with alike."""
    return next(
        (i for i, column in enumerate(zip(*sequences, strict=False)) if len(set(column)) > 1), min(map(len, sequences))
    )
