"""Responses to the eval prompts: greedy, in batches of prompts of like length, resumable."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from icprobe import jsonl
from icprobe.engine.matmul import Forward, can_pack, onednn_forwards, use_forwards
from icprobe.engine.models import linear_layers, max_positions, resolve_device
from icprobe.errors import DataError
from icprobe.evaluation.stopping import Stops
from icprobe.progress import Progress
from icprobe.texts.chat import Chat
from icprobe.texts.conversations import prompt_shown
from icprobe.texts.prompts import Prompts, token_ids

logger = logging.getLogger(__name__)

NO_STOPS = Stops()
TAIL = 32  # tokens at the end of a response, besides those of a next prompt's first line, in which that is looked for


def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: list[str],
    max_new_tokens: int,
    batch_size: int,
    device: str = "auto",
    stops: Stops = NO_STOPS,
) -> list[str]:
    """The model's greedy response to each text, in the order of the texts.

    A response ends at an end-of-sequence token, after max_new_tokens, where the model's context is full (see
    `batches`), or where a next prompt begins (`stops`); white space at its ends is stripped. Beyond ties of the argmax
    it does not depend on which other texts are generated with it (float32).
    """
    responses = [""] * len(texts)
    with use_forwards(_forwards(model)):
        for indices in batches(model, tokenizer, texts, max_new_tokens, batch_size):
            found = _generate_batch(model, tokenizer, [texts[i] for i in indices], max_new_tokens, device, stops)
            for index, response in zip(indices, found, strict=True):
                responses[index] = response
    return responses


def _forwards(model: PreTrainedModel) -> dict[nn.Module, Forward]:
    """Faster forward passes of a float32 model's linear layers on a CPU.

    None of a large model: behind the few rows of a step it would take longer to put each weight into oneDNN's order.
    """
    head = model.get_output_embeddings()
    layers = [*linear_layers(model).values(), *([head] if isinstance(head, nn.Linear) else [])]
    return onednn_forwards(layers, packed=True) if can_pack(layers) else {}


def batches(
    model: PreTrainedModel, tokenizer: Any, texts: list[str], max_new_tokens: int, batch_size: int
) -> list[list[int]]:
    """Positions of the texts that are generated together: neighbours in length, the longest first.

    A text that leaves less than max_new_tokens of the model's context runs alone, for it must stop before the others.
    Raises DataError for one that fills the context.
    """
    lengths = [len(token_ids(tokenizer, text)) for text in texts]
    limit = max_positions(model.config) or max(lengths, default=0) + max_new_tokens
    for index, length in enumerate(lengths):
        if length >= limit:
            raise no_room(index + 1, length, limit)
    order = sorted(range(len(texts)), key=lambda index: (-lengths[index], index))
    alone = [[index] for index in order if lengths[index] + max_new_tokens > limit]
    others = [index for index in order if lengths[index] + max_new_tokens <= limit]
    return alone + [others[start : start + batch_size] for start in range(0, len(others), batch_size)]


def no_room(prompt: int | str, length: int, limit: int) -> DataError:
    """What to raise of a prompt, by its number or id, whose tokens fill the model's context."""
    return DataError(
        f"Eval prompt {prompt} has {length} tokens and the model's context {limit}: no room for a response. Shorten "
        "the prompt or remove it."
    )


@torch.inference_mode()
def _generate_batch(
    model: PreTrainedModel, tokenizer: Any, texts: list[str], max_new_tokens: int, device: str, stops: Stops
) -> list[str]:
    place = resolve_device(device)
    prompts = [token_ids(tokenizer, text) for text in texts]
    width = max(map(len, prompts))
    limit = max_positions(model.config) or width + max_new_tokens
    ends = ends_of(tokenizer, model.generation_config.eos_token_id) | stops.tokens
    pad = next(iter(ends), 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.full((len(texts), width), pad, dtype=torch.long)  # left-padded: [b, width]
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=min(max_new_tokens, limit - width),
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )
    # generate() fills gaps from the model's own settings; a repetition penalty there would make it something else.
    model.generation_config = greedy
    criteria = StoppingCriteriaList([_NextPrompt(tokenizer, width, stops)] if stops.lines else [])
    sequences = model.generate(
        input_ids=ids.to(place), attention_mask=mask.to(place), generation_config=greedy, stopping_criteria=criteria
    )
    return [response_of(tokenizer, row[width:], ends, stops) for row in sequences.tolist()]


