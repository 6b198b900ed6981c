"""Responses to the eval prompts by an engine: what is asked, what is kept, and what of an answer is the response."""

import importlib
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from icprobe import execution, jsonl
from icprobe.evaluation import generation
from icprobe.evaluation.engines import ENGINES, Question
from icprobe.evaluation.engines.model import Model
from icprobe.progress import Progress
from icprobe.texts.chat import Chat
from icprobe.texts.prompts import Prompts, token_ids

Engine = Callable[[list[Question], Model, dict[str, Any]], Generator[tuple[str, list[int] | str]]]


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """A job's settings with those that say how an endpoint is asked, which are no params (`icprobe.execution`)."""
    if "endpoint" not in settings:
        return settings
    return settings | {"endpoint": settings["endpoint"] | execution.settings("evaluation")["endpoint"]}


def responses(
    model: Model,
    prompts: Prompts | Chat,
    rows: list[dict[str, Any]],
    generator: str,
    settings: dict[str, Any],
    partial: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Responses to the eval prompts, as `generation.responses` gives them, by the engine that the settings name.

    settings: `engine` with `max_new_tokens` and what the engine reads; partial: a folder in which responses are kept as
    they come, so that a killed job goes on where it was. Raises DataError for a prompt that fills the model's context.
    """
    bound = prompts.of(model.tokenizer)
    waiting = questions(model, [(row["id"], bound.query(row)) for row in rows], settings["max_new_tokens"])
    journal = Path(partial) / "responses.jsonl" if partial else None
    done = {row["id"]: row["output"] for row in jsonl.recover(journal)} if journal else {}
    waiting = [question for question in waiting if question.id not in done]
    engine: Engine = getattr(importlib.import_module(ENGINES[settings["engine"]]), settings["engine"])
    with (
        Progress(total=len(rows), desc=f"generating {generator}", unit="prompt") as progress,
        closing(engine(waiting, model, settings)) as answers,  # its server ends here, whatever goes wrong
    ):
        progress.found(len(done))
        for name, answer in answers if waiting else ():
            done[name] = response(answer, model)
            if journal:
                jsonl.append(journal, [{"id": name, "output": done[name]}])
            progress.update()
    return generation.response_rows(rows, done, generator)


def questions(model: Model, texts: list[tuple[str, str]], max_new_tokens: int) -> list[Question]:
    """The prompts, given as (id, text); a response ends at the latest where the model's context is full."""
    limit, found = model.limit, []
    for name, text in texts:
        ids = token_ids(model.tokenizer, text)
        room = max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids))
        if room <= 0:
            raise generation.no_room(name, len(ids), limit)
        found.append(Question(name, text, ids, room))
    return found


def response(answer: list[int] | str, model: Model) -> str:
    """What of an answer is the response; of token ids, exactly as `evaluation.generation` has it."""
    if not isinstance(answer, str):
        return generation.response_of(model.tokenizer, answer, model.last, model.stops)
    return model.stops.cut(answer)
