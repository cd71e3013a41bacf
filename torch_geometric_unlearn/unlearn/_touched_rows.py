r"""Which rows a deletion has reached, and what partial retraining starts them from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.distributed.columns import columns_of
from torch_geometric_unlearn.nn.models.base import RecommenderLike
from torch_geometric_unlearn.utils.csr import PART

#: Above this share of touched pairs, all rows are drawn anew.
ALL_ROWS = 0.25
#: Smooth rows lie in a space of at most this part of the users or items as dimensions.
SMOOTH_PART = 16
#: Passes of the subspace iteration (with two, the space is not smooth enough to help),
#: and directions that it follows beside those that are used.
SMOOTH_PASSES, OVERSAMPLING = 6, 16


@dataclass
class TouchedRows:
    r"""Which rows a deletion has had influence on.

    Attributes:
        users (torch.Tensor): Users to draw anew, int64 :obj:`[n]`.
        items (torch.Tensor): Items to draw anew, int64 :obj:`[m]`.
        trained_users (torch.Tensor): Those of them with a retained pair, int64.
        trained_items (torch.Tensor): Those of them with a retained pair, int64.
        is_all (bool): Whether these are all rows because of their share of the pairs.
    """

    users: Tensor
    items: Tensor
    trained_users: Tensor
    trained_items: Tensor
    is_all: bool


def touched_rows(
    data: HeteroData,
    retained: HeteroData,
    tau: float,
    row_types: tuple[str, ...] = (schema.USER, schema.ITEM),
) -> TouchedRows:
    r"""Returns the rows that
    :class:`~torch_geometric_unlearn.unlearn.PartialRetrain` draws anew.

    Args:
        data (HeteroData): The data with the request.
        retained (HeteroData): The data after the deletion.
        tau (float): Least influence.
        row_types (tuple, optional): Of which nodes the model has rows.
            (default: :obj:`('user', 'item')`)
    """
    num_users, num_items = schema.num_users(data), schema.num_items(data)
    deleted = schema.forgotten_edge_index(data)
    kept = schema.retained_edge_index(retained)
    shares, degrees = [], []
    for row, size in enumerate((num_users, num_items)):
        gone = deleted[row].bincount(minlength=size)
        left = kept[row].bincount(minlength=size)
        shares.append(gone.double() / (gone + left).clamp(min=1))
        degrees.append(left)
    fresh = []
    for row, size in enumerate((num_users, num_items)):
        total = shares[row].new_zeros(size)
        for part in kept.split(PART, dim=1):
            total.index_add_(0, part[row], shares[1 - row][part[1 - row]])
        influence = shares[row] + total / degrees[row].clamp(min=1)
        # A sum of shares that meets tau exactly must not fail by rounding.
        mask = (influence > 0) & (influence >= tau - 1e-12)
        node_type = (schema.USER, schema.ITEM)[row]
        if f'forget_{node_type}s' in data:
            mask[data[f'forget_{node_type}s']] = True
        fresh.append(mask & (node_type in row_types))
    trained = [mask & (degree > 0) for mask, degree in zip(fresh, degrees)]
    own = trained[0][kept[0]] | trained[1][kept[1]]
    is_all = bool(int(own.count_nonzero()) > ALL_ROWS * own.numel())
    if is_all:
        exists = [kind in row_types for kind in (schema.USER, schema.ITEM)]
        fresh = [torch.full_like(mask, has) for mask, has in zip(fresh, exists)]
        trained = [mask & (degree > 0) for mask, degree in zip(fresh, degrees)]
    users, items = (mask.nonzero().view(-1) for mask in fresh)
    own_users, own_items = (mask.nonzero().view(-1) for mask in trained)
    return TouchedRows(users, items, own_users, own_items, is_all)


@torch.no_grad()
def reset_features(
    model: RecommenderLike, data: HeteroData, items: Tensor
) -> None:
    r"""Sets the rows of raw feature tables back to the features, in place, where the
    table tells its modality.
    """
    for table in model.tables():
        if table.is_raw and table.modality:
            x = table.features(data)
            rows = items.to(x.device)
            parameter = table.parameter
            parameter[rows.to(parameter.device)] = x[rows].to(parameter)


def row_types(model: RecommenderLike) -> tuple[str, ...]:
    r"""Returns of which nodes a model has ID rows."""
    rows = {table.rows for table in model.tables() if not table.is_raw}
    both = (schema.USER, schema.ITEM)
    return tuple(kind for kind in both if kind in rows or 'node' in rows)


@torch.no_grad()
def start_smoothly(
    model: RecommenderLike, tables: list[Tensor], retained: HeteroData
) -> bool:
    r"""Sets the ID rows of nodes with a retained pair, in place, to what the retained
    interactions alone can tell of the original ones [ours].

    With :math:`\mathbf{U} \mathbf{\Sigma} \mathbf{V}^{\top}` the leading part of the
    singular value decomposition of the retained interactions, normalised as the
    models propagate over them, the users' rows become :math:`\mathbf{U}
    \mathbf{U}^{\top} \mathbf{X}_{user}` and the items' rows :math:`\mathbf{V}
    \mathbf{V}^{\top} \mathbf{X}_{item}`. The bases know nothing of the deleted pairs;
    of the original rows there is left :math:`\mathbf{U}^{\top} \mathbf{X}_{user}` and
    :math:`\mathbf{V}^{\top} \mathbf{X}_{item}`, sums over all nodes of as many rows as
    the tables have channels, but at most a sixteenth of the users or items.

    Does nothing for a model that is more than its ID tables: there, the frozen modules
    carry over what training has learned at large, and rows do better from nothing.

    Args:
        model (torch.nn.Module): The model.
        tables (list): Its ID tables before any row was drawn anew, in the order of
            :obj:`model.tables()`.
        retained (HeteroData): The data after the deletion.

    Returns:
        (bool): Whether rows were set.
    """
    own = [table for table in model.tables() if not table.is_raw]
    known = {id(table.parameter) for table in own}
    if any(id(parameter) not in known for parameter in model.parameters()):
        return False
    edge_index = schema.retained_edge_index(retained).to(own[0].parameter.device)
    sizes = schema.num_users(retained), schema.num_items(retained)
    degree = [ids.bincount(minlength=n) for ids, n in zip(edge_index, sizes)]
    most = min(int((d > 0).sum()) for d in degree) // SMOOTH_PART
    columns = columns_of(model)
    widths = [table.parameter.size(1) for table in own]
    rank = min(most, *(widths if columns is None else [columns.num_columns]))
    if rank == 0:
        return False
    scale = [d.clamp(min=1).to(own[0].parameter).rsqrt() for d in degree]
    weight = scale[0][edge_index[0]] * scale[1][edge_index[1]]
    adj = torch.sparse_coo_tensor(edge_index, weight, sizes, check_invariants=False)
    width = min(rank + OVERSAMPLING, *sizes)
    users, _, items = torch.svd_lowrank(adj, width, SMOOTH_PASSES)
    bases = {schema.USER: users[:, :rank], schema.ITEM: items[:, :rank]}
    is_trained = {schema.USER: degree[0] > 0, schema.ITEM: degree[1] > 0}
    for table, original in zip(own, tables):
        kinds = list(bases) if table.rows == 'node' else [table.rows]
        parts = original.split([bases[kind].size(0) for kind in kinds])
        smooth = [bases[k] @ (bases[k].t() @ part) for k, part in zip(kinds, parts)]
        rows = torch.cat([is_trained[kind] for kind in kinds])
        table.parameter[rows] = torch.cat(smooth)[rows]
    return True
