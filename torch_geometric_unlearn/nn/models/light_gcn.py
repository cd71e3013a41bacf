from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.conv import LayerMeanConv
from torch_geometric_unlearn.nn.functional import bpr_loss
from torch_geometric_unlearn.ops import SparseOperator
from torch_geometric_unlearn.ops.sparse_operator import bipartite_operator
from torch_geometric_unlearn.utils.check import check_float, check_int

from ._checks import check_sizes
from .base import Recommender, RowBranch, Table, Triplets


@dataclass
class LightGCNGraph:
    r"""What :class:`LightGCN` propagates over.

    Attributes:
        edge_index (torch.Tensor): The interactions, int64 :obj:`[2, E]`; those of the
            data themselves where none is marked as forgotten.
        user_item (SparseOperator): Normalised adjacency over users and items.
    """

    edge_index: Tensor
    user_item: SparseOperator

    def to(self, device: torch.device | str) -> LightGCNGraph:
        r"""Returns the graph on another device."""
        return LightGCNGraph(self.edge_index.to(device), self.user_item.to(device))


class LightGCN(Recommender):
    r"""The light graph convolutional network from the `"LightGCN: Simplifying and
    Powering Graph Convolution Network for Recommendation"
    <https://arxiv.org/abs/2002.02126>`_ paper: ID embeddings, propagated without
    parameters, and the mean over all layers.

    The embeddings and scores are those of :class:`torch_geometric.nn.LightGCN`, whose
    name it shares (in :mod:`torch_geometric_unlearn.nn`); the propagation runs on
    :meth:`~torch_geometric_unlearn.ops.layer_mean`. As in the paper, the loss is BPR
    plus the squared norm of the batch's *initial* embeddings, and so PyG's
    :obj:`recommendation_loss` on the nodes of the batch with half the weight.

    The paper trains with Adam at a learning rate of 0.001 in batches of 1,024 (2,048 on
    its largest data), mostly with :obj:`num_layers=3` and :obj:`weight_decay=1e-4`; it
    has none of the data sets of this package, so that there is nothing to look up by
    data set. The default of two layers is that of PyG's example.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        hidden_channels (int, optional): Size of every embedding.
            (default: :obj:`64`)
        num_layers (int, optional): Convolutions over the user-item graph.
            (default: :obj:`2`)
        weight_decay (float, optional): Weight :math:`\lambda` of half the squared norm
            of the initial embeddings, over the batch size. (default: :obj:`1e-4`)

    Shapes:
        - **output:** user embeddings :math:`(N_{user}, H)`, item embeddings
          :math:`(N_{item}, H)`

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> model = LightGCN.from_data(data, hidden_channels=16)
        >>> user_emb, item_emb = model(model.build_graph(data))
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        hidden_channels: int = 64,
        num_layers: int = 2,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        self.num_users = check_int(num_users, 'num_users', 1)
        self.num_items = check_int(num_items, 'num_items', 1)
        self.hidden_channels = check_int(hidden_channels, 'hidden_channels', 1)
        self.num_layers = check_int(num_layers, 'num_layers', 0)
        self.weight_decay = check_float(weight_decay, 'weight_decay', 0.0)
        self.user_embedding = Embedding(self.num_users, self.hidden_channels)
        self.item_embedding = Embedding(self.num_items, self.hidden_channels)
        self.conv = LayerMeanConv(self.num_layers)
        torch.nn.init.xavier_uniform_(self.user_embedding.weight)
        torch.nn.init.xavier_uniform_(self.item_embedding.weight)

    @classmethod
    def from_data(cls, data: HeteroData, **kwargs: Any) -> LightGCN:
        r"""Returns a fresh model with the sizes of :obj:`data`, drawn from torch's
        global generator.
        """
        data = schema.validate(data)
        return cls(schema.num_users(data), schema.num_items(data), **kwargs)

    def build_graph(self, data: HeteroData) -> LightGCNGraph:
        r"""Returns the user-item operator of the interactions not marked as forgotten.

        Raises:
            ValueError: If model and data differ in users or items.
        """
        data = schema.validate(data)
        check_sizes(data, self.num_users, self.num_items, {})
        edge_index = schema.retained_edge_index(data)
        weight = self.user_embedding.weight
        # In half precision, propagation still adds up in single.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        sizes = self.num_users, self.num_items
        both = bipartite_operator(edge_index, *sizes, dtype)
        return LightGCNGraph(edge_index, both).to(weight.device)

    def forward(self, graph: LightGCNGraph) -> tuple[Tensor, Tensor]:
        out = self.conv(self.node_embedding(), graph.user_item)
        user_emb, item_emb = out.split([self.num_users, self.num_items])
        return user_emb, item_emb

    def loss(self, graph: LightGCNGraph, batch: Triplets) -> Tensor:
        r"""Returns BPR, plus the L2 regulariser on the batch's initial embeddings."""
        nodes, x = batch.nodes(self.num_users), self.node_embedding()
        return self.node_loss({
            name: branch(x).index_select(0, nodes)
            for name, branch in self.row_branches(graph).items()
        })

    def node_embedding(self) -> Tensor:
        r"""Returns the ID embeddings of users, then items,
        :math:`(N_{user} + N_{item}, H)`.
        """
        return torch.cat([self.user_embedding.weight, self.item_embedding.weight])

    def row_branches(self, graph: LightGCNGraph) -> dict[str, RowBranch]:
        r"""Returns the propagated embeddings as :obj:`'id'` and the initial ones, which
        the regulariser looks at, as :obj:`'initial'`, both linear maps of the ID
        embeddings.
        """
        return {  # The backward pass takes the last one first, which needs the room.
            'initial': RowBranch(lambda x: x),
            'id': RowBranch(lambda x: self.conv(x, graph.user_item)),
        }

    def node_loss(self, branches: Mapping[str, Tensor]) -> Tensor:
        r"""Returns the loss of a batch from the result of :meth:`row_branches` at its
        :meth:`~torch_geometric_unlearn.nn.models.Triplets.nodes`,
        :math:`(3 B, H)` each.
        """
        user_emb, pos_emb, neg_emb = branches['id'].chunk(3)
        bpr = bpr_loss((user_emb * pos_emb).sum(-1), (user_emb * neg_emb).sum(-1))
        norm = branches['initial'].pow(2).sum()
        return bpr + self.weight_decay * 0.5 * norm / user_emb.size(0)

    def branches(self) -> dict[str, list[Tensor]]:
        r"""Returns both tables as :obj:`'id'`."""
        return {'id': [self.user_embedding.weight, self.item_embedding.weight]}

    def tables(self) -> list[Table]:
        r"""Returns both tables."""
        return [
            Table(self.user_embedding.weight, schema.USER),
            Table(self.item_embedding.weight, schema.ITEM),
        ]

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'hidden_channels={self.hidden_channels}, num_layers={self.num_layers})'
        )
