from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_geometric_unlearn.distributed import Columns
from torch_geometric_unlearn.nn.functional import bpr_loss

from ._column_parallel import ColumnParallelModel
from .base import Table
from .light_gcn import LightGCN, LightGCNGraph


class ColumnParallelLightGCN(ColumnParallelModel[LightGCN], LightGCN):
    r"""A :class:`LightGCN` of which every process holds some columns of both tables
    [ours]; splitting features rather than the graph is the idea of `"NeutronTP:
    Load-Balanced Distributed Full-Graph GNN Training with Tensor Parallelism"
    <https://arxiv.org/abs/2412.20379>`_.

    Every process holds the whole graph. Propagation acts on every column alike and
    sends nothing; a step adds up its scores, :math:`2 B + 1` numbers, by one
    all-reduce. Ranking takes turns: the scores of a block of users are added up on one
    process, which ranks it, so that :meth:`recommend`,
    :meth:`~torch_geometric_unlearn.metrics.evaluate_split`,
    :meth:`~torch_geometric_unlearn.metrics.evaluate_request` and validation need no
    whole embeddings. :meth:`forward` gathers all columns, for audits and other
    metrics. All processes get the same, which is that of one process up to rounding:
    neither initial values nor batches depend on the number of processes. Started
    without ``torchrun``, one process holds all.

    Training, :class:`~torch_geometric_unlearn.unlearn.Retrain`,
    :class:`~torch_geometric_unlearn.unlearn.PartialRetrain`,
    :class:`~torch_geometric_unlearn.unlearn.RowReset` and
    :class:`~torch_geometric_unlearn.unlearn.EdgeDrop` work by columns; other methods
    refuse. Every process must make the same calls, also those that look at embeddings
    only, and with the same data: they compare.
    States are saved as folders, which any number of processes can load.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        hidden_channels (int, optional): Size of every whole embedding.
            (default: :obj:`64`)
        num_layers (int, optional): Convolutions over the user-item graph.
            (default: :obj:`2`)
        weight_decay (float, optional): As for :class:`LightGCN`.
            (default: :obj:`1e-4`)
        group (ProcessGroup, optional): The processes; all of them if not given.
            (default: :obj:`None`)

    Shapes:
        - **output:** user embeddings :math:`(N_{user}, H)`, item embeddings
          :math:`(N_{item}, H)`

    Raises:
        ValueError: If an argument is out of range, or :obj:`hidden_channels` can't be
            divided among the processes.

    Example:
        >>> with process_group():
        ...     model = ColumnParallelLightGCN.from_data(data, hidden_channels=16)
        ...     result = fit(model, data, num_epochs=2)
    """

    whole_class = LightGCN

    def __init__(
        self,
        num_users: int,
        num_items: int,
        hidden_channels: int = 64,
        num_layers: int = 2,
        weight_decay: float = 1e-4,
        group: Any = None,
    ) -> None:
        columns = Columns(hidden_channels, group)
        with torch.random.fork_rng(devices=[]):  # What it draws is drawn below.
            super().__init__(
                num_users, num_items, columns.width, num_layers, weight_decay
            )
        self.hidden_channels, self.columns = columns.num_columns, columns
        for table in self.tables():
            table.init(table.parameter)

    def column_embeddings(self, graph: LightGCNGraph) -> tuple[Tensor, Tensor]:
        r"""Returns the columns of user and item embeddings that this process holds,
        :math:`(N_{user}, H / P)` and :math:`(N_{item}, H / P)`.
        """
        return super().forward(graph)

    def forward(self, graph: LightGCNGraph) -> tuple[Tensor, Tensor]:
        user_emb, item_emb = self.column_embeddings(graph)
        return self.columns.gather(user_emb), self.columns.gather(item_emb)

    def node_loss(self, branches: Mapping[str, Tensor]) -> Tensor:
        user_emb, pos_emb, neg_emb = branches['id'].chunk(3)
        size = user_emb.size(0)
        parts = (user_emb * pos_emb).sum(-1), (user_emb * neg_emb).sum(-1)
        norm = branches['initial'].pow(2).sum().view(1)
        total = self.columns.sum(torch.cat([*parts, norm]))
        pos_score, neg_score, norm = total.split([size, size, 1])
        return bpr_loss(pos_score, neg_score) + self.weight_decay * 0.5 * norm[0] / size

    def tables(self) -> list[Table]:
        r"""Returns the columns of both tables that this process holds."""
        return self._divide(super().tables(), self.columns.xavier_uniform_)
