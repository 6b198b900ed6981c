"""Nearness in the model's own representations: does an example's last hidden state look like a task's?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.engine.batching import packs, spans
from icprobe.engine.network import Network
from icprobe.engine.rows import Row
from icprobe.texts.control_tokens import beginning
from icprobe.texts.prompts import Encoded


def attribute(inputs: Inputs, method: str, batches: Sequence[np.ndarray], batch_tokens: int = 1024) -> Pieces:
    """A[z, t] = cos(e_z, e_t), e = Σ_i i·h_i / Σ_i i over the tokens of a document, h: the last hidden states.

    A task's document is its query and its answer. Source: RDS+, arXiv 2503.01807; the weights are SGPT's, arXiv
    2202.08904.
    """
    network = Network(inputs.model, inputs.capabilities, forward_only=True)
    skipped = tuple(beginning(inputs.tokenizer))
    documents = encode_documents(inputs, batches)
    as_examples = encode_documents(replace(inputs, train=inputs.tasks), [range(len(inputs.tasks))])
    tasks = [as_examples[row] for row in range(len(inputs.tasks))]
    inputs.progress.expect(sum(len(one.ids) for one in [*tasks, *documents.values()]), "token")

    def directions(sequences: Sequence[Encoded]) -> np.ndarray:
        found = directions_of(network, sequences, skipped)
        inputs.progress.update(sum(len(sequence.ids) for sequence in sequences))
        return found

    of_tasks = [
        directions(tasks[pack])
        for pack in packs([len(task.ids) for task in tasks], batch_tokens, not inputs.capabilities.packs)
    ]
    to_tasks = np.concatenate(of_tasks).T
    for rows in batches:
        yield method, rows, (directions([documents[row] for row in rows]) @ to_tasks).astype(np.float32)


@torch.no_grad()
def directions_of(network: Network, sequences: Sequence[Encoded], skipped: tuple[int, ...]) -> np.ndarray:
    """e / ‖e‖ of each sequence: [n, d] float64, of states that are summed in float32."""
    row, points = Row(), []
    for sequence in sequences:
        row.add(sequence.ids)
    states = network.hidden(row)
    for sequence, span in zip(sequences, spans(sequences), strict=True):
        # The token with which all sequences begin says nothing of a text; positions are counted behind it.
        first = len(skipped) if sequence.ids[: len(skipped)] == skipped else 0
        own = states[span][first:].float()
        weights = torch.arange(1, len(own) + 1, dtype=torch.float32, device=own.device)
        points.append((own * (weights / weights.sum())[:, None]).sum(dim=0))
    found = torch.stack(points).cpu().double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)
