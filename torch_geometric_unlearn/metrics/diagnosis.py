r"""The three diagnoses by which TRU explains why one reverse strength for a whole model
fails.

The `"TRU: Targeted Reverse Update for Efficient Multimodal Recommendation Unlearning"
<https://arxiv.org/abs/2604.02183>`_ paper names the diagnoses; the formulas are ours.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.utils.check import check_bool, check_choice

from ._similarity import linear_cka
from .closeness import parameter_shift
from .exposure import deleted_share, item_reach


def item_persistence(
    before: Any,
    after: Any,
    data: HeteroData,
    k: int = 20,
    before_graph: Any = None,
    after_graph: Any = None,
) -> dict[str, Any]:
    r"""Compares the items of a request with all others: how popular they are, and how
    much of the audience has them in its list before and after.

    Deleted items keep their other users, so they stay in lists: in the paper, even
    retraining lowers their exposure by little.

    Args:
        before (torch.nn.Module or Served): The original model.
        after (torch.nn.Module or Served): The unlearned or retrained model.
        data (HeteroData): The data with the request still marked.
        k (int, optional): Length of the lists. (default: :obj:`20`)
        before_graph (Any, optional): What :obj:`before` propagates over; the retained
            interactions if not given. (default: :obj:`None`)
        after_graph (Any, optional): The same for :obj:`after`. (default: :obj:`None`)

    Returns:
        dict: Per item :obj:`is_forget` (bool), :obj:`popularity` (training
        interactions, int64), :obj:`deleted_share`, :obj:`reach_before` and
        :obj:`reach_after`, all :math:`(N_{item})`; and :obj:`summary`, for
        :obj:`'forget'` and :obj:`'retain'` items their number, mean and median
        popularity, mean reach before and after, and its relative :obj:`drop` (NaN
        where there is nothing to compare).

    Example:
        >>> marked = ForgetUsers([3])(data)
        >>> out = item_persistence(model, model, marked)
        >>> out['summary']['forget']['drop']
        0.0
    """
    data = schema.validate(data)
    size = schema.num_items(data)
    popularity = data[schema.EDGE_TYPE].edge_index[1].bincount(minlength=size).cpu()
    share = deleted_share(data).cpu()
    is_forget = share > 0
    served = Served.of(before, data, before_graph, 'before')
    first = item_reach(served, data, k).cpu()
    second = item_reach(Served.of(after, data, after_graph, 'after'), data, k).cpu()
    return {
        'is_forget': is_forget,
        'popularity': popularity,
        'deleted_share': share,
        'reach_before': first,
        'reach_after': second,
        'summary': {
            name: _summary(popularity[mask], first[mask], second[mask])
            for name, mask in [('forget', is_forget), ('retain', ~is_forget)]
        },
    }


def _summary(popularity: Tensor, before: Tensor, after: Tensor) -> dict[str, float]:
    out = {'num_items': popularity.numel()}
    if popularity.numel() == 0:
        names = ('popularity', 'median_popularity', 'before', 'after', 'drop')
        return out | dict.fromkeys(names, math.nan)
    first, second = float(before.mean()), float(after.mean())
    return out | {
        'popularity': float(popularity.double().mean()),
        'median_popularity': float(popularity.double().median()),
        'before': first,
        'after': second,
        'drop': (first - second) / first if first > 0 else math.nan,
    }


@torch.no_grad()
def cross_modal_cka(
    model: Any, graph: Any, nodes: str = 'item', fused: bool = True
) -> tuple[list[str], Tensor]:
    r"""Returns the linear CKA between all branches of a model: 1 for branches that
    agree up to rotation and scale, 0 for unrelated ones.

    Weakly aligned branches are why one reverse strength over-corrects one branch and
    under-corrects another.

    Args:
        model (torch.nn.Module): A model with :obj:`branch_embeddings(graph)`.
        graph (Any): The result of :obj:`model.build_graph(data)`.
        nodes (str, optional): :obj:`'item'`, :obj:`'user'` or :obj:`'all'`.
            (default: :obj:`'item'`)
        fused (bool, optional): Whether the final embeddings join as
            :obj:`'fused'`. (default: :obj:`True`)

    Returns:
        (list, torch.Tensor): Names, and the symmetric matrix
        :math:`(B, B)`, float64 on the CPU.

    Raises:
        ValueError: If the model does not tell its branches, or :obj:`nodes` is
            unknown.

    Example:
        >>> names, matrix = cross_modal_cka(model, model.build_graph(data))
        >>> names
        ['id', 'image', 'text', 'fused']
    """
    fused = check_bool(fused, 'fused')
    check_choice(nodes, 'nodes', ('item', 'user', 'all'))
    served = Served(model, graph)
    layers: dict[str, tuple[Tensor, ...]] = dict(served.branches)
    if not layers:
        raise ValueError(
            f"'model' must have the method 'branch_embeddings' (got "
            f"'{type(model).__name__}'). A model of one branch has nothing to compare."
        )
    if fused:
        layers['fused'] = served.embeddings
    sides = {'user': slice(0, 1), 'item': slice(1, 2), 'all': slice(0, 2)}[nodes]
    views = [torch.cat(both[sides]).double() for both in layers.values()]
    matrix = torch.eye(len(views), dtype=torch.double)
    for i, x in enumerate(views):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = float(linear_cka(x, views[j]))
    return list(layers), matrix


def layer_shift(
    original: RecommenderLike,
    unlearned: RecommenderLike,
    retrained: RecommenderLike | None = None,
    data: HeteroData | None = None,
) -> list[dict[str, Any]]:
    r"""Returns the profile of
    :meth:`~torch_geometric_unlearn.metrics.parameter_shift` as rows: how far every
    module has moved from the original model, beside how far retraining moves it.

    In the paper, uniform reversal shifts early embedding modules more than retraining
    would.

    Args:
        original (torch.nn.Module): The model before the request.
        unlearned (torch.nn.Module): The model after it.
        retrained (torch.nn.Module, optional): The model trained without the data, from
            the same initial values. (default: :obj:`None`)
        data (HeteroData, optional): The data with the request still marked, to tell
            touched from untouched rows of a table. (default: :obj:`None`)

    Returns:
        list: One row per module, in forward order, with :obj:`module`, :obj:`shift`,
        :obj:`retrained_shift` and :obj:`cosine` between both ways; NaN where there is
        nothing to compare.

    Example:
        >>> rows = layer_shift(model, EdgeDrop()(model, ForgetUsers([3])(data)).model)
        >>> rows[0]['module'], rows[0]['shift']
        ('user_embedding', 0.0)
    """
    profile = parameter_shift(unlearned, original, retrained, data)
    return [
        {
            'module': name,
            'shift': row['shift'],
            'retrained_shift': row.get('reference_shift', math.nan),
            'cosine': row.get('cosine', math.nan),
        }
        for name, row in profile.items()
    ]
