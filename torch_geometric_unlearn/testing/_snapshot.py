from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData


def snapshot(data: HeteroData) -> dict[str, Any]:
    r"""Returns a deep copy of everything that :obj:`data` holds, flat by name."""
    flat = {}
    for key, store in data.to_dict().items():
        for name, value in store.items():
            flat[f'{key}/{name}'] = copy.deepcopy(value)
    return flat


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
            same = isinstance(new, Tensor) and torch.equal(old, new)
        else:
            same = old == new
        if not same:
            raise AssertionError(f"{what} must stay as it was, but '{name}' changed")
