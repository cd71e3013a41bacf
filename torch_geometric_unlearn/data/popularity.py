r"""Items that are as popular as others, and that a user isn't known to like."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_unlearn.utils.seed import generator

from .known_pairs import KnownPairs, draw_free


def popularity_matched_pairs(
    pairs: Tensor, known: Tensor, train_items: Tensor, num_items: int, seed: int = 0
) -> Tensor:
    r"""Replaces the item of every pair by a random one from the same popularity decile
    that the user isn't known to like.

    Pairs for which a hundred draws find none are left out.

    Args:
        pairs (torch.Tensor): Pairs to match, int64 :obj:`[2, n]`.
        known (torch.Tensor): Known positives, int64 :obj:`[2, *]`.
        train_items (torch.Tensor): Item of every training interaction, int64
            :obj:`[E]`.
        num_items (int): Number of items.
        seed (int, optional): Seed of the draw. (default: :obj:`0`)

    Returns:
        torch.Tensor: Pairs, int64 :obj:`[2, m]` with :math:`m \leq n`.
    """
    matcher = PopularityMatcher(known, train_items, num_items, seed)
    item, found = matcher(pairs)
    return torch.stack([pairs[0], item])[:, found]


class PopularityMatcher:
    r"""Draws items as popular as given ones that a user isn't known to like.

    Args:
        known (torch.Tensor): Known positives, int64 :obj:`[2, *]`.
        train_items (torch.Tensor): Item of every training interaction, int64
            :obj:`[E]`.
        num_items (int): Number of items.
        seed (int, optional): Seed of the draws. (default: :obj:`0`)
    """

    def __init__(
        self, known: Tensor, train_items: Tensor, num_items: int, seed: int = 0
    ) -> None:
        self.generator = generator(seed)
        self.num_items = num_items
        self.known = KnownPairs(known, num_items)
        count = train_items.cpu().bincount(minlength=num_items)
        self.order = count.argsort(stable=True)
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(num_items)
        self.decile = place * 10 // num_items
        self.first = -(-(torch.arange(10) * num_items) // 10)
        end = torch.cat([self.first[1:], torch.tensor([num_items])])
        self.size = end - self.first

    def __call__(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns an item from the same popularity decile for every pair, int64
        :obj:`[n]`, and whether a hundred draws found one, bool :obj:`[n]`; where they
        didn't, the last draw stays.
        """
        device, pairs = pairs.device, pairs.cpu()
        wanted = self.decile[pairs[1]]

        def draw(places: Tensor) -> Tensor:
            group = wanted[places]
            share = torch.rand(places.numel(), generator=self.generator)
            return self.order[self.first[group] + (share * self.size[group]).long()]

        def is_taken(places: Tensor, item: Tensor) -> Tensor:
            return self.known.contains(pairs[0, places], item)

        item, failed = draw_free(pairs.size(1), draw, is_taken)
        found = torch.ones(pairs.size(1), dtype=torch.bool)
        found[failed] = False
        return item.to(device), found.to(device)
