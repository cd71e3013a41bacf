r"""The readable paths that every kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from .sparse_operator import SparseOperator


def dense_spmm(operator: SparseOperator, x: Tensor) -> Tensor:
    r"""Computes :math:`\mathbf{A} \mathbf{X}` with a dense float64 matrix."""
    source, target = operator.edge_index
    num_source, num_target = operator.size
    matrix = torch.zeros(num_target, num_source, dtype=torch.float64, device=x.device)
    matrix.index_put_(
        (target, source), operator.edge_weight.double(), accumulate=True
    )
    return matrix @ x.double()


def gather_scatter(rowptr: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    r"""Gathers the source rows, weighs them, and adds them up per target row."""
    row = torch.arange(rowptr.numel() - 1, device=x.device)
    row = row.repeat_interleave(rowptr.diff().long())
    out = x.new_zeros(rowptr.numel() - 1, x.size(1))
    return out.index_add_(0, row, value.unsqueeze(1) * x[col.long()])
