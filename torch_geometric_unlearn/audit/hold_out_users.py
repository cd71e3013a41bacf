r"""Users that no model is trained on, the non-members of attacks on whole users."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers

#: Where :meth:`hold_out_users` keeps the pairs of users that are never trained on.
NEVER_TRAINED = 'never_trained_edge_label_index'


def hold_out_users(data: HeteroData, ratio: float = 0.05, seed: int = 0) -> HeteroData:
    r"""Sets users aside *before any training*, as non-members of user-level attacks.

    Their training pairs move to :obj:`data.never_trained_edge_label_index`, their
    held-out pairs are dropped, and they stay as nodes without edges, so that a model
    keeps their rows as they were drawn. Returns a new data object.

    Args:
        data (HeteroData): The data without a request.
        ratio (float, optional): Share of the users. (default: :obj:`0.05`)
        seed (int, optional): Seed of the draw. (default: :obj:`0`)

    Raises:
        ValueError: If :obj:`data` holds a request already.

    Example:
        >>> from torch_geometric_unlearn.audit import hold_out_users
        >>> kept = hold_out_users(data)
        >>> kept.never_trained_edge_label_index[0].unique().numel()
        5
    """
    if 'forget_mask' in data[schema.EDGE_TYPE]:
        raise ValueError(
            "'data' must hold no request yet (got a 'forget_mask'). Set users aside "
            'before training, and mark the request after it.'
        )
    marked = ForgetUsers(ratio=ratio, seed=seed)(data)
    pairs = schema.forgotten_edge_index(marked)
    out = DropForgotten(keep=('*',))(marked)
    if NEVER_TRAINED in data:
        pairs = torch.cat([data[NEVER_TRAINED], pairs], dim=1)
    out[NEVER_TRAINED] = pairs
    return out


def never_trained_pairs(data: HeteroData) -> Tensor:
    r"""Returns pairs of users that no model has been trained on, int64 :obj:`[2, *]`:
    those that :meth:`hold_out_users` has set aside, or else the held-out pairs of users
    without any training pair.
    """
    if NEVER_TRAINED in data:
        return data[NEVER_TRAINED]
    pairs = torch.cat([schema.held_out(data, s) for s in ('val', 'test')], dim=1)
    trained = data[schema.EDGE_TYPE].edge_index[0]
    return pairs[:, ~torch.isin(pairs[0], trained)]
