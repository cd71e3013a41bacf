r"""Draws of pairs that an audit compares."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_unlearn.utils.seed import generator


class Matcher:
    r"""Draws equally many pairs of two kinds per user.

    Args:
        seed (int): Seed of the draw.
        max_examples (int): Largest number of pairs per kind.
    """

    def __init__(self, seed: int, max_examples: int) -> None:
        self.rng = generator(seed)
        self.max_examples = max_examples

    def __call__(self, members: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns the pairs of both kinds that are kept, int64 :obj:`[2, n]` each."""
        key = torch.rand(members.size(1), generator=self.rng)
        members = members[:, key.argsort()]
        perm = torch.randperm(others.size(1), generator=self.rng)
        return self.limited(members, others[:, perm], 0)

    def limited(
        self, members: Tensor, others: Tensor, row: int
    ) -> tuple[Tensor, Tensor]:
        r"""Returns the first pairs of both kinds, equally many per entry of
        :obj:`row`, and a random part of these within the cap.
        """
        sides = []
        for pairs, against in ((members, others), (others, members)):
            pairs = pairs[:, pairs[row].argsort(stable=True)]
            size = 1 + max(_maximum(pairs[row]), _maximum(against[row]))
            limit = against[row].bincount(minlength=size)
            sides.append(pairs[:, occurrence(pairs[row]) < limit[pairs[row]]])
        keep = torch.randperm(sides[0].size(1), generator=self.rng)
        keep = keep[: self.max_examples]
        return sides[0][:, keep], sides[1][:, keep]


def occurrence(ids: Tensor) -> Tensor:
    r"""Returns for sorted ids how often each has come before, int64 :obj:`[n]`."""
    _, count = ids.unique_consecutive(return_counts=True)
    start = (count.cumsum(0) - count).repeat_interleave(count)
    return torch.arange(ids.numel()) - start


def _maximum(ids: Tensor) -> int:
    return int(ids.max()) if ids.numel() > 0 else 0