def ends_of(tokenizer: Any, named: int | list[int] | None) -> frozenset[int]:
    """Ids that end a response: the tokenizer's, and those that the model names."""
    named = named if isinstance(named, list) else [named]
    return frozenset(end for end in (tokenizer.eos_token_id, *named) if end is not None)


def response_of(tokenizer: Any, ids: list[int], ends: frozenset[int], stops: Stops) -> str:
    """What of the tokens that follow a prompt is the response: up to an end, or to where a next prompt begins."""
    length = next((position for position, token in enumerate(ids) if token in ends), len(ids))
    return stops.cut(_text(tokenizer, ids[:length]))


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _NextPrompt(StoppingCriteria):
    """Ends a row in which the model, never taught to stop, has begun the next prompt of its own making."""

    def __init__(self, tokenizer: Any, width: int, stops: Stops) -> None:
        self._tokenizer, self._width, self._stops = tokenizer, width, stops
        self._tail = TAIL + stops.longest

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        new = input_ids[:, self._width :]
        whole = new.shape[1] <= self._tail
        texts = [_text(self._tokenizer, row) for row in new[:, -self._tail :].tolist()]
        found = [self._stops.found(text, whole) is not None for text in texts]
        return torch.tensor(found, device=input_ids.device)


def responses(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Prompts | Chat,
    rows: list[dict[str, Any]],
    generator: str,
    settings: dict[str, Any],
    partial: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Responses to the eval prompts, one for each row and in their order: id, subset, instruction, output, generator.

    settings: `max_new_tokens`, `batch_size`, `device` of the configuration's `evaluation`; partial: a folder in which
    finished batches are kept, so that a killed job goes on where it was. Batches form over all prompts whatever is
    done already, so that numbers do not depend on where a job was killed. A response ends where the model runs on into
    a prompt of its own making, as a base model does that was never taught to stop (`Stops`).
    """
    journal = Path(partial) / "responses.jsonl" if partial else None
    done = {row["id"]: row["output"] for row in jsonl.recover(journal)} if journal else {}
    bound = prompts.of(tokenizer)
    texts, stops = [bound.query(row) for row in rows], Stops.of(bound, tokenizer)
    shown = Progress(total=len(rows), desc=f"generating {generator}", unit="prompt")
    with shown as progress, use_forwards(_forwards(model)):
        for indices, found in _remaining(model, tokenizer, texts, rows, settings, stops, done, progress):
            new = [{"id": rows[i]["id"], "output": text} for i, text in zip(indices, found, strict=True)]
            if journal:
                jsonl.append(journal, new)
            done |= {row["id"]: row["output"] for row in new}
    return response_rows(rows, done, generator)


def response_rows(rows: list[dict[str, Any]], done: dict[str, str], generator: str) -> list[dict[str, Any]]:
    """The rows of the responses to the prompts `rows`; says in the log how long they are. done: id -> response."""
    empty = sum(not done[row["id"]] for row in rows)
    words = sum(len(done[row["id"]].split()) for row in rows) / max(len(rows), 1)
    logger.info("%d responses of %s: %.1f words on average, %d empty", len(rows), generator, words, empty)
    return [
        {
            "id": row["id"],
            "subset": row.get("subset"),
            "instruction": prompt_shown(row),
            "output": done[row["id"]],
            "generator": generator,
        }
        for row in rows
    ]


def _remaining(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: list[str],
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    stops: Stops,
    done: dict[str, str],
    progress: Progress,
) -> Iterator[tuple[list[int], list[str]]]:
    new_tokens, device = settings["max_new_tokens"], settings["device"]
    for indices in batches(model, tokenizer, texts, new_tokens, settings["batch_size"]):
        if any(rows[i]["id"] not in done for i in indices):
            with _told(model, progress, len(indices) / new_tokens):
                found = _generate_batch(model, tokenizer, [texts[i] for i in indices], new_tokens, device, stops)
            yield indices, found
            progress.update(len(indices))
        else:
            progress.found(len(indices))


@contextmanager
def _told(model: PreTrainedModel, progress: Progress, share: float) -> Iterator[None]:
    """Within the block each pass of the model, which gives every response a token, counts as a share of the prompts."""
    passes = itertools.count(1)
    handle = model.register_forward_hook(lambda *_: progress.within(share * next(passes)))
    try:
        yield
    finally:
        handle.remove()
