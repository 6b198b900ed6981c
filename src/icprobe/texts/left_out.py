"""What a chat template leaves out of a conversation."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from icprobe.errors import DataError
from icprobe.texts.conversations import ANSWER, Message

# Stands for a text where another is looked for; Unicode keeps it out of all texts.
PROBE = "\ufdd3"
THINKS = re.compile(r"(</?think>)")  # between these a model thinks, in the words of a turn
ARGUMENTS = ("arguments", "parameters")  # as data calls those of a call


def left_out(rendered: Callable[[Sequence[Message], Any], str], messages: list[Message], tools: Any) -> str | None:
    """The first thing that a template does not write, in words: words of a message, tools or their calls, thoughts.

    rendered: what the template makes of messages and tools. Thoughts, which templates leave out of turns that are
    answered, are to be in the last turn alone. None where all is written.
    """
    marked, pieces = _marked(messages)
    text = rendered(marked, tools)
    # Where a template writes a call as Python or JSON does in ASCII, so is the mark.
    if lost := [what for mark, what in pieces.items() if mark not in text and ascii(mark)[1:-1] not in text]:
        return lost[0]
    without = {"tools": (messages, None)} if tools else {}
    without |= {f"arguments of a call in message {n}": (less, tools) for n, less in _with_arguments_less(messages)}
    if (thoughtless := _without(messages[-1], "reasoning_content")) != messages[-1]:
        without["last reasoning_content"] = [*messages[:-1], thoughtless], tools
    whole = rendered(messages, tools) if without else ""
    for what, other in without.items():
        with suppress(DataError):  # a template that refuses what is left does look at it
            if rendered(*other) == whole:
                return what
    return None


def _marked(messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
    """The messages with a mark in each piece of text and each call that may be left out, and what each of these is."""
    pieces: dict[str, str] = {}

    def mark(what: str) -> str:
        pieces[found := f"{PROBE}{len(pieces)}{PROBE}"] = what
        return found

    marked = []
    for number, message in enumerate(messages, start=1):
        whose = "system message" if message["role"] == "system" else f"message {number} ({message['role']})"
        parts = THINKS.split(message.get("content") or "")
        # Where the prompt opens the thoughts, the answer closes them alone.
        thinks, last = message["role"] == ANSWER and parts[1:2] == ["</think>"], number == len(messages)
        for place, part in enumerate(parts):
            if THINKS.fullmatch(part):
                thinks = part == "<think>"
            elif (said := part.rstrip()).strip() and (last or not thinks):
                parts[place] = said + mark(f"thoughts in {whose}" if thinks else whose) + part[len(said) :]
        changed = {"content": "".join(parts)} if parts != [""] else {}
        if message.get("tool_calls"):
            changed["tool_calls"] = [_named(call, mark(f"call of a tool in {whose}")) for call in message["tool_calls"]]
        marked.append({**message, **changed})
    return marked, pieces


def _named(call: Any, mark: str) -> Any:
    """A call of a tool by another name."""
    if isinstance(call.get("function"), dict):
        return {**call, "function": _named(call["function"], mark)}
    return {**call, "name": f"{call.get('name', '')}{mark}"}


def _with_arguments_less(messages: Sequence[Message]) -> Iterator[tuple[int, list[Message]]]:
    """The messages without the arguments of one call, for each that has some, and the number of its message."""
    for place, message in enumerate(messages):
        calls = message.get("tool_calls") or []
        for n, call in enumerate(calls):
            inner = call["function"] if isinstance(call.get("function"), dict) else call
            for key in ARGUMENTS:
                if inner.get(key):
                    emptied = {**inner, key: "" if isinstance(inner[key], str) else {}}
                    less = emptied if inner is call else {**call, "function": emptied}
                    others = {**message, "tool_calls": [*calls[:n], less, *calls[n + 1 :]]}
                    yield place + 1, [*messages[:place], others, *messages[place + 1 :]]


def _without(message: Message, key: str) -> Message:
    return {name: held for name, held in message.items() if name != key}
