"""Conversations as tables hold them: messages as JSON beside Alpaca's fields of the last exchange."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from icprobe.errors import DataError

USER, ANSWER = "user", "assistant"
Message = dict[str, Any]  # role, content; of an answer perhaps tool_calls and reasoning_content


def dumps(value: Any) -> str:
    """Messages, tools or calls of tools as a table holds them."""
    return json.dumps(value, ensure_ascii=False)


def calls_of(message: Mapping[str, Any]) -> str:
    """The calls of tools of a message, as text; empty without any."""
    return dumps(message["tool_calls"]) if message.get("tool_calls") else ""


def flat(text: Any) -> str:
    """Makes one space of every run of white space, and strips the ends; null counts as empty."""
    return "" if text is None or text != text else " ".join(str(text).split())


def full_instruction(row: Mapping[str, Any]) -> str:
    """Joins the instruction with the input below it, where there is one, as AlpacaEval's files have it."""
    return row["instruction"] + (f"\n\n{row['input']}" if flat(row.get("input")) else "")


def prompt_shown(row: Mapping[str, Any]) -> str:
    """What an answer is to, as a judge or a reader is shown it: of a conversation all that was said before."""
    return full_instruction(row) if is_plain(row.get("messages"), row.get("tools")) else before(row)


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
    # An answer that is a call of tools has it for an output.
    cut = {} if last.get("tool_calls") else {"content": row.get("output") or ""}
    return [*messages, {**last, **cut}]


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools that a row describes; None for none."""
    return json.loads(row["tools"]) if isinstance(row.get("tools"), str) else None


def is_plain(messages: Any, tools: Any = None) -> bool:
    """Whether a conversation, as a table holds it, is one exchange that Alpaca's fields hold whole."""
    if not isinstance(messages, str):
        return True
    said = json.loads(messages)
    one = [message["role"] for message in said] in ([USER, ANSWER], [USER])
    return one and not isinstance(tools, str) and said[-1].keys() == {"role", "content"}


def check_one_exchange(row: Mapping[str, Any]) -> None:
    """Raises DataError for a conversation that Alpaca's fields do not hold whole: Jinja templates see these alone."""
    if is_plain(row.get("messages"), row.get("tools")):
        return
    roles = [message["role"] for message in json.loads(row["messages"])]
    turns = f"is a conversation of {len(roles)} turns ({', '.join(roles[:4])})"
    what = turns if len(roles) > 2 else "has tools, calls or thoughts beside its texts"
    raise DataError(
        f"row {row.get('id')}: it {what}, of which a Jinja template would read the last exchange alone; set "
        "templates.format: chat."
    )


def before(row: Mapping[str, Any]) -> str:
    """What is said in a conversation before its last answer, as text: each turn behind the name of its role."""
    return "\n\n".join(f"{m['role']}: {m['content']}{calls_of(m)}" for m in unanswered(messages_of(row)))


def unanswered(messages: list[Message]) -> list[Message]:
    """The turns before the last answer."""
    return messages[:-1] if messages[-1]["role"] == ANSWER else messages


def exchanges(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]]]:
    """A conversation as (text of the system, [(what is said to the assistant, its answer)])."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    found: list[tuple[str, str]] = []
    said: list[str] = []
    for message in messages:
        if message["role"] == ANSWER:
            answer = filter(None, [message.get("reasoning_content"), message["content"], calls_of(message)])
            found.append(("\n\n".join(said), "\n".join(answer)))
            said = []
        elif message["role"] != "system":
            said.append(message["content"])
    return system, found
