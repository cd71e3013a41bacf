from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import BatchNorm1d, Embedding, Linear, ModuleDict, PReLU
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.conv import MarkovDiffusionConv, SampledAttentionConv
from torch_geometric_unlearn.nn.functional import dropout
from torch_geometric_unlearn.ops import SparseOperator
from torch_geometric_unlearn.ops.sparse_operator import self_loop_operator
from torch_geometric_unlearn.utils.check import (
    check_bool,
    check_choice,
    check_float,
    check_int,
)
from torch_geometric_unlearn.utils.rows import moderate_rows
from torch_geometric_unlearn.utils.seed import check_seed, generator

from ._checks import check_modalities, check_sizes
from .base import Recommender, Table, Triplets

# Published settings by dataset: arguments of the model, and those of `fit`.
_COMMON_FIT: dict[str, Any] = {
    'batch_size': 8000,
    'lr_decay_epochs': 1,
    'negatives': 'uniform',
    'metric_decimals': 12,
}
_PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    'Baby': (
        {},
        {
            'lr': 1e-2,
            'lr_decay': 0.99,
            'num_epochs': 300,
            'eval_every': 20,
            'patience': 4,
        },
    ),
    'Sports': (
        {
            'weight_decay': 1e-4,
            'feature_dropout': 0.2,
            'hidden_dropout': 0.5,
            'user_dropout': 0.1,
            'item_dropout': 0.2,
            'edge_dropout': 0.5,
            'num_hops': {'id': 4, 'text': 2, 'image': 3},
        },
        {
            'lr': 1e-2,
            'lr_decay': 0.99,
            'lr_min': 1e-3,
            'num_epochs': 300,
            'eval_every': 50,
            'patience': 1,
        },
    ),
    'Clothing': (
        {
            'encoder_channels': 2048,
            'num_samples': 20,
            'feature_dropout': 0.1,
            'hidden_dropout': 0.4,
            'user_dropout': 0.1,
            'item_dropout': 0.1,
            'edge_dropout': 0.25,
            'out_dropout': 0.3,
            'num_hops': {'id': 2, 'text': 2, 'image': 0},
        },
        {
            'lr': 1e-3,
            'lr_decay': 0.999,
            'lr_min': 1e-4,
            'num_epochs': 500,
            'eval_every': 50,
            'patience': 1,
        },
    ),
}


@dataclass
class MIGGTGraph:
    r"""What :class:`MIGGT` propagates over.

    Attributes:
        edge_index (torch.Tensor): The interactions, int64 :obj:`[2, E]`.
        user_item (SparseOperator): Normalised adjacency over users and items with self
            loops.
        features (dict): Item features by modality, :math:`(N_{item}, F)`.
        samples (torch.Tensor): Sampled nodes in evaluation mode, int64
            :math:`(N_{user} + N_{item}, C)`.
    """

    edge_index: Tensor
    user_item: SparseOperator
    features: dict[str, Tensor]
    samples: Tensor

    def to(self, device: torch.device | str) -> MIGGTGraph:
        r"""Returns the graph on another device."""
        return MIGGTGraph(
            self.edge_index.to(device),
            self.user_item.to(device),
            {name: x.to(device) for name, x in self.features.items()},
            self.samples.to(device),
        )


