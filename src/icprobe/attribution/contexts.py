"""Contexts of several rows: which rows stand together, and whether a model can read them; no torch.

Every shard asks here, and the check before all of them does, so that they agree.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from icprobe.attribution.chance import generator
from icprobe.errors import DataError, several
from icprobe.texts.chat import Chat, ChatPrompts
from icprobe.texts.prompts import Prompts
from icprobe.texts.readers import BORDERS, Reader, may_be_longest


@dataclass(frozen=True)
class Draws:
    """Contexts drawn at random, `draws` times: in each draw all examples are read behind the same k − 1 others.

    Of k examples drawn in an order, the first k − 1 stand before each example; before one of these the other k − 1 do.
    ids: of all examples. A draw depends on the seed and its number, and on which ids there are; on their order it does
    not.
    """

    ids: Sequence[str]
    seed: int
    k: int
    draws: int

    @cached_property
    def _drawn(self) -> list[tuple[int, ...]]:
        """The rows of each draw's k examples."""
        rows = np.array(sorted(range(len(self.ids)), key=self.ids.__getitem__))
        chances = (generator(self.seed, draw) for draw in range(self.draws))
        return [tuple(chance.permutation(rows)[: self.k].tolist()) for chance in chances]

    def others(self, row: int, draw: int) -> tuple[int, ...]:
        """The rows of the k − 1 examples that stand before the example of a row."""
        return tuple(other for other in self._drawn[draw] if other != row)[: self.k - 1]

    def parted(self, rows: Sequence[int], draw: int) -> dict[tuple[int, ...], list[int]]:
        """Some rows by the others that stand before their examples."""
        parts: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            parts.setdefault(self.others(row, draw), []).append(int(row))
        return parts

    def all(self) -> Iterator[list[int]]:
        """The rows of every context."""
        return ([*self.others(row, draw), row] for row in range(len(self.ids)) for draw in range(self.draws))

    def tokens(self, of_examples: float, of_tasks: float) -> float:
        """Counts the tokens, about, that a model reads: of all examples, and of all tasks.

        In each draw each example with all tasks behind it, and k contexts of others with all tasks behind them.
        """
        n = len(self.ids)
        others = self.k * ((self.k - 1) * of_examples / n + of_tasks) if self.k > 1 else 0.0
        return self.draws * (of_examples + n * of_tasks + others)


def check(
    method: str,
    settings: Mapping[str, Any],
    train: pd.DataFrame,
    tasks: pd.DataFrame,
    lengths: pd.DataFrame,
    prompts: Prompts | Chat,
    reader: Reader,
    seed: int,
) -> dict[str, int]:
    """Checks that a model can read all contexts of a method: how many there are, and about how many tokens it reads.

    settings: the method's own; lengths: table id, n_query, n_target of train. Raises DataError as `check_draws` and
    `task_groups` do.
    """
    rows, of_examples = tasks.to_dict("records"), int(lengths[["n_query", "n_target"]].sum().sum())
    bound = prompts.of(reader.tokenizer)
    if method == "icp_k_shot":
        draws = Draws(train["id"].tolist(), seed, **settings)
        of_tasks = reader.counts([bound.one_shot_suffix(task) + bound.target(task) for task in rows])
        check_draws(draws, train, may_be_longest(rows, of_tasks), max(of_tasks), bound, reader)
        tokens = round(draws.tokens(of_examples, sum(of_tasks)))
        return {"contexts": len(train) * draws.draws, "tokens": tokens}
    groups = task_groups(rows, lengths, bound, reader, seed, settings["tasks"])
    read = reader.counts([bound.few_shot_prefix([rows[number] for number in group]) for group in groups])
    return {"contexts": len(groups), "tokens": (1 + len(groups)) * of_examples + sum(read)}


