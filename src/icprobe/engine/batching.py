"""How work is cut: examples into batches and shards, sequences into packs, and where each lies in its packed row.

Batches form over all examples of an experiment and a shard is a run of whole batches, so that no number depends on how
many shards, and so jobs, there are. Whoever changes a rule here changes the last bits of results.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pandas as pd

from icprobe.texts.prompts import Encoded

T = TypeVar("T")


# --- examples: batches and shards -------------------------------------------------------------------------------


def batches(lengths: pd.DataFrame, batch_tokens: int) -> list[np.ndarray]:
    """Puts all examples into batches of neighbours in length: the row indices of each, shortest examples first.

    lengths: table id, n_query, n_target, in tokens. Rows are in (length, id) order, and a batch's longest times its
    number of rows is at most `batch_tokens`, which one row alone may exceed.
    """
    total = _tokens(lengths)
    by_id = np.argsort(lengths["id"].to_numpy(dtype=object), kind="stable")
    order = by_id[np.argsort(total[by_id], kind="stable")]
    edges = [0]
    for place, longest in enumerate(total[order].tolist()):
        # Lengths ascend: this row is the longest so far.
        if place > edges[-1] and (place - edges[-1] + 1) * longest > batch_tokens:
            edges.append(place)
    return np.split(order, edges[1:]) if len(order) else []


def shard_of(batches: Sequence[np.ndarray], lengths: pd.DataFrame, number: int, of: int) -> list[int]:
    """Picks the batches of shard `number` (from 1) of `of`, by their indices: consecutive ones."""
    total = _tokens(lengths)
    tokens = np.array([total[batch].sum() for batch in batches], dtype=float)
    return np.flatnonzero(shard_numbers(tokens, of) == number).tolist()


def shard_numbers(tokens: np.ndarray, of: int) -> np.ndarray:
    """Numbers the shards (1 to `of`) that consecutive batches [n] of so many tokens go to, balanced by tokens.

    A batch goes to the shard in which its middle token lies.
    """
    middle = (np.cumsum(tokens) - tokens / 2) / tokens.sum()
    return np.minimum((middle * of).astype(int), of - 1) + 1


def parse_shard(item: str) -> tuple[int, int]:
    """Reads Snakemake's name of a shard: "3-of-16" is (3, 16)."""
    number, of = map(int, item.split("-of-"))
    return number, of


def _tokens(lengths: pd.DataFrame) -> np.ndarray:
    """Tokens of each example's document [N]."""
    return (lengths["n_query"] + lengths["n_target"]).to_numpy()


# --- sequences: packs and their places in a row -----------------------------------------------------------------


def packed(items: Iterable[T], size: Callable[[T], float], limit: float) -> Iterator[list[T]]:
    """Splits a stream into lists of consecutive items whose sizes add up to at most `limit`, at least one item each.

    No more items are taken from the stream than a list holds, and the next one.
    """
    pack: list[T] = []
    used = 0.0
    for item in items:
        if pack and used + size(item) > limit:
            yield pack
            pack, used = [], 0.0
        pack.append(item)
        used += size(item)
    if pack:
        yield pack


def split_by_size(sizes: Sequence[float], limit: float) -> list[list[int]]:
    """`packed` of items that are known by their sizes alone: their indices, in consecutive lists."""
    return list(packed(range(len(sizes)), sizes.__getitem__, limit))


def packs(lengths: Sequence[int], batch_tokens: int, padded: bool = False) -> list[slice]:
    """The same as slices: consecutive sequences whose tokens together are at most `batch_tokens`.

    padded: each counts as the longest of its pack, for a model whose sequences are padded to that.
    """
    if not padded:
        return [slice(pack[0], pack[-1] + 1) for pack in split_by_size(lengths, batch_tokens)]
    edges, longest = [0], 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        if place > edges[-1] and (place - edges[-1] + 1) * longest > batch_tokens:
            edges.append(place)
            longest = length
    return [slice(a, b) for a, b in pairwise([*edges, len(lengths)])] if lengths else []


def spans(sequences: Sequence[Encoded]) -> list[slice]:
    """Where each sequence lies in a packed row, which puts one behind the other."""
    ends = [0]
    for sequence in sequences:
        ends.append(ends[-1] + len(sequence.ids))
    return [slice(a, b) for a, b in pairwise(ends)]
