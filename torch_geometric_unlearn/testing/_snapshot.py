from __future__ import annotations

import copy
from typing import Any

import numpy as np
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
            # Not every layout of a tensor can be copied deeply.
            is_tensor = isinstance(value, Tensor)
            own = value.detach().clone() if is_tensor else copy.deepcopy(value)
            flat[f'{key}/{name}'] = own
    return flat


def refresh(model: Any, data: HeteroData) -> None:
    r"""Has a plugged-in module keep the interactions of :obj:`data`, if any at all."""
    if isinstance(model, RecommenderAdapter):
        model.refresh(data)


def equal(x: Tensor, y: Tensor) -> bool:
    r"""Tells whether two tensors are equal, sparse ones as well."""
    if (x.layout, x.dtype) != (y.layout, y.dtype):
        return False
    if is_sparse(x):
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
        if not _equal(old, after[name]):
            raise AssertionError(f"{what} must stay as it was, but '{name}' changed")


def _equal(old: Any, new: Any) -> bool:
    if type(old) is not type(new):
        return False
    if isinstance(old, Tensor):
        return equal(old, new)
    if isinstance(old, np.ndarray):
        return np.array_equal(old, new)
    return bool(old.equals(new) if hasattr(old, 'equals') else old == new)
