r"""Capacity-aware layer isolation: a model's modules, the rows of them that a request
is about, and which of them the reverse step may touch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.models.base import RecommenderLike, named_tables


@dataclass
class LeafModule:
    r"""A module that owns parameters, as layer isolation sees it.

    Attributes:
        name (str): Name within the model.
        parameters (list): Names of the parameters it owns that are trained.
        rows (torch.Tensor, optional): The only rows that may move, int64 :obj:`[n]`.
        is_raw (bool): Whether it is a trainable copy of raw features.
        size (int): Number of parameters that may move.
        sensitivity (float): Result of :meth:`isolate_modules`.
        selected (bool): Whether the reverse step may touch it.
    """

    name: str
    parameters: list[str]
    rows: Tensor | None = None
    is_raw: bool = False
    size: int = 0
    sensitivity: float = 0.0
    selected: bool = True


def leaf_modules(
    model: RecommenderLike, rows: dict[str, Tensor] | None = None
) -> list[LeafModule]:
    r"""Returns the modules that own trained parameters, in forward order.

    Args:
        model (torch.nn.Module): The model.
        rows (dict, optional): The only rows that may move, by parameter name.
            (default: :obj:`None`)
    """
    rows = rows or {}
    raw = {id(table.parameter) for table in model.tables() if table.is_raw}
    out = []
    for name, module in model.named_modules():
        own = {
            f'{name}.{key}' if name else key: p
            for key, p in module.named_parameters(recurse=False)
            if p.requires_grad
        }
        if not own:
            continue
        movable = next((rows[key] for key in own if key in rows), None)
        size = sum(p.numel() for p in own.values())
        if movable is not None:
            size = sum(movable.numel() * p[0].numel() for p in own.values())
        is_raw = any(id(p) in raw for p in own.values())
        out.append(LeafModule(name or 'model', list(own), movable, is_raw, size))
    return out


def movable_rows(
    model: RecommenderLike, data: HeteroData, rows: str
) -> dict[str, Tensor]:
    r"""Returns the only rows of every table that may move, int64, by its name: those of
    the nodes in the forgotten interactions.

    Args:
        model (torch.nn.Module): The model.
        data (HeteroData): The data with the request still marked.
        rows (str): Of which side, :obj:`'user'`, :obj:`'item'` or :obj:`'both'`; with
            :obj:`'all'` whole tables may move, and nothing is returned.
    """
    if rows == 'all':
        return {}
    pairs = schema.forgotten_edge_index(data).to(next(model.parameters()).device)
    none = pairs.new_empty(0)
    users = pairs[0].unique() if rows in ('user', 'both') else none
    items = pairs[1].unique() if rows in ('item', 'both') else none
    num_users = schema.num_users(data)
    nodes = torch.cat([users, items + num_users])
    return {
        name: table.locate(nodes, num_users)[1]
        for name, table in named_tables(model).items()
    }


def isolate_modules(
    modules: list[LeafModule],
    grads: dict[str, Tensor],
    parameters: Mapping[str, Tensor],
    top_k: int,
    capacity: float,
    sensitivity: str = 'energy',
) -> None:
    r"""The third intervention: selects the modules that the reverse step may touch.

    The sensitivity is :math:`S(l) = \|\nabla_l \mathcal{L}_{rev}\|^2 / |\theta_l|`, or
    over :math:`\|\theta_l\|^2` if relative, on the rows that may move. ID tables whose
    rows are confined to the request come first, then the others by sensitivity. The
    first :obj:`top_k` modules are selected, then the next ones until the selection
    holds a share :obj:`capacity` of the parameters that may move. Raw feature
    tables hold nearly all parameters: they count for nothing there, and enter through
    the :obj:`top_k` only. Modules without a row that may move are never selected.
    [Formulas ours.]

    Args:
        modules (list): The modules; :obj:`sensitivity` and :obj:`selected` are set.
        grads (dict): Gradients of the reverse loss by parameter name.
        parameters (dict): Parameters by name.
        top_k (int): Modules that are always selected.
        capacity (float): Share :math:`\kappa` to cover, in :math:`[0, 1]`.
        sensitivity (str, optional): :obj:`'energy'` or :obj:`'relative'`.
            (default: :obj:`'energy'`)
    """
    for module in modules:
        module.selected = False
        module.sensitivity = 0.0
        if module.size == 0:
            continue
        energy, norm = 0.0, 0.0
        for name in module.parameters:
            grad, value = grads.get(name), parameters[name].detach()
            if grad is None:
                continue
            energy += float(_movable(grad, module.rows).pow(2).sum())
            norm += float(_movable(value, module.rows).pow(2).sum())
        scale = norm if sensitivity == 'relative' else float(module.size)
        module.sensitivity = energy / scale if scale > 0 else 0.0
    movable = [module for module in modules if module.size > 0]
    # A mean square over a module says little about a table beside a single slope that
    # all nodes share; rows of the request are what the deletion is about.
    movable.sort(
        key=lambda module: (
            module.rows is not None and not module.is_raw,
            module.sensitivity,
        ),
        reverse=True,
    )
    wanted = capacity * sum(module.size for module in movable if not module.is_raw)
    covered = 0
    for place, module in enumerate(movable):
        if place >= top_k and (covered >= wanted or module.is_raw):
            continue
        module.selected = True
        covered += 0 if module.is_raw else module.size


def _movable(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]
