from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import is_sparse, to_edge_index

from torch_geometric_unlearn.nn import RecommenderAdapter


def snapshot(data: HeteroData) -> dict[str, Any]:
    r"""Returns a deep copy of everything that :obj:`data` holds, flat by name."""
    flat = {}
    for key, store in data.to_dict().items():
        for name, value in store.items():
            flat[f'{key}/{name}'] = copy.deepcopy(value)
    return flat


def refresh(model: Any, data: HeteroData) -> None:
    r"""Has a plugged-in module keep the interactions of :obj:`data`, if any at all."""
    if isinstance(model, RecommenderAdapter):
        model.refresh(data)


def equal(x: Tensor, y: Tensor) -> bool:
    r"""Tells whether two tensors are equal, sparse ones as well."""
    if is_sparse(x) and is_sparse(y):
        return all(map(torch.equal, to_edge_index(x), to_edge_index(y)))
    return torch.equal(x, y)


def assert_same(before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    r"""Raises an :class:`AssertionError` that names the first difference."""
    if before.keys() != after.keys():
        raise AssertionError(
            f'{what} must stay as it was, but its keys changed: '
            f'{sorted(before.keys() ^ after.keys())}'
        )
    for name, old in before.items():
        new = after[name]
        if isinstance(old, Tensor):
            same = isinstance(new, Tensor) and equal(old, new)
        else:
            same = old == new
        if not same:
            raise AssertionError(f"{what} must stay as it was, but '{name}' changed")
