r"""Full ranking in user blocks that keeps the lists only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torch_geometric_unlearn.utils.check import check_int
from torch_geometric_unlearn.utils.csr import index_dtype, row_places, row_starts
from torch_geometric_unlearn.utils.finite import check_embeddings, check_finite
from torch_geometric_unlearn.utils.ids import check_ids, check_pair_ids
from torch_geometric_unlearn.utils.plain import plain

#: Scores that a block holds at most, whatever its number of users.
MOST_SCORES = 2**27


class PairIndex:
    r"""(user, item) pairs grouped by user, for looking up blocks of users at once.

    Args:
        pairs (torch.Tensor): Pairs, int64 :obj:`[2, E]`.
        num_users (int): Number of users.
    """

    def __init__(self, pairs: Tensor, num_users: int) -> None:
        pairs = plain(pairs)
        self.count = pairs[0].bincount(minlength=num_users)
        self.start = row_starts(self.count)[:-1]
        largest = int(pairs[1].max()) if pairs.numel() else 0
        self.item = torch.empty_like(pairs[1], dtype=index_dtype(largest))
        for part, place in row_places(pairs[0], self.start):
            self.item[place] = pairs[1, part].to(self.item.dtype)

    def lookup(self, users: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns the pairs of :obj:`users` :obj:`[B]` as the position in
        :obj:`users` and the item, both int64 :obj:`[n]`.
        """
        count = self.count[users]
        row = torch.arange(users.numel(), device=users.device).repeat_interleave(count)
        offset = (self.start[users] - count.cumsum(0) + count)[row]
        place = offset + torch.arange(row.numel(), device=users.device)
        return row, self.item[place].long()


