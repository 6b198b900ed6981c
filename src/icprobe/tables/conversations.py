"""Rows as conversations: messages, ShareGPT's, prompts with completions, preferences; one form for all of them.

Every row becomes `messages`, a list of {"role", "content"} as JSON, and beside it Alpaca's fields of the last exchange,
which reports and judges read: `instruction` is the last thing that the user says before the last answer, `output` this
answer.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from icprobe.errors import DataError, shown

# The columns that a format needs, each by any of these names.
NEEDS = {
    "messages": [("messages",)],
    "sharegpt": [("conversations",)],
    "prompt_completion": [("prompt",), ("completion", "response")],
    "preference": [("chosen",)],
}
HELD = ("messages", "tools")  # columns of a table that hold JSON
USER, ANSWER = "user", "assistant"
# What published files call the roles, in small letters.
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), ANSWER),
    "system": "system",
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
}
KEPT = {ANSWER: ("tool_calls",), "tool": ("name", "tool_call_id")}  # besides role and content, for templates


def format_of(names: Iterable[str], asked: str, columns: Mapping[str, str], needs_output: bool) -> str:
    """Which format rows have, by their columns. asked: the configuration's `format`; columns: {our name: theirs}.

    auto takes Alpaca's fields where they are there or mapped, for they say most; then the first format whose columns
    are there.
    """
    names = {*names, *columns}
    if asked != "auto":
        return asked
    if names & {"instruction", *(["output"] if needs_output else [])}:
        return "alpaca"
    for name, needed in NEEDS.items():
        if all(names & {*any_of} for any_of in needed):
            return name
    return "prompt_completion" if "prompt" in names and not needs_output else "alpaca"


def check_columns(names: Iterable[str], origin: str, name: str, needs_output: bool, known: str) -> None:
    """Raises DataError where a table lacks a column of its format. known: what it has, for the message."""
    names = {*names}
    for any_of in NEEDS[name][: None if needs_output else 1]:
        if not names & {*any_of}:
            columns = " or ".join(map(repr, any_of))
            raise DataError(
                f"{origin}: has no column {columns}, which rows of the format {name} have; {known}. Set `format` to "
                "what they are, or leave it out."
            )


def read(
    frame: pd.DataFrame, name: str, places: Sequence[str], on_empty: str, needs_output: bool
) -> tuple[pd.DataFrame, list[str], dict[str, int]]:
    """Brings rows of a format other than Alpaca's into the one form.

    frame: by our names; places: where each row stands. Returns the rows with instruction, input, output and, unless
    all of them are plain texts, `messages` and, where any has tools, `tools`, both as JSON; their places; and counts:
    "turns", those without an answer at the end of a conversation, that are left away ("drop" alone), and "rows", those
    that are dropped for an answer that is missing or empty. Raises DataError for what cannot be understood.
    """
    drop = on_empty == "drop"
    kept, counts = [], {"turns": 0, "rows": 0}
    for at, (where, row) in enumerate(zip(places, frame.to_dict("records"), strict=True)):
        messages = _messages(row, name, where)
        if needs_output:
            answered = _answered(messages, where, drop)
            counts["turns"] += len(messages) - len(answered) if answered else 0
            if not answered or not all(map(_says, answered)):
                if not drop:
                    raise DataError(
                        f"{where}: an assistant turn is empty. An example needs a response; remove the line or set "
                        "data.on_empty: drop."
                    )
                counts["rows"] += 1
                continue
            messages = answered
        kept.append((at, {**_last_exchange(messages, where), "messages": messages, "tools": _tools(row, where)}))
    if not kept:
        return frame[:0].assign(instruction=[], input=[], output=[]), [], counts
    rows = pd.DataFrame([made for _, made in kept], dtype=object)
    plain = name in ("prompt_completion", "preference") and all(map(_is_plain, rows["messages"]))
    rows["messages"] = rows["messages"].map(dumps)
    unused = [*(["messages"] if plain else []), *(["tools"] if rows["tools"].isna().all() else [])]
    rows = rows.drop(columns=unused)
    chosen = [at for at, _ in kept]
    others = frame.iloc[chosen].reset_index(drop=True).drop(columns=[c for c in rows if c in frame])
    return pd.concat([others, rows], axis=1), [places[at] for at in chosen], counts


def dumps(value: Any) -> str:
    """Messages or tools as a table holds them."""
    return json.dumps(value, ensure_ascii=False)


def _messages(row: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """A row's messages, normalised."""
    if name in ("messages", "sharegpt"):
        column = NEEDS[name][0][0]
        return _list(row.get(column), column, where)
    prompt = _turns(row.get("prompt"), USER, "prompt", where)
    if name == "prompt_completion":
        key = "completion" if not _none(row.get("completion")) or "response" not in row else "response"
        return [*prompt, *_turns(row.get(key), ANSWER, key, where)]
    chosen = _turns(row.get("chosen"), ANSWER, "chosen", where)
    # Some files repeat the prompt in each answer.
    if any(message["role"] != ANSWER for message in chosen):
        if prompt and chosen[: len(prompt)] != prompt:
            raise DataError(f'{where}: "chosen" is a whole conversation that does not begin with "prompt".')
        return chosen
    if not prompt:
        raise DataError(f'{where}: "prompt" is missing, and "chosen" holds the answer alone.')
    return [*prompt, *chosen]


