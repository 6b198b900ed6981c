"""Many token sequences in one row without padding, their attention confined to a tree of segments.

The row goes through any transformers model whose attention is pluggable: linear layers, norms and embeddings see one
long sequence, `segment_attention` sees the tree. Other models take padded batches (`Network.packs` is False).
"""

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from icprobe.errors import ModelError
from icprobe.models import linear_layers
from icprobe.products import through_products

logger = logging.getLogger(__name__)

NAME = "icprobe_segments"
WORTH_SHARING = 4  # tokens


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of a row, which see themselves causally and the segments of `ancestors` wholly."""

    start: int
    end: int
    position: int
    ancestors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Base:
    """What every sequence of a row begins with, computed before: token ids and, for each layer, keys and values."""

    ids: tuple[int, ...]
    keys: list[Tensor]  # per layer [1, key heads, length, d]
    values: list[Tensor]


@dataclass
class Row:
    """A packed row under construction: token ids and the segments they form, behind a base that all of them see."""

    base: Base | None = None
    ids: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    cached_mask: Tensor | None = None
    causal_masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    seen: dict[int, tuple[Tensor, Tensor]] | None = None  # filled with each layer's keys and values where it is a dict

    @property
    def offset(self) -> int:
        """Tokens of the base."""
        return len(self.base.ids) if self.base else 0

    def add(self, ids: Sequence[int], parent: int | None = None) -> int:
        """Appends a segment behind `parent` (index of a segment; None: behind the base). Returns its index.

        In preorder: the parent is the last segment or one of its ancestors, else ValueError.
        """
        ancestors, position = (), self.offset
        if parent is not None:
            last = len(self.segments) - 1
            if parent != last and parent not in self.segments[last].ancestors:
                raise ValueError(f"segment {parent} has been left: segments are added in preorder")
            above = self.segments[parent]
            ancestors, position = (*above.ancestors, parent), above.position + above.end - above.start
        self.segments.append(Segment(len(self.ids), len(self.ids) + len(ids), position, ancestors))
        self.ids += ids
        return len(self.segments) - 1

    def add_tree(self, sequences: Sequence[Sequence[int]], parent: int | None = None) -> list[list[int]]:
        """Appends sequences behind `parent`, what they begin with alike once. Returns the row indices of their tokens.

        A beginning is shared where that saves at least `WORTH_SHARING` tokens; a segment of its own costs as much.
        """
        places: list[list[int]] = [[] for _ in sequences]

        def add(members: list[int], start: int, above: int | None) -> None:
            groups: dict[int, list[int]] = {}
            for member in members:
                if len(sequences[member]) > start:
                    groups.setdefault(sequences[member][start], []).append(member)
            for group in groups.values():
                common = _common([sequences[member] for member in group], start)
                if len(group) > 1 and (common - start) * (len(group) - 1) < WORTH_SHARING:
                    for member in group:
                        put([member], start, len(sequences[member]), above)
                else:
                    put(group, start, common, above)

        def put(group: list[int], start: int, end: int, above: int | None) -> None:
            segment = self.add(sequences[group[0]][start:end], above)
            for member in group:
                places[member] += range(self.segments[segment].start, self.segments[segment].end)
            add(group, end, segment)

        add(list(range(len(sequences))), 0, parent)
        return places

    def positions(self) -> list[int]:
        """Position of each token within its own sequence."""
        return [s.position + i for s in self.segments for i in range(s.end - s.start)]

    def causal_mask(self, s: Segment, dtype: torch.dtype) -> Tensor | None:
        """What a segment adds to its attention scores [length, position + length]; None where it sees but itself."""
        if not s.position:
            return None
        shape = (s.end - s.start, s.position + s.end - s.start)
        if shape not in self.causal_masks:
            self.causal_masks[shape] = torch.full(shape, -torch.inf, dtype=dtype).triu(s.position + 1)
        return self.causal_masks[shape]

    def mask(self, device: torch.device | None = None) -> Tensor:
        """Which token sees which, the base's first, as a dense boolean matrix [S, base + S]."""
        owner = torch.repeat_interleave(
            torch.arange(len(self.segments)), torch.tensor([s.end - s.start for s in self.segments])
        )
        sees = torch.eye(len(self.segments), dtype=torch.bool)
        for index, s in enumerate(self.segments):
            sees[index, list(s.ancestors)] = True
        mask = sees[owner][:, owner]
        causal = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
        within = torch.where(owner[:, None] == owner[None, :], causal, mask)
        return torch.cat([torch.ones(len(owner), self.offset, dtype=torch.bool), within], dim=1).to(device)


