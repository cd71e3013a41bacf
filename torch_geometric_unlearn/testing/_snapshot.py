from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData


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
        if (old.layout, old.dtype) != (new.layout, new.dtype):
            return False
        if old.layout != torch.strided:
            old, new = old.to_dense(), new.to_dense()
        return torch.equal(old, new)
    if isinstance(old, np.ndarray):
        return np.array_equal(old, new)
    return bool(old.equals(new) if hasattr(old, 'equals') else old == new)
