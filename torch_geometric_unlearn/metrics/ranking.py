r"""Recall and NDCG by full ranking over all items, on PyG's link prediction metrics.

Definitions: for a user with relevant items :math:`R_u` and list :math:`T_u` of the
:math:`K` best items that are not masked,

.. math::
    \textrm{Recall@}K = \frac{|T_u \cap R_u|}{|R_u|}, \qquad
    \textrm{NDCG@}K = \frac{\sum_{r: T_u[r] \in R_u} 1 / \log_2(r + 1)}
    {\sum_{r=1}^{\min(K, |R_u|)} 1 / \log_2(r + 1)},

averaged over the users with :math:`R_u \neq \emptyset`; ties go to the lowest item id.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.metrics import LinkPredNDCG, LinkPredRecall

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.utils.check import check_bool
from torch_geometric_unlearn.utils.ids import check_pair_ids
from torch_geometric_unlearn.utils.seed import generator
from torch_geometric_unlearn.utils.topk import PairIndex, Scores


def ranking_metrics(
    user_emb: Tensor,
    item_emb: Tensor,
    edge_label_index: Tensor,
    exclude: Tensor | None = None,
    exclude_items: Tensor | None = None,
    ks: Sequence[int] = (10, 20),
    batch_size: int = 2048,
) -> dict[str, float]:
    r"""Ranks all items for every user with a relevant item.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(N_{user}, H)`.
        item_emb (torch.Tensor): Item embeddings :math:`(N_{item}, H)`.
        edge_label_index (torch.Tensor): Relevant (user, item) pairs, int64
            :obj:`[2, n]`; one that occurs twice counts once.
        exclude (torch.Tensor, optional): Masked pairs, int64 :obj:`[2, E]`.
            (default: :obj:`None`)
        exclude_items (torch.Tensor, optional): Items masked for everyone, int64
            :obj:`[m]`. (default: :obj:`None`)
        ks (sequence, optional): Lengths of the list. (default: :obj:`(10, 20)`)
        batch_size (int, optional): Users per block. (default: :obj:`2048`)

    Returns:
        dict: :obj:`recall@K` and :obj:`ndcg@K` for every :obj:`K`. Without a relevant
        pair, all are NaN, with a warning.

    Raises:
        ValueError: If the embeddings are not finite.
    """
    scores = Scores(user_emb, item_emb)
    return rank(scores, edge_label_index, exclude, exclude_items, ks, batch_size)


def rank(
    scores: Scores,
    edge_label_index: Tensor,
    exclude: Tensor | PairIndex | None = None,
    exclude_items: Tensor | None = None,
    ks: Sequence[int] = (10, 20),
    batch_size: int = 2048,
) -> dict[str, float]:
    r"""Does what :meth:`ranking_metrics` does by given scores, such as those of
    :class:`~torch_geometric_unlearn.nn.Served`.
    """
    sizes, device = scores.sizes, scores.device
    edge_label_index = check_pair_ids(edge_label_index, *sizes, 'edge_label_index')
    codes = schema.pair_codes(edge_label_index, sizes[1])
    if codes.unique().numel() < codes.numel():  # The relevant items are a set.
        edge_label_index = edge_label_index.unique(dim=1)
    if edge_label_index.size(1) == 0:
        warnings.warn(
            'There is no relevant pair to rank, so the metrics are NaN', stacklevel=2
        )
        return {f'{name}@{k}': math.nan for k in ks for name in ('recall', 'ndcg')}
    metrics = {}
    for k in ks:
        metrics[f'recall@{k}'] = LinkPredRecall(k).to(device)
        metrics[f'ndcg@{k}'] = LinkPredNDCG(k).to(device)
    labels, exclude = PairIndex(edge_label_index, sizes[0]), scores.index(exclude)
    for users in edge_label_index[0].unique().split(batch_size):
        pred, _ = scores.topk(users, max(ks), exclude, exclude_items, batch_size)
        pred[pred < 0] = sizes[1]  # Matches no relevant item.
        label_index = torch.stack(labels.lookup(users))
        for metric in metrics.values():
            metric.update(pred[:, : metric.k], label_index)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


@torch.no_grad()
def retained_ndcg(
    served: Served, data: HeteroData, k: int = 20, batch_size: int = 2048
) -> tuple[Tensor, Tensor]:
    r"""Returns NDCG@K on the retained test pairs user by user, whose mean is
    :obj:`retain_ndcg@K` of :meth:`evaluate_request`.

    Args:
        served (Served): The model to look at.
        data (HeteroData): The data with the request still marked.
        k (int, optional): Length of the list. (default: :obj:`20`)
        batch_size (int, optional): Users per block. (default: :obj:`2048`)

    Returns:
        (torch.Tensor, torch.Tensor): The users with such a pair, int64 :obj:`[n]`, and
        their values, float64 :obj:`[n]`, both on the CPU.
    """
    request, test = Request.of(data), schema.held_out(data, 'test')
    label = test[:, ~request.covers(test)]
    exclude = schema.retained_edge_index(data)
    users, _, ndcg = user_metrics(served, label, exclude, request.items, k, batch_size)
    return users, ndcg


@torch.no_grad()
def user_metrics(
    served: Served,
    edge_label_index: Tensor,
    exclude: Tensor,
    exclude_items: Tensor,
    k: int = 20,
    batch_size: int = 2048,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns what :meth:`ranking_metrics` averages, user by user.

    Args:
        served (Served): The model to look at.
        edge_label_index (torch.Tensor): Relevant (user, item) pairs, unique, int64
            :obj:`[2, n]`.
        exclude (torch.Tensor): Masked pairs, int64 :obj:`[2, E]`.
        exclude_items (torch.Tensor): Items masked for everyone, int64 :obj:`[m]`.
        k (int, optional): Length of the list. (default: :obj:`20`)
        batch_size (int, optional): Users per block. (default: :obj:`2048`)

    Returns:
        (torch.Tensor, torch.Tensor, torch.Tensor): The users with a relevant pair,
        int64 :obj:`[n]`, their recall and their NDCG, float64 :obj:`[n]`, all on the
        CPU.
    """
    scores = served.scores
    device, (num_users, size) = scores.device, scores.sizes
    label, known = edge_label_index.to(device), scores.index(exclude.to(device))
    index, users = PairIndex(label, num_users), label[0].unique()
    place = torch.arange(2, k + 2, dtype=torch.double, device=device)
    weight = 1 / place.log2()
    recall, ndcg = [weight[:0]], [weight[:0]]
    for block in users.split(batch_size):
        lists, _ = scores.topk(block, k, known, exclude_items.to(device))
        row, item = index.lookup(block)
        first = torch.arange(block.numel(), device=device).unsqueeze(1) * size
        hit = torch.isin(lists + first, row * size + item) & (lists >= 0)
        count = index.count[block]
        recall.append(hit.sum(dim=1) / count.double())
        best = weight.cumsum(0)[count.clamp(max=k) - 1]
        ndcg.append((hit * weight).sum(dim=1) / best)
    return users.cpu(), torch.cat(recall).cpu(), torch.cat(ndcg).cpu()


def embed(model: Any, graph: Any) -> tuple[Tensor, Tensor]:
    r"""Returns user and item embeddings in evaluation mode; after it, every module has
    its own mode again.

    Raises:
        ValueError: If they are not finite.
    """
    return Served(model, graph).embeddings


def evaluate_split(
    model: Any,
    data: HeteroData,
    split: str = 'test',
    graph: Any = None,
    ks: Sequence[int] = (10, 20),
    mask_validation: bool = False,
) -> dict[str, float]:
    r"""Ranks a held-out split with the training positives masked.

    Args:
        model (torch.nn.Module or Served): A trained model that meets the model
            contract.
        data (HeteroData): The data; pairs marked as forgotten are neither propagated
            over nor masked.
        split (str, optional): :obj:`'val'` or :obj:`'test'`.
            (default: :obj:`'test'`)
        graph (Any, optional): The result of :obj:`model.build_graph(data)`, if at
            hand. (default: :obj:`None`)
        ks (sequence, optional): Lengths of the list. (default: :obj:`(10, 20)`)
        mask_validation (bool, optional): Whether the pairs of the other held-out split
            are masked too, as MIG-GT's own evaluation does. Never mix both in one
            table. (default: :obj:`False`)

    Returns:
        dict: :obj:`recall@K` and :obj:`ndcg@K` for every :obj:`K`.
    """
    mask_validation = check_bool(mask_validation, 'mask_validation')
    scores = Served.of(model, data, graph).scores
    exclude = schema.retained_edge_index(data)
    if mask_validation:
        other = schema.held_out(data, 'test' if split == 'val' else 'val')
        exclude = torch.cat([exclude, other], dim=1)
    label = schema.held_out(data, split).to(scores.device)
    return rank(scores, label, exclude.to(scores.device), ks=ks)


def evaluate_request(
    model: Any,
    data: HeteroData,
    graph: Any = None,
    ks: Sequence[int] = (20,),
    num_train_users: int = 5000,
    seed: int = 0,
) -> dict[str, float]:
    r"""Ranks what a request retains and what it forgets.

    ====================  ================================  ===========================
    name                  relevant                          masked
    ====================  ================================  ===========================
    ``retain_*``          test pairs of users and items     retained training pairs,
                          that are not deleted              and deleted items
    ``retain_open_*``     the same, deleted items stay      retained training pairs
                          candidates (only with deleted
                          items)
    ``forget_*``          the deleted training pairs        retained training pairs
    ``forget_heldout_*``  test pairs of deleted users and   retained training pairs
                          items
    ``retain_train_*``    retained training pairs of a      nothing
                          sample of users
    ====================  ================================  ===========================

    Args:
        model (torch.nn.Module or Served): The model to look at.
        data (HeteroData): The data with the request still marked.
        graph (Any, optional): What the model propagates over; the retained
            interactions if not given. Pass the graph of the unmarked data to look at
            the original model as it was in service. (default: :obj:`None`)
        ks (sequence, optional): Lengths of the list. (default: :obj:`(20,)`)
        num_train_users (int, optional): Size of the sample for :obj:`retain_train_*`;
            0 leaves it out. (default: :obj:`5000`)
        seed (int, optional): Seed of that sample. (default: :obj:`0`)

    Returns:
        dict: Metrics by name, e.g. :obj:`retain_recall@20`. A set that is empty for
        this request is left out, but :obj:`forget_*` without a marked pair is NaN.
    """
    data = schema.validate(data)
    scores = Served.of(model, data, graph).scores
    device = scores.device
    exclude = schema.retained_edge_index(data).to(device)
    test = schema.held_out(data, 'test').to(device)
    request = Request.of(data)
    deleted = request.covers(test)
    items = request.items.to(device) if request.items.numel() else None

    users = exclude[0].unique()
    order = torch.randperm(users.numel(), generator=generator(seed)).to(device)
    sample = torch.isin(exclude[0], users[order[:num_train_users]])

    known = scores.index(exclude)
    sets = {'retain': (test[:, ~deleted], known, items)}
    if items is not None:
        sets['retain_open'] = (test[:, ~deleted], known, None)
    sets['forget'] = (schema.forgotten_edge_index(data).to(device), known, None)
    sets['forget_heldout'] = (test[:, deleted], known, None)
    sets['retain_train'] = (exclude[:, sample], None, None)
    out = {}
    for name, (label, masked, masked_items) in sets.items():
        if label.size(1) == 0 and name != 'forget':
            continue
        metrics = rank(scores, label, masked, masked_items, ks)
        out.update({f'{name}_{key}': value for key, value in metrics.items()})
    return out
