"""Makes tokens of all texts: a control token that a template writes is a token, one in a row's words is text.

A tokenizer makes a token of `<|endoftext|>` wherever it meets these letters. In a row that speaks of them they are
letters; `data.special_tokens` says what becomes of them.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from icprobe.errors import DataError, shown

MARKUP = re.compile(r"<\S+>|\[\S+\]")
# Characters that Unicode keeps out of all texts: what breaks up a control token, what stands around a token's number.
BREAK, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"

Change = Callable[[Any], Any]  # of a value of a row, before it is rendered


@dataclass(frozen=True)
class Part:
    """A part of a text. render: gives it again with each value of its row changed; row: the row's id."""

    render: Callable[[Change], str]
    row: str | None = None

    def words(self) -> str:
        """Gives the values of the row, as they are before a template renders them."""
        values: list[str] = []

        def collect(value: Any) -> Any:
            values.append(str(value))
            return value

        self.render(collect)
        return "\n".join(values)


class Text(str):
    """A rendered text that knows how it was made. Sums of texts are texts; what is plain in a sum counts as template.

    special_tokens: what becomes of control tokens in rows, as `data.special_tokens` has it. begins: a sequence begins
    with it, so that it has the token before it with which the model's sequences begin (`beginning`).
    """

    parts: tuple[Part, ...]
    special_tokens: str
    begins: bool

    def __new__(cls, text: str, parts: tuple[Part, ...], special_tokens: str, begins: bool = False) -> "Text":
        made = super().__new__(cls, text)
        made.parts, made.special_tokens, made.begins = parts, special_tokens, begins
        return made

    def __add__(self, other: str) -> "Text":
        return Text(str(self) + str(other), self.parts + _parts(other), self.special_tokens, self.begins)

    def __radd__(self, other: str) -> "Text":
        return Text(str(other) + str(self), _parts(other) + self.parts, self.special_tokens)

    def again(self, change: Change) -> str:
        """Renders the text again, with every value of its rows changed."""
        return "".join(part.render(change) for part in self.parts)


def _parts(text: str) -> tuple[Part, ...]:
    return text.parts if isinstance(text, Text) else (Part(lambda _: str(text)),)


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenises texts: the token ids of each, with no special tokens added but the one that sequences begin with.

    Raises DataError where a row holds a control token that is to be refused, or that cannot be read as text.
    """
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    control = control_tokens(tokenizer)
    for place, text in enumerate(texts):
        if isinstance(text, Text) and text.special_tokens != "token" and not control.ids.isdisjoint(found[place]):
            found[place] = control.as_text(text, found[place])
        if getattr(text, "begins", False):
            first = beginning(tokenizer)
            found[place] = found[place] if found[place][: len(first)] == first else [*first, *found[place]]
    return found


_beginnings: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()


def beginning(tokenizer: Any) -> list[int]:
    """The token (BOS) with which a tokenizer begins sequences, as the model's were in training; none for many."""
    if tokenizer not in _beginnings:
        bos = getattr(tokenizer, "bos_token_id", None)
        _beginnings[tokenizer] = [] if bos is None or not _adds(tokenizer, bos) else [bos]
    return _beginnings[tokenizer]


def _adds(tokenizer: Any, bos: int) -> bool:
    """Whether a tokenizer puts a token before each text; it may be the one of unknown words, too."""
    added = tokenizer("a")["input_ids"]
    return added[:1] == [bos] and added[1:2] == tokenizer("a", add_special_tokens=False)["input_ids"][:1]


def count_control_tokens(tokenizer: Any, texts: Iterable[str]) -> tuple[int, list[str]]:
    """Counts the texts with control tokens in their rows' words: (how many, which tokens, the most frequent first)."""
    control = control_tokens(tokenizer)
    found = [control.in_words(text) for text in texts if isinstance(text, Text)] if control.ids else []
    counts = Counter(token for tokens in found for token in tokens)
    return sum(map(bool, found)), [token for token, _ in counts.most_common()]


_known: WeakKeyDictionary[Any, "ControlTokens"] = WeakKeyDictionary()


def forget(tokenizer: Any) -> None:
    """Has a tokenizer looked at again: whoever holds it in memory may have added tokens, or switched its BOS off."""
    _beginnings.pop(tokenizer, None)
    _known.pop(tokenizer, None)


def control_tokens(tokenizer: Any) -> "ControlTokens":
    """Gives the control tokens of a tokenizer, which is looked at once (but see `forget`)."""
    if tokenizer not in _known:
        _known[tokenizer] = ControlTokens(
            getattr(tokenizer, "backend_tokenizer", None), getattr(tokenizer, "added_tokens_decoder", {})
        )
    return _known[tokenizer]


