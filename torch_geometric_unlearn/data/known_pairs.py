r"""Drawing pairs that are no interactions: look them up, and draw again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .schema import pair_codes


class KnownPairs:
    r"""A set of pairs that answers by binary search, on the CPU.

    Args:
        pairs (torch.Tensor): Pairs of user and item, int64 :obj:`[2, E]`.
        num_items (int): Number of items.
    """

    def __init__(self, pairs: Tensor, num_items: int) -> None:
        self.num_items = num_items
        #: One number per pair, ascending, int64 :obj:`[*]`.
        self.codes = pair_codes(pairs.cpu(), num_items).unique()

    def contains(self, user: Tensor, item: Tensor) -> Tensor:
        r"""Tells which pairs are in the set, bool :obj:`[n]`."""
        if self.codes.numel() == 0:
            return torch.zeros_like(user, dtype=torch.bool)
        code = pair_codes(torch.stack([user, item]), self.num_items)
        place = torch.searchsorted(self.codes, code)
        return self.codes[place.clamp_(max=self.codes.numel() - 1)] == code


def draw_free(
    num: int,
    draw: Callable[[Tensor], Tensor],
    is_taken: Callable[[Tensor, Tensor], Tensor],
    max_draws: int | None = 100,
) -> tuple[Tensor, Tensor]:
    r"""Rejection sampling: draws every place, then again those that are taken.

    Args:
        num (int): Number of places.
        draw (callable): Returns one value each for some places, int64 :obj:`[n]`.
        is_taken (callable): Tells from places and values which must be drawn again,
            bool :obj:`[n]`.
        max_draws (int, optional): Largest number of draws per place, or :obj:`None`
            where a free value is sure to exist. (default: :obj:`100`)

    Returns:
        (torch.Tensor, torch.Tensor): The values, and the places that are still taken,
        int64 :obj:`[*]`.
    """
    pending = torch.arange(num)
    out = draw(pending)
    pending = pending[is_taken(pending, out)]
    num_draws = 1
    while pending.numel() > 0 and (max_draws is None or num_draws < max_draws):
        out[pending] = draw(pending)
        pending = pending[is_taken(pending, out[pending])]
        num_draws += 1
    return out, pending
