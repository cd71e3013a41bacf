r"""How often the items that a request touches stay in the lists of others.

TRU names such a measure without printing its formula; these are our choice.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.utils.check import check_choice
from torch_geometric_unlearn.utils.finite import check_finite
from torch_geometric_unlearn.utils.topk import topk_items


def exposure(
    model: Any,
    data: HeteroData,
    k: int = 20,
    graph: Any = None,
    audience: str = 'retained',
) -> dict[str, float]:
    r"""Measures the exposure of the items in the forgotten interactions.

    With target items :math:`I_t`, audience :math:`Q` and lists :math:`T_u` (retained
    training pairs masked, and deleted items in an item-level request)

    .. math::
        \textrm{Exp} = \frac{1}{|Q|} \sum_{u \in Q} \frac{|T_u \cap I_t|}{K}, \quad
        \textrm{Reach} = \frac{1}{|I_t|} \sum_{i \in I_t}
        \frac{|\{u \in Q : i \in T_u\}|}{|Q|}, \quad
        \textrm{Pair} = \frac{|\{(u, i) \in D_f : i \in T_u\}|}{|D_f|}.

    Deleted items are masked for Exp and Reach only.

    Args:
        model (torch.nn.Module or Served): The model to look at.
        data (HeteroData): The data with the request still marked.
        k (int, optional): Length of the lists. (default: :obj:`20`)
        graph (Any, optional): What the model propagates over; the retained
            interactions if not given. (default: :obj:`None`)
        audience (str, optional): :obj:`'retained'` for users that are not deleted,
            :obj:`'all'` for everyone. (default: :obj:`'retained'`)

    Returns:
        dict: :obj:`exposure@K`, :obj:`reach@K` and :obj:`pair@K`, each in
        :math:`[0, 1]`; NaN with a warning if nothing is marked, and the first two
        without an audience.

    Raises:
        ValueError: If :obj:`audience` is unknown, or the model's embeddings are not
            finite.
    """
    check_choice(audience, 'audience', ('retained', 'all'))
    data = schema.validate(data)
    names = [f'{name}@{k}' for name in ('exposure', 'reach', 'pair')]
    forgotten = schema.forgotten_edge_index(data)
    if forgotten.size(1) == 0:
        warnings.warn('Nothing is marked, so exposure is NaN', stacklevel=2)
        return dict.fromkeys(names, math.nan)
    served = Served.of(model, data, graph)
    reach = item_reach(served, data, k, audience=audience)
    forgotten = forgotten.to(reach.device)
    shown = reach[forgotten[1].unique()]

    pair = listed_pairs(served, data, k)
    values = (shown.sum() / k, shown.mean(), pair.double().mean())
    return {name: float(value) for name, value in zip(names, values)}


def listed_pairs(served: Served, data: HeteroData, k: int = 20) -> Tensor:
    r"""Tells which forgotten pairs are in the list of their user, retained training
    pairs masked; bool :obj:`[n]`, whose mean is :obj:`pair@K` of :meth:`exposure`.

    Args:
        served (Served): The model to look at.
        data (HeteroData): The data with the request still marked.
        k (int, optional): Length of the lists. (default: :obj:`20`)
    """
    user_emb, item_emb = served.embeddings
    forgotten = schema.forgotten_edge_index(data).to(user_emb.device)
    exclude = schema.retained_edge_index(data).to(user_emb.device)
    users, position = forgotten[0].unique(return_inverse=True)
    lists, _ = topk_items(user_emb, item_emb, users, k, exclude)
    return (lists[position] == forgotten[1].unsqueeze(1)).any(dim=1)


def item_reach(
    model: Any,
    data: HeteroData,
    k: int = 20,
    graph: Any = None,
    audience: str = 'retained',
) -> Tensor:
    r"""Returns the share of the audience that has an item in its list, for all items.

    Args:
        model (torch.nn.Module or Served): The model to look at.
        data (HeteroData): The data with the request still marked.
        k (int, optional): Length of the lists. (default: :obj:`20`)
        graph (Any, optional): What the model propagates over; the retained
            interactions if not given. (default: :obj:`None`)
        audience (str, optional): As for :meth:`exposure`. (default: :obj:`'retained'`)

    Returns:
        torch.Tensor: Shares in :math:`[0, 1]`, float64 :math:`(N_{item})`; NaN without
        an audience.
    """
    check_choice(audience, 'audience', ('retained', 'all'))
    user_emb, item_emb = Served.of(model, data, graph).embeddings
    device = user_emb.device
    users = torch.arange(user_emb.size(0), device=device)
    request = Request.of(data)
    if audience == 'retained':
        users = users[~torch.isin(users, request.users.to(device))]
    banned = request.items.to(device)
    exclude = schema.retained_edge_index(data).to(device)
    lists, _ = topk_items(user_emb, item_emb, users, k, exclude, banned)
    count = lists[lists >= 0].bincount(minlength=item_emb.size(0))
    return count.double() / users.numel()  # NaN without an audience.


def deleted_share(data: HeteroData) -> Tensor:
    r"""Returns the share :math:`\delta_i` of every item's training interactions that a
    request deletes, float64 :math:`(N_{item})`; 0 for items without any.
    """
    size = schema.num_items(data)
    total = data[schema.EDGE_TYPE].edge_index[1].bincount(minlength=size)
    gone = schema.forgotten_edge_index(data)[1].bincount(minlength=size)
    return gone.double() / total.clamp(min=1)


def exposure_profile(
    before: Tensor, after: Tensor, share: Tensor, num_groups: int = 10
) -> dict[str, Any]:
    r"""Compares the reach of items before and after by how much of them was deleted.

    A drop far above that of retraining is censorship of items that others legitimately
    want; where it follows the deleted share, it is forgetting.

    Args:
        before (torch.Tensor): Result of :meth:`item_reach` for the original model.
        after (torch.Tensor): The same for another model.
        share (torch.Tensor): Result of :meth:`deleted_share`. Only items with a
            positive share count.
        num_groups (int, optional): Groups of equal size by share.
            (default: :obj:`10`)

    Returns:
        dict: :obj:`groups`, a list of rows with :obj:`max_share`, :obj:`num_items`,
        and mean reach :obj:`before` and :obj:`after`; :obj:`correlation` between the
        share and the relative drop of items with any reach before (NaN if there are
        fewer than two, nothing varies, or a reach is NaN).

    Raises:
        ValueError: If a reach is infinite, or a share not finite.
    """
    check_finite(share, 'share')
    for name, reach in (('before', before), ('after', after)):
        check_finite(reach[~reach.isnan()], name)
    items = (share > 0).nonzero().view(-1).to(share.device)
    items = items[share[items].argsort(stable=True)]
    groups = [
        {
            'max_share': float(share[part].max()),
            'num_items': part.numel(),
            'before': float(before[part].mean()),
            'after': float(after[part].mean()),
        }
        for part in items.tensor_split(num_groups)
        if part.numel() > 0
    ]
    seen = items[before[items] != 0]  # NaN stays, so that it shows.
    drop = (before[seen] - after[seen]) / before[seen]
    pair = torch.stack([share[seen].double(), drop.double()])
    correlation = math.nan
    if seen.numel() > 1 and (pair.std(dim=1) > 0).all():
        correlation = float(torch.corrcoef(pair)[0, 1])
    return {'groups': groups, 'correlation': correlation}


def exposure_drop(before: dict[str, float], after: dict[str, float]) -> float:
    r"""Returns the relative drop of exposure between two results of
    :meth:`exposure`, 1 for items that are gone, 0 for no change.

    NaN if there was no exposure before, or one of both is NaN.

    Raises:
        ValueError: If an exposure is infinite.
    """
    key = next(key for key in before if key.startswith('exposure@'))
    for name, row in (('before', before), ('after', after)):
        if math.isinf(row[key]):
            raise ValueError(f"'{name}' must have a finite '{key}' (got {row[key]})")
    if before[key] == 0:
        return math.nan
    return (before[key] - after[key]) / before[key]
