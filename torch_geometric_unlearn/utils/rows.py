r"""Lengths of rows, whatever the scale of their entries."""

from __future__ import annotations

import torch
from torch import Tensor


def moderate_rows(x: Tensor) -> Tensor:
    r"""Returns the rows of :obj:`x` with those over their largest magnitude whose
    squares would overflow or underflow; the others bit by bit as they are.

    Args:
        x (torch.Tensor): Rows, floating point :obj:`[N, F]`.
    """
    norm = x.norm(dim=1, keepdim=True)
    low = 1024 * torch.finfo(x.dtype).tiny ** 0.5  # Above it, squares are exact.
    peak = x.abs().amax(dim=1, keepdim=True)
    extreme = ~torch.isfinite(norm) | (norm < low) & (peak > 0)
    return torch.where(extreme, x / peak, x) if extreme.any() else x


def unit_rows(x: Tensor) -> Tensor:
    r"""Returns the rows of :obj:`x` with norm 1, all-zero rows as they are."""
    x = moderate_rows(x)
    norm = x.norm(dim=1, keepdim=True)
    return x / torch.where(norm > 0, norm, torch.ones_like(norm))


def row_norms(x: Tensor) -> Tensor:
    r"""Returns the norm of every row of :obj:`x`, :obj:`[N]`."""
    moderate = moderate_rows(x)
    norm = moderate.norm(dim=1)
    if moderate is x:
        return norm
    peak = x.abs().amax(dim=1)
    return torch.where((moderate == x).all(dim=1), norm, norm * peak)
