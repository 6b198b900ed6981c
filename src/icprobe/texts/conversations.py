"""Conversations as tables hold them: messages as JSON beside Alpaca's fields of the last exchange."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from icprobe.errors import DataError

USER, ANSWER = "user", "assistant"
Message = dict[str, Any]  # role, content; of an answer perhaps tool_calls


def flat(text: Any) -> str:
    """Makes one space of every run of white space, and strips the ends; null counts as empty."""
    return "" if text is None or text != text else " ".join(str(text).split())


def full_instruction(row: Mapping[str, Any]) -> str:
    """Joins the instruction with the input below it, where there is one, as AlpacaEval's files have it."""
    return row["instruction"] + (f"\n\n{row['input']}" if flat(row.get("input")) else "")


def messages_of(row: Mapping[str, Any]) -> list[Message]:
    """The conversation of a table's row; Alpaca's fields are one exchange.

    The last message is the answer as `output` has it, which may have been cut; a row without one waits for an answer.
    """
    answer = [{"role": ANSWER, "content": row["output"]}] if row.get("output") else []
    held = row.get("messages")
    if not isinstance(held, str):
        return [{"role": USER, "content": full_instruction(row)}, *answer]
    messages = json.loads(held)
    if messages[-1]["role"] != ANSWER:
        return [*messages, *answer]
    last = messages.pop()
    return [*messages, last if last.get("tool_calls") else answer[0]]


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools that a row describes; None for none."""
    return json.loads(row["tools"]) if isinstance(row.get("tools"), str) else None


def check_one_exchange(row: Mapping[str, Any]) -> None:
    """Raises DataError for a conversation that Alpaca's fields do not hold whole: Jinja templates see these alone."""
    if not isinstance(row.get("messages"), str):
        return
    roles = [message["role"] for message in json.loads(row["messages"])]
    if roles not in ([USER], [USER, ANSWER]) or tools_of(row):
        what = (
            "describes tools" if tools_of(row) else f"is a conversation of {len(roles)} turns ({', '.join(roles[:4])})"
        )
        raise DataError(
            f"row {row.get('id')}: it {what}, of which a Jinja template would read the last exchange alone; set "
            "templates.format: chat."
        )


def exchanges(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]]]:
    """A conversation as (text of the system, [(what is said to the assistant, its answer)])."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    found: list[tuple[str, str]] = []
    said: list[str] = []
    for message in messages:
        if message["role"] == ANSWER:
            calls = [json.dumps(message["tool_calls"], ensure_ascii=False)] if message.get("tool_calls") else []
            found.append(("\n\n".join(said), "\n".join([*filter(None, [message["content"]]), *calls])))
            said = []
        elif message["role"] != "system":
            said.append(message["content"])
    return system, found
