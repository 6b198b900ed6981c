"""Operations of a piece of work, counted as a textbook would: two for each multiplication with an addition."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from icprobe.engine.models import linear_layers


def attributed_parameters(model: Any) -> int:
    """Weights of the linear layers in the blocks."""
    return sum(module.weight.numel() for module in linear_layers(model).values())


@contextmanager
def counted(model: Any) -> Iterator[dict[str, float]]:
    """Within the block counts what the blocks' linear layers multiply in forward passes: `operations`, `tokens`."""
    total = {"operations": 0.0, "tokens": 0.0}
    layers = list(linear_layers(model).values())

    def hook(module: nn.Module, inputs: tuple, _output: Any) -> None:
        rows = inputs[0].numel() // inputs[0].shape[-1]
        total["operations"] += 2.0 * rows * module.weight.numel()
        if module is layers[0]:
            total["tokens"] += rows

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def head_operations(model: Any, targets: int) -> float:
    """Logits over the whole vocabulary at `targets` positions."""
    return 2.0 * targets * model.get_output_embeddings().weight.numel()


def attention_operations(model: Any, seen: float) -> float:
    """Scores and weighted sums of `seen` pairs of a token and one that it sees, in all layers."""
    return 4.0 * seen * model.config.hidden_size * model.config.num_hidden_layers


def seen_behind(prefix: int, length: int) -> float:
    """Pairs of a token and one that it sees, of `length` tokens that stand behind `prefix` others."""
    return length * prefix + length * (length + 1) / 2


def icp_operations(work: Any, model: Any, linear: dict[str, float]) -> float:
    """Of a whole ICP matrix: the linear layers as counted, the head at target positions, attention behind prefixes.

    Attention is reckoned without shared beginnings of tasks, then scaled by the tokens that were really computed.
    """
    from icprobe.texts.prompts import token_ids

    prompts, tokenizer = work.prompts, work.tokenizer
    suffixes = [len(token_ids(tokenizer, prompts.separator + prompts.document(task))) for task in work.tasks]
    prefixes = [len(token_ids(tokenizer, prompts.one_shot_prefix(example))) for example in work.train]
    seen = sum(
        seen_behind(0, prefix) + sum(seen_behind(prefix, length) for length in suffixes) for prefix in prefixes
    ) + sum(seen_behind(0, length) for length in suffixes)
    tokens = sum(prefixes) + (len(prefixes) + 1) * sum(suffixes)
    targets = (len(prefixes) + 1) * sum(task.n_target for task in work.targets)
    attention = attention_operations(model, seen) * min(1.0, linear["tokens"] / tokens)
    return linear["operations"] + head_operations(model, targets) + attention


def influence_operations(work: Any, model: Any) -> float:
    """Of an influence matrix: forward, backward and per-example weight gradients, then N·M products of gradients."""
    parameters = attributed_parameters(model)
    sequences = [*work.documents, *work.targets]
    tokens = sum(len(s.ids) for s in sequences)
    targets = sum(s.n_target for s in sequences)
    # The head's backward pass needs logits again or keeps them: forward and input gradient alone are counted.
    seen = sum(seen_behind(0, len(s.ids)) for s in sequences)
    return (
        6.0 * parameters * tokens
        + 2 * head_operations(model, targets)
        + 3 * attention_operations(model, seen)
        + 2.0 * parameters * len(work.documents) * len(work.targets)
    )
