"""Rows as conversations: messages, ShareGPT's, prompts with completions, preferences; one form for all of them.

Every row becomes `messages`, a list of {"role", "content"} as JSON, and beside it Alpaca's fields of the last exchange,
which reports and judges read: `instruction` is the last thing that the user says before the last answer, `output` this
answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from icprobe.errors import DataError, reason, shown
from icprobe.tables.reading import parse
from icprobe.texts.conversations import ANSWER, USER, calls_of, dumps, is_plain

# The columns that a format needs, each by any of these names.
NEEDS = {
    "messages": [("messages",)],
    "sharegpt": [("conversations",)],
    "prompt_completion": [("prompt",), ("completion", "response")],
    "preference": [("chosen",)],
}
COLUMNS = {"tools", *(column for needed in NEEDS.values() for any_of in needed for column in any_of)}
HELD = ("messages", "tools")  # columns of a table that hold JSON
# What published files call the roles, in small letters.
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), ANSWER),
    "system": "system",
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
}
# Besides role and content, for templates: our name, and what others call it.
KEPT = {
    ANSWER: {"tool_calls": (), "reasoning_content": ("thinking", "reasoning")},
    "tool": {"name": (), "tool_call_id": ()},
}


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
) -> tuple[pd.DataFrame, list[int], dict[str, int]]:
    """Brings rows of a format other than Alpaca's into the one form.

    frame: by our names; places: where each row stands. Returns the rows with instruction, input, output and, unless
    all of them are one plain exchange of texts, `messages` and, where any has tools, `tools`, both as JSON; which rows
    of the frame they are; and counts: "turns", those without an answer at the end of a conversation, that are left away
    ("drop" alone), and "rows", those that are dropped for an answer that is missing or empty. Raises DataError for what
    cannot be understood.
    """
    made, kept, counts = [], [], {"turns": 0, "rows": 0}
    for at, (where, row) in enumerate(zip(places, frame.to_dict("records"), strict=True)):
        messages = _messages(row, name, where)
        answered = _answered(messages, where, on_empty == "drop") if needs_output else _waiting(messages)
        if answered is None:
            counts["rows"] += 1
            continue
        counts["turns"] += len(messages) - len(answered) if needs_output else 0
        exchange = _last_exchange(answered, where)
        if not needs_output and not _none(row.get("output")) and row["output"] != "":
            if exchange["output"] and str(row["output"]) != exchange["output"]:
                raise DataError(f'{where}: "output" is another text than the conversation\'s own answer; remove one.')
            exchange["output"] = row["output"]  # beside a prompt: the gold answer, or the base model's response
        made.append({**exchange, **_held(answered, _tools(row, where), where)})
        kept.append(at)
    rows = pd.DataFrame(made, columns=["instruction", "input", "output", *HELD], dtype=object)
    texts = name in ("prompt_completion", "preference") and all(map(is_plain, rows["messages"], rows["tools"]))
    unused = [*(["messages"] if texts else []), *(["tools"] if rows["tools"].isna().all() else [])]
    # What the file calls so is another thing.
    others = frame.iloc[kept].reset_index(drop=True).drop(columns={*rows} & {*frame})
    return pd.concat([others, rows.drop(columns=unused)], axis=1), kept, counts


def _held(messages: list[dict[str, Any]], tools: list[Any] | None, where: str) -> dict[str, str | None]:
    """A row's messages and tools as JSON."""
    held = {"messages": dumps(messages), "tools": dumps(tools) if tools else None}
    try:
        "".join(filter(None, held.values())).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: holds half a surrogate pair, which is not valid text; correct the row.") from None
    return held


