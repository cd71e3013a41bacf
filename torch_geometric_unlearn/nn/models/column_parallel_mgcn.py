from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.distributed.blocks import Blocks
from torch_geometric_unlearn.distributed.columns import Columns, UnevenColumns
from torch_geometric_unlearn.distributed.linear import ColumnLinear, RowLinear
from torch_geometric_unlearn.distributed.rows import Rows
from torch_geometric_unlearn.nn.functional.loss import info_nce_terms
from torch_geometric_unlearn.utils.digest import tensor_digest
from torch_geometric_unlearn.utils.seed import isolated_seed

from ._column_parallel import ColumnParallelModel
from .base import Table
from .mgcn import MGCN, MGCNGraph


class ColumnParallelMGCN(ColumnParallelModel[MGCN], MGCN):
    r"""An :class:`MGCN` of which every process holds some columns of all tables [ours],
    as :class:`ColumnParallelLightGCN` does for :class:`LightGCN`.

    Every process holds the whole graph, and its columns of the ID tables, of the
    feature tables and of the weights that project them. Gates, attention and
    preferences mix columns: they are small, on every process, and each applies them to
    rows of its own, of which it receives all columns. In a step, these are items, whose
    projected features it adds up, and nodes of the batch. Their gradients are summed,
    so that they stay bit-equal. Of what grows with the data, nothing is sent but
    projections and gates of the items.

    :meth:`forward` and all that shows embeddings gather all columns, so that metrics,
    audits and :meth:`recommend` work as they are and give the same on every process.
    The result is that of one process up to rounding. What works, and what is asked of
    the processes, is as for :class:`ColumnParallelLightGCN`.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        features (dict): Initial item features :math:`(N_{item}, F)` by modality, whole
            ones; every process keeps its columns.
        hidden_channels (int, optional): Size of every whole embedding.
            (default: :obj:`64`)
        num_layers (int, optional): As for :class:`MGCN`. (default: :obj:`2`)
        num_neighbors (int, optional): As for :class:`MGCN`. (default: :obj:`10`)
        weight_decay (float, optional): As for :class:`MGCN`. (default: :obj:`1e-4`)
        contrastive_weight (float, optional): As for :class:`MGCN`.
            (default: :obj:`0.01`)
        temperature (float, optional): As for :class:`MGCN`. (default: :obj:`0.2`)
        batch_size (int, optional): As for :class:`MGCN`. (default: :obj:`2048`)
        train_features (bool, optional): As for :class:`MGCN`. (default: :obj:`True`)
        group (ProcessGroup, optional): The processes; all of them if not given.
            (default: :obj:`None`)

    Shapes:
        - **output:** user embeddings :math:`(N_{user}, H)`, item embeddings
          :math:`(N_{item}, H)`

    Raises:
        ValueError: If an argument is out of range, :obj:`hidden_channels` can't be
            divided among the processes, or features have too few columns for every
            process to get one.

    Example:
        >>> with process_group():
        ...     model = ColumnParallelMGCN.from_data(data, hidden_channels=16)
        ...     result = fit(model, data, num_epochs=2)
    """

    whole_class = MGCN

    def __init__(
        self,
        num_users: int,
        num_items: int,
        features: Mapping[str, Tensor],
        hidden_channels: int = 64,
        num_layers: int = 2,
        num_neighbors: int = 10,
        weight_decay: float = 1e-4,
        contrastive_weight: float = 0.01,
        temperature: float = 0.2,
        batch_size: int = 2048,
        train_features: bool = True,
        group: Any = None,
    ) -> None:
        columns = Columns(hidden_channels, group)
        parts: dict[str, Columns] = {}
        for name, x in features.items():  # Before any process looks at its part.
            schema.check_features(x, num_items, f"features['{name}']")
            parts[name] = UnevenColumns(x.size(1), group)
        with isolated_seed(0):  # What it draws is drawn below.
            super().__init__(
                num_users,
                num_items,
                {name: parts[name].take(x) for name, x in features.items()},
                columns.width,
                num_layers,
                num_neighbors,
                weight_decay,
                contrastive_weight,
                temperature,
                batch_size,
                train_features,
            )
        H = self.hidden_channels = columns.num_columns
        self.columns, self.parts = columns, parts
        with isolated_seed(columns.seed()):
            for name, part in parts.items():
                self.projection[name] = ColumnLinear(part, H)
                self.purifier[name] = RowLinear(H, H, columns)
                self.preference[name] = RowLinear(H, H, columns)
            self.attention_hidden = RowLinear(H, H, columns)
            self.attention_query = RowLinear(H, 1, columns, bias=False)
            for table in self.tables():
                if not table.is_raw:
                    table.init(table.parameter)

    def build_graph(self, data: HeteroData) -> MGCNGraph:
        graph = super().build_graph(data)
        # Neighbours follow from sums, which another machine may round differently.
        operators = graph.similar.values()
        entries = [x for op in operators for x in (op.rowptr, op.col, op.value)]
        self.columns.check_same({'the graphs of items': tensor_digest(entries)})
        return graph

    def branch_embeddings(self, graph: MGCNGraph) -> dict[str, Tensor]:
        branches = super().branch_embeddings(graph)
        return {name: self.columns.gather(x) for name, x in branches.items()}

    def content_embeddings(self, graph: MGCNGraph) -> dict[str, Tensor]:
        rows = self._rows(self.num_items)
        content = super().content_embeddings(graph)
        return {name: rows.gather(x) for name, x in content.items()}

    def fuse(
        self, graph: MGCNGraph, branch_embeddings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        rows = self._rows(self.num_users + self.num_items)
        own = {name: rows.take(x) for name, x in branch_embeddings.items()}
        return self._whole(rows, own)

    def forward(self, graph: MGCNGraph) -> tuple[Tensor, Tensor]:
        rows = self._rows(self.num_users + self.num_items)
        branches = super().branch_embeddings(graph)
        own = {name: rows.from_columns(x) for name, x in branches.items()}
        return self._whole(rows, own)

    def node_loss(self, branches: Mapping[str, Tensor]) -> Tensor:
        names = ['id', *self.modalities]
        x = torch.stack([branches[name] for name in names], dim=1)
        x = x.unflatten(0, (3, -1)).transpose(0, 1)  # A triplet stays together.
        rows = self._rows(x.size(0))
        parts = rows.from_columns(x).unbind(dim=2)
        own = {name: part.flatten(0, 1) for name, part in zip(names, parts)}
        fused = self._fuse(own).view_as(parts[0])
        out = parts[0] + fused
        user_emb, pos_emb, neg_emb = out.unbind(dim=1)
        score = (user_emb * (neg_emb - pos_emb)).sum(dim=-1)
        candidates = rows.collect(parts[0][:, :2])
        contrastive = sum(
            info_nce_terms(
                fused[:, k], candidates[:, k], self.temperature, rows.start
            ).sum()
            for k in (0, 1)
        )
        loss = F.softplus(score).sum() + self.contrastive_weight * contrastive
        regulariser = 0.5 * out.pow(2).sum() / self.batch_size
        # The part of these rows in a sum over all.
        return self.columns.sum(loss / rows.total + self.weight_decay * regulariser)

    def tables(self) -> list[Table]:
        r"""Returns the columns of the ID tables and of the feature tables that this
        process holds.
        """
        ids, raw = [], []
        for table in super().tables():
            if table.is_raw:
                raw.append(table._replace(columns=self.parts[table.modality]))
            else:
                ids.append(table)
        return self._divide(ids, self.columns.xavier_uniform_) + raw

    def divided(self) -> dict[str, Blocks]:
        weights = {
            f'projection.{name}.weight': part for name, part in self.parts.items()
        }
        return super().divided() | weights

    def _gates(self, graph: MGCNGraph) -> dict[str, Tensor]:
        rows = self._rows(self.num_items)
        content = super().content_embeddings(graph)
        return {
            name: rows.to_columns(self.purifier[name](x).sigmoid())
            for name, x in content.items()
        }

    def _whole(self, rows: Rows, own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        out = rows.gather(own['id'] + self._fuse(own))
        user_emb, item_emb = out.split([self.num_users, self.num_items])
        return user_emb, item_emb

    def _rows(self, num_rows: int) -> Rows:
        return Rows(num_rows, self.columns.group)
