r"""Sparse propagation."""

from .sparse_operator import (
    SparseOperator,
    bipartite_operators,
    target_degree_operator,
)
from .spmm import backend, backends, layer_mean, spmm, use_backend

__all__ = [
    'SparseOperator',
    'backend',
    'backends',
    'bipartite_operators',
    'layer_mean',
    'spmm',
    'target_degree_operator',
    'use_backend',
]
