r"""Drawing pairs that are no interactions: look them up, and draw again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from torch_geometric_unlearn.utils.csr import PART

from .schema import has_codes, pair_codes, sorted_codes


class KnownPairs:
    r"""A set of pairs that answers by binary search, on the CPU.

    Args:
        pairs (torch.Tensor): Pairs of user and item, int64 :obj:`[2, E]`.
        num_items (int): Number of items.
    """

    def __init__(self, pairs: Tensor, num_items: int) -> None:
        self.num_items = num_items
        #: One number per pair, ascending, int64 :obj:`[*]`.
        self.codes = sorted_codes(pairs.cpu(), num_items)
        if (self.codes[1:] == self.codes[:-1]).any():
            self.codes = self.codes.unique_consecutive()

    def contains(self, user: Tensor, item: Tensor) -> Tensor:
        r"""Tells which pairs are in the set, bool :obj:`[n]`."""
        codes = pair_codes(torch.stack([user, item]), self.num_items)
        return has_codes(self.codes, codes)


def draw_free(
    num: int,
    draw: Callable[[Tensor], Tensor],
    is_taken: Callable[[Tensor, Tensor], Tensor],
    max_draws: int | None = 100,
    dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]:
    r"""Rejection sampling: draws every place, then again those that are taken, some
    places at a time, which only bounds the memory: the values are the same.

    Args:
        num (int): Number of places.
        draw (callable): Returns one value each for some places, int64 :obj:`[n]`,
            from a generator that a place takes the same numbers from in any company.
        is_taken (callable): Tells from places and values which must be drawn again,
            bool :obj:`[n]`.
        max_draws (int, optional): Largest number of draws per place, or :obj:`None`
            where a free value is sure to exist. (default: :obj:`100`)
        dtype (torch.dtype, optional): What to keep the values in.
            (default: :obj:`torch.int64`)

    Returns:
        (torch.Tensor, torch.Tensor): The values, and the places that are still taken,
        int64 :obj:`[*]`.
    """
    out = torch.empty(num, dtype=dtype)

    def attempt(parts: Iterable[Tensor]) -> Tensor:
        taken = [torch.arange(0)]
        for places in parts:
            values = draw(places)
            out[places] = values.to(dtype)
            taken.append(places[is_taken(places, values)])
        return torch.cat(taken)

    ends = range(PART, num + PART, PART)
    pending = attempt(torch.arange(end - PART, min(end, num)) for end in ends)
    num_draws = 1
    while pending.numel() > 0 and (max_draws is None or num_draws < max_draws):
        pending = attempt(pending.split(PART))
        num_draws += 1
    return out, pending
