r"""Ids of users and items as the caller gives them, checked and as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_geometric_unlearn.utils.plain import plain

# No uint8: a mask of that type would be read as the ids 0 and 1.
_INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint16, torch.uint32,
    torch.uint64,
)  # fmt: skip


def to_ids(ids: Sequence[Any] | Tensor, name: str, way_out: str = '') -> Tensor:
    r"""Returns integer ids as an int64 tensor of its own, refusing anything else.

    Args:
        ids (sequence or torch.Tensor): The ids, which are copied.
        name (str): Name of the argument.
        way_out (str, optional): What to do with ids of another kind.
            (default: :obj:`''`)

    Raises:
        TypeError: If they are no integers.
    """
    try:
        out = plain(ids) if isinstance(ids, Tensor) else _as_tensor(ids)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"'{name}' must hold integer ids (got {ids!r}). {way_out}".rstrip()
        ) from error
    if out.numel() == 0 and not isinstance(ids, Tensor):
        out = out.long()  # Of an empty list, torch makes floating point numbers.
    if out.dtype not in _INTEGERS:
        raise TypeError(
            f"'{name}' must hold integer ids (got {out.dtype}). For a mask, pass "
            f'mask.nonzero().view(-1).'
        )
    return out.to(torch.int64, copy=True)


def _as_tensor(ids: Any) -> Tensor:
    if isinstance(ids, Iterable) and not isinstance(ids, (Sequence, np.ndarray)):
        ids = list(ids)  # Of a series, torch would read the labels.
    try:
        return torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        values = np.asarray(ids, dtype=object)
        if not all(isinstance(value, Integral) for value in values.flat):
            raise
        return torch.from_numpy(values.astype(np.int64))


def check_ids(ids: Sequence[int] | Tensor, size: int, name: str) -> Tensor:
    r"""Returns ids in :math:`[0, size)` as an int64 tensor :obj:`[n]` of its own.

    Raises:
        TypeError: If they are no integers, or not in a row.
        ValueError: If one is out of range.
    """
    out = to_ids(ids, name)
    if out.dim() != 1:
        raise TypeError(
            f"'{name}' must be a list or tensor [n] of ids (got shape "
            f'{list(out.shape)}). For a single one, pass a list of length one.'
        )
    bad = (out < 0) | (out >= size)
    if bad.any():
        raise ValueError(
            f"'{name}' must hold ids from 0 to {size - 1} (got {int(bad.sum())} "
            f'others, first: {int(out[bad][0])}). Leave them out.'
        )
    return out


def check_pair_ids(
    pairs: Tensor, num_users: int, num_items: int, name: str
) -> Tensor:
    r"""Returns (user, item) pairs int64 :obj:`[2, n]` as a plain tensor.

    Raises:
        TypeError: If they are no int64 tensor.
        ValueError: If the shape is wrong or an id is out of range.
    """
    if not isinstance(pairs, Tensor) or pairs.dtype != torch.int64:
        got = pairs.dtype if isinstance(pairs, Tensor) else type(pairs).__name__
        raise TypeError(f"'{name}' must be an int64 tensor [2, n] (got {got})")
    if pairs.dim() != 2 or pairs.size(0) != 2:
        raise ValueError(
            f"'{name}' must have shape [2, n], users above items (got "
            f'{list(pairs.shape)})'
        )
    pairs = plain(pairs)
    size = pairs.new_tensor([[num_users], [num_items]])
    bad = ((pairs < 0) | (pairs >= size)).any(dim=0)
    if bad.any():
        raise ValueError(
            f"'{name}' must hold users from 0 to {num_users - 1} and items from 0 to "
            f'{num_items - 1} (got {int(bad.sum())} other pairs, first: '
            f'{tuple(pairs[:, bad][:, 0].tolist())}). Leave them out.'
        )
    return pairs
