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
MARKERS = re.compile(r"(<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\])")  # at any of these a template may cut the last answer
ARGUMENTS = "arguments"  # as templates call those of a call
NO_VALUES = {"id", "call_id", "tool_call_id", "type", "name", "index", "status"}  # of a call
NOTHING = ("", "{}", "[]", "null", {}, [])  # the first as JSON


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
    without |= {what: (less, tools) for what, less in _with_a_value_less(messages)}
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
        last, answers = number == len(messages), message["role"] == ANSWER
        parts = (MARKERS if last else THINKS).split(message.get("content") or "")
        thinks = answers and _opened_before(message.get("content") or "")
        for place, part in enumerate(parts):
            if THINKS.fullmatch(part):
                thinks = answers and part == "<think>"
            elif (said := part.strip()) and not MARKERS.fullmatch(part) and (last or not thinks):
                what = f"thoughts in {whose}" if thinks else whose
                # Of answers that are answered, a template may leave out thoughts between markers of its own.
                first = "" if answers and not last else mark(what)
                parts[place] = part.replace(said, first + said + mark(what), 1)
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


def _opened_before(content: str) -> bool:
    """Whether an answer ends thoughts that the prompt has opened; else it mentions the tag in a sentence."""
    before, *tag = THINKS.split(content, maxsplit=1)
    said = before.rstrip()
    at_an_end = said[-1:] in ".!?…。！？" or "\n" in before[len(said) :] + "".join(tag[1:])[:1]
    return tag[:1] == ["</think>"] and (at_an_end or before[-1:] not in " \t`'\"(“‘")


def _with_a_value_less(messages: Sequence[Message]) -> Iterator[tuple[str, list[Message]]]:
    """The messages without one value of one call, such as its arguments, for each that has some, and what that is."""
    for place, message in enumerate(messages):
        calls = message.get("tool_calls") or []
        for n, call in enumerate(calls):
            values = [*_emptied(call)]
            known = any(key == ARGUMENTS for key, _ in values)
            for key, less in values:
                what = f"arguments of a call in message {place + 1}"
                if key != ARGUMENTS:
                    way = "" if known else f" (rename that to {ARGUMENTS!r}, as templates call it)"
                    what = f"{what} under {key!r}{way}"
                others = {**message, "tool_calls": [*calls[:n], less, *calls[n + 1 :]]}
                yield what, [*messages[:place], others, *messages[place + 1 :]]


def _emptied(call: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A call of a tool with one value less, for each that it has, and the value's name."""
    for key, held in call.items():
        if key == "function" and isinstance(held, dict):
            yield from ((name, {**call, key: less}) for name, less in _emptied(held))
        elif isinstance(held, dict | list | str) and key not in NO_VALUES:
            said = "".join(held.split()) if isinstance(held, str) else held
            yield from [] if said in NOTHING else [(key, {**call, key: type(held)()})]


def _without(message: Message, key: str) -> Message:
    return {name: held for name, held in message.items() if name != key}
