"""What a chat template leaves out of a conversation."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from icprobe.texts.conversations import Message

# Stands for a text where another is looked for; Unicode keeps it out of all texts.
PROBE = "\ufdd3"
# Between these a model thinks, in the words of a turn.
THINKS_FROM = "<think>"
THINKS = re.compile(r"(</?think>)")


def left_out(rendered: Callable[[Sequence[Message], Any], str], messages: list[Message], tools: Any) -> str | None:
    """The first thing that a template does not write, in words: words of a message, tools or their calls, thoughts.

    rendered: what the template makes of messages and tools. Thoughts, which templates leave out of turns that are
    answered, are to be in the last turn alone. None where all is written.
    """
    marked, pieces = _marked(messages)
    text = rendered(marked, tools)
    if lost := [what for mark, what in pieces.items() if mark not in text]:
        return lost[0]
    without = {"tools": (messages, None)} if tools else {}
    if (uncalled := [_without(message, "tool_calls") for message in messages]) != messages:
        without["calls of tools"] = uncalled, tools
    without |= {f"{n}. call of a tool": (less, tools) for n, less in enumerate(_with_a_call_less(messages), start=1)}
    if (thoughtless := _without(messages[-1], "reasoning_content")) != messages[-1]:
        without["last reasoning_content"] = [*messages[:-1], thoughtless], tools
    whole = rendered(messages, tools) if without else ""
    return next((what for what, other in without.items() if rendered(*other) == whole), None)


def _marked(messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
    """The messages with a mark behind each piece of text that a template may leave out, and what each piece is."""
    pieces: dict[str, str] = {}
    marked = []
    for number, message in enumerate(messages, start=1):
        last, thinks, parts = number == len(messages), False, []
        for part in THINKS.split(message.get("content") or ""):
            if THINKS.fullmatch(part):
                thinks = part == THINKS_FROM
            elif part.strip() and (last or not thinks):
                mark = f"{PROBE}{len(pieces)}{PROBE}"
                whose = "system message" if message["role"] == "system" else f"message {number} ({message['role']})"
                pieces[mark] = f"thoughts in {whose}" if thinks else whose
                part = part.rstrip() + mark + part[len(part.rstrip()) :]
            parts.append(part)
        marked.append({**message, "content": "".join(parts)} if parts != [""] else message)
    return marked, pieces


def _without(message: Message, key: str) -> Message:
    return {name: held for name, held in message.items() if name != key}


def _with_a_call_less(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The messages without one of the calls of a message that has several, once for each."""
    for place, message in enumerate(messages):
        calls = message.get("tool_calls") or []
        for n in range(len(calls) if len(calls) > 1 else 0):
            less = {**message, "tool_calls": [*calls[:n], *calls[n + 1 :]]}
            yield [*messages[:place], less, *messages[place + 1 :]]
