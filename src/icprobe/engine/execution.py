"""One row on its way through a model: packed as it stands, or padded where the model cannot read it so.

Hooks of linear layers see tensors alone. What row these belong to is said by `under_way` while the model runs, and
nowhere else; attention asks there, too, for a model with code of its own need not hand arguments of its call on to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from icprobe.engine.rows import PrefixCache, Row, Segment

# How attention goes through a packed row: segment by segment, or at once by FlexAttention or with a dense mask.
Way = Literal["segments", "flex", "mask"]

_under_way: ContextVar["Execution"] = ContextVar("under_way")


class Execution(ABC):
    """A row as the batch that a model sees: what the model is called with, and which of its tokens are the row's."""

    row: Row

    @abstractmethod
    def arguments(self, embed: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What the model is called with."""

    @abstractmethod
    def of_row(self, tensor: Tensor) -> Tensor:
        """What a tensor of the batch [..., width] says of the row's tokens: [S, width]."""

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Within the block what the model computes is this row's."""
        token = _under_way.set(self)
        try:
            yield
        finally:
            _under_way.reset(token)


def under_way() -> Execution:
    """The row that the model is computing. Raises LookupError where no row is under way."""
    return _under_way.get()


class Packed(Execution):
    """A row as one sequence; `attention.segment_attention` lets a token see its own segment and those above it.

    visible: for one attention call over the whole row, a dense mask or FlexAttention's blocks; None: segment by
    segment. caches: keys and values [1, key heads, S, d] by layer, where they are asked for.
    """

    def __init__(self, row: Row, way: Way, device: torch.device, caches: bool = False) -> None:
        self.row = row
        self.ids = torch.tensor([row.ids], device=device)
        self.positions = torch.tensor([row.positions()], device=device)
        self.visible: Any = None
        if way != "segments":
            self.visible = visible_blocks(row, device) if way == "flex" else row.mask(device)[None, None]
        self.caches: dict[int, tuple[Tensor, Tensor]] | None = {} if caches else None
        self._causal_masks: dict[tuple[int, int], Tensor] = {}

    def arguments(self, embed: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {"inputs_embeds": embed(self.ids), "position_ids": self.positions}

    def of_row(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(0, -2)

    def prefix_cache(self) -> PrefixCache:
        """The row's keys and values, for rows that begin with it."""
        keys, values = zip(*(self.caches[layer] for layer in sorted(self.caches)), strict=True)
        return PrefixCache(tuple(self.row.ids), list(keys), list(values))

    def causal_mask(self, s: Segment, dtype: torch.dtype) -> Tensor | None:
        """What a segment adds to its attention scores [length, position + length]; None where it sees but itself."""
        if not s.position:
            return None
        shape = (s.end - s.start, s.position + s.end - s.start)
        if shape not in self._causal_masks:
            self._causal_masks[shape] = torch.full(shape, -torch.inf, dtype=dtype).triu(s.position + 1)
        return self._causal_masks[shape]


def visible_blocks(row: Row, device: torch.device) -> Any:
    """What `Row.mask` says, as FlexAttention's BlockMask."""
    from torch.nn.attention.flex_attention import create_block_mask  # imports the compiler: seconds

    offset, (owner, sees) = row.offset, (tensor.to(device) for tensor in row.tree())

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key - offset).clamp(min=0)
        mine, its = owner[query], owner[own]
        return (key < offset) | torch.where(mine == its, own <= query, sees[mine, its])

    return create_block_mask(
        visible, None, None, len(owner), offset + len(owner), device=device, _compile=device.type == "cuda"
    )


class Padded(Execution):
    """A right-padded batch with one sequence for each segment of the row, behind what it sees.

    tokens: where the row's tokens lie in the batch, flattened [S].
    """

    def __init__(self, row: Row, device: torch.device) -> None:
        self.row = row
        sequences = []
        for s in row.segments:
            seen = [*(row.segments[a] for a in s.ancestors), s]
            sequences.append([t for o in seen for t in row.ids[o.start : o.end]])
        longest = max(map(len, sequences))
        self.ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences], device=device)
        self.mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=device)
        self.tokens = torch.tensor(
            [
                number * longest + place
                for number, (s, sequence) in enumerate(zip(row.segments, sequences, strict=True))
                for place in range(s.position, len(sequence))
            ],
            device=device,
        )

    def arguments(self, embed: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {"inputs_embeds": embed(self.ids), "attention_mask": self.mask}

    def of_row(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(0, -2).index_select(0, self.tokens)
