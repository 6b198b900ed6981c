"""Columns of texts that no format reads: a user who does not know that they count for nothing is told."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from icprobe.templating import names_in

logger = logging.getLogger(__name__)

CONTEXT = "context"  # what a question is about, as in Dolly's rows
# Earlier turns, and system messages, as some trainers read them beside these formats.
OF_CONVERSATIONS = {"alpaca": ("system", "history"), "prompt_completion": ("history",), "preference": ("history",)}


def tell(frame: pd.DataFrame, origin: str, found: str, read: Collection[str], in_memory: bool) -> None:
    """Warns of columns with texts that belong to what is asked, and that nothing reads.

    frame: as the file says; origin: what it comes from; found: its format; read: columns that are mapped, or labels.
    in_memory: of such rows nothing maps the columns.
    """
    lost = {name.lower(): name for name in map(str, frame) if name not in read and any(map(_said, frame.get(name, [])))}
    if found in ("alpaca", "prompt_completion") and CONTEXT in lost:
        columns = {"input": lost[CONTEXT]}
        if found != "alpaca":
            answers = [name for name in ("completion", "response") if name in frame]
            columns = {"instruction": "prompt", **columns, **({"output": answers[0]} if answers else {})}
        mapped = f"{{{', '.join(f'{ours}: {theirs}' for ours, theirs in columns.items())}}}"
        way = "rename it to input" if in_memory else f"write columns: {mapped}"
        if any(map(_said, frame.get("input", []))):
            way = "write it into input"
        logger.warning('%s: "%s" is not read; where it belongs to what is asked, %s', origin, lost[CONTEXT], way)
    told = [f'"{lost[name]}"' for name in OF_CONVERSATIONS.get(found, ()) if name in lost]
    if told:
        logger.warning(
            "%s: %s %s not read; where models are to see %s, make the rows conversations (docs/chat.md)",
            *(origin, " and ".join(told)),
            *(("is", "it") if len(told) == 1 else ("are", "them")),
        )


def _said(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else isinstance(value, list | tuple) and len(value) > 0


def tell_of_inputs(table: pd.DataFrame, templates: Mapping[str, Any], what: str) -> None:
    """Warns where rows have inputs that the template of queries leaves out; templates: the configuration's."""
    if templates.get("format") == "chat" or "input" in names_in(templates["query"]):
        return
    if n := int(table["input"].str.strip().astype(bool).sum()):
        logger.warning("templates.query does not use input, which %d of %d %s have", n, len(table), what)
