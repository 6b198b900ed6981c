"""The floors: what the machine and plain transformers need for the work that no engine can avoid."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from benchmarks.contestant import Outcome, Round
from benchmarks.texts import Work
from icprobe.engine.matmul import matmul as onednn_matmul
from icprobe.engine.models import linear_layers
from icprobe.texts.prompts import Encoded


def matmul(work: Work) -> Round:
    """Rate of the products that a forward pass consists of: every weight of the blocks once, behind batch_tokens rows.

    The weights are the model's own, one after another, so that they come from memory as in a forward pass.
    settings: seconds (at least that long; default 5), ours (by icprobe's product instead of PyTorch's linear).
    """
    model = work.load_model()
    weights = [module.weight for module in linear_layers(model).values()]
    widths = {w.shape[1] for w in weights} | {w.shape[0] for w in weights}
    inputs = {n: torch.randn(work.batch_tokens, n, dtype=model.dtype, device=model.device) for n in widths}
    transposed = type(next(iter(linear_layers(model).values()))).__name__ == "Conv1D"
    weights = [w.T if transposed else w for w in weights]
    operations = 2.0 * work.batch_tokens * sum(w.numel() for w in weights)

    multiply = onednn_matmul if work.settings.get("ours") else linear

    @torch.no_grad()
    def once() -> None:
        for weight in weights:
            multiply(inputs[weight.shape[1]], weight)

    def run() -> Outcome:
        once()
        synchronise(model.device)
        began, passes = time.perf_counter(), 0
        while time.perf_counter() - began < work.settings.get("seconds", 5):
            once()
            synchronise(model.device)
            passes += 1
        seconds = time.perf_counter() - began
        return Outcome(seconds=seconds, facts={"rate": passes * operations / seconds})

    return run


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def padded(sequences: Sequence[Encoded], device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels of a right-padded batch; contexts and padding carry no label."""
    longest = max(len(s.ids) for s in sequences)
    rest = [longest - len(s.ids) for s in sequences]
    columns = {
        "input_ids": [[*s.ids, *[0] * n] for s, n in zip(sequences, rest, strict=True)],
        "attention_mask": [[1] * len(s.ids) + [0] * n for s, n in zip(sequences, rest, strict=True)],
        "labels": [
            [-100] * s.n_context + list(s.ids[s.n_context :]) + [-100] * n for s, n in zip(sequences, rest, strict=True)
        ],
    }
    return {name: torch.tensor(values, device=device) for name, values in columns.items()}


def summed_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Σ −log p over all labelled tokens of a batch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), reduction="sum", ignore_index=-100
    )


def training_step(work: Work) -> Round:
    """Forward and backward over all examples and tasks with the gradients of all weights summed, no optimiser.

    settings: one_by_one (each sequence alone, nothing padded; default batches by length).
    """
    model = work.load_model().requires_grad_(True)
    batches: list[list[Encoded]] = []
    for sequences, rows in zip((work.documents, work.targets), work.sorted_batches, strict=True):
        wanted = [[i] for run in rows for i in run] if work.settings.get("one_by_one") else rows
        batches += [[sequences[i] for i in run] for run in wanted]

    def run() -> Outcome:
        model.zero_grad(set_to_none=False)
        for batch in batches:
            summed_loss(model, padded(batch, model.device)).backward()
        synchronise(model.device)
        return Outcome(facts={"tokens": sum(len(s.ids) for batch in batches for s in batch)})

    return run


def step_and_forwards(work: Work) -> Round:
    """One forward and backward pass for each example, and a forward pass over all tasks for each: one_step's floor."""
    model = work.load_model().requires_grad_(True)
    rows = work.sorted_batches[1]

    def run() -> Outcome:
        for document in work.documents:
            model.zero_grad(set_to_none=False)
            summed_loss(model, padded([document], model.device)).backward()
            with torch.no_grad():
                for batch in rows:
                    summed_loss(model, padded([work.targets[i] for i in batch], model.device))
        synchronise(model.device)
        return Outcome()

    return run