def _messages(row: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """A row's messages, normalised."""
    if name in ("messages", "sharegpt"):
        column = NEEDS[name][0][0]
        found = _list(row.get(column), column, where)
    else:
        prompt = _turns(row.get("prompt"), USER, "prompt", where)
        if name == "preference":
            found = _chosen(prompt, _turns(row.get("chosen"), ANSWER, "chosen", where), where)
        else:
            key = "completion" if not _none(row.get("completion")) or "response" not in row else "response"
            found = [*prompt, *_turns(row.get(key), ANSWER, key, where)]
    if not found:
        raise DataError(f"{where}: holds no turn.")
    return _with_system(found, row.get("system"), where)


def _chosen(prompt: list[dict[str, Any]], chosen: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The conversation of a preference; some files repeat the prompt in each answer."""
    if any(message["role"] != ANSWER for message in chosen):
        if prompt and chosen[: len(prompt)] != prompt:
            raise DataError(f'{where}: "chosen" is a whole conversation that does not begin with "prompt".')
        return chosen
    if not prompt:
        raise DataError(f'{where}: "prompt" is missing, and "chosen" holds the answer alone.')
    return [*prompt, *chosen]


def _with_system(messages: list[dict[str, Any]], system: Any, where: str) -> list[dict[str, Any]]:
    """The messages with the system message that stands in a column of its own, where there is one."""
    if _none(system) or system == "":
        return messages
    said = {"role": "system", "content": _content(system, False, f'{where}: "system"')}
    if messages[0]["role"] != "system":
        return [said, *messages]
    if messages[0] != said:
        raise DataError(f'{where}: "system" is another text than the conversation\'s own system message; remove one.')
    return messages


def _turns(value: Any, role: str, column: str, where: str) -> list[dict[str, Any]]:
    """What a column holds, a text by one role or messages, which may be JSON."""
    if _none(value):
        return []
    if not isinstance(value, str):
        return _list(value, column, where)
    try:
        found = parse(value) if value.lstrip().startswith("[") else None
    except ValueError:
        found = None
    talk = isinstance(found, list) and found and all(isinstance(m, dict) and {"role", "from"} & {*m} for m in found)
    return _list(found, column, where) if talk else [{"role": role, "content": value}]


def _list(value: Any, column: str, where: str) -> list[dict[str, Any]]:
    value = _plain(_parsed(value, column, where))
    if not isinstance(value, list) or not value:
        raise DataError(f'{where}: "{column}" is {shown(value)}; a list of messages is needed.')
    return [_message(message, f'{where}: message {n} of "{column}"') for n, message in enumerate(value, start=1)]


def _parsed(value: Any, column: str, where: str) -> Any:
    """A value that may be JSON."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value) if value.strip() else None
    except ValueError as error:
        raise DataError(f'{where}: "{column}" is text that is no JSON ({reason(error)}); a list is needed.') from None


def _plain(value: Any) -> Any:
    """Lists and mappings as JSON has them, without keys that are null: parquet gives all rows the keys of any."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(held) for key, held in value.items() if not _none(held)}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {shown(message)}, not a mapping of role and content.")
    said = message.get("role", message.get("from"))
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise DataError(f"{where} has the role {shown(said)}; roles are system, user, assistant and tool.")
    if role == ANSWER and message.get("weight") == 0:
        raise DataError(f"{where} has the weight 0; every assistant turn counts here, so remove the key or the row.")
    others = {}
    for ours, theirs in KEPT.get(role, {}).items():
        if value := next((message[name] for name in (ours, *theirs) if message.get(name)), None):
            others[ours] = value
    if calls := others.get("tool_calls"):
        found = _plain(_parsed(calls, "tool_calls", where))
        found = [_parsed(call, "tool_calls", where) for call in found] if isinstance(found, list) else [None]
        if not all(isinstance(call, Mapping) for call in found):
            raise DataError(f'{where}: "tool_calls" is {shown(calls)}; a list of calls is needed.')
        others["tool_calls"] = found
    content = message.get("content", message.get("value"))
    return {"role": role, "content": _content(content, bool(calls), where), **others}


def _content(content: Any, calls: bool, where: str) -> str:
    """A message's text; that of a call of tools may be null."""
    if _none(content):
        if calls:
            return ""
        raise DataError(f"{where} has no content; a text is needed.")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{where} has {shown(content)} for content; a text is needed.")
    texts = []
    for part in content:
        kind, text = (part.get("type", "text"), part.get("text")) if isinstance(part, Mapping) else ("text", part)
        if kind != "text" or not isinstance(text, str):
            raise DataError(f"{where} has a part of type {shown(kind)} that is no text; icprobe reads texts alone.")
        texts.append(text)
    return "".join(texts)


def _answered(messages: list[dict[str, Any]], where: str, drop: bool) -> list[dict[str, Any]] | None:
    """The messages up to the last answer, all of which say something; None for a row that is to be dropped.

    Raises DataError for a turn behind the last answer and for an answer that is empty, unless `drop`.
    """
    end = max((place for place, message in enumerate(messages, start=1) if message["role"] == ANSWER), default=0)
    if end < len(messages) and not drop:
        raise DataError(
            f"{where}: the conversation ends with a turn of the {messages[-1]['role']}, to which there is no answer; "
            "remove the turn, or set data.on_empty: drop to leave it away."
        )
    if end and all(map(_says, messages[:end])):
        return messages[:end]
    if drop:
        return None
    raise DataError(
        f"{where}: an assistant turn is empty. An example needs a response; remove the line or set data.on_empty: drop."
    )


def _waiting(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a prompt: without an empty answer at the end, which is none."""
    return messages if _says(messages[-1]) else messages[:-1]


def _says(message: Mapping[str, Any]) -> bool:
    return message["role"] != ANSWER or bool(message["content"].strip() or message.get("tool_calls"))


def _last_exchange(messages: Sequence[dict[str, Any]], where: str) -> dict[str, str]:
    """Alpaca's fields of a conversation; one that waits for an answer has no output."""
    answer = messages[-1] if messages and messages[-1]["role"] == ANSWER else {"content": ""}
    asked = next((message["content"] for message in reversed(messages) if message["role"] == USER), None)
    if asked is None:
        raise DataError(f"{where}: the conversation has no turn of the user before its last answer.")
    return {"instruction": asked, "input": "", "output": answer["content"] or calls_of(answer)}


def _tools(row: Mapping[str, Any], where: str) -> list[Any] | None:
    """The tools that a row describes; None for none."""
    tools = _plain(_parsed(row.get("tools"), "tools", where))
    if _none(tools):
        return None
    tools = [tools] if isinstance(tools, dict) and tools else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f'{where}: "tools" is {shown(tools)}; a list of tools is needed, each a mapping.')
    return tools or None


def _none(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)
