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

BLOCK = 128  # queries, and keys, of one of FlexAttention's blocks

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

    @abstractmethod
    def among(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The row's tokens among some of the batch's, flattened and ascending [n]: their places there, and in the row.

        Both ascend.
        """

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

    caches: keys and values [1, key heads, S, d] by layer, where they are asked for.
    """

    def __init__(self, row: Row, way: Way, device: torch.device, caches: bool = False) -> None:
        self.row = row
        self.ids = on_device([row.ids], device)
        self.positions = on_device([row.positions()], device)
        self._way, self._device = way, device
        self._visible: dict[int | None, Any] = {}
        self.caches: dict[int, tuple[Tensor, Tensor]] | None = {} if caches else None
        self._causal_masks: dict[tuple[int, int, int | None], Tensor] = {}

    def arguments(self, embed: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {"inputs_embeds": embed(self.ids), "position_ids": self.positions}

    def of_row(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(0, -2)

    def among(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(len(tokens), device=tokens.device), tokens

    def prefix_cache(self) -> PrefixCache:
        """The keys and values of the row and of its base, for rows that begin with both."""
        keys, values = map(list, zip(*(self.caches[layer] for layer in sorted(self.caches)), strict=True))
        base = self.row.base
        if base:
            keys, values = (
                [torch.cat(pair, dim=2) for pair in zip(before, own, strict=True)]
                for before, own in ((base.keys, keys), (base.values, values))
            )
        return PrefixCache((*(base.ids if base else ()), *self.row.ids), keys, values)

    def visible(self, window: int | None) -> Any:
        """For one attention call over the whole row, a dense mask or FlexAttention's blocks; None: segment by segment.

        window: the layer's, as `Row.mask` takes it.
        """
        if self._way == "segments":
            return None
        if window not in self._visible:
            flex, row, device = self._way == "flex", self.row, self._device
            mask = visible_blocks(row, device, window) if flex else row.mask(device, window)[None, None]
            self._visible[window] = mask
        return self._visible[window]

    def causal_mask(self, s: Segment, dtype: torch.dtype, window: int | None) -> Tensor | None:
        """What a segment adds to its attention scores [length, position + length]; None where all it sees is itself.

        window: the layer's, as `Row.mask` takes it.
        """
        shape = (s.end - s.start, s.position + s.end - s.start)
        window = None if window is None or window >= shape[1] else window
        if not s.position and window is None:
            return None
        if (*shape, window) not in self._causal_masks:
            mask = torch.full(shape, -torch.inf, dtype=dtype).triu(s.position + 1)
            if window is not None:
                mask += torch.full(shape, -torch.inf, dtype=dtype).tril(s.position - window)
            self._causal_masks[(*shape, window)] = mask
        return self._causal_masks[(*shape, window)]


def visible_blocks(row: Row, device: torch.device, window: int | None = None) -> Any:
    """What `Row.mask` says, as FlexAttention's BlockMask.

    Its blocks come from the keys' ends, not from the S² elements of a mask. Those that are called partly visible may
    be wholly invisible where a base stands across a block's border; they are computed in vain.
    """
    from torch.nn.attention.flex_attention import BlockMask  # imports the compiler: seconds

    n, offset, until = len(row.ids), row.offset, row.seen_until()
    key = torch.arange(offset + n, dtype=torch.int32) - offset
    until_on_device, offset_on_device = on_device(until, device), on_device([offset], device, torch.int32)
    places = row.key_positions()
    places_on_device = on_device(places, device)

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key - offset_on_device[0] <= query) & (query < until_on_device[key])

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        apart = places_on_device[query + offset_on_device[0]] - places_on_device[key]
        return seen(batch, head, query, key) & (apart < window)

    short = -len(key) % BLOCK  # the last block of keys is never wholly visible: it is filled up with what nobody sees
    lowest, earliest = (torch.nn.functional.pad(x, (0, short)).view(-1, BLOCK).amin(1) for x in (key, until))
    highest, latest = (torch.nn.functional.pad(x, (0, short)).view(-1, BLOCK).amax(1) for x in (key, until))
    first = torch.arange(0, n, BLOCK)[:, None]
    last = first + BLOCK - 1
    some = (lowest <= last.clamp(max=n - 1)) & (latest > first)
    every = (highest <= first) & (earliest > last)
    if window is not None:
        of_keys = torch.nn.functional.pad(places, (0, short)).view(-1, BLOCK).amin(1)
        of_queries = torch.nn.functional.pad(places[offset:], (0, -n % BLOCK)).view(-1, BLOCK).amax(1)
        every &= of_queries[:, None] - of_keys < window

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        order = blocks.int().argsort(dim=1, descending=True, stable=True)
        return tuple(on_device(x.to(torch.int32)[None, None], device) for x in (blocks.sum(1), order))

    return BlockMask.from_kv_blocks(
        *listed(some & ~every),
        *listed(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen if window is None else near,
        seq_lengths=(n, len(key)),
    )


def on_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of these values on a device; where that is another, nobody waits until they have arrived."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


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
        self.ids = on_device([s + [0] * (longest - len(s)) for s in sequences], device)
        self.mask = on_device([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device)
        self.tokens = on_device(
            [
                number * longest + place
                for number, (s, sequence) in enumerate(zip(row.segments, sequences, strict=True))
                for place in range(s.position, len(sequence))
            ],
            device,
        )

    def arguments(self, embed: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {"inputs_embeds": embed(self.ids), "attention_mask": self.mask}

    def of_row(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(0, -2).index_select(0, self.tokens)

    def among(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.full((self.ids.numel(),), -1, device=tokens.device)
        places[tokens] = torch.arange(len(tokens), device=tokens.device)
        of_row = places[self.tokens]
        inside = of_row >= 0
        return of_row[inside], inside.nonzero()[:, 0]