def _turns(value: Any, role: str, column: str, where: str) -> list[dict[str, Any]]:
    """What a column holds, a text by one role or messages."""
    if _none(value):
        return []
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return [{"role": role, "content": value}]
    return _list(value, column, where)


def _list(value: Any, column: str, where: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f'{where}: "{column}" is text without JSON; a list of messages is needed.') from None
    if _none(value) or not isinstance(value, Sequence) or not len(value):
        raise DataError(f'{where}: "{column}" is {shown(value)}; a list of messages is needed.')
    return [_message(message, f'{where}: message {n} of "{column}"') for n, message in enumerate(value, start=1)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {shown(message)}, not a mapping of role and content.")
    said = message.get("role", message.get("from"))
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise DataError(f"{where} has the role {shown(said)}; roles are system, user, assistant and tool.")
    if message.get("weight") == 0:
        raise DataError(f"{where} has the weight 0; every assistant turn counts here, so remove the key or the row.")
    content = message.get("content", message.get("value"))
    others = {key: message[key] for key in KEPT.get(role, ()) if message.get(key)}
    return {"role": role, "content": _content(content, bool(others.get("tool_calls")), where), **others}


def _content(content: Any, calls: bool, where: str) -> str:
    """A message's text; that of a call of tools may be null."""
    if _none(content):
        if calls:
            return ""
        raise DataError(f"{where} has no content; a text is needed.")
    if isinstance(content, str):
        if not content.isascii() and content.encode("utf-8", "replace").decode() != content:
            raise DataError(f"{where} holds half a surrogate pair, which is not valid text; correct the row.")
        return content
    if isinstance(content, Sequence):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        kinds = [part.get("type", "text") if isinstance(part, Mapping) else "text" for part in content]
        if all(kind == "text" and isinstance(part, str) for part, kind in zip(parts, kinds, strict=True)):
            return _content("".join(parts), calls, where)
        odd = next(kind for part, kind in zip(parts, kinds, strict=True) if kind != "text" or not isinstance(part, str))
        raise DataError(f"{where} has a part of type {shown(odd)} that is no text; icprobe reads texts alone.")
    raise DataError(f"{where} has {shown(content)} for content; a text is needed.")


def _answered(messages: list[dict[str, Any]], where: str, drop: bool) -> list[dict[str, Any]]:
    """The messages up to the last answer; none without one. Raises DataError for a turn behind it, unless `drop`."""
    end = max((place for place, message in enumerate(messages, start=1) if message["role"] == ANSWER), default=0)
    if end < len(messages) and not drop:
        last = messages[-1]["role"]
        raise DataError(
            f"{where}: the conversation ends with a turn of the {last}, to which there is no answer; remove the turn, "
            "or set data.on_empty: drop to leave it away."
        )
    return messages[:end]


def _says(message: Mapping[str, Any]) -> bool:
    return message["role"] != ANSWER or bool(message["content"].strip() or message.get("tool_calls"))


def _last_exchange(messages: Sequence[dict[str, Any]], where: str) -> dict[str, str]:
    """Alpaca's fields of a conversation; one that waits for an answer has no output."""
    *before, last = messages if messages[-1]["role"] == ANSWER else [*messages, {"content": ""}]
    asked = next((message["content"] for message in reversed(before) if message["role"] == USER), None)
    if asked is None:
        raise DataError(f"{where}: the conversation has no turn of the user before its last answer.")
    return {"instruction": asked, "input": "", "output": last["content"] or _calls(last)}


def _calls(message: Mapping[str, Any]) -> str:
    """What an answer that only calls tools has for a text in tables."""
    return dumps(message["tool_calls"]) if message.get("tool_calls") else ""


def _tools(row: Mapping[str, Any], where: str) -> str | None:
    """The tools that a row describes, as JSON; None for none."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise DataError(f'{where}: "tools" is text without JSON; a list of tools is needed.') from None
    return None if _none(tools) or not len(tools) else dumps(list(tools))


def _is_plain(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation is one exchange, as Alpaca's fields hold it."""
    return [message["role"] for message in messages] in ([USER, ANSWER], [USER]) and "tool_calls" not in messages[-1]


def _none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
