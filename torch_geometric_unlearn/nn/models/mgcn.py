from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, ModuleDict
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.conv import LayerMeanConv, LightConv
from torch_geometric_unlearn.nn.functional import bpr_loss, info_nce_loss
from torch_geometric_unlearn.ops import SparseOperator
from torch_geometric_unlearn.ops.sparse_operator import (
    bipartite_operators,
    target_degree_operator,
)
from torch_geometric_unlearn.utils.check import check_bool, check_float, check_int
from torch_geometric_unlearn.utils.knn import feature_knn_graph

from ._checks import check_modalities, check_sizes
from .base import Recommender, RowBranch, Table, Triplets


@dataclass
class MGCNGraph:
    r"""What :class:`MGCN` propagates over.

    Attributes:
        edge_index (torch.Tensor): The interactions, int64 :obj:`[2, E]`.
        user_item (SparseOperator): Normalised adjacency over users and items.
        item_to_user (SparseOperator): Its block that aggregates items into users.
        similar (dict): Normalised item-item graph by modality.
    """

    edge_index: Tensor
    user_item: SparseOperator
    item_to_user: SparseOperator
    similar: dict[str, SparseOperator]

    def to(self, device: torch.device | str) -> MGCNGraph:
        r"""Returns the graph on another device."""
        return MGCNGraph(
            self.edge_index.to(device),
            self.user_item.to(device),
            self.item_to_user.to(device),
            {name: op.to(device) for name, op in self.similar.items()},
        )


