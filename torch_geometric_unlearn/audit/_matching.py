r"""Draws of pairs that an audit compares."""

from __future__ import annotations

import torch
from torch import Tensor


def match(
    members: Tensor,
    others: Tensor,
    key: Tensor,
    row: int,
    max_examples: int,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    r"""Draws equally many pairs of two kinds per user (row 0) or item (row 1).

    Args:
        members (torch.Tensor): Pairs of one kind, int64 :obj:`[2, n]`.
        others (torch.Tensor): Pairs of the other kind, int64 :obj:`[2, m]`.
        key (torch.Tensor): Members with a lower key come first :obj:`[n]`; others are
            shuffled.
        row (int): What pairs are matched by.
        max_examples (int): Largest number of pairs per kind.
        rng (torch.Generator): For shuffling.

    Returns:
        (torch.Tensor, torch.Tensor): The pairs of both kinds that are kept, int64
        :obj:`[2, k]` each.
    """
    members = members[:, key.argsort()]
    others = others[:, torch.randperm(others.size(1), generator=rng)]
    known = torch.cat([members[row], others[row]])
    size = int(known.max()) + 1 if known.numel() > 0 else 1
    sides = []
    for pairs, against in ((members, others), (others, members)):
        pairs = pairs[:, pairs[row].argsort(stable=True)]
        limit = against[row].bincount(minlength=size)
        sides.append(pairs[:, occurrence(pairs[row]) < limit[pairs[row]]])
    keep = torch.randperm(sides[0].size(1), generator=rng)[:max_examples]
    return sides[0][:, keep], sides[1][:, keep]


def occurrence(ids: Tensor) -> Tensor:
    r"""Returns for sorted ids how often each has come before, int64 :obj:`[n]`."""
    _, count = ids.unique_consecutive(return_counts=True)
    start = (count.cumsum(0) - count).repeat_interleave(count)
    return torch.arange(ids.numel()) - start
