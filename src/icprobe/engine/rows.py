"""Packed rows: many token sequences one behind another without padding, as a tree of segments."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

WORTH_SHARING = 4  # tokens


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of a row, which see themselves causally and the segments of `ancestors` wholly."""

    start: int
    end: int
    position: int
    ancestors: tuple[int, ...] = ()


@dataclass(frozen=True)
class PrefixCache:
    """What every sequence of a row begins with, computed before: token ids and, for each layer, keys and values."""

    ids: tuple[int, ...]
    keys: list[Tensor]  # per layer [1, key heads, length, d]
    values: list[Tensor]


@dataclass
class Row:
    """A packed row under construction: token ids and the segments they form, behind a base that all of them see."""

    base: PrefixCache | None = None
    ids: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

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

    def seen_until(self) -> Tensor:
        """Of each key, the base's first: the end of the row's tokens that see it [base + S], int32.

        In preorder what stands below a segment follows it: a token sees exactly the keys that are not behind it and
        whose end it does not reach.
        """
        ends = [s.end for s in self.segments]
        for index in reversed(range(len(ends))):
            if above := self.segments[index].ancestors:
                ends[above[-1]] = max(ends[above[-1]], ends[index])
        lengths = torch.tensor([self.offset, *(s.end - s.start for s in self.segments)])
        return torch.tensor([len(self.ids), *ends], dtype=torch.int32).repeat_interleave(lengths)

    def mask(self, device: torch.device | None = None, window: int | None = None) -> Tensor:
        """Which token sees which, the base's first, as a dense boolean matrix [S, base + S].

        window: how many tokens of its own sequence, itself the last of them, a token sees at most.
        """
        query = torch.arange(len(self.ids), dtype=torch.int32, device=device)[:, None]
        key = torch.arange(-self.offset, len(self.ids), dtype=torch.int32, device=device)
        seen = (key <= query) & (query < self.seen_until().to(device))
        if window is None:
            return seen
        places = self.key_positions().to(device)
        return seen & (places[self.offset :, None] - places < window)

    def key_positions(self) -> Tensor:
        """Position of each key within its own sequence, the base's first [base + S], int32."""
        return torch.tensor([*range(self.offset), *self.positions()], dtype=torch.int32)


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Counts the tokens that all sequences begin with alike."""
    return next(
        (i for i, column in enumerate(zip(*sequences, strict=False)) if len(set(column)) > 1), min(map(len, sequences))
    )


def _common(sequences: Sequence[Sequence[int]], start: int) -> int:
    """End of what all sequences have in common from `start` on, where they agree at least in one token."""
    end = start + 1
    shortest = min(map(len, sequences))
    while end < shortest and all(s[end] == sequences[0][end] for s in sequences):
        end += 1
    return end