class MGCN(Recommender):
    r"""The multi-view graph convolutional network from the `"Multi-View Graph
    Convolutional Network for Multimedia Recommendation"
    <https://arxiv.org/abs/2308.03588>`_ paper.

    Projected item features gate the item ID embeddings (behaviour-guided purifier),
    one convolution over the item-item graph of every modality follows, users aggregate
    what their items carry, and a behaviour-aware fuser adds the result to LightGCN
    representations of the user-item graph.

    Where the paper and the authors' released code differ, this follows the code, which
    gives the published results: features are trained, the fused representation is
    divided by the number of modalities plus one, the contrastive loss runs over the
    batch, and the regulariser acts on the final representations of the batch, divided
    by the nominal batch size. Any number of modalities works
    [ours: the paper has image and text].

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        features (dict): Initial item features :math:`(N_{item}, F)` by modality.
        hidden_channels (int, optional): Size of every embedding.
            (default: :obj:`64`)
        num_layers (int, optional): Convolutions over the user-item graph.
            (default: :obj:`2`)
        num_neighbors (int, optional): Neighbours per item in the item-item graphs, the
            item itself included. (default: :obj:`10`)
        weight_decay (float, optional): Weight :math:`\lambda_{reg}` of the squared L2
            norm. (default: :obj:`1e-4`)
        contrastive_weight (float, optional): Weight :math:`\lambda_{cl}`.
            (default: :obj:`0.01`)
        temperature (float, optional): Temperature :math:`\tau` of the contrastive
            loss. (default: :obj:`0.2`)
        batch_size (int, optional): Nominal batch size, the regulariser's divisor.
            (default: :obj:`2048`)
        train_features (bool, optional): Whether the feature tables are trained, as
            published; :obj:`False` freezes them, which is another, smaller model.
            (default: :obj:`True`)

    Shapes:
        - **output:** user embeddings :math:`(N_{user}, H)`, item embeddings
          :math:`(N_{item}, H)`

    Raises:
        ValueError: If there is no modality, or features are not finite float32
            matrices with a row per item.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> model = MGCN.from_data(data, hidden_channels=16)
        >>> user_emb, item_emb = model(model.build_graph(data))
    """

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
    ) -> None:
        super().__init__()
        self.num_users = check_int(num_users, 'num_users', 1)
        self.num_items = check_int(num_items, 'num_items', 1)
        self.hidden_channels = check_int(hidden_channels, 'hidden_channels', 1)
        self.num_layers = check_int(num_layers, 'num_layers', 0)
        self.num_neighbors = check_int(num_neighbors, 'num_neighbors', 1)
        self.weight_decay = check_float(weight_decay, 'weight_decay', 0.0)
        self.contrastive_weight = check_float(
            contrastive_weight, 'contrastive_weight', 0.0
        )
        self.temperature = check_float(temperature, 'temperature', 1e-6)
        self.batch_size = check_int(batch_size, 'batch_size', 1)
        self.train_features = bool(train_features)
        self.modalities = check_modalities(features, 'features', 'MGCN')
        train_features = check_bool(train_features, 'train_features')

        H = self.hidden_channels
        self.user_embedding = Embedding(self.num_users, H)
        self.item_embedding = Embedding(self.num_items, H)
        self.features = ModuleDict()
        self.projection = ModuleDict()
        self.purifier = ModuleDict()
        for name, x in features.items():
            schema.check_features(x, num_items, f"features['{name}']")
            self.features[name] = Embedding.from_pretrained(
                x.detach().clone(), freeze=not train_features
            )
            self.projection[name] = Linear(x.size(1), H)
            self.purifier[name] = Linear(H, H)
        self.attention_hidden = Linear(H, H)
        self.attention_query = Linear(H, 1, bias=False)
        self.preference = ModuleDict({name: Linear(H, H) for name in features})
        self.conv = LightConv()
        self.user_item_conv = LayerMeanConv(num_layers)
        torch.nn.init.xavier_uniform_(self.user_embedding.weight)
        torch.nn.init.xavier_uniform_(self.item_embedding.weight)

    @classmethod
    def from_data(cls, data: HeteroData, **kwargs: Any) -> MGCN:
        r"""Returns a fresh model with the sizes and initial features of
        :obj:`data`, drawn from torch's global generator.
        """
        data = schema.validate(data)
        sizes = schema.num_users(data), schema.num_items(data)
        return cls(*sizes, schema.features(data), **kwargs)

    @classmethod
    def from_saved(cls, arguments: dict[str, Any], state: Mapping[str, Tensor]) -> MGCN:
        r"""Returns a model whose features are those of the saved one."""
        names = [key.split('.') for key in state if key.startswith('features.')]
        features = {name: state[f'features.{name}.weight'] for _, name, _ in names}
        features = {name: x.float() for name, x in features.items()}
        return cls(features=features, **arguments)

    def build_graph(self, data: HeteroData) -> MGCNGraph:
        r"""Returns the user-item operators of the interactions not marked as forgotten,
        and one item-item operator per modality.

        The item-item graphs come from the features in :obj:`data`, or from
        :obj:`data['item', 'similar_<modality>', 'item']` where
        :class:`~torch_geometric_unlearn.transforms.ItemKNNGraph` has stored them.

        Raises:
            ValueError: If model and data differ in users, items or modalities.
        """
        data = schema.validate(data)
        channels = {name: self._channels(name) for name in self.modalities}
        check_sizes(data, self.num_users, self.num_items, channels)
        edge_index = schema.retained_edge_index(data)
        both, item_to_user = bipartite_operators(
            edge_index, self.num_users, self.num_items
        )
        similar = {}
        for name in self.modalities:
            edge_type = schema.similar_edge_type(name)
            if edge_type in data.edge_types:
                knn = self._stored_graph(data, name)
            else:
                x = data[schema.ITEM][f'x_{name}']
                knn = feature_knn_graph(x, self.num_neighbors)
            similar[name] = target_degree_operator(*knn, self.num_items)
        graph = MGCNGraph(edge_index, both, item_to_user, similar)
        return graph.to(self.user_embedding.weight.device)

    def branch_embeddings(self, graph: MGCNGraph) -> dict[str, Tensor]:
        r"""Returns the behaviour representations as :obj:`'id'` and the view of every
        modality, each :math:`(N_{user} + N_{item}, H)`, users first.
        """
        x = self.node_embedding()
        return {name: branch(x) for name, branch in self.row_branches(graph).items()}

    def node_embedding(self) -> Tensor:
        r"""Returns the ID embeddings of users, then items,
        :math:`(N_{user} + N_{item}, H)`.
        """
        return torch.cat([self.user_embedding.weight, self.item_embedding.weight])

    def row_branches(self, graph: MGCNGraph) -> dict[str, RowBranch]:
        r"""Returns every branch as a linear map of the ID embeddings: the propagation
        over the user-item graph, and per modality the gate followed by both
        convolutions.
        """

        def content(similar: SparseOperator) -> Callable[[Tensor], Tensor]:
            def propagate(x: Tensor) -> Tensor:
                x = self.conv(x, similar)
                return torch.cat([self.conv(x, graph.item_to_user), x])

            return propagate

        out = {'id': RowBranch(lambda x: self.user_item_conv(x, graph.user_item))}
        items = slice(self.num_users, None)
        for name, gate in self._gates(graph).items():
            out[name] = RowBranch(content(graph.similar[name]), gate, items)
        return out

    def content_embeddings(self, graph: MGCNGraph) -> dict[str, Tensor]:
        r"""Returns the projected features, before the gate,
        :math:`(N_{item}, H)` by modality.
        """
        return {
            name: self.projection[name](self.features[name].weight)
            for name in self.modalities
        }

    def fuse(
        self, graph: MGCNGraph, branch_embeddings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        r"""Returns user and item embeddings from the result of
        :meth:`branch_embeddings`.
        """
        out = branch_embeddings['id'] + self._fuse(branch_embeddings)
        user_emb, item_emb = out.split([self.num_users, self.num_items])
        return user_emb, item_emb

    def forward(self, graph: MGCNGraph) -> tuple[Tensor, Tensor]:
        return self.fuse(graph, self.branch_embeddings(graph))

    def loss(self, graph: MGCNGraph, batch: Triplets) -> Tensor:
        r"""Returns BPR, plus the L2 regulariser on the batch's final representations,
        plus the contrastive loss between both views of its users and positives.
        """
        nodes, x = batch.nodes(self.num_users), self.node_embedding()
        return self.node_loss({
            name: branch(x).index_select(0, nodes)
            for name, branch in self.row_branches(graph).items()
        })

    def node_loss(self, branches: Mapping[str, Tensor]) -> Tensor:
        r"""Returns the loss of a batch from the branches at its
        :meth:`~torch_geometric_unlearn.nn.models.Triplets.nodes`,
        :math:`(3 B, H)` each: the fuser acts on every node by itself.
        """
        behaviour, fused = branches['id'], self._fuse(branches)
        out = behaviour + fused
        size = out.size(0) // 3
        user_emb, pos_emb, neg_emb = out.split(size)
        bpr = bpr_loss((user_emb * pos_emb).sum(-1), (user_emb * neg_emb).sum(-1))
        norm = out.pow(2).sum()
        views = zip(fused.split(size)[:2], behaviour.split(size)[:2])
        contrastive = sum(info_nce_loss(x, y, self.temperature) for x, y in views)
        regulariser = 0.5 * norm / self.batch_size
        return (
            bpr
            + self.weight_decay * regulariser
            + self.contrastive_weight * contrastive
        )

    def branches(self) -> dict[str, list[Tensor]]:
        r"""Returns the parameters of :obj:`'id'`, every modality, and
        :obj:`'fusion'` (shared attention and preference gates).
        """
        out: dict[str, list[Tensor]] = {}
        out['id'] = [self.user_embedding.weight, self.item_embedding.weight]
        for name in self.modalities:
            modules = (self.features[name], self.projection[name], self.purifier[name])
            out[name] = [p for module in modules for p in module.parameters()]
        fusion = (self.attention_hidden, self.attention_query, self.preference)
        out['fusion'] = [p for module in fusion for p in module.parameters()]
        return out

    def tables(self) -> list[Table]:
        r"""Returns the two ID tables and the feature tables."""
        return [
            Table(self.user_embedding.weight, schema.USER),
            Table(self.item_embedding.weight, schema.ITEM),
            *(
                Table(p, schema.ITEM, is_raw=True, modality=name)
                for name in self.modalities
                for p in self.features[name].parameters()
            ),
        ]

    def _channels(self, name: str) -> int:
        return self.projection[name].in_features  # type: ignore[return-value]

    def _gates(self, graph: MGCNGraph) -> dict[str, Tensor]:
        return {
            name: self.purifier[name](x).sigmoid()
            for name, x in self.content_embeddings(graph).items()
        }

    def _fuse(self, branches: Mapping[str, Tensor]) -> Tensor:
        views = [branches[name] for name in self.modalities]
        score = [self.attention_query(self.attention_hidden(v).tanh()) for v in views]
        alpha = torch.cat(score, dim=1).softmax(dim=1)
        shared = (alpha.unsqueeze(-1) * torch.stack(views, dim=1)).sum(dim=1)
        out = shared
        for name, view in zip(self.modalities, views):
            gate = self.preference[name](branches['id']).sigmoid()
            out = out + gate * (view - shared)
        return out / (len(views) + 1)

    def _stored_graph(self, data: HeteroData, name: str) -> tuple[Tensor, Tensor]:
        edge_type = schema.similar_edge_type(name)
        store = data[edge_type]
        if 'edge_weight' not in store or 'edge_index' not in store:
            raise ValueError(
                f"data[{edge_type}] must hold 'edge_index' and 'edge_weight' (got "
                f"{list(store.keys())}). Build it with 'ItemKNNGraph'."
            )
        return store.edge_index, store.edge_weight

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'modalities={self.modalities}, hidden_channels={self.hidden_channels}, '
            f'num_layers={self.num_layers})'
        )
