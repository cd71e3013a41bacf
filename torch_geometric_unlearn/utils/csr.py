r"""Bringing entries in the order of their rows, part by part, so that hardly more is
held than what comes out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Entries that are brought in order at a time, each of which takes some 60 bytes then.
PART = 2**22


def row_starts(count: Tensor) -> Tensor:
    r"""Returns where every row starts, and the end, int64 :obj:`[N + 1]`, given the
    number of entries per row, int64 :obj:`[N]`.
    """
    out = count.new_zeros(count.numel() + 1)
    torch.cumsum(count, 0, out=out[1:])
    return out


def row_places(row: Tensor, start: Tensor) -> Iterator[tuple[slice, Tensor]]:
    r"""Yields parts of the entries with their places int64 :obj:`[n]` when all are
    ordered by row, where those of one row keep their order.

    Args:
        row (torch.Tensor): Row of every entry, int64 :obj:`[E]`.
        start (torch.Tensor): Where every row starts, int64 :obj:`[N]`.
    """
    free = start.clone()
    for first in range(0, row.numel(), PART):
        part = slice(first, first + PART)
        target, order = row[part].sort(stable=True)
        number = torch.arange(target.numel(), device=row.device)
        is_first = torch.ones_like(target, dtype=torch.bool)
        is_first[1:] = target[1:] != target[:-1]
        within = number - torch.where(is_first, number, 0).cummax(0)[0]
        place = torch.empty_like(order)
        place[order] = free[target] + within
        free.index_add_(0, target, torch.ones_like(target))
        yield part, place


def index_dtype(*sizes: int) -> torch.dtype:
    r"""Returns the smallest type of indices into all of these sizes: int32 or int64."""
    return torch.int32 if max(sizes) < 2**31 else torch.int64
