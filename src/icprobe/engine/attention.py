"""Exact attention confined to a packed row's tree of segments, as an attention function of transformers."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from icprobe.engine.execution import Packed, under_way
from icprobe.engine.rows import Row, Segment

NAME = "icprobe_segments"


def segment_attention(
    module: nn.Module,
    query: Tensor,  # [1, heads, S, d]
    key: Tensor,  # [1, key heads, S, d]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unsupported: Any,
) -> tuple[Tensor, None]:
    """Exact attention within the tree of segments of the row at hand; transformers' attention interface.

    sliding_window: how many tokens, itself among them, a token sees; softcap: c of scores c·tanh(score/c); s_aux: each
    head's sink [heads], a score that takes its share and gives nothing.

    On the CPU each segment is one small product against its ancestors and itself, so that the work is that of the
    tree and not S². A row that carries what is `visible` takes one call, as fills a CUDA device: FlexAttention, which
    skips the blocks that no token sees, or, with a dense mask, PyTorch's own attention.
    """
    if unsupported.get("position_bias") is not None:
        raise NotImplementedError("segment attention has no position_bias")
    if attention_mask is not None:  # transformers makes none of its own for this attention
        raise NotImplementedError("segment attention has no mask but the row's")
    execution: Packed = under_way()
    row, visible = execution.row, execution.visible(sliding_window)
    kind = Kind(scaling, sliding_window, softcap, s_aux)
    if execution.caches is not None:
        execution.caches[module.layer_idx] = (key, value)
    if row.base:
        key = torch.cat([row.base.keys[module.layer_idx], key], dim=2)
        value = torch.cat([row.base.values[module.layer_idx], value], dim=2)
    groups = query.shape[1] // key.shape[1]
    # FlexAttention's backward pass does not compile for shared heads (PyTorch 2.11).
    if groups > 1 and (isinstance(visible, Tensor) or torch.is_grad_enabled()):
        key, value, groups = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1), 1
    if visible is not None and not isinstance(visible, Tensor):
        if s_aux is not None:
            raise NotImplementedError("FlexAttention has no sinks")
        options = {"block_mask": visible, "scale": scaling, "enable_gqa": groups > 1}
        out = flexible(query.is_cuda)(query, key, value, score_mod=_capped(softcap), **options)
        return out.transpose(1, 2), None
    if visible is not None:
        return kind.attend(query, key, value, visible).transpose(1, 2), None
    if torch.is_grad_enabled():
        parts = [_within(execution, query, *_seen(row, s, key, value), s, kind) for s in row.segments]
        return torch.cat(parts, dim=2).transpose(1, 2), None
    return _attend_by_segment(execution, query, key, value, kind).transpose(1, 2), None


@dataclass(frozen=True)
class Kind:
    """What attention is apart from the row: the keyword arguments of `segment_attention`."""

    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention [1, heads, S, d]. mask: which scores count, or what is added to them; None: each
        token sees itself and those before it.
        """
        if self.softcap is None and self.sinks is None:
            return scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.scaling
            )
        scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if self.scaling is None else self.scaling)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is None:
            mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        scores = scores.float()
        if self.sinks is not None:
            sinks = self.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sinks], dim=3)
        return scores.softmax(3)[..., : key.shape[2]].to(value.dtype) @ value


@functools.cache
def _capped(softcap: float | None) -> Callable[..., Tensor] | None:
    """FlexAttention's function of a score; one object for each cap, so that nothing is compiled twice."""
    return None if softcap is None else lambda score, *_: torch.tanh(score / softcap) * softcap


@functools.cache
def flexible(compiled: bool) -> Callable[..., Tensor]:
    """PyTorch's FlexAttention; uncompiled it is exact but forms all scores."""
    from torch.nn.attention.flex_attention import flex_attention  # imports the compiler: seconds

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def _seen(row: Row, s: Segment, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the base, a segment's ancestors and itself."""
    first = row.offset
    spans = [slice(0, first)] if first else []
    spans += [slice(first + o.start, first + o.end) for o in (*(row.segments[a] for a in s.ancestors), s)]
    if len(spans) == 1:
        return key[:, :, spans[0]], value[:, :, spans[0]]
    return torch.cat([key[:, :, span] for span in spans], 2), torch.cat([value[:, :, span] for span in spans], 2)


def _attend_by_segment(execution: Packed, query: Tensor, key: Tensor, value: Tensor, kind: Kind) -> Tensor:
    """Attention of all segments [1, heads, S, d], each key copied once.

    A segment's tokens are written at their positions into one buffer; as segments come in preorder, what its ancestors
    wrote below its position still stands there when a segment reads it.
    """
    row = execution.row
    heads, own, first = query.shape[1], key.shape[1], row.offset
    longest = max(s.position + s.end - s.start for s in row.segments)
    # Keys and values may be of different widths.
    seen = [query.new_empty(own, heads // own, longest, tensor.shape[3]) for tensor in (key, value)]
    out = query.new_empty(*query.shape[:3], value.shape[3])
    if first:
        seen[0][:, :, :first], seen[1][:, :, :first] = key[0, :, None, :first], value[0, :, None, :first]
    for s in row.segments:
        end = s.position + s.end - s.start
        part = slice(first + s.start, first + s.end)
        seen[0][:, :, s.position : end] = key[0, :, None, part]
        seen[1][:, :, s.position : end] = value[0, :, None, part]
        keys, values = (tensor.view(1, heads, longest, -1)[:, :, :end] for tensor in seen)
        out[:, :, s.start : s.end] = _within(execution, query, keys, values, s, kind)
    return out


def _within(execution: Packed, query: Tensor, key: Tensor, value: Tensor, s: Segment, kind: Kind) -> Tensor:
    """Attention of one segment [1, heads, length, d] over what it sees, itself last and causally."""
    return kind.attend(query[:, :, s.start : s.end], key, value, execution.causal_mask(s, query.dtype, kind.window))


AttentionInterface.register(NAME, segment_attention)
