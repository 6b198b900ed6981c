"""Where a response ends though the model goes on: at the next prompt, as the template of queries would begin it."""

import logging
import re
from dataclasses import dataclass
from typing import Any

from icprobe.errors import ModelError, shown
from icprobe.texts.chat import Chat
from icprobe.texts.control_tokens import beginning
from icprobe.texts.prompts import Prompts, token_ids

logger = logging.getLogger(__name__)

# What stands for data in a query that is rendered to see the template's own text: no template holds these.
INSTRUCTION, INPUT = "\N{WHITE SQUARE}", "\N{WHITE CIRCLE}"
MARK = re.compile(r"<\|[^\s|<>]+\|>")


@dataclass(frozen=True)
class Stops:
    """What a next prompt begins with. tokens: ids of control tokens; lines: a pattern of text, or None.

    A model that was never taught to stop answers with prompts of its own making after the response. A control token
    that a template writes ("<|im_end|>") ends the turn wherever it stands, and so do its letters where the tokenizer
    does not know it. Words ("### Instruction:", "Q:") may also be said within an answer ("FAQ:"), so they count at the
    start of a line alone.
    """

    tokens: frozenset[int] = frozenset()
    lines: re.Pattern[str] | None = None

    @classmethod
    def of(cls, prompts: Prompts | Chat, tokenizer: Any) -> "Stops":
        """Those of the template of queries; the log says so where the template gives none.

        Raises ModelError where the template begins an answer with a token that would end it.
        """
        prompts = prompts.of(tokenizer)
        queries = [prompts.query({"instruction": INSTRUCTION, "input": given}) for given in ("", INPUT)]
        answer = prompts.target({"instruction": INSTRUCTION, "input": "", "output": INPUT})
        # Behind the words alone: a template may begin an answer with control tokens, too.
        opening, _, answer = str(answer).rpartition(INPUT)
        control = _control_tokens(tokenizer) - set(beginning(tokenizer))  # no template writes that one
        tokens = frozenset(token for text in [*queries, answer] for token in token_ids(tokenizer, text)) & control
        if both := tokens.intersection(token_ids(tokenizer, opening)):
            token = tokenizer.convert_ids_to_tokens(min(both))
            raise ModelError(
                f"The chat template writes {token} at the start of an answer ({shown(opening)}) and in queries, so "
                "that a response would end before it begins; give a templates.chat_template whose prompt for an answer "
                "ends with that start."
            )
        names = [tokenizer.convert_ids_to_tokens(token) for token in tokens]
        # "<|im_end|>" that a tokenizer does not know is letters to the model, and no words of an answer.
        marks = {mark for query in queries for mark in MARK.findall(query)} - set(names)
        lines = _pattern({line for query in queries for line in _leading_lines(query, names)}, marks)
        if not tokens and not lines:
            logger.warning(
                "templates.query begins with no words of its own and holds no control token, so a next prompt cannot "
                "be told from the response: responses end at an end token or after evaluation.max_new_tokens"
            )
        return cls(tokens, lines)

    @property
    def longest(self) -> int:
        """Bytes of the longest line looked for, and so the most tokens that it can have; 0 without lines."""
        return len(self.lines.pattern.encode()) if self.lines else 0

    def cut(self, text: str) -> str:
        """A response up to where a next prompt begins in it."""
        next_prompt = self.found(text)
        return text[: next_prompt.start() if next_prompt else None].strip()

    def found(self, text: str, whole: bool = True) -> re.Match[str] | None:
        """The first line in the text with which a next prompt begins.

        whole: whether the text is a response from its start; what is cut off before might not end in a line break.
        """
        return self.lines.search(text if whole else f"\0{text}") if self.lines else None


def _leading_lines(query: str, names: list[str]) -> set[str]:
    """The first and the last line of what a query says before any data: how the prompt begins, and how the turn.

    With a system text or Alpaca's preamble, a model often goes on with the next turn alone ("### Instruction:"). names:
    those of control tokens, which are no words: responses are decoded without them.
    """
    lead = re.split(f"[{INSTRUCTION}{INPUT}]", query, maxsplit=1)[0]
    lines = [line for line in lead.splitlines(keepends=True) if line.strip()]
    said = {line: _without(names, line) for line in [*lines[:1], *lines[-1:]]}
    # One word ("Please", or a role between control tokens, which tell) may begin a line of an answer, too; a heading is
    # the whole of its line.
    headings = {f"{words}\n" for line, words in said.items() if words.isalnum() and line.strip(" \t") == f"{words}\n"}
    return headings | {words for words in said.values() if not words.isalnum()}


def _without(names: list[str], line: str) -> str:
    for name in names:
        line = line.replace(name, "")
    return line.strip()


def _pattern(lines: set[str], marks: set[str]) -> re.Pattern[str] | None:
    """A pattern of any of the lines at the start of a line, or of a mark anywhere; None where none has a letter.

    A bullet or a number before the instruction ("- ", "1.") begins lines of answers, too, and tells nothing.
    """
    alternatives = [_at_the_start(line) for line in sorted(lines) if any(map(str.isalpha, line))]
    alternatives += sorted(map(re.escape, marks))
    return re.compile("|".join(alternatives), re.MULTILINE) if alternatives else None


def _at_the_start(line: str) -> str:
    """The pattern of a line's words at the start of a line; of one that ends in a break, as the whole line."""
    words = r"^[ \t]*" + r"[ \t]+".join(map(re.escape, line.split()))
    if line.endswith("\n"):
        return words + r"[ \t]*\n"
    # Of a word at the end the whole must be seen: "Question" is not the beginning of "Questions".
    return words + (r"(?=\W)" if re.match(r"\w", line[-1]) else "")


def _control_tokens(tokenizer: Any) -> set[int]:
    """Ids of the tokenizer's control tokens; the one for unknown text controls nothing."""
    added = {token for token, piece in tokenizer.added_tokens_decoder.items() if piece.special}
    return added.union(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
