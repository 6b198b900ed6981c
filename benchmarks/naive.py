"""The definitions one pair at a time in plain transformers, and the algorithm of the paper's released code.

Both are measured on a part of the work and scaled to the whole; the rows say by what.
"""

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contestant import Outcome, Round, spread
from benchmarks.floors import padded, summed_loss
from benchmarks.texts import Work
from icprobe.engine.models import linear_layers
from icprobe.texts.control_tokens import token_ids
from icprobe.texts.prompts import Encoded, encode

PAPER_LENGTH = 512  # tokens to which the released code pads every sequence
PAPER_TASKS = 2  # tasks whose gradients it keeps at a time


@torch.no_grad()
def log_likelihood(model: Any, sequence: Encoded) -> float:
    return -summed_loss(model, padded([sequence], model.device)).item()


def icp(work: Work) -> Round:
    """settings: examples (how many are measured; default 3)."""
    model = work.load_model()
    rows = spread(len(work.train), work.settings.get("examples", 3))

    def run() -> Outcome:
        matrix = np.empty((len(rows), len(work.tasks)), np.float32)
        began, done = time.perf_counter(), 0
        zero = [log_likelihood(model, task) for task in work.targets]
        once = time.perf_counter() - began
        for place, row in enumerate(rows):
            for column, task in enumerate(work.tasks):
                context = work.prompts.one_shot(work.train[row], task)
                sequence = encode(work.tokenizer, context, work.prompts.target(task))
                matrix[place, column] = log_likelihood(model, sequence) - zero[column]
                done += len(sequence.ids)
        share = done / one_shot_tokens(work)
        seconds = once + (time.perf_counter() - began - once) / share
        return Outcome(matrix, rows, seconds=seconds, facts={"measured_examples": len(rows)})

    return run


def one_shot_tokens(work: Work) -> int:
    """Tokens of all one-shot sequences, each counted whole."""
    prefixes = token_ids(work.tokenizer, [work.prompts.one_shot_prefix(z) for z in work.train])
    suffixes = token_ids(work.tokenizer, [work.prompts.separator + work.prompts.document(t) for t in work.tasks])
    before, after = ([len(ids) for ids in side] for side in (prefixes, suffixes))
    return sum(before) * len(after) + sum(after) * len(before)


def attributed(model: Any) -> list[Tensor]:
    """The parameters that gradients are taken for; they alone require one."""
    chosen = [p for module in linear_layers(model).values() for p in module.parameters()]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def influence(work: Work) -> Round:
    """One sequence at a time by autograd; the tasks' gradients are kept, each pair is one product per tensor.

    settings: examples (how many are measured; default 3), tasks (likewise; default 4).
    """
    model = work.load_model()
    parameters = attributed(model)
    rows = spread(len(work.train), work.settings.get("examples", 3))
    columns = spread(len(work.tasks), work.settings.get("tasks", 4))

    def gradient(sequence: Encoded) -> tuple[Tensor, ...]:
        return torch.autograd.grad(summed_loss(model, padded([sequence], model.device)), parameters)

    def run() -> Outcome:
        matrix = np.empty((len(rows), len(columns)), np.float32)
        clock = {"tasks": 0.0, "examples": 0.0, "pairs": 0.0}

        def timed(what: str, began: float) -> None:
            clock[what] += time.perf_counter() - began

        began = time.perf_counter()
        kept = [gradient(work.targets[column]) for column in columns]
        timed("tasks", began)
        for place, row in enumerate(rows):
            began = time.perf_counter()
            of_example = gradient(work.documents[row])
            timed("examples", began)
            began = time.perf_counter()
            for column, of_task in enumerate(kept):
                products = [(x * y).sum().item() for x, y in zip(of_example, of_task, strict=True)]
                matrix[place, column] = sum(products)
            timed("pairs", began)
        seconds = (
            clock["tasks"] * len(work.tasks) / len(columns)
            + clock["examples"] * len(work.train) / len(rows)
            + clock["pairs"] * len(work.train) * len(work.tasks) / (len(rows) * len(columns))
        )
        return Outcome(matrix, rows, columns, seconds, {"measured_examples": len(rows), "measured_tasks": len(columns)})

    return run


def paper(work: Work) -> Round:
    """The released code's loop: for each two tasks every example is differentiated anew, all padded to 512 tokens.

    Computes `influence_log`. settings: examples (how many are measured; default 1). Two tasks are measured.
    """
    model = work.load_model()
    parameters = attributed(model)
    rows = spread(len(work.train), work.settings.get("examples", 1))
    columns = list(range(min(PAPER_TASKS, len(work.tasks))))

    def gradient(sequence: Encoded) -> list[Tensor]:
        # The padding stands behind, carries no label and is masked: it costs time and changes nothing.
        cut = Encoded(sequence.ids[:PAPER_LENGTH], sequence.n_context)
        batch = padded([cut, Encoded(tuple([0] * PAPER_LENGTH), PAPER_LENGTH)], model.device)
        batch = {name: values[:1] for name, values in batch.items()}
        found = torch.autograd.grad(summed_loss(model, batch), parameters)
        return [g.abs().clamp_(1e-4, 1).mul_(g.sign()) for g in found]

    def run() -> Outcome:
        matrix = np.empty((len(rows), len(columns)), np.float32)
        began = time.perf_counter()
        kept = [gradient(work.targets[column]) for column in columns]
        for_tasks = time.perf_counter() - began
        began = time.perf_counter()
        for place, row in enumerate(rows):
            of_example = gradient(work.documents[row])
            for column, of_task in enumerate(kept):
                products = [(x * y).sum().item() for x, y in zip(of_example, of_task, strict=True)]
                matrix[place, column] = sum(math.copysign(1, d) * math.log(abs(d)) for d in products if d)
        for_examples = time.perf_counter() - began
        groups = math.ceil(len(work.tasks) / PAPER_TASKS)
        seconds = for_tasks * len(work.tasks) / len(columns) + for_examples * groups * len(work.train) / len(rows)
        facts = {"measured_examples": len(rows), "measured_tasks": len(columns)}
        return Outcome(matrix, rows, columns, seconds, facts)

    return run
