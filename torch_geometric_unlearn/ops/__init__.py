r"""Sparse propagation."""

from .sparse_operator import (
    SparseOperator,
    bipartite_operators,
    target_degree_operator,
)
from .spmm import backend, backends, spmm, use_backend

__all__ = [
    'SparseOperator',
    'backend',
    'backends',
    'bipartite_operators',
    'spmm',
    'target_degree_operator',
    'use_backend',
]