class Scores:
    r"""Scores of users for all items, a block of users at a time.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(N_{user}, H)`.
        item_emb (torch.Tensor): Item embeddings :math:`(N_{item}, H)`.

    Raises:
        ValueError: If the embeddings are not finite.
    """

    def __init__(self, user_emb: Tensor, item_emb: Tensor) -> None:
        self.user_emb, self.item_emb = check_embeddings(user_emb, item_emb)

    @property
    def sizes(self) -> tuple[int, int]:
        r"""Number of users and items."""
        return self.user_emb.size(0), self.item_emb.size(0)

    @property
    def device(self) -> torch.device:
        r"""Where they are computed."""
        return self.user_emb.device

    def index(self, exclude: Tensor | PairIndex | None) -> PairIndex | None:
        r"""Returns pairs int64 :obj:`[2, E]` to leave out, checked and by user, so that
        several calls of :meth:`topk` need not bring them in order again.
        """
        if not isinstance(exclude, Tensor):
            return exclude
        return PairIndex(check_pair_ids(exclude, *self.sizes, 'exclude'), self.sizes[0])

    @torch.no_grad()
    def topk(
        self,
        users: Sequence[int] | Tensor,
        k: int,
        exclude: Tensor | PairIndex | None = None,
        exclude_items: Sequence[int] | Tensor | None = None,
        batch_size: int = 2048,
    ) -> tuple[Tensor, Tensor]:
        r"""Returns what :meth:`topk_items` does."""
        k, batch_size = check_int(k, 'k', 1), check_int(batch_size, 'batch_size', 1)
        num_users, num_items = self.sizes
        device = users.device if isinstance(users, Tensor) else self.device
        users = check_ids(users, num_users, 'users').to(device)
        index = self.index(exclude)
        if exclude_items is not None:
            exclude_items = check_ids(exclude_items, num_items, 'exclude_items')
        items = users.new_full((users.numel(), k), -1)
        values = self.user_emb.new_full((users.numel(), k), -torch.inf)
        for rows, scores in self.blocks(users, index, exclude_items, batch_size):
            value, best = topk_lowest_index(scores, min(k, num_items))
            best[value == -torch.inf] = -1
            items[rows, : best.size(1)], values[rows, : best.size(1)] = best, value
        self._complete(items, values)
        return items, values

    def blocks(
        self,
        users: Tensor,
        index: PairIndex | None,
        exclude_items: Tensor | None,
        batch_size: int,
    ) -> Iterator[tuple[slice, Tensor]]:
        r"""Yields parts of :obj:`users` with their masked scores :math:`(B, N_{item})`,
        of at most :obj:`batch_size` users and 512 MB in single precision.
        """
        size = max(1, min(batch_size, MOST_SCORES // max(1, self.sizes[1])))
        for rows, scores in self._blocks(users, size):
            if index is not None:
                scores[index.lookup(users[rows])] = -torch.inf
            if exclude_items is not None:
                scores[:, exclude_items] = -torch.inf
            yield rows, scores

    def _blocks(self, users: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, users.numel(), size):
            rows = slice(start, start + size)
            yield rows, self.user_emb[users[rows]] @ self.item_emb.t()

    def _complete(self, items: Tensor, values: Tensor) -> None:
        r"""Fills in the lists that were made elsewhere; none were."""


def score_blocks(
    user_emb: Tensor,
    item_emb: Tensor,
    users: Tensor,
    exclude: Tensor | None = None,
    exclude_items: Tensor | None = None,
    batch_size: int = 2048,
) -> Iterator[tuple[Tensor, Tensor]]:
    r"""Yields blocks of users with their scores for all items.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(N_{user}, H)`.
        item_emb (torch.Tensor): Item embeddings :math:`(N_{item}, H)`.
        users (torch.Tensor): Users to rank for, int64 :obj:`[n]`.
        exclude (torch.Tensor, optional): Pairs whose score becomes
            :math:`-\infty`, int64 :obj:`[2, E]`. (default: :obj:`None`)
        exclude_items (torch.Tensor, optional): Items whose score becomes
            :math:`-\infty` for everyone, int64 :obj:`[m]`. (default: :obj:`None`)
        batch_size (int, optional): Users per block. (default: :obj:`2048`)

    Raises:
        ValueError: If the embeddings are not finite.
    """
    index = None if exclude is None else PairIndex(exclude, user_emb.size(0))
    scores = Scores(user_emb, item_emb)
    for rows, block in scores.blocks(users, index, exclude_items, batch_size):
        yield users[rows], block


def topk_items(
    user_emb: Tensor,
    item_emb: Tensor,
    users: Sequence[int] | Tensor,
    k: int,
    exclude: Tensor | None = None,
    exclude_items: Sequence[int] | Tensor | None = None,
    batch_size: int = 2048,
) -> tuple[Tensor, Tensor]:
    r"""Returns the :obj:`k` best items of every user; ties go to the lowest item id.

    Places that no item is left for hold item :obj:`-1` with score :math:`-\infty`.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(N_{user}, H)`.
        item_emb (torch.Tensor): Item embeddings :math:`(N_{item}, H)`.
        users (torch.Tensor): Users to rank for, int64 :obj:`[n]`, or a list of them;
            one that occurs twice gets its list twice.
        k (int): Length of the list.
        exclude (torch.Tensor, optional): Pairs to leave out, int64 :obj:`[2, E]`.
            (default: :obj:`None`)
        exclude_items (torch.Tensor, optional): Items to leave out for everyone, int64
            :obj:`[m]`. (default: :obj:`None`)
        batch_size (int, optional): Users per block. (default: :obj:`2048`)

    Returns:
        (torch.Tensor, torch.Tensor): Items int64 and scores, both :obj:`[n, k]`.

    Raises:
        TypeError: If ids are no integers.
        ValueError: If :obj:`k` or :obj:`batch_size` is below 1, an id is out of range,
            or the embeddings are not finite.
    """
    scores = Scores(user_emb, item_emb)
    return scores.topk(users, k, exclude, exclude_items, batch_size)


def topk_lowest_index(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""Returns the :obj:`k` largest entries per row; ties go to the lowest index.

    :meth:`torch.topk` leaves the choice among ties open. Only rows where a tie crosses
    the border of the list need a full stable sort.

    Args:
        scores (torch.Tensor): Scores :obj:`[B, N]`, :math:`-\infty` where an entry is
            no candidate.
        k (int): Length of the list, at most :obj:`N`.

    Returns:
        (torch.Tensor, torch.Tensor): Values and int64 indices, both :obj:`[B, k]`.

    Raises:
        ValueError: If a score is NaN or :math:`\infty`.
    """
    value, index = scores.topk(min(k + 1, scores.size(1)), dim=1)
    check_finite(value, 'scores', masked=True)  # The largest come first, NaN as such.
    if value.size(1) > k:
        crossing = (value[:, k] == value[:, k - 1]).nonzero().view(-1)
        value, index = value[:, :k], index[:, :k]
        if crossing.numel() > 0:
            full = scores[crossing].sort(dim=1, descending=True, stable=True)
            value, index = value.clone(), index.clone()
            value[crossing], index[crossing] = full[0][:, :k], full[1][:, :k]
    order = index.argsort(dim=1)
    order = order.gather(
        1, value.gather(1, order).argsort(dim=1, descending=True, stable=True)
    )
    return value.gather(1, order), index.gather(1, order)


@torch.no_grad()
def pair_ranks(
    user_emb: Tensor,
    item_emb: Tensor,
    pairs: Tensor,
    known: Tensor,
    batch_size: int = 2048,
) -> tuple[Tensor, Tensor]:
    r"""Ranks single pairs among the items that a user isn't known to like.

    The rank of :math:`(u, i)` is the place of :math:`i` in the list of :math:`u` when
    all *other* known positives of :math:`u` are masked; ties go to the lowest item id.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(N_{user}, H)`.
        item_emb (torch.Tensor): Item embeddings :math:`(N_{item}, H)`.
        pairs (torch.Tensor): Pairs to rank, int64 :obj:`[2, n]`.
        known (torch.Tensor): Known positives, int64 :obj:`[2, *]`.
        batch_size (int, optional): Pairs per block. (default: :obj:`2048`)

    Returns:
        (torch.Tensor, torch.Tensor): Ranks from 1, int64 :obj:`[n]`, and scores
        standardised over the user's row :obj:`[n]`.

    Raises:
        ValueError: If the embeddings are not finite.
    """
    user_emb, item_emb = check_embeddings(user_emb, item_emb)
    if pairs.size(1) == 0:
        return pairs.new_empty(0), user_emb.new_empty(0)
    index = PairIndex(known, user_emb.size(0))
    item_ids = torch.arange(item_emb.size(0), device=pairs.device)
    ranks, standardised = [], []
    for block in pairs.split(batch_size, dim=1):
        scores = user_emb[block[0]] @ item_emb.t()
        own = scores.gather(1, block[1].unsqueeze(1))
        spread = scores.std(dim=1).clamp(min=1e-12)
        standardised.append((own.squeeze(1) - scores.mean(dim=1)) / spread)
        scores[index.lookup(block[0])] = -torch.inf
        above = (scores > own).sum(dim=1)
        tied = (scores == own) & (item_ids < block[1].unsqueeze(1))
        ranks.append(1 + above + tied.sum(dim=1))
    return torch.cat(ranks), torch.cat(standardised)


@torch.no_grad()
def pair_hits(
    user_emb: Tensor,
    item_emb: Tensor,
    pairs: Tensor,
    known: Tensor,
    k: int,
    batch_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    r"""Tells which pairs have a rank of at most :obj:`k` in the sense of
    :meth:`pair_ranks`, scoring every user once instead of every pair.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(N_{user}, H)`.
        item_emb (torch.Tensor): Item embeddings :math:`(N_{item}, H)`.
        pairs (torch.Tensor): Pairs to rank, int64 :obj:`[2, n]`.
        known (torch.Tensor): Known positives, int64 :obj:`[2, *]`.
        k (int): Length of the list.
        batch_size (int, optional): Users per block. (default: :obj:`1024`)

    Returns:
        (torch.Tensor, torch.Tensor): Hits, bool :obj:`[n]`, and scores standardised
        over the user's row :obj:`[n]`.

    Raises:
        ValueError: If :obj:`k` is below 1, or the embeddings are not finite.
    """
    k = check_int(k, 'k', 1)
    user_emb, item_emb = check_embeddings(user_emb, item_emb)
    if pairs.size(1) == 0:
        return torch.empty_like(pairs[0], dtype=torch.bool), user_emb.new_empty(0)
    index = PairIndex(known, user_emb.size(0))
    order = pairs[0].argsort(stable=True)
    users, count = pairs[0].unique(return_counts=True)
    own = user_emb.new_empty(pairs.size(1))
    standardised, threshold = torch.empty_like(own), torch.empty_like(own)
    start = 0
    for block, counts in zip(users.split(batch_size), count.split(batch_size)):
        place = order[start : start + int(counts.sum())]
        start += place.numel()
        row = torch.arange(block.numel(), device=pairs.device)
        row = row.repeat_interleave(counts)
        scores = user_emb[block] @ item_emb.t()
        spread, mean = torch.std_mean(scores, dim=1)
        own[place] = scores[row, pairs[1, place]]
        standardised[place] = (own[place] - mean[row]) / spread.clamp(min=1e-12)[row]
        scores[index.lookup(block)] = -torch.inf
        best = scores.topk(min(k, scores.size(1)), dim=1)[0]
        last = best[:, -1] if k <= scores.size(1) else best.new_full((), -torch.inf)
        threshold[place] = last.expand(block.numel())[row]
    hits = own > threshold
    tied = (own == threshold).nonzero().view(-1)
    if tied.numel() > 0:  # The lowest item id wins, which takes the whole row.
        ranks, _ = pair_ranks(user_emb, item_emb, pairs[:, tied], known)
        hits[tied] = ranks <= k
    return hits, standardised
