from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_geometric_unlearn.nn.models.base import Triplets
from torch_geometric_unlearn.utils.check import check_int

from .triplet_loader import TripletLoader


class RowLoader:
    r"""Draws what some rows of users and items see of a training epoch: the (user,
    positive, negative) triplets in which one of them occurs.

    In an epoch of :class:`TripletLoader` every pair comes with one random negative.
    Here the pairs of the rows all come, with a random negative each; of the other pairs
    only those are drawn whose negative is one of the rows, as many as in the mean of
    all epochs. So every row meets its positives and its negatives in the proportion of
    the training, at a cost that follows the number of its pairs.

    Args:
        edge_index (torch.Tensor): All positive pairs, int64 :obj:`[2, E]`.
        num_items (int): Number of items.
        users (torch.Tensor): Users among the rows, int64 :obj:`[n]`.
        items (torch.Tensor): Items among the rows, int64 :obj:`[m]`.
        batch_size (int, optional): Largest mean number of triplets per batch of an
            epoch, whose batches are equally large. (default: :obj:`2048`)
        seed (int, optional): Seed of order and negatives. (default: :obj:`0`)

    Raises:
        ValueError: As for :class:`TripletLoader`.

    Example:
        >>> pairs = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 2, 0]])
        >>> none = torch.empty(0, dtype=torch.int64)
        >>> loader = RowLoader(pairs, 3, users=torch.tensor([1]), items=none)
        >>> sorted(next(iter(loader)).pos_item.tolist())
        [1, 2]
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_items: int,
        users: Tensor,
        items: Tensor,
        batch_size: int = 2048,
        seed: int = 0,
    ) -> None:
        self.batch_size = check_int(batch_size, 'batch_size', 1)
        self.loader = TripletLoader(edge_index, num_items, batch_size, seed=seed)
        self.generator = self.loader.generator
        items = items.cpu()
        own = self.loader.places_of(users.cpu(), items)
        #: The pairs of the rows, int64 :obj:`[2, n]`.
        self.edge_index = self.loader.pairs(own)
        self._num_others = self.loader.num_pairs - own.numel()
        # How many of the other pairs come before each of them.
        self._others_before = own - torch.arange(own.numel())
        pool = self.loader.negative_items
        self._negatives = pool[torch.isin(pool, items)]
        share = self._negatives.numel() / pool.numel()
        #: Mean number of triplets that an epoch would add through their negative.
        self.num_negatives = share * self._num_others

    def __len__(self) -> int:
        num_triplets = self.edge_index.size(1) + self.num_negatives
        return max(1, round(num_triplets / self.batch_size)) if num_triplets else 0

    def __iter__(self) -> Iterator[Triplets]:
        user, pos_item = self.edge_index
        neg_item = user
        if user.numel() > 0:
            neg_item = self.loader.sample_negatives(user)
        drawn = self._draw_others()
        user, pos_item, neg_item = (
            torch.cat(both) for both in zip((user, pos_item, neg_item), drawn)
        )
        perm = torch.randperm(user.numel(), generator=self.generator)
        for rows in perm.tensor_split(max(1, len(self))):
            if rows.numel() > 0:
                yield Triplets(user[rows], pos_item[rows], neg_item[rows])

    def _draw_others(self) -> Triplets:
        whole = int(self.num_negatives)
        rest = torch.rand(1, generator=self.generator) < self.num_negatives - whole
        num = whole + int(rest)
        size = max(1, self._num_others)
        pair = torch.randint(size, (num,), generator=self.generator)
        size = max(1, self._negatives.numel())
        place = torch.randint(size, (num,), generator=self.generator)
        pair += torch.searchsorted(self._others_before, pair, right=True)
        user, pos_item = self.loader.pairs(pair)
        neg_item = self._negatives[place]
        unknown = ~self.loader.is_known(user, neg_item)
        return Triplets(user[unknown], pos_item[unknown], neg_item[unknown])