def check_draws(
    draws: Draws,
    train: pd.DataFrame,
    longest_tasks: Sequence[dict[str, Any]],
    of_task: int,
    prompts: Prompts | ChatPrompts,
    reader: Reader,
) -> None:
    """Raises DataError where a context does not fit the model's with one of the longest tasks, of so many tokens by
    itself, or where its rows cannot stand together.
    """
    if draws.k > len(train):
        raise DataError(
            f"attribution.icp_k_shot.k: {several(draws.k, 'example')} in a context where there are {len(train)}; "
            f"take at most {len(train)}."
        )
    rows = train.to_dict("records")
    if isinstance(prompts, ChatPrompts):
        prompts.check_together(rows)
    if reader.max_positions is None:
        return
    alone = np.array(reader.counts([prompts.one_shot_prefix(row) for row in rows]))
    between = max(reader.counts([prompts.separator])) + BORDERS
    longest, too_long = reader.max_positions - of_task, None
    for context in draws.all():
        # Most contexts are far from the limit; those that may not be are tokenised whole.
        if int(alone[context].sum()) + (draws.k - 1) * between + BORDERS <= longest:
            continue
        examples = [rows[row] for row in context]
        wholes = [prompts.few_shot(examples, task) + prompts.target(task) for task in longest_tasks]
        exactly = max(reader.counts(wholes)) - of_task
        if exactly > longest:
            longest, too_long = exactly, context
    if too_long is not None:
        raise DataError(
            f"attribution.icp_k_shot: the examples {', '.join(rows[row]['id'] for row in too_long)} and the longest "
            f"task need {longest + of_task} tokens where {reader.model} takes {reader.max_positions}; set a smaller k, "
            "or leave out long examples (data.train.sample.max_tokens)."
        )


def task_groups(
    tasks: Sequence[dict[str, Any]],
    lengths: pd.DataFrame,
    prompts: Prompts | Chat,
    reader: Reader,
    seed: int,
    wanted: str | int = "all",
) -> list[list[int]]:
    """Puts tasks, or so many of them as are wanted, into contexts in an order drawn with the seed: their numbers.

    The order in which they stand in their file changes nothing.

    lengths: table id, n_query, n_target of all examples. There are as few contexts as the model can read with the
    longest example behind each, of equal numbers of tasks (up to one). Raises DataError where a task alone does not
    fit, where more are wanted than there are, or where they cannot stand together.
    """
    if wanted != "all" and wanted > len(tasks):
        raise DataError(f"attribution.icp_reverse.tasks: {wanted} are wanted where there are {len(tasks)}; take fewer.")
    bound = prompts.of(reader.tokenizer)
    by_id = np.array(sorted(range(len(tasks)), key=lambda number: str(tasks[number]["id"])))
    order = by_id[np.random.default_rng(seed).permutation(len(tasks))][: None if wanted == "all" else wanted]
    if isinstance(bound, ChatPrompts):
        bound.check_together([tasks[number] for number in order])
    total = (lengths["n_query"] + lengths["n_target"]).to_numpy()
    behind = int(total.max()) + max(reader.counts([bound.separator])) + BORDERS
    room = math.inf if reader.max_positions is None else reader.max_positions - behind

    def tokens(groups: Sequence[Sequence[int]]) -> list[int]:
        return reader.counts([bound.few_shot_prefix([tasks[number] for number in group]) for group in groups])

    alone = tokens([[number] for number in order])
    if max(alone) > room:
        first = order[int(np.argmax(alone))]
        raise DataError(
            f"attribution.icp_reverse: the task {tasks[first]['id']} and the longest example "
            f"({lengths['id'].iloc[int(total.argmax())]}) need {max(alone) + behind} tokens where {reader.model} takes "
            f"{reader.max_positions}; shorten one of them, or leave out long examples (data.train.sample.max_tokens)."
        )
    (together,) = tokens([order])
    # Fewer contexts do not hold so many tokens; with a context for each task all fit.
    n = 1 if together <= room else max(2, int(together / (room + BORDERS)))
    while True:
        groups = [group.tolist() for group in np.array_split(order, n)]
        if n in (1, len(order)) or max(tokens(groups)) <= room:
            return groups
        n += 1
