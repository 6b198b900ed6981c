"""In-context probing turned round: the tasks stand in the context, and each example's response is read behind them."""

import logging
from collections.abc import Sequence

import numpy as np

from icprobe.attribution.contexts import task_groups
from icprobe.attribution.icp import AT_THE_END, ROW_TOKENS
from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.attribution.one_shots import OneShots
from icprobe.engine.likelihood import log_likelihoods
from icprobe.engine.models import max_positions
from icprobe.engine.network import Network
from icprobe.engine.rows import PrefixCache
from icprobe.errors import DataError, several
from icprobe.texts.control_tokens import token_ids
from icprobe.texts.readers import Reader

logger = logging.getLogger(__name__)


def attribute(
    inputs: Inputs,
    method: str,
    batches: Sequence[np.ndarray],
    batch_tokens: int = 1024,
    reduction: str = "sum",
    tasks: str | int = "all",
) -> Pieces:
    """score[z] = mean over contexts c of ll(target(z) | c, query(z)) − ll(target(z) | query(z)), in nats; one column.

    tasks: how many stand in contexts, drawn with the seed; in one context where the model can read them with the
    longest example, else in as few as that takes (`task_groups`). A context runs once, and its keys and values are kept
    for all examples (where a row takes one attention call, on CUDA, it runs with each batch). reduction: mean divides
    the score by the number of target(z)'s tokens: nats per token. Source: arXiv 2510.14459.
    """
    scorer = _Scorer(inputs, batch_tokens, tasks)
    order = np.concatenate(batches)
    inputs.progress.expect((1 + len(scorer.contexts)) * scorer.tokens(order), "token")
    # Of a context at a time: only one's keys and values are in memory.
    for number in range(1 + len(scorer.contexts)):
        for rows in batches:
            name = f"{method}/{rows[0]}/{number}"
            if name in inputs.pieces:
                inputs.progress.found(scorer.tokens(rows))
            else:
                inputs.pieces[name] = scorer.log_likelihoods(rows, number)
                inputs.progress.update(scorer.tokens(rows))
    for rows in batches:
        alone, *found = (inputs.pieces.pop(f"{method}/{rows[0]}/{n}") for n in range(1 + len(scorer.contexts)))
        scores = np.mean(found, axis=0) - alone
        if reduction == "mean":
            scores /= scorer.target_tokens(rows)
        yield method, rows, scores[:, None].astype(np.float32)


class _Scorer:
    """Computes how likely the examples' responses are, alone and behind each context of tasks."""

    def __init__(self, inputs: Inputs, batch_tokens: int, wanted: str | int) -> None:
        self._inputs, tokenizer = inputs, inputs.tokenizer
        self._network = Network(inputs.model, inputs.capabilities, forward_only=True)
        self._row_tokens = max(batch_tokens, ROW_TOKENS[self._network.device.type])
        self._limit = max_positions(inputs.model.config)
        rows = inputs.tasks.to_dict("records")
        reader = Reader(type(inputs.model).__name__, tokenizer, self._limit)
        groups = task_groups(rows, inputs.lengths, inputs.prompts, reader, inputs.seed, wanted)
        logger.info("%s in %s", several(sum(map(len, groups)), "task"), several(len(groups), "context"))
        self.contexts = [[rows[number] for number in group] for group in groups]
        self._prefixes = inputs.prompts.of(tokenizer)
        self._base: tuple[int, PrefixCache | None] = 0, None

    def tokens(self, rows: Sequence[int]) -> float:
        """Counts the tokens of some examples."""
        of_rows = self._inputs.lengths.iloc[rows]
        return float((of_rows["n_query"] + of_rows["n_target"]).sum())

    def target_tokens(self, rows: Sequence[int]) -> np.ndarray:
        """Counts the tokens of some examples' targets, as likelihoods count them."""
        return np.array([len(one.ids) - one.first for one in self._shots(rows).zero_shot])

    def log_likelihoods(self, rows: Sequence[int], number: int) -> np.ndarray:
        """Computes ll(target(z)) of some examples: [rows] float64. number: of the context, from 1; 0: none."""
        shots, prefix, base = self._shots(rows), (), None
        suffixes = shots.zero_shot
        if number:
            prefix, suffixes = shots.encode_several(self.contexts[number - 1], range(len(rows)))
            self._check_length(rows, [len(prefix) + len(suffix.ids) for suffix in suffixes])
            base = self._cached(number)
            # Examples behind which the context's tokens are others are read with all of them.
            shared = base.ids if base else ()
            if prefix[: len(shared)] == shared:
                prefix = prefix[len(shared) :]
            else:
                base = None
        return log_likelihoods(self._network, prefix, suffixes, base, self._row_tokens).cpu().numpy()

    def _shots(self, rows: Sequence[int]) -> OneShots:
        return OneShots(self._inputs.tokenizer, self._inputs.prompts, self._inputs.examples(rows))

    def _cached(self, number: int) -> PrefixCache | None:
        """The beginning of a context, by its own tokens alone: no bit depends on which examples come first."""
        if self._base[0] != number:
            (ids,) = token_ids(self._inputs.tokenizer, [self._prefixes.few_shot_prefix(self.contexts[number - 1])])
            self._base = number, self._network.cache_prefix(ids[:-AT_THE_END])
        return self._base[1]

    def _check_length(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Raises DataError for an example that is longer behind a context than its own tokens say."""
        if self._limit is not None and max(lengths) > self._limit:
            example = self._inputs.lengths["id"].iloc[rows[int(np.argmax(lengths))]]
            raise DataError(
                f"row {example}: behind the tasks it ends at token {max(lengths)} where the model takes {self._limit}; "
                "set a smaller attribution.icp_reverse.tasks."
            )
