from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import ModuleList
from torch_geometric.data import HeteroData
from torch_geometric.utils import scatter

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers, ItemKNNGraph
from torch_geometric_unlearn.utils.check import check_choice
from torch_geometric_unlearn.utils.mode import evaluating

from .base import Recommender, RecommenderLike, Table, Triplets

COMBINATIONS = ('owner', 'mean_items', 'calibrated_mean')


@dataclass
class EnsembleGraph:
    r"""What :class:`ShardEnsemble` propagates over.

    Attributes:
        edge_index (torch.Tensor): The interactions of all groups, int64
            :obj:`[2, E]`.
        shards (list): The graph of every shard, :obj:`None` for a group without
            interactions.
    """

    edge_index: Tensor
    shards: list[Any]

    def to(self, device: torch.device | str) -> EnsembleGraph:
        r"""Returns the graph on another device."""
        shards = [None if graph is None else graph.to(device) for graph in self.shards]
        return EnsembleGraph(self.edge_index.to(device), shards)


class ShardEnsemble(Recommender):
    r"""Complete models over disjoint groups of users and all items, combined into one
    that meets the model contract.

    Shard :math:`k` propagates over the interactions of its own group only and gives
    :math:`p_u^{(k)}, q_i^{(k)}`. With :math:`o(u)` the group of user :math:`u`, the
    scores are

    - :obj:`'owner'`: :math:`\langle p_u^{(o(u))}, q_i^{(o(u))} \rangle`, so that every
      user is served by the own group alone,
    - :obj:`'mean_items'`:
      :math:`\frac{1}{K} \sum_k \langle p_u^{(o(u))}, q_i^{(k)} \rangle`, which makes
      sense only as far as the item spaces are aligned, see :meth:`alignment`,
    - :obj:`'calibrated_mean'`: :math:`\sum_k \pi_k z_k(u, i)`, with :math:`z_k(u, i)`
      the product of :math:`q_i^{(k)}` and the mean of :math:`q^{(k)}` over the user's
      interactions, standardised over all items (mean 0, variance 1). Users without
      interactions get a score of 0 everywhere [ours].

    The embeddings are stacked such that their dot products are exactly these scores. A
    shard whose group has no interactions stays fresh, and contributes zeros.

    Args:
        shards (sequence): Models that meet the model contract, over all users and
            items; rows of users outside the group are never trained nor read.
        owner (torch.Tensor): The group of every user, int64 :obj:`[num_users]`.
        combination (str, optional): :obj:`'owner'`, :obj:`'mean_items'` or
            :obj:`'calibrated_mean'`. (default: :obj:`'owner'`)
        weights (torch.Tensor, optional): Weights :math:`\pi` on the simplex,
            :obj:`[K]`, used by :obj:`'calibrated_mean'`; uniform if not given.
            (default: :obj:`None`)

    Shapes:
        - **output:** user embeddings :math:`(N_{user}, K H)`, item embeddings
          :math:`(N_{item}, K H)`; with :obj:`'mean_items'`, :math:`H` instead of
          :math:`K H`

    Raises:
        TypeError: If :obj:`owner` is no int64 tensor.
        ValueError: If there is no shard, a group has no shard, or an argument is out
            of range.

    Example:
        >>> from torch_geometric_unlearn.nn.models import ShardEnsemble
        >>> shards = [MGCN.from_data(data, hidden_channels=8) for _ in range(2)]
        >>> owner = torch.arange(data['user'].num_nodes) % 2
        >>> ensemble = ShardEnsemble(shards, owner)
        >>> user_emb, item_emb = ensemble(ensemble.build_graph(data))
        >>> user_emb.size(1)
        16
    """

    owner: Tensor
    weights: Tensor

    def __init__(
        self,
        shards: Sequence[RecommenderLike],
        owner: Tensor,
        combination: str = 'owner',
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        num_shards = len(shards)
        if num_shards == 0:
            raise ValueError("'shards' must hold at least one model (got none)")
        if not isinstance(owner, Tensor) or owner.dtype != torch.int64:
            got = owner.dtype if isinstance(owner, Tensor) else type(owner).__name__
            raise TypeError(f"'owner' must be an int64 tensor (got {got})")
        if owner.dim() != 1 or owner.numel() == 0:
            raise ValueError(
                f"'owner' must have shape [num_users] (got {list(owner.shape)})"
            )
        low, high = int(owner.min()), int(owner.max())
        if low < 0 or high >= num_shards:
            raise ValueError(
                f"'owner' must name shards from 0 to {num_shards - 1} (got "
                f'{low} to {high})'
            )
        if weights is None:
            weights = torch.full((num_shards,), 1 / num_shards)
        if weights.shape != (num_shards,) or not _on_simplex(weights):
            raise ValueError(
                f"'weights' must hold {num_shards} values of at least 0 that add up to "
                f'1 (got {weights.tolist()})'
            )
        self.combination = check_choice(combination, 'combination', COMBINATIONS)
        self.reduction = getattr(shards[0], 'reduction', 'mean')
        self.shards: Any = ModuleList(cast(Sequence[torch.nn.Module], shards))
        device = next(self.shards.parameters()).device
        self.register_buffer('owner', owner.to(device, copy=True))
        self.register_buffer('weights', weights.to(device, torch.float32, copy=True))

    @property
    def num_shards(self) -> int:
        r"""Number of shards :math:`K`."""
        return len(self.shards)

    def build_graph(self, data: HeteroData) -> EnsembleGraph:
        r"""Returns the graph of every shard over the interactions of its own group that
        are not marked as forgotten.

        Item-item graphs hold no interactions: all shards share one.

        Raises:
            ValueError: If model and data differ in the number of users.
        """
        data = schema.validate(data)
        if schema.num_users(data) != self.owner.numel():
            raise ValueError(
                f'The model has {self.owner.numel()} users, but the data has '
                f'{schema.num_users(data)}. Node ids must not shift; pass the data '
                f'that the model was built for.'
            )
        retained = DropForgotten(keep=('*',))(data)
        edge_index = retained[schema.EDGE_TYPE].edge_index.to(self.owner.device)
        content = share_item_graphs(self.shards, retained)
        graphs = []
        for k, shard in enumerate(self.shards):
            view = group_data(content, self.owner, k)
            graphs.append(None if view is None else shard.build_graph(view))
        return EnsembleGraph(edge_index, graphs)

    def forward(self, graph: EnsembleGraph) -> tuple[Tensor, Tensor]:
        users, items = self.shard_embeddings(graph)
        if self.combination == 'calibrated_mean':
            users, items = _standardised(graph.edge_index, items, self.owner.numel())
            blocks = [weight * user for weight, user in zip(self.weights, users)]
            return torch.cat(blocks, dim=1), torch.cat(items, dim=1)
        blocks = [
            user * (self.owner == k).unsqueeze(1) for k, user in enumerate(users)
        ]
        if self.combination == 'owner':
            return torch.cat(blocks, dim=1), torch.cat(items, dim=1)
        return torch.stack(blocks).sum(dim=0), torch.stack(items).mean(dim=0)

    def shard_embeddings(
        self, graph: EnsembleGraph
    ) -> tuple[list[Tensor], list[Tensor]]:
        r"""Returns user and item embeddings by shard, each :math:`(N, H)`; zeros for a
        group without interactions.
        """
        out = [
            None if part is None else shard(part)
            for shard, part in zip(self.shards, graph.shards)
        ]
        known = next(pair for pair in out if pair is not None)
        zeros = tuple(torch.zeros_like(emb) for emb in known)
        pairs = [zeros if pair is None else pair for pair in out]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    @torch.no_grad()
    def calibrated_scores(self, graph: EnsembleGraph, pairs: Tensor) -> Tensor:
        r"""Returns the standardised score :math:`z_k(u, i)` of every pair by shard.

        Args:
            graph (EnsembleGraph): The result of :meth:`build_graph`.
            pairs (torch.Tensor): Pairs, int64 :obj:`[2, B]`.

        Returns:
            torch.Tensor: Scores :obj:`[B, K]`.
        """
        users, items = _standardised(
            graph.edge_index, self._frozen_items(graph), self.owner.numel()
        )
        user, item = pairs.to(self.owner.device)
        scores = [(p[user] * q[item]).sum(dim=-1) for p, q in zip(users, items)]
        return torch.stack(scores, dim=1)

    @torch.no_grad()
    def alignment(self, graph: EnsembleGraph) -> Tensor:
        r"""Returns the linear centred kernel alignment (CKA) between the item
        embeddings of all shards, :obj:`[K, K]`, in :math:`[0, 1]`.

        Independent training turns item spaces against each other even from equal
        initial tables. CKA does not see a rotation, which :obj:`'mean_items'` does not
        survive: a low value speaks against it, a high one alone not for it. 0 for a
        group without interactions.
        """
        items = [
            (emb - emb.mean(dim=0)).double() for emb in self._frozen_items(graph)
        ]
        cross = torch.stack(
            [torch.stack([(a.t() @ b).pow(2).sum() for b in items]) for a in items]
        )
        norm = cross.diag().sqrt()
        scale = norm.unsqueeze(0) * norm.unsqueeze(1)
        out = torch.where(scale > 0, cross / scale.clamp(min=1e-300), 0.0)
        return out.clamp(max=1.0).float()

    def loss(self, graph: EnsembleGraph, batch: Triplets) -> Tensor:
        r"""Returns the mean of the shards' own losses, each on the part of the batch
        that belongs to its group, weighted by the size of that part; the sum if that
        is how they add up over a batch.

        Users of groups without interactions are left out.
        """
        size = batch.user.numel()
        owner = self.owner[batch.user]
        terms = []
        for k, (shard, part) in enumerate(zip(self.shards, graph.shards)):
            rows = (owner == k).nonzero().view(-1)
            if part is None or rows.numel() == 0:
                continue
            own = Triplets(*(x[rows] for x in batch))
            share = 1.0 if self.reduction == 'sum' else rows.numel() / size
            terms.append(share * shard.loss(part, own))
        if not terms:
            return 0.0 * torch.stack([p.sum() for p in self.parameters()]).sum()
        return torch.stack(terms).sum()

    def branches(self) -> dict[str, list[Tensor]]:
        r"""Returns the parameters of all shards by the shards' own branches."""
        out: dict[str, list[Tensor]] = {}
        for shard in self.shards:
            for name, members in shard.branches().items():
                out.setdefault(name, []).extend(members)
        return out

    def tables(self) -> list[Table]:
        r"""Returns the tables of all shards."""
        return [table for shard in self.shards for table in shard.tables()]

    def _frozen_items(self, graph: EnsembleGraph) -> list[Tensor]:
        with evaluating(self):
            _, items = self.shard_embeddings(graph)
        return items

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({type(self.shards[0]).__name__}, '
            f"num_shards={self.num_shards}, combination='{self.combination}')"
        )


def group_data(data: HeteroData, owner: Tensor, group: int) -> HeteroData | None:
    r"""Returns the data that a group sees: its users' interactions and held-out pairs,
    all items, and node ids as they were; :obj:`None` if no interaction is left.

    This is the data after the deletion of all other users.

    Args:
        data (HeteroData): The data without a request.
        owner (torch.Tensor): The group of every user, int64 :obj:`[num_users]`.
        group (int): The group.
    """
    edge_index = data[schema.EDGE_TYPE].edge_index
    foreign = owner.to(edge_index.device) != group
    gone = foreign[edge_index[0]]
    if gone.all():
        return None
    if not foreign.any():
        return data
    return DropForgotten(keep=('*',))(ForgetUsers(foreign.nonzero().view(-1))(data))


def share_item_graphs(
    models: Iterable[RecommenderLike], data: HeteroData
) -> HeteroData:
    r"""Returns the data with the item-item graphs that the models would otherwise each
    build from the features.

    They hold no interactions, so all groups may share them. A model that has
    :obj:`num_neighbors` and :obj:`modalities` is taken to build such graphs as
    :class:`~torch_geometric_unlearn.transforms.ItemKNNGraph` does and to use stored
    ones; others get the data as it is, as do models that differ in either.

    Args:
        models (iterable): The models.
        data (HeteroData): The data, left as it is.
    """
    wanted = {
        (getattr(model, 'num_neighbors', None), *getattr(model, 'modalities', ()))
        for model in models
    }
    if len(wanted) != 1:
        return data
    k, *modalities = wanted.pop()
    missing = [
        name
        for name in modalities
        if schema.similar_edge_type(name) not in data.edge_types
        and name in schema.modalities(data)
    ]
    if k is None or not missing:
        return data
    return ItemKNNGraph(k, missing)(data)


def _standardised(
    edge_index: Tensor, items: Sequence[Tensor], num_users: int
) -> tuple[list[Tensor], list[Tensor]]:
    r"""Returns user and item embeddings by shard whose products are
    :math:`z_k(u, i)`.
    """
    user, item = edge_index
    users, centred = [], []
    for emb in items:
        profile = scatter(emb[item], user, 0, num_users, 'mean')
        emb = emb - emb.mean(dim=0)
        # The variance of a user's scores over all items, without all the scores.
        covariance = emb.t() @ emb / emb.size(0)
        variance = ((profile @ covariance) * profile).sum(dim=-1, keepdim=True)
        known = variance > 0
        scale = torch.where(known, variance, 1.0).rsqrt() * known
        users.append(profile * scale)
        centred.append(emb)
    return users, centred


def _on_simplex(weights: Tensor) -> bool:
    total = float(weights.double().sum())
    return bool((weights >= 0).all()) and abs(total - 1) < 1e-4
