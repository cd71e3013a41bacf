from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_geometric_unlearn.data.known_pairs import KnownPairs, draw_free
from torch_geometric_unlearn.nn.models.base import Triplets
from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.plain import plain
from torch_geometric_unlearn.utils.seed import generator


class TripletLoader:
    r"""Draws (user, positive, negative) batches, each pair once per pass in random
    order, with one fresh negative per pair.

    A negative is uniform over :obj:`negative_items`, redrawn while it is one of the
    user's known positives, for the whole pass at once: known pairs are looked up in a
    sorted list of codes, and only the hits are drawn again. The last, smaller batch
    is kept.

    Pairs of users whose known positives cover all items to draw from have no negative
    and are left out [ours].

    Args:
        edge_index (torch.Tensor): Positive pairs, int64 :obj:`[2, E]`.
        num_items (int): Number of items.
        batch_size (int, optional): Pairs per batch. (default: :obj:`2048`)
        known (torch.Tensor, optional): Pairs that are never drawn as negatives, int64
            :obj:`[2, *]`; the positive pairs if not given. (default: :obj:`None`)
        negative_items (torch.Tensor, optional): Items to draw from, int64
            :obj:`[n]`. If not given, the items of the positive pairs, as the MMRec
            benchmarks do, or all items if that leaves some user without a negative
            [ours]. (default: :obj:`None`)
        seed (int, optional): Seed of order and negatives. (default: :obj:`0`)

    Raises:
        ValueError: If there is no pair, an item id is out of range, or the known
            positives of every user cover all items to draw from.

    Example:
        >>> loader = TripletLoader(torch.tensor([[0, 1], [0, 1]]), num_items=2)
        >>> next(iter(loader)).neg_item.numel()
        2
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_items: int,
        batch_size: int = 2048,
        known: Tensor | None = None,
        negative_items: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        edge_index = plain(edge_index)
        if edge_index.size(1) == 0:
            raise ValueError("'edge_index' holds no pair to draw batches from")
        self.num_items = check_int(num_items, 'num_items', 1)
        self.batch_size = check_int(batch_size, 'batch_size', 1)
        #: The pairs that are drawn, a copy, int64 :obj:`[2, E]`.
        self.edge_index = edge_index.to('cpu', copy=True)
        _check_items(self.edge_index[1], num_items, 'edge_index')
        known = self.edge_index if known is None else plain(known).cpu()
        _check_items(known[1], num_items, 'known')
        self._known = KnownPairs(known, num_items)
        self.generator = generator(seed)
        items = self.edge_index[1] if negative_items is None else plain(negative_items)
        self.negative_items = items.cpu().unique()
        _check_items(self.negative_items, num_items, 'negative_items')
        users = self.edge_index[0].unique()
        self._full = self._full_users()
        if negative_items is None and torch.isin(users, self._full).any():
            self.negative_items = torch.arange(num_items)
            self._full = self._full_users()
        drawn = ~torch.isin(self.edge_index[0], self._full)
        if not drawn.any():
            self._check_users(users)
        if not drawn.all():
            self.edge_index = self.edge_index[:, drawn]

    def __len__(self) -> int:
        return -(-self.edge_index.size(1) // self.batch_size)

    def __iter__(self) -> Iterator[Triplets]:
        num_pairs = self.edge_index.size(1)
        perm = torch.randperm(num_pairs, generator=self.generator)
        user, pos_item = self.edge_index[:, perm]
        neg_item = self.sample_negatives(user)
        for start in range(0, num_pairs, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield Triplets(user[rows], pos_item[rows], neg_item[rows])

    def sample_negatives(self, user: Tensor) -> Tensor:
        r"""Returns one negative item per entry of :obj:`user`, int64 :obj:`[B]`.

        Raises:
            ValueError: If no item is left for some user.
        """
        self._check_users(user)
        pool = self.negative_items

        def draw(places: Tensor) -> Tensor:
            size = places.shape
            return pool[torch.randint(pool.numel(), size, generator=self.generator)]

        def is_taken(places: Tensor, item: Tensor) -> Tensor:
            return self.is_known(user[places], item)

        out, _ = draw_free(user.numel(), draw, is_taken, max_draws=None)
        return out

    def is_known(self, user: Tensor, item: Tensor) -> Tensor:
        r"""Tells which pairs are never drawn as negatives, bool :obj:`[B]`."""
        return self._known.contains(user, item)

    def _full_users(self) -> Tensor:
        codes = self._known.codes
        users, items = codes // self.num_items, codes % self.num_items
        taken = users[torch.isin(items, self.negative_items)].bincount()
        return (taken >= self.negative_items.numel()).nonzero().view(-1)

    def _check_users(self, user: Tensor) -> None:
        if self._full.numel() == 0:
            return
        full = user[torch.isin(user, self._full)].unique()
        if full.numel() > 0:
            raise ValueError(
                f'{full.numel()} users (first: {int(full[0])}) already have all '
                f'{self.negative_items.numel()} items that negatives are drawn from. '
                f'Leave these users out, or widen the catalogue.'
            )


def _check_items(items: Tensor, num_items: int, name: str) -> None:
    bad = (items < 0) | (items >= num_items)
    if bad.any():
        raise ValueError(
            f"'{name}' holds item ids outside [0, {num_items - 1}] "
            f'(got {int(items[bad][0])})'
        )
