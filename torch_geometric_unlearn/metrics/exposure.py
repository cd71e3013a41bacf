r"""How often the items that a request touches stay in the lists of others."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.utils.topk import topk_items

from .ranking import embed


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

    TRU names such a measure without printing its formula; this one is our choice.
    Deleted items are masked for Exp and Reach only.

    Args:
        model (torch.nn.Module): The model to look at.
        data (HeteroData): The data with the request still marked.
        k (int, optional): Length of the lists. (default: :obj:`20`)
        graph (Any, optional): What the model propagates over; the retained
            interactions if not given. (default: :obj:`None`)
        audience (str, optional): :obj:`'retained'` for users that are not deleted,
            :obj:`'all'` for everyone. (default: :obj:`'retained'`)

    Returns:
        dict: :obj:`exposure@K`, :obj:`reach@K` and :obj:`pair@K`, each in
        :math:`[0, 1]`; NaN with a warning if nothing is marked.

    Raises:
        ValueError: If :obj:`audience` is unknown.
    """
    if audience not in ('retained', 'all'):
        raise ValueError(f"'audience' must be 'retained' or 'all' (got '{audience}')")
    schema.validate(data)
    keys = [f'{name}@{k}' for name in ('exposure', 'reach', 'pair')]
    graph = model.build_graph(data) if graph is None else graph
    user_emb, item_emb = embed(model, graph)
    device = user_emb.device
    forgotten = schema.forgotten_edge_index(data).to(device)
    if forgotten.size(1) == 0:
        warnings.warn('Nothing is marked, so exposure is NaN', stacklevel=2)
        return dict.fromkeys(keys, math.nan)
    exclude = schema.retained_edge_index(data).to(device)
    users = torch.arange(user_emb.size(0), device=device)
    lists, _ = topk_items(user_emb, item_emb, users, k, exclude)

    open_lists = lists
    if 'forget_items' in data:
        banned = data['forget_items'].to(device)
        open_lists, _ = topk_items(user_emb, item_emb, users, k, exclude, banned)
    if audience == 'retained' and 'forget_users' in data:
        keep = ~torch.isin(users, data['forget_users'].to(device))
        open_lists = open_lists[keep]
    targets = forgotten[1].unique()
    shown = torch.isin(open_lists, targets).sum().item()
    num_audience = max(1, open_lists.size(0))
    pair = (lists[forgotten[0]] == forgotten[1].unsqueeze(1)).any(dim=1)
    values = (
        shown / (num_audience * k),
        shown / (targets.numel() * num_audience),
        pair.float().mean().item(),
    )
    return dict(zip(keys, values))


def exposure_drop(before: dict[str, float], after: dict[str, float]) -> float:
    r"""Returns the relative drop of exposure between two results of
    :meth:`exposure`, 1 for items that are gone, 0 for no change.

    NaN if there was no exposure before.
    """
    key = next(key for key in before if key.startswith('exposure@'))
    if before[key] == 0:
        return math.nan
    return (before[key] - after[key]) / before[key]
