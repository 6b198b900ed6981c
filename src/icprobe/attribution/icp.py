"""In-context probing: by how much does one example in the context raise the likelihood of a task's answer?"""

import logging
from collections.abc import Sequence

import numpy as np

from icprobe.attribution.matrix import Blocks, Inputs
from icprobe.likelihood import Suffix, log_likelihoods, packed_log_likelihoods
from icprobe.packing import Network
from icprobe.prompts import encode

logger = logging.getLogger(__name__)


def attribute(inputs: Inputs, method: str, runs: Sequence[np.ndarray], batch_tokens: int = 1024) -> Blocks:
    """A[z, t] = ll(target(t) | one-shot context of t given z) − ll(target(t) | query(t)), in nats.

    Source: arXiv 2407.12259; Nuggets, arXiv 2312.10302.
    """
    network = Network(inputs.model)
    probe = Probe(inputs)
    zero_shot = log_likelihoods(network, (), probe.zero_shot)
    examples = inputs.examples
    for rows in runs:
        block = np.empty((len(rows), len(probe.tasks)), dtype=np.float32)
        for members in _packs([probe.one_shot(examples[row]) for row in rows], batch_tokens):
            results = packed_log_likelihoods(network, [group for _, group in members])
            for (place, _), result in zip(members, results, strict=True):
                block[place] = (result - zero_shot).numpy()
        yield method, rows, block
    if probe.joint:
        logger.info("%d pairs were tokenised jointly: their prefix and suffix merge", probe.joint)


def _packs(groups: list, batch_tokens: int) -> list[list[tuple]]:
    """(index, group) in runs of at most batch_tokens tokens, at least one group each."""
    packs: list[list[tuple]] = []
    size = batch_tokens
    for place, (prefix, suffixes) in enumerate(groups):
        tokens = len(prefix) + sum(len(s.ids) for s in suffixes)
        if size + tokens > batch_tokens:
            packs.append([])
            size = 0
        packs[-1].append((place, (prefix, suffixes)))
        size += tokens
    return packs


class Probe:
    """Token ids of the zero-shot and one-shot contexts of all tasks."""

    def __init__(self, inputs: Inputs) -> None:
        self.prompts, self.tokenizer = inputs.prompts, inputs.tokenizer
        self.tasks = inputs.tasks.to_dict("records")
        self.joint = 0
        encoded = [encode(self.tokenizer, self.prompts.query(t), self.prompts.target(t)) for t in self.tasks]
        self.zero_shot = [Suffix(e.ids, e.n_context) for e in encoded]
        self._texts = [(self.prompts.separator + self.prompts.query(t), self.prompts.target(t)) for t in self.tasks]

    def one_shot(self, example: dict) -> tuple[tuple[int, ...], list[Suffix]]:
        """(prefix ids, suffixes of all tasks); prefix + suffix equals the tokens of the whole text, which is checked.

        Where a tokenizer merges across the border the prefix is shortened to what all pairs share, so that the pairs
        that merge still stand behind a prefix of their own tokens.
        """
        prefix_text = self.prompts.one_shot_prefix(example)
        contexts = [prefix_text + context for context, _ in self._texts]
        wholes = [context + target for context, (_, target) in zip(contexts, self._texts, strict=True)]
        ids = self.tokenizer([prefix_text, *contexts, *wholes], add_special_tokens=False)["input_ids"]
        prefix, rest = tuple(ids[0]), ids[1:]
        n = len(self.tasks)
        shared = len(prefix)
        for whole in rest[n:]:
            merged = next((i for i, (a, b) in enumerate(zip(prefix, whole, strict=False)) if a != b), None)
            if merged is not None or len(whole) < len(prefix):
                self.joint += 1
                shared = min(shared, len(whole) if merged is None else merged)
        suffixes = [
            Suffix(tuple(whole[shared:]), len(context) - shared)
            for context, whole in zip(rest[:n], rest[n:], strict=True)
        ]
        return prefix[:shared], suffixes
