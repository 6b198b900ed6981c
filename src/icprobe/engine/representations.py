"""Texts as points: mean hidden states, for choosing tasks that differ."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from icprobe.engine.capabilities import Capabilities
from icprobe.engine.network import Network
from icprobe.engine.rows import Row
from icprobe.progress import Progress
from icprobe.texts.control_tokens import beginning, token_ids


@torch.no_grad()
def mean_hidden_states(model: Any, capabilities: Capabilities, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Mean of the final hidden states over the tokens of each text: [texts, d] float32."""
    network = Network(model, capabilities, forward_only=True)
    encoded, first = token_ids(tokenizer, texts), beginning(tokenizer)
    points = []
    for ids in Progress(encoded, desc="hidden states", unit="text"):
        row = Row()
        row.add(ids)
        # The token with which all sequences begin says nothing of a text, and may be larger than all others together.
        skipped = len(first) if ids[: len(first)] == first else 0
        points.append(network.hidden(row)[skipped:].float().mean(dim=0).cpu().numpy())
    return np.stack(points)
