"""One-shot and few-shot contexts as token ids: each example and task tokenised once, and of each pair the border alone.

What a tokenizer makes of a text far from a place does not depend on what stands at that place, where it cuts texts into
words first (`pre_tokenizer`). So the tokens of example + task are the example's, then those of the letters around the
border, then the task's. One whole pair of each example is compared; where one differs, and for tokenizers that read a
text as one word, every pair is tokenised whole, which takes much longer.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from icprobe.engine.likelihood import Suffix
from icprobe.engine.rows import common_length
from icprobe.texts import control_tokens
from icprobe.texts.chat import ChatPrompts
from icprobe.texts.conversations import messages_of
from icprobe.texts.prompts import Prompts, border, encode

logger = logging.getLogger(__name__)

# The token ids that contexts of the same examples begin with, and what each task puts behind them.
OneShot = tuple[tuple[int, ...], list[Suffix]]

LETTERS = 64  # on either side of a border
SYNCHRONISED = 4  # tokens that two texts must have alike before one may go on as the other does
WORDS = 4  # of the longest opening, at least


@dataclass(frozen=True)
class _Task:
    """A task behind the first letters of its context, the `opening`, whose last `replaced` tokens give way to `rest`.

    context: how many tokens of the rest are context; negative where what follows the context changes its tokens.
    """

    opening: str
    rest: list[int]
    replaced: int
    context: int


class OneShots:
    """Tokenises contexts. tasks: rows of what stands last in them; zero_shot: each of these alone; joint: contexts so
    far whose prefix and suffix merge.
    """

    def __init__(self, tokenizer: Any, prompts: Prompts, tasks: Sequence[dict[str, Any]]) -> None:
        self.tokenizer, self.prompts, self._rows = tokenizer, prompts.of(tokenizer), tasks
        prompts = self.prompts
        self.joint = 0
        self._splits = prompts.splits(tasks)
        self._texts = [(prompts.one_shot_suffix(t), prompts.target(t)) for t in tasks]
        some = _one_of_each_sort(tasks) if isinstance(prompts, ChatPrompts) else []
        self._sorts = [(tasks[t], self._texts[t][0]) for t in some]
        # What of a task counts zero-shot counts behind an example, too.
        alone = [encode(tokenizer, prompts.query(t), prompts.target(t)) for t in tasks]
        self.zero_shot = [Suffix(one.ids, one.n_context) for one in alone]
        self._targets = [list(one.ids[one.n_context :]) for one in alone]
        self._tasks, self._openings = self._apart()
        self._by_border = self._splits and self._cuts_words()
        self._encoded = 0

    def beginning(self, examples: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """Finds the token ids that the one-shot contexts of these examples begin with alike."""
        if not self._splits:
            return ()
        prefixes = self._ids([self.prompts.one_shot_prefix(example) for example in examples])
        # One token less than they share: each context needs a token of its own behind.
        return tuple(prefixes[0][: min(common_length(prefixes), *(len(p) - 1 for p in prefixes))])

    def encode(self, example: dict[str, Any], tasks: Sequence[int]) -> OneShot:
        """Tokenises an example's contexts: (prefix ids, suffixes of the tasks)."""
        return self.encode_several([example], tasks)

    def encode_several(self, examples: Sequence[dict[str, Any]], tasks: Sequence[int]) -> OneShot:
        """Tokenises the contexts in which these examples stand, in order: (prefix ids, suffixes of the tasks).

        Prefix and suffix together are the tokens of the whole text. Where a tokenizer merges across the border, the
        prefix is shortened to the tokens that all pairs share.
        """
        split = self._splits and (not self._sorts or self.prompts.joins(examples, self._sorts))
        found = self._joined(examples, tasks) if split and self._by_border and len(tasks) > 2 else None
        if found is None:
            prefix, wholes = self._whole(examples, tasks, split)
        else:
            prefix, wholes = found
        alike = [common_length([prefix, ids]) for ids, _ in wholes]
        self.joint += sum(n < len(prefix) for n in alike)
        shared = min([len(prefix), *alike])
        return tuple(prefix[:shared]), [Suffix(tuple(ids[shared:]), n - shared) for ids, n in wholes]

    def _whole(
        self, examples: Sequence[dict[str, Any]], tasks: Sequence[int], split: bool = True
    ) -> tuple[list[int], list[tuple[list[int], int]]]:
        """The tokens of some examples' prefix, and of it with each task: (ids, how many are context).

        Where contexts do not split, the prefix is what they begin with alike.
        """
        prefix = self.prompts.few_shot_prefix(examples) if split else ""
        contexts = [
            prefix + self._texts[t][0] if split else self.prompts.few_shot(examples, self._rows[t]) for t in tasks
        ]
        wholes = [context + self._texts[t][1] for context, t in zip(contexts, tasks, strict=True)]
        ids = self._ids([prefix, *contexts, *wholes])
        n = len(tasks)
        found = []
        for t, context, whole, of_context, of_whole in zip(
            tasks, contexts, wholes, ids[1 : n + 1], ids[n + 1 :], strict=True
        ):
            place = len(of_whole) - len(self._targets[t])
            if of_whole[place:] != self._targets[t]:
                place = border(self.tokenizer, context, whole, of_context, of_whole)
            found.append((of_whole, place))
        return ids[0] if split else found[0][0][: min(place for _, place in found)], found

    def _joined(
        self, examples: Sequence[dict[str, Any]], tasks: Sequence[int]
    ) -> tuple[list[int], list[tuple[list[int], int]]] | None:
        """What `_whole` gives, by the border; None where it does not decide."""
        text = self.prompts.few_shot_prefix(examples)
        end = str(text)[-LETTERS:]
        openings = list(dict.fromkeys(self._tasks[t].opening for t in tasks))
        prefix, alone, *borders = self._ids([text, end, *(end + opening for opening in openings)])
        known = _alike_at_end(prefix, alone)
        of_opening = {}
        for opening, joint in zip(openings, borders, strict=True):
            start = common_length([alone, joint])  # from here on the opening changes the prefix's tokens
            changed = len(alone) - start
            if changed + SYNCHRONISED > known:
                return None
            synchronised = _alike_at_end(joint, self._openings[opening])
            of_opening[opening] = (prefix[: len(prefix) - changed] + joint[start:], synchronised)
        wholes = []
        for t in tasks:
            task = self._tasks[t]
            ids, synchronised = of_opening[task.opening]
            if task.context < 0 or task.replaced + SYNCHRONISED > synchronised:
                return None
            kept = ids[: len(ids) - task.replaced]
            wholes.append((kept + task.rest, len(kept) + task.context))
        return (prefix, wholes) if self._agrees(examples, tasks, wholes) else None

    def _agrees(
        self, examples: Sequence[dict[str, Any]], tasks: Sequence[int], wholes: Sequence[tuple[list[int], int]]
    ) -> bool:
        """Whether one of the pairs, another each time, is as it is tokenised whole."""
        place = self._encoded % len(tasks)
        self._encoded += 1
        if self._whole(examples, [tasks[place]])[1] != [wholes[place]]:
            logger.warning("the tokens of pairs are not told by their borders: every pair is tokenised whole")
            self._by_border = False
        return self._by_border

    def _apart(self) -> tuple[list[_Task], dict[str, list[int]]]:
        """The tasks, each tokenised by itself, and the token ids of their openings."""
        wholes = self._ids([query + target for query, target in self._texts])
        contexts = self._ids([query for query, _ in self._texts])
        first = [str(query)[:LETTERS] for query, _ in self._texts]
        openings = dict(zip(first, self._ids(first), strict=True))
        tasks = []
        for opening, ids, context in zip(first, wholes, contexts, strict=True):
            same = common_length([ids, openings[opening]])
            # Where the target changes the context's last tokens, every pair is tokenised whole.
            of_context = len(context) - same if common_length([ids, context]) == len(context) else -1
            tasks.append(_Task(opening, ids[same:], len(openings[opening]) - same, of_context))
        return tasks, openings

    def _cuts_words(self) -> bool:
        """Whether the tokenizer cuts texts into words first, and no control token stands in a task."""
        cut = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
        if cut is None or len(cut.pre_tokenize_str(max(self._openings, key=len))) < WORDS:
            return False
        control = control_tokens.control_tokens(self.tokenizer).ids
        return all(control.isdisjoint(ids) for ids in self._ids([str(q) + str(t) for q, t in self._texts]))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return control_tokens.token_ids(self.tokenizer, texts)


def _one_of_each_sort(tasks: Sequence[dict[str, Any]]) -> list[int]:
    """One task of each sort that a chat template may treat in its own way: by roles, empty texts, calls and tools."""
    sorts: dict[Any, int] = {}
    for place, task in enumerate(tasks):
        sort = tuple((m["role"], bool(m["content"].strip()), *sorted(m)) for m in messages_of(task))
        sorts.setdefault((sort, task.get("tools") is None), place)
    return [*sorts.values()]


def _alike_at_end(first: Sequence[int], second: Sequence[int]) -> int:
    """Counts the tokens that two sequences end with alike."""
    return common_length([first[::-1], second[::-1]])
