"""Texts by a chat template: the model's own, or one of a file; exactly what it writes, special tokens included.

The answer of a conversation is its last assistant turn with the token that ends it. Where turns begin and end is said
by the template's generation blocks ({% generation %}), or else found out by prefixes: what the template makes of the
turns before an answer must be how the whole conversation begins. A template of which neither is true is refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, reduce
from typing import Any

from icprobe.errors import ConfigError, DataError, ModelError, reason
from icprobe.texts.control_tokens import Change, ControlTokens, Part, Text, control_tokens
from icprobe.texts.conversations import ANSWER, USER, Message, dumps, exchanges, messages_of, tools_of, unanswered
from icprobe.texts.left_out import PROBE, left_out
from icprobe.texts.prompts import Prompts

Row = Mapping[str, Any]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Templates may ask for today's date (Llama's do). What a row is worth is to depend on no day: it is always this one.
TODAY = datetime(2024, 7, 26)
ASKS_DATE = re.compile(r"strftime_now\(\s*(?:format\s*=\s*)?(['\"])(.*?)\1\s*\)")


class Chat:
    """The chat format of an experiment, before it is known whose template it is.

    templates: the configuration's `templates` as a mapping, with `chat_template` (the text of a file, or None for the
    model's own), `context` ("text": an example is text in the task's first turn, as `query`, `target` and
    `one_shot_prefix` render it; "turns": its turns stand before the task's) and `special_tokens` of its `data`.
    """

    def __init__(self, templates: dict[str, Any]) -> None:
        self._templates = templates

    def of(self, tokenizer: Any) -> "ChatPrompts":
        """The prompts of a model. Raises ModelError where it has no template that can be used."""
        return ChatPrompts(self._templates, tokenizer)


class ChatPrompts:
    """Makes query, target, document and contexts of rows by one chat template; see `Prompts`, which makes the same."""

    def __init__(self, templates: dict[str, Any], tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._context = templates.get("context", "text")
        self._special_tokens = templates.get("special_tokens", "text")
        self._texts = Prompts.of_queries({"query": "", **templates, "bos": "none"})  # of an example as text
        self.separator = self._texts.separator
        self._template = self._undated(templates.get("chat_template") or self._own())
        self._generation = bool(GENERATION.search(self._template))

    def of(self, tokenizer: Any) -> "ChatPrompts":
        """Itself: it is a model's already."""
        return self

    # --- what is made of rows -------------------------------------------------------------------------------------

    def query(self, row: Row) -> Text:
        """What the model reads before the last answer: the turns before it, and the beginning of its own."""
        return self._text(row, lambda change: self._asked(row, change))

    def target(self, row: Row) -> Text:
        """The last answer, with the token that ends its turn."""

        def render(change: Change) -> str:
            text, (start, end) = self._span_of(row, change, -1)
            asked = self._asked(row, change)
            # A block may begin with what the prompt ends with.
            if not (text.startswith(asked) and start <= len(asked) < end):
                raise self._unclear(row, "it writes another prompt once the answer is there")
            return text[len(asked) : end]

        return self._text(row, render)

    def document(self, row: Row) -> Text:
        """The whole conversation."""
        return self._text(row, lambda change: self._rendered(*self._said(row, change), False, row))

    def answers(self, row: Row) -> list[tuple[int, int]]:
        """Where in the document each assistant turn begins and ends, in letters."""
        return self._spans(row, _as_it_is)[1]

    def until(self, row: Row, turn: int, side: int) -> Text:
        """The document up to the beginning (side 0) or the end (1) of an assistant turn."""

        def render(change: Change) -> str:
            text, span = self._span_of(row, change, turn)
            return text[: span[side]]

        return self._text(row, render)

    def one_shot(self, example: Row, task: Row) -> Text:
        """The context of a task given one example."""
        return self.few_shot([example], task)

    def few_shot(self, examples: Sequence[Row], task: Row) -> Text:
        """The context of a task given several."""
        return self._text(task, lambda change: self._asked(task, change, examples))

    def splits(self, tasks: Sequence[Row]) -> bool:
        """Whether each one-shot context is `one_shot_prefix` of the example and then `one_shot_suffix` of the task."""
        return all(self._halves(task, _as_it_is)[0] == self._head for task in tasks)

    def one_shot_prefix(self, example: Row) -> Text:
        """What contexts with this example begin with, where they split."""
        return self.few_shot_prefix([example])

    def few_shot_prefix(self, examples: Sequence[Row]) -> Text:
        """The same of several examples, in order."""

        def render(change: Change) -> str:
            if self._context == "text":
                return self._head + self._as_text(examples, change)
            said = [self._said(example, change) for example in examples]
            return self._rendered(reduce(_joined, [messages for messages, _ in said]), said[-1][1], False, examples[-1])

        return self._text(examples[0], render)

    def one_shot_suffix(self, task: Row) -> Text:
        """What of the context follows the example; where they do not split, all of it but the example."""

        def render(change: Change) -> str:
            before, behind = self._halves(task, change)
            return behind if before == self._head else before + behind

        return self._text(task, render)

    def check_pairs(self, examples: Sequence[Row], tasks: Sequence[Row]) -> None:
        """Raises DataError where an example and a task cannot stand in one conversation."""
        if self._context != "turns":
            return
        systems = {_system(messages_of(task)): task for task in tasks}
        tools = {task.get("tools") if tools_of(task) else None: task for task in tasks}
        for example in examples:
            system, own = _system(messages_of(example)), example.get("tools") if tools_of(example) else None
            for what, other in (
                ("system messages", None if system is None else _other(systems, (system, None))),
                ("tools", _other(tools, (own,))),
            ):
                if other is not None:
                    raise DataError(
                        f"row {example.get('id')} and task {other.get('id')} have different {what}, and one "
                        "conversation has one set of them; set attribution.icp.context: text."
                    )

    def check_together(self, rows: Sequence[Row]) -> None:
        """Raises DataError where rows that are to stand in one context cannot stand in one conversation."""
        if self._context != "turns":
            return
        first: dict[str, Row] = {}
        for row in rows:
            system = _system(messages_of(row))
            if system is not None and _other(first, (system,)) is not None:
                raise DataError(
                    f"rows {_other(first, (system,)).get('id')} and {row.get('id')} have different system messages, "
                    "and one conversation has one; set attribution.icp.context: text."
                )
            first |= {} if system is None else {system: row}

    def joins(self, examples: Sequence[Row], tasks: Sequence[tuple[Row, str]]) -> bool:
        """Whether contexts of some examples are their prefix and the tasks' suffixes, as the template writes them.

        tasks: with their `one_shot_suffix`. A template may write a task's turns otherwise behind some examples, for
        instance those with a system message.
        """
        prefix = str(self.few_shot_prefix(examples))
        return all(prefix + str(suffix) == str(self.few_shot(examples, task)) for task, suffix in tasks)

    def check_written(self, row: Row) -> None:
        """Raises DataError where the template leaves out what a row says: words of a message, tools or their calls.

        Thoughts, which templates leave out of turns that are answered, are to be in the last turn alone.
        """
        lost = left_out(lambda *said: self._rendered(*said, False, row), messages_of(row), tools_of(row))
        if lost:
            known = getattr(self._tokenizer, "chat_template", None)
            own = (
                ", such as the model's own that is called tool_use"
                if isinstance(known, dict) and "tool_use" in known
                else ""
            )
            raise DataError(
                f"row {row.get('id')}: the chat template does not write its {lost}; remove that from the row, or "
                f"give another template in templates.chat_template{own}."
            )

    # --- how ------------------------------------------------------------------------------------------------------

    def _text(self, row: Row, render: Callable[[Change], str]) -> Text:
        return Text(render(_as_it_is), (Part(render, row.get("id")),), self._special_tokens)

    @cached_property
    def _head(self) -> str:
        """What a context begins with before an example's text: a task's without a system message of its own."""
        return self._halves({"instruction": "x"}, _as_it_is)[0]

    @cached_property
    def _control(self) -> ControlTokens:
        return control_tokens(self._tokenizer)

    def _said(self, row: Row, change: Change) -> tuple[list[Message], Any]:
        """A row's messages and tools with every text changed; of tools those that hold a control token.

        Templates compare words of tools and their calls ("function"), which must stay what they are.
        """

        def changed(value: Any) -> Any:
            if isinstance(value, dict):
                return {changed(key): changed(held) for key, held in value.items()}
            if isinstance(value, list):
                return [changed(held) for held in value]
            return change(value) if isinstance(value, str) and self._control.first(value) else value

        texts = ("content", "reasoning_content")
        return [
            {key: change(held) if key in texts else changed(held) for key, held in message.items()}
            for message in messages_of(row)
        ], changed(tools_of(row))

    def _halves(self, task: Row, change: Change) -> tuple[str, str]:
        """A task's context with an example: what stands before the example's own text, and behind it."""
        if self._context == "text":
            whole = self._asked(task, change, text=PROBE)
            before, _, behind = whole.partition(PROBE)
            return before, behind
        probe = [{"role": USER, "content": PROBE}, {"role": ANSWER, "content": PROBE}]
        messages, tools = self._said(task, change)
        before = self._rendered(probe, tools, False, task)
        whole = self._rendered(_joined(probe, unanswered(messages)), tools, True, task)
        # A task with a system message begins with it, and not with the example.
        return ("", whole[len(before) :]) if whole.startswith(before) else (whole, "")

    def _asked(self, row: Row, change: Change, examples: Sequence[Row] = (), text: str | None = None) -> str:
        """What stands before the last answer of a row, with examples before it, or a text in their place."""
        messages, tools = self._said(row, change)
        messages = unanswered(messages)
        if examples and self._context == "turns":
            messages = reduce(_joined, [*(self._said(example, change)[0] for example in examples), messages])
        elif examples or text is not None:
            shown = self._as_text(examples, change) if text is None else text
            messages = _told(messages, shown + self._texts.separator)
        return self._rendered(messages, tools, True, row)

    def _as_text(self, examples: Sequence[Row], change: Change) -> str:
        """Examples as text: each exchange as `query` and `target` render it, in `one_shot_prefix`."""
        parts = []
        for example in examples:
            messages, tools = self._said(example, change)
            system, pairs = exchanges(messages)
            parts += filter(None, [system, dumps(tools) if tools else ""])
            parts += [self._texts.exchange(said, answer) for said, answer in pairs]
        return self._texts.shown(self._texts.separator.join(parts))

    def _span_of(self, row: Row, change: Change, turn: int) -> tuple[str, tuple[int, int]]:
        """A row's whole conversation, and one assistant turn's part of it; turn: among these."""
        text, spans = self._spans(row, change, turn)
        return text, spans[turn if self._generation else 0]

    def _spans(self, row: Row, change: Change, only: int | None = None) -> tuple[str, list[tuple[int, int]]]:
        """A row's whole conversation, and from where to where the assistant's turns are what it says (in letters).

        only: the turn that is wanted, where each is found by renderings of its own.
        """
        messages, tools = self._said(row, change)
        turns = [place for place, message in enumerate(messages) if message["role"] == ANSWER]
        if not self._generation:
            text = self._rendered(messages, tools, False, row)
            wanted = turns if only is None else [turns[only]]
            return text, [self._span(messages, tools, turn, text, row) for turn in wanted]
        text, spans = self._tracked(messages, tools, row)
        if len(spans) != len(turns):
            raise self._unclear(row, "its generation blocks are not the assistant's turns")
        return text, spans

    def _span(self, messages: list[Message], tools: Any, turn: int, text: str, row: Row) -> tuple[int, int]:
        """The letters of one assistant turn within the conversation's text, by prefixes."""
        before = self._rendered(messages[:turn], tools, True, row)
        so_far = text if turn == len(messages) - 1 else self._rendered(messages[: turn + 1], tools, False, row)
        behind, ending = self._ending
        end = len(so_far) - len(behind) + len(ending)
        known = text.startswith(before) and so_far.endswith(behind) and text.startswith(so_far[:end])
        if not known or end <= len(before):
            raise self._unclear(row, "it writes the turns before an answer otherwise once the answer is there")
        return len(before), end

    @cached_property
    def _ending(self) -> tuple[str, str]:
        """What the template writes behind an answer, and the part of it that ends the turn: up to a control token."""
        row = {"instruction": "x", "output": PROBE}
        _, there, behind = self._rendered(messages_of(row), None, False, row).rpartition(PROBE)
        if not there:
            raise self._unclear(row, "it does not write what the assistant says")
        found = self._control.first(behind)
        if found is None:
            raise self._unclear(row, "it writes no control token behind an answer")
        return behind, behind[: found.end()]

    def _unclear(self, row: Row, why: str) -> ModelError:
        of = f"row {row['id']}: " if "id" in row else ""
        return ModelError(
            f"{of}the chat template does not tell which tokens are the assistant's ({why}); give one "
            "with {% generation %} blocks around them in templates.chat_template, or set templates.format: jinja."
        )

    def _rendered(self, messages: Sequence[Message], tools: Any, generation: bool, row: Row) -> str:
        return self._render(messages, tools, row, add_generation_prompt=generation)[0]

    def _tracked(self, messages: Sequence[Message], tools: Any, row: Row) -> tuple[str, list[tuple[int, int]]]:
        text, spans = self._render(messages, tools, row, return_assistant_tokens_mask=True)
        return text, [tuple(span) for span in spans]

    def _render(self, messages: Sequence[Message], tools: Any, row: Row, **how: bool) -> tuple[str, list[Any]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [list(messages)],
                tools=tools,
                chat_template=self._template,
                **how,
                **self._tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # a template is somebody's program
            raise DataError(
                f"row {row.get('id')}: the chat template makes nothing of its conversation ({reason(error)}); correct "
                "the row, or give another template in templates.chat_template."
            ) from None
        return texts[0], spans[0] if spans else []

    def _own(self) -> str:
        """The model's template."""
        try:
            return self._tokenizer.get_chat_template()
        except (ValueError, AttributeError):
            raise ModelError(
                "The model's tokenizer has no chat template; give one in templates.chat_template, or set "
                "templates.format: jinja."
            ) from None

    def _undated(self, template: str) -> str:
        """A template that says the same every day."""
        dated = ASKS_DATE.sub(lambda found: repr(TODAY.strftime(found[2])), template)
        if "strftime_now(" in dated:
            raise ConfigError(
                "config: templates: the chat template asks for the date in a way of its own, so that results would "
                "change from day to day; give one without strftime_now in templates.chat_template"
            )
        return dated


def prompts_of(templates: dict[str, Any]) -> Prompts | Chat:
    """The prompts of an experiment, before they are a model's (`of`); templates that are not given are empty."""
    return Chat(templates) if templates.get("format") == "chat" else Prompts.of_queries(templates)


def _as_it_is(value: Any) -> Any:
    return value


def _system(messages: Sequence[Message]) -> str | None:
    """What the system says first; None where it says nothing at all, not even an empty message."""
    return messages[0]["content"] if messages[0]["role"] == "system" else None


def _other(known: Mapping[Any, Row], wanted: Sequence[Any]) -> Row | None:
    """The first row whose key is none of those that are wanted."""
    return next((row for key, row in known.items() if key not in wanted), None)


def _joined(example: list[Message], task: list[Message]) -> list[Message]:
    """One conversation of an example's turns and a task's, with the system message of either first."""
    both = (example, task)
    heads = [messages[0] for messages in reversed(both) if _system(messages) is not None]
    return [*heads[:1], *(m for messages in both for m in messages[_system(messages) is not None :])]


def _told(messages: list[Message], text: str) -> list[Message]:
    """The messages with a text at the beginning of the user's first."""
    place = next(place for place, message in enumerate(messages) if message["role"] == USER)
    first = messages[place]
    return [*messages[:place], {**first, "content": text + first["content"]}, *messages[place + 1 :]]