class FeatureEncoder(torch.nn.Module):
    r"""Two linear layers, each with batch norm and PReLU, and dropout in between.

    Args:
        in_channels (int): Size of the features.
        hidden_channels (int): Size of the hidden layer.
        out_channels (int): Size of the output.
        dropout (float): Probability of dropping a hidden entry.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear1 = Linear(in_channels, hidden_channels)
        self.bn1 = BatchNorm1d(hidden_channels)
        self.prelu1 = PReLU()
        self.linear2 = Linear(hidden_channels, out_channels)
        self.bn2 = BatchNorm1d(out_channels)
        self.prelu2 = PReLU()
        for linear in (self.linear1, self.linear2):
            torch.nn.init.xavier_uniform_(linear.weight)
            torch.nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = _prelu(self.bn1(self.linear1(x)), self.prelu1.weight)
        x = dropout(x, self.dropout, self.training)
        return _prelu(self.bn2(self.linear2(x)), self.prelu2.weight)


class MIGGT(Recommender):
    r"""The modality-independent graph neural network with global transformer from the
    `"Modality-Independent Graph Neural Networks with Global Transformers for Multimodal
    Recommendation" <https://arxiv.org/abs/2412.13994>`_ paper.

    User ID embeddings and encoded item features propagate over the user-item graph
    without parameters, every branch with its own number of hops; their sum attends to
    randomly sampled items. Besides BPR, the transformer unsmooth regularisation (TUR)
    asks every positive item to beat its samples after the attention. There is no item
    ID embedding.

    Where the paper and the authors' released code differ, this follows the code, which
    gives the published results: the samples are items only, image features are
    replaced by a fixed random projection with normalised rows, losses are sums over
    the batch, and the L2 regulariser acts on the final representations of all nodes.
    Ours: in evaluation mode the samples are fixed by :obj:`sample_seed`, so that
    results can be reproduced (the code draws anew in every call), and any number of
    modalities works. Only the output rows that are used are computed, which changes
    no value.

    Defaults are the published ones for Amazon Baby; :meth:`published` has the others,
    and the settings of the training.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict): Size of the raw item features by modality.
        hidden_channels (int, optional): Size of every embedding.
            (default: :obj:`64`)
        encoder_channels (int, optional): Hidden size of the feature encoders.
            (default: :obj:`512`)
        num_hops (int or dict, optional): Hops by branch, or one number for all. A
            modality that is not named has two [ours].
            (default: :obj:`{'id': 4, 'text': 2, 'image': 1}`)
        num_samples (int, optional): Sampled items per node :math:`C`, at least 1.
            (default: :obj:`10`)
        projection_channels (dict, optional): Size of the fixed random projection by
            modality. (default: :obj:`{'image': 384}`)
        alpha (float, optional): Weight of the input in the propagation.
            (default: :obj:`0.1`)
        beta (float, optional): Weight of the neighbours. (default: :obj:`0.9`)
        attention_channels (int, optional): Size of queries and keys.
            (default: :obj:`4`)
        mix (float, optional): Share of the attention in the output.
            (default: :obj:`0.1`)
        use_transformer (bool, optional): Whether to attend and to regularise; without
            it, this is the paper's ablation. (default: :obj:`True`)
        weight_decay (float, optional): Weight :math:`\lambda` of half the squared L2
            norm. (default: :obj:`1e-5`)
        feature_dropout (float, optional): Dropout on input features.
            (default: :obj:`0.3`)
        hidden_dropout (float, optional): Dropout inside the encoders.
            (default: :obj:`0.3`)
        user_dropout (float, optional): Dropout on user ID embeddings.
            (default: :obj:`0.3`)
        item_dropout (float, optional): Dropout on encoded features.
            (default: :obj:`0.3`)
        edge_dropout (float, optional): Dropout on edge weights.
            (default: :obj:`0.2`)
        out_dropout (float, optional): Dropout on the sum of the branches.
            (default: :obj:`0.2`)
        sample_seed (int, optional): Seed of the samples in evaluation mode.
            (default: :obj:`0`)

    Shapes:
        - **output:** user embeddings :math:`(N_{user}, H)`, item embeddings
          :math:`(N_{item}, H)`

    Raises:
        ValueError: If there is no modality, or an argument is out of range.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> model = MIGGT.from_data(data, hidden_channels=16, encoder_channels=32)
        >>> user_emb, item_emb = model(model.build_graph(data))
    """

    reduction = 'sum'

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: Mapping[str, int],
        hidden_channels: int = 64,
        encoder_channels: int = 512,
        num_hops: int | Mapping[str, int] | None = None,
        num_samples: int = 10,
        projection_channels: Mapping[str, int] | None = None,
        alpha: float = 0.1,
        beta: float = 0.9,
        attention_channels: int = 4,
        mix: float = 0.1,
        use_transformer: bool = True,
        weight_decay: float = 1e-5,
        feature_dropout: float = 0.3,
        hidden_dropout: float = 0.3,
        user_dropout: float = 0.3,
        item_dropout: float = 0.3,
        edge_dropout: float = 0.2,
        out_dropout: float = 0.2,
        sample_seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_users = check_int(num_users, 'num_users', 1)
        self.num_items = check_int(num_items, 'num_items', 1)
        self.modalities = check_modalities(in_channels, 'in_channels', 'MIGGT')
        self.in_channels = {
            name: check_int(size, 'in_channels', 1)
            for name, size in in_channels.items()
        }
        self.hidden_channels = check_int(hidden_channels, 'hidden_channels', 1)
        self.encoder_channels = check_int(encoder_channels, 'encoder_channels', 1)
        self.num_samples = check_int(num_samples, 'num_samples', 1)
        self.use_transformer = check_bool(use_transformer, 'use_transformer')
        self.weight_decay = check_float(weight_decay, 'weight_decay', 0.0)
        self.feature_dropout = check_float(feature_dropout, 'feature_dropout', 0, 0.99)
        self.hidden_dropout = check_float(hidden_dropout, 'hidden_dropout', 0, 0.99)
        self.user_dropout = check_float(user_dropout, 'user_dropout', 0, 0.99)
        self.item_dropout = check_float(item_dropout, 'item_dropout', 0, 0.99)
        self.out_dropout = check_float(out_dropout, 'out_dropout', 0, 0.99)
        self.sample_seed = check_seed(sample_seed, 'sample_seed')
        self.num_hops = _all_hops(num_hops, self.modalities)
        projected = {'image': 384} if projection_channels is None else (
            projection_channels
        )
        _check_names(projected, self.modalities, 'projection_channels')
        self.projection_channels = {
            name: check_int(size, 'projection_channels', 1)
            for name, size in projected.items()
            if name in self.modalities
        }
        sizes = self.in_channels | self.projection_channels
        for name in self.modalities:
            if name in self.projection_channels:
                matrix = torch.randn(in_channels[name], sizes[name])
                self.register_buffer(f'projection_{name}', matrix)
        H = self.hidden_channels
        self.user_embedding = Embedding(self.num_users, H)
        self.encoder = ModuleDict({
            name: FeatureEncoder(
                sizes[name], self.encoder_channels, H, self.hidden_dropout
            )
            for name in self.modalities
        })
        self.conv = ModuleDict({
            name: MarkovDiffusionConv(hops, alpha, beta, edge_dropout)
            for name, hops in self.num_hops.items()
        })
        self.transformer = SampledAttentionConv(H, attention_channels, mix)
        # Checked by the layers, and kept for a saved model.
        self.alpha, self.beta, self.edge_dropout = alpha, beta, edge_dropout
        self.attention_channels, self.mix = attention_channels, mix
        self._init_rows(self.user_embedding.weight)

    @classmethod
    def from_data(cls, data: HeteroData, **kwargs: Any) -> MIGGT:
        r"""Returns a fresh model with the sizes of :obj:`data`, drawn from torch's
        global generator.
        """
        data = schema.validate(data)
        channels = {name: x.size(1) for name, x in schema.features(data).items()}
        return cls(schema.num_users(data), schema.num_items(data), channels, **kwargs)

    @staticmethod
    def published(dataset: str) -> tuple[dict[str, Any], dict[str, Any]]:
        r"""Returns the published settings for :obj:`'Baby'`, :obj:`'Sports'` or
        :obj:`'Clothing'`: arguments of the model, and arguments of
        :meth:`~torch_geometric_unlearn.train.fit`.
        """
        check_choice(dataset, 'dataset', tuple(_PUBLISHED))
        model_args, fit_args = _PUBLISHED[dataset]
        return deepcopy(model_args), _COMMON_FIT | fit_args

    def build_graph(self, data: HeteroData) -> MIGGTGraph:
        r"""Returns the user-item operator of the interactions not marked as forgotten,
        the features that the encoders read, and the samples for evaluation mode.

        Raises:
            ValueError: If model and data differ in users, items or modalities.
        """
        data = schema.validate(data)
        check_sizes(data, self.num_users, self.num_items, self.in_channels)
        weight = self.user_embedding.weight
        edge_index = schema.retained_edge_index(data)
        features = {}
        for name in self.modalities:
            x = data[schema.ITEM][f'x_{name}'].to(weight)
            if f'projection_{name}' in self._buffers:
                x = moderate_rows(x) @ self.get_buffer(f'projection_{name}')
                x = x / (x.norm(dim=1, keepdim=True) + 1e-8)
            features[name] = x
        rng = generator(self.sample_seed)
        size = (self.num_users + self.num_items, self.num_samples)
        samples = torch.randint(self.num_items, size, generator=rng) + self.num_users
        user_item = self_loop_operator(edge_index, self.num_users, self.num_items)
        return MIGGTGraph(edge_index, user_item, features, samples).to(weight.device)

    def branch_embeddings(self, graph: MIGGTGraph) -> dict[str, Tensor]:
        r"""Returns the propagated :obj:`'id'` embeddings and features by modality,
        each :math:`(N_{user} + N_{item}, H)`, users first.
        """
        return self._propagate(graph)

    def content_embeddings(self, graph: MIGGTGraph) -> dict[str, Tensor]:
        r"""Returns the encoded features, :math:`(N_{item}, H)` by modality."""
        return self._encode(graph)

    def fuse(
        self, graph: MIGGTGraph, branch_embeddings: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        r"""Returns user and item embeddings from the result of
        :meth:`branch_embeddings`.
        """
        x, samples = self._sum(branch_embeddings), self._samples(graph)
        out = self.transformer(x, samples) if self.use_transformer else x
        user_emb, item_emb = out.split([self.num_users, self.num_items])
        return user_emb, item_emb

    def forward(self, graph: MIGGTGraph) -> tuple[Tensor, Tensor]:
        return self.fuse(graph, self.branch_embeddings(graph))

    def loss(self, graph: MIGGTGraph, batch: Triplets) -> Tensor:
        r"""Returns the sum over the batch of BPR and TUR, plus the L2 regulariser on
        the final representations of all nodes.
        """
        x, samples = self._sum(self.branch_embeddings(graph)), self._samples(graph)
        out = self.transformer(x, samples) if self.use_transformer else x
        pos, neg = batch.pos_item + self.num_users, batch.neg_item + self.num_users
        nodes = torch.cat([batch.user, pos, neg])
        user_emb, pos_emb, neg_emb = out.index_select(0, nodes).chunk(3)
        pos_score = (user_emb * pos_emb).sum(dim=-1)
        neg_score = (user_emb * neg_emb).sum(dim=-1)
        loss = F.softplus(neg_score - pos_score).sum()
        if self.use_transformer:
            score = self.transformer.token_scores(x, samples, pos, user_emb)
            loss = loss + (score.logsumexp(dim=1) - score[:, 0]).sum()
        return loss + 0.5 * self.weight_decay * out.pow(2).sum()

    def branches(self) -> dict[str, list[Tensor]]:
        r"""Returns the parameters of :obj:`'id'`, every modality, and
        :obj:`'fusion'` (the global transformer).
        """
        out: dict[str, list[Tensor]] = {'id': [self.user_embedding.weight]}
        for name in self.modalities:
            out[name] = list(self.encoder[name].parameters())
        out['fusion'] = list(self.transformer.parameters())
        return out

    def tables(self) -> list[Table]:
        r"""Returns the user ID table; there is none of items."""
        return [Table(self.user_embedding.weight, schema.USER, init=self._init_rows)]

    @property
    def _init_rows(self) -> Any:
        return partial(torch.nn.init.normal_, std=self.hidden_channels**-0.5)

    def _propagate(self, graph: MIGGTGraph) -> dict[str, Tensor]:
        x = self._drop(self.user_embedding.weight, self.user_dropout)
        x = F.pad(x, (0, 0, 0, self.num_items))
        out = {'id': self.conv['id'](x, graph.user_item)}
        for name, x in self._encode(graph).items():
            x = self._drop(x, self.item_dropout)
            x = F.pad(x, (0, 0, self.num_users, 0))
            out[name] = self.conv[name](x, graph.user_item)
        return out

    def _encode(self, graph: MIGGTGraph) -> dict[str, Tensor]:
        out = {}
        for name in self.modalities:
            x = dropout(graph.features[name], self.feature_dropout, self.training)
            out[name] = self.encoder[name](x)
        return out

    def _sum(self, branch_embeddings: Mapping[str, Tensor]) -> Tensor:
        x = torch.stack(tuple(branch_embeddings.values())).sum(dim=0)
        return self._drop(x, self.out_dropout)

    def _drop(self, x: Tensor, p: float) -> Tensor:
        return dropout(x, p, self.training)

    def _samples(self, graph: MIGGTGraph) -> Tensor:
        if not self.training:
            return graph.samples
        index = torch.randint_like(graph.samples, self.num_items)
        return index + self.num_users

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.num_users}, {self.num_items}, '
            f'modalities={self.modalities}, hidden_channels={self.hidden_channels}, '
            f'num_hops={self.num_hops})'
        )


def _check_names(given: Mapping[str, int], names: list[str], argument: str) -> None:
    # Published settings name image and text, whether the data has both or not.
    unknown = sorted(set(given) - {*names, 'image', 'text'})
    if unknown:
        raise ValueError(f"'{argument}' must name branches of {names} (got {unknown})")


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return x.relu() - slope * (-x).relu()  # Half the time of torch's on the CPU.


def _all_hops(
    num_hops: int | Mapping[str, int] | None, modalities: list[str]
) -> dict[str, int]:
    names = ['id', *modalities]
    if num_hops is None:
        num_hops = {'id': 4, 'text': 2, 'image': 1}
    if isinstance(num_hops, Mapping):
        _check_names(num_hops, names, 'num_hops')
        out = {name: num_hops.get(name, 2) for name in names}
    else:
        out = dict.fromkeys(names, num_hops)
    return {name: check_int(hops, 'num_hops', 0) for name, hops in out.items()}