class ControlTokens:
    """The control tokens of a tokenizer: those marked as special, and those in brackets (`<think>`) that were added to
    its vocabulary. Others that were added are text that it keeps together, such as runs of spaces or Gemma's `<table>`.

    backend: the `tokenizers.Tokenizer`, None where the tokenizer is a Python program; added: id -> AddedToken.
    """

    def __init__(self, backend: Any, added: dict[int, Any]) -> None:
        self._backend = backend
        self._id_of = {
            token.content: number
            for number, token in added.items()
            if len(token.content) > 1 and (token.special or self._added_markup(token.content))
        }
        self.ids = frozenset(self._id_of.values())
        self._alias = {content: f"{OPEN}{number}{CLOSE}" for content, number in self._id_of.items()}
        # The longest first, as a tokenizer finds them.
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._id_of, key=len, reverse=True))) or "(?!)")

    def _added_markup(self, content: str) -> bool:
        known = self._backend is not None and self._backend.model.token_to_id(content) is not None
        return bool(MARKUP.fullmatch(content.strip())) and not known

    def in_words(self, text: Text) -> set[str]:
        """Finds the control tokens in the words of the text's rows; what its templates write does not count."""
        if not self._pattern.search(text):
            return set()
        return {token for part in text.parts for token in self._pattern.findall(part.words())}

    def first(self, text: str) -> re.Match[str] | None:
        """The first control token in a text, with those that follow it without a letter between them."""
        return re.search(f"(?:{self._pattern.pattern})+", text)

    def as_text(self, text: Text, ids: list[int]) -> list[int]:
        """Tokenises a text whose rows' control tokens are text: token ids [n]. ids: what the tokenizer gives."""
        in_rows = self.in_words(text)
        # A token that breaks in the rows' words leave whole was written by a template alone.
        broken = text.again(self._break)
        readable = broken.replace(BREAK, "") == text and OPEN not in text
        n_all, n_written = (len(self._pattern.findall(each)) for each in (text, broken))
        others = sum(number in self.ids for number in ids) > n_all and self._made_of(text)
        templates_alone = n_written == n_all and not others if readable else not in_rows
        if templates_alone:
            return ids
        found = self._read(broken, n_written, in_rows) if readable and self._backend is not None else None
        if found == ids:
            return ids
        if text.special_tokens == "error":
            raise self._refused(
                text, "remove it, or set data.special_tokens: text (it is read as these letters) or token"
            )
        if found is not None:
            return found
        raise self._refused(
            text,
            "it cannot be read as text, because the tokenizer has no other tokens for it or a template changes its "
            "letters; remove it, or set data.special_tokens: token",
        )

    def _break(self, value: Any) -> Any:
        if not isinstance(value, str) or not (words := value.strip()):
            return value
        start = value.index(words)
        words_broken = self._pattern.sub(lambda found: BREAK.join(found[0]) + BREAK, words)
        return f"{value[:start]}{BREAK}{words_broken}{BREAK}{value[start + len(words) :]}"

    def _made_of(self, text: Text) -> bool:
        """Whether the tokenizer makes control tokens of rows' words with other letters, as "<think>" of "＜think＞"."""
        words = "\n".join(part.words() for part in text.parts)
        return self._backend is not None and not self.ids.isdisjoint(
            self._backend.encode(words, add_special_tokens=False).ids
        )

    def _read(self, broken: str, n_written: int, in_rows: set[str]) -> list[int] | None:
        """Tokenises a broken text; None where some control token of its rows cannot be read as letters.

        n_written: control tokens that templates write; in_rows: those in the words of its rows.
        """
        plain, true_id = self._plain
        text = self._pattern.sub(lambda token: self._alias[token[0]], broken).replace(BREAK, "")
        found = plain.encode(text, add_special_tokens=False).ids
        # A token that stands for itself as a whole word alone (single_word) is none beside a letter.
        all_tokens = sum(true_id.get(number) in self.ids for number in found) == n_written
        as_letters = {self._id_of[token] for token in in_rows}.isdisjoint(set(found) - true_id.keys())
        return [true_id.get(number, number) for number in found] if all_tokens and as_letters else None

    @cached_property
    def _plain(self) -> tuple[Any, dict[int, int]]:
        """The tokenizer with control tokens under names that no text has, and its ids of added tokens -> the true ones.

        With it a control token's letters become tokens as all letters do, and what a template writes one as before.
        """
        from tokenizers import Tokenizer  # not above: jobs without texts import this module, too

        tokenizer = json.loads(self._backend.to_str())
        for token in tokenizer["added_tokens"]:
            token["content"] = self._alias.get(token["content"], token["content"])
        tokenizer |= {"post_processor": None, "truncation": None, "padding": None}
        plain = Tokenizer.from_str(json.dumps(tokenizer))
        return plain, {plain.token_to_id(token["content"]): token["id"] for token in tokenizer["added_tokens"]}

    def _refused(self, text: Text, what: str) -> DataError:
        rows = [part.row for part in text.parts if self._pattern.search(part.words())]
        rows = rows or [part.row for part in text.parts if part.row is not None]
        in_rows = sorted(self.in_words(text))
        token = f"{shown(in_rows[0])}, a control token" if in_rows else "letters that make a control token"
        return DataError(f"row {next(iter(rows), None)}: holds {token} of the model; {what}.")
