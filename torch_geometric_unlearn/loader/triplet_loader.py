from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from torch_geometric_unlearn.data.known_pairs import KnownPairs, draw_free
from torch_geometric_unlearn.nn.models.base import Triplets
from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.csr import PART, index_dtype
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
        _check_items(edge_index[1], num_items, 'edge_index')
        known = plain(edge_index if known is None else known)
        _check_items(known[1], num_items, 'known')
        self._pairs = _copy(edge_index)
        self._known = KnownPairs(known, num_items)
        self.generator = generator(seed)
        items = self._pairs[1] if negative_items is None else plain(negative_items)
        _check_items(items, num_items, 'negative_items')
        self.negative_items = _occurring(items.cpu())
        users = _occurring(self._pairs[0])
        self._full = self._full_users()
        if negative_items is None and torch.isin(users, self._full).any():
            self.negative_items = torch.arange(num_items)
            self._full = self._full_users()
        if self._full.numel() > 0:
            drawn = ~torch.isin(self._pairs[0], self._full)
            if not drawn.any():
                self._check_users(users)
            self._pairs = self._pairs[:, drawn]

    @property
    def edge_index(self) -> Tensor:
        r"""The pairs that are drawn, a copy, int64 :obj:`[2, E]`."""
        return self._pairs.long()

    @property
    def num_pairs(self) -> int:
        r"""Number of pairs that are drawn."""
        return self._pairs.size(1)

    def pairs(self, places: Tensor) -> Tensor:
        r"""Returns some of the pairs that are drawn, int64 :obj:`[2, n]`."""
        return self._pairs[:, places].long()

    def places_of(self, users: Tensor, items: Tensor) -> Tensor:
        r"""Returns where the pairs of some users and items are, int64 :obj:`[n]`."""
        wanted = []
        for ids, row in zip((users, items), self._pairs):
            mask = torch.zeros(int(row.max()) + 1, dtype=torch.bool)
            mask[ids[ids < mask.numel()]] = True
            wanted.append(mask)
        out = [torch.arange(0)]
        for start in range(0, self.num_pairs, PART):
            user, item = self._pairs[:, start : start + PART]
            own = wanted[0][user] | wanted[1][item]
            out.append(own.nonzero().view(-1) + start)
        return torch.cat(out)

    def __len__(self) -> int:
        return -(-self.num_pairs // self.batch_size)

    def __iter__(self) -> Iterator[Triplets]:
        # Half as large as what torch indexes by, which only a batch at a time becomes.
        perm = torch.randperm(
            self.num_pairs, generator=self.generator, dtype=self._pairs.dtype
        )
        user = self._pairs[0]
        negatives = self._draw(perm.numel(), lambda places: user[perm[places].long()])
        for rows, neg_item in zip(
            perm.split(self.batch_size), negatives.split(self.batch_size)
        ):
            users, pos_item = self.pairs(rows.long())
            yield Triplets(users, pos_item, neg_item.long())

    def sample_negatives(self, user: Tensor) -> Tensor:
        r"""Returns one negative item per entry of :obj:`user`, int64 :obj:`[B]`.

        Raises:
            ValueError: If no item is left for some user.
        """
        self._check_users(user)
        return self._draw(user.numel(), lambda places: user[places]).long()

    def _draw(self, num: int, user_at: Callable[[Tensor], Tensor]) -> Tensor:
        r"""Returns a negative for each of :obj:`num` places, :obj:`[num]`."""
        pool = self.negative_items

        def draw(places: Tensor) -> Tensor:
            size = places.shape
            return pool[torch.randint(pool.numel(), size, generator=self.generator)]

        def is_taken(places: Tensor, item: Tensor) -> Tensor:
            return self.is_known(user_at(places).long(), item)

        dtype = self._pairs.dtype
        out, _ = draw_free(num, draw, is_taken, max_draws=None, dtype=dtype)
        return out

    def is_known(self, user: Tensor, item: Tensor) -> Tensor:
        r"""Tells which pairs are never drawn as negatives, bool :obj:`[B]`."""
        return self._known.contains(user, item)

    def _full_users(self) -> Tensor:
        in_pool = torch.zeros(self.num_items, dtype=torch.bool)
        in_pool[self.negative_items] = True
        taken = torch.zeros(0, dtype=torch.int64)
        for codes in self._known.codes.split(PART):
            user = (codes // self.num_items)[in_pool[codes % self.num_items]]
            count = user.bincount(minlength=taken.numel())
            count[: taken.numel()] += taken
            taken = count
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
    if items.numel() > 0 and (items.min() < 0 or items.max() >= num_items):
        bad = (items < 0) | (items >= num_items)
        raise ValueError(
            f"'{name}' holds item ids outside [0, {num_items - 1}] "
            f'(got {int(items[bad][0])})'
        )


def _copy(edge_index: Tensor) -> Tensor:
    r"""Returns the pairs on the CPU as int32 where their ids and number fit."""
    dtype = index_dtype(int(edge_index.max()), edge_index.size(1))
    return edge_index.to('cpu', dtype, copy=True)


def _occurring(ids: Tensor) -> Tensor:
    r"""Returns the ids that occur, ascending, int64."""
    return ids.bincount().nonzero().view(-1)
