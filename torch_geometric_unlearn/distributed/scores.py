from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor

from torch_geometric_unlearn.utils.finite import NotFiniteError, check_embeddings
from torch_geometric_unlearn.utils.topk import Scores

from .columns import Columns


class ColumnScores(Scores):
    r"""The scores of a model that is divided by columns, ranked in turns: every process
    adds its columns' part of the scores of a block of users, and the one whose turn it
    is ranks the block. No process holds all columns, nor the scores of all blocks; all
    make the same calls and get the same lists.

    Args:
        user_emb (torch.Tensor): Columns of the user embeddings that this process holds,
            :math:`(N_{user}, H / P)`.
        item_emb (torch.Tensor): Columns of the item embeddings,
            :math:`(N_{item}, H / P)`.
        columns (Columns): The processes.

    Raises:
        ValueError: If the embeddings are not finite, or so large that their scores may
            not be; on every process.
    """

    def __init__(self, user_emb: Tensor, item_emb: Tensor, columns: Columns) -> None:
        reason = ''
        try:
            both = check_embeddings(user_emb, item_emb, columns.num_columns)
        except NotFiniteError as error:
            reason = str(error)
        if reason := next(filter(None, columns.share(reason)), ''):
            raise NotFiniteError(reason)
        self.user_emb, self.item_emb = both
        self.columns = columns

    def _blocks(self, users: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
        columns, group = self.columns, self.columns.group
        num = columns.num_processes
        size = max(1, min(size, -(-users.numel() // num)))
        starts = range(0, users.numel(), size)
        for first in range(0, len(starts), num):
            own = None
            for turn, start in enumerate(starts[first : first + num]):
                rows = slice(start, start + size)
                scores = self.user_emb[users[rows]] @ self.item_emb.t()
                owner = turn if group is None else dist.get_global_rank(group, turn)
                dist.reduce(scores, owner, group=group)
                if turn == columns.rank:
                    own = rows, scores
            if own is not None:  # All rank at the same time.
                yield own

    def _complete(self, items: Tensor, values: Tensor) -> None:
        # What is ranked elsewhere is still -1 and minus infinity here.
        for lists in (items, values):
            dist.all_reduce(lists, dist.ReduceOp.MAX, group=self.columns.group)