def _common(sequences: Sequence[Sequence[int]], start: int) -> int:
    """End of what all sequences have in common from `start` on, where they agree at least in one token."""
    end = start + 1
    shortest = min(map(len, sequences))
    while end < shortest and all(s[end] == sequences[0][end] for s in sequences):
        end += 1
    return end


_segments: ContextVar[Row | None] = ContextVar("segments", default=None)


def segment_attention(
    module: nn.Module,
    query: Tensor,  # [1, heads, S, d]
    key: Tensor,  # [1, key heads, S, d]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """Exact attention within the tree of segments of the row at hand; transformers' attention interface.

    On the CPU each segment is one small product against its ancestors and itself, so that the work is that of the
    tree and not S². On CUDA one call with a dense boolean mask fills the device better.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if unsupported.get(name) is not None:
            raise NotImplementedError(f"segment attention has no {name}")
    row = _segments.get()
    if row.seen is not None:
        row.seen[module.layer_idx] = (key, value)
    if row.base:
        key = torch.cat([row.base.keys[module.layer_idx], key], dim=2)
        value = torch.cat([row.base.values[module.layer_idx], value], dim=2)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and (query.is_cuda or torch.is_grad_enabled()):
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.is_cuda:
        out = scaled_dot_product_attention(query, key, value, attn_mask=row.cached_mask, scale=scaling)
        return out.transpose(1, 2), None
    if torch.is_grad_enabled():
        parts = [_within(query, *_seen(row, s, key, value), s, scaling) for s in row.segments]
        return torch.cat(parts, dim=2).transpose(1, 2), None
    return _along_paths(row, query, key, value, scaling).transpose(1, 2), None


def _seen(row: Row, s: Segment, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the base, a segment's ancestors and itself."""
    first = row.offset
    spans = [slice(0, first)] if first else []
    spans += [slice(first + o.start, first + o.end) for o in (*(row.segments[a] for a in s.ancestors), s)]
    if len(spans) == 1:
        return key[:, :, spans[0]], value[:, :, spans[0]]
    return torch.cat([key[:, :, span] for span in spans], 2), torch.cat([value[:, :, span] for span in spans], 2)


def _along_paths(row: Row, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attention of all segments [1, heads, S, d], each key copied once.

    A segment's tokens are written at their positions into one buffer; as segments come in preorder, what its ancestors
    wrote below its position still stands there when a segment reads it.
    """
    heads, own, first = query.shape[1], key.shape[1], row.offset
    longest = max(s.position + s.end - s.start for s in row.segments)
    seen = query.new_empty(2, own, heads // own, longest, query.shape[3])
    out = torch.empty_like(query)
    if first:
        seen[0, :, :, :first], seen[1, :, :, :first] = key[0, :, None, :first], value[0, :, None, :first]
    for s in row.segments:
        end = s.position + s.end - s.start
        part = slice(first + s.start, first + s.end)
        seen[0, :, :, s.position : end] = key[0, :, None, part]
        seen[1, :, :, s.position : end] = value[0, :, None, part]
        keys, values = seen.view(2, 1, heads, longest, -1)[:, :, :, :end]
        out[:, :, s.start : s.end] = _within(query, keys, values, s, scaling, row.causal_mask(s, query.dtype))
    return out


def _within(
    query: Tensor, key: Tensor, value: Tensor, s: Segment, scaling: float | None, mask: Tensor | None = None
) -> Tensor:
    """Attention of one segment [1, heads, length, d] over what it sees, itself last and causally."""
    length = s.end - s.start
    if s.position and mask is None:
        mask = torch.ones(length, s.position + length, dtype=torch.bool).tril(s.position)
    return scaled_dot_product_attention(
        query[:, :, s.start : s.end], key, value, attn_mask=mask, is_causal=not s.position, scale=scaling
    )


AttentionInterface.register(NAME, segment_attention)


class Network:
    """A causal LM as the engines use it: final hidden states of packed or padded rows, and the LM head apart.

    model: in evaluation mode, parameters frozen. `packs` says whether packed rows give what separate sequences give
    (tried out once, on a few tokens); if not, `hidden` works through padded batches instead and the log says so.
    packed_weights: for forward passes alone; the model's weights must not change while the network is used.
    """

    def __init__(self, model: PreTrainedModel, packed_weights: bool = False) -> None:
        self.model = model
        self.device = model.device
        self.head = model.get_output_embeddings()
        self.embed = model.get_input_embeddings()
        if self.packs_now():
            model.set_attn_implementation("sdpa")  # a model that another Network has used
        through_products(linear_layers(model).values(), packed_weights)
        self._try_head()
        # Where the row's tokens lie in the batch that the model sees (flattened); None where the batch is the row.
        self.places: Tensor | None = None
        self.packs = self._try_packing()

    @torch.no_grad()
    def _try_head(self) -> None:
        ids = torch.tensor([[5, 6, 7, 8]], device=self.device)
        whole = self.model(input_ids=ids, use_cache=False).logits
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        if self.head is None or not torch.allclose(self.head(states), whole, rtol=1e-3, atol=1e-3):
            raise ModelError(
                f"{type(self.model).__name__}: its logits are not its output embedding of its last hidden state; "
                "such a model is not supported."
            )

    @torch.no_grad()
    def _try_packing(self) -> bool:
        name = type(self.model).__name__
        before = self.model.config._attn_implementation
        a, b, c = [5, 6, 7], [8, 9], [7, 5, 6]
        separate = [self._padded([a + b])[0], self._padded([a + c])[0]]
        try:
            self.model.set_attn_implementation(NAME)
            row = Row()
            root = row.add(a)
            row.add(b, root), row.add(c, root)
            packed = self.hidden(row)
            together = torch.cat([packed[:3], packed[3:5], packed[5:8]])
            same = torch.allclose(together, torch.cat([separate[0], separate[1][3:]]), rtol=1e-2, atol=1e-2)
            window = getattr(self.model.config, "sliding_window", None)
            if same and not window:
                return True
            reason = "its attention has a window" if same else "packed and separate sequences differ"
        except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
        self.model.set_attn_implementation(before)
        logger.info("%s: sequences are not packed but padded (%s)", name, reason)
        return False

    @torch.no_grad()
    def remember(self, ids: Sequence[int]) -> Base | None:
        """The beginning of all sequences of later rows, computed once; None where the model cannot be packed."""
        if not ids or not self.packs_now():
            return None
        row = Row(seen={})
        row.add(ids)
        self.hidden(row)
        layers = sorted(row.seen)
        return Base(tuple(ids), [row.seen[n][0] for n in layers], [row.seen[n][1] for n in layers])

    def hidden(self, row: Row) -> Tensor:
        """Final hidden states [S, d] of a packed row, differentiable with respect to the layers' inputs."""
        if not self.packs_now():
            return self._unpacked(row)
        device = self.device
        ids = torch.tensor([row.ids], device=device)
        positions = torch.tensor([row.positions()], device=device)
        if device.type == "cuda":
            row.cached_mask = row.mask(device)[None, None]
        token = _segments.set(row)
        try:
            states = self.model.base_model(
                inputs_embeds=self._embedded(ids), position_ids=positions, use_cache=False
            ).last_hidden_state
        finally:
            _segments.reset(token)
        return states[0]

    def packs_now(self) -> bool:
        """Whether the model at this moment runs with segment attention."""
        return self.model.config._attn_implementation == NAME

    def _embedded(self, ids: Tensor) -> Tensor:
        # Parameters are frozen; gradients flow from here on, to the linear layers' hooks.
        embedded = self.embed(ids)
        return embedded.requires_grad_() if torch.is_grad_enabled() else embedded

    def _unpacked(self, row: Row) -> Tensor:
        """The same states as a packed row's, from a right-padded batch with one sequence for each segment."""
        sequences = []
        for s in row.segments:
            spans = [row.segments[a] for a in s.ancestors]
            sequences.append([t for span in (*spans, s) for t in row.ids[span.start : span.end]])
        states = self._padded(sequences)
        longest = max(map(len, sequences))
        self.places = torch.tensor(
            [
                number * longest + i
                for number, (s, sequence) in enumerate(zip(row.segments, sequences, strict=True))
                for i in range(s.position, len(sequence))
            ],
            device=self.device,
        )
        return torch.cat([h[s.position :] for h, s in zip(states, row.segments, strict=True)])

    def _padded(self, sequences: list[list[int]]) -> list[Tensor]:
        longest = max(map(len, sequences))
        ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences], device=self.device)
        mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=self.device)
        states = self.model.base_model(
            inputs_embeds=self._embedded(ids), attention_mask=mask, use_cache=False
        ).last_hidden_state
        return [h[: len(s)] for h, s in zip(states, sequences, strict=True)]
