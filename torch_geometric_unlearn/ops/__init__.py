r"""Sparse propagation."""

from .lazy_propagation import (
    LazyPropagation,
)
from .sparse_operator import (
    SparseOperator,
)
from .spmm import backend, backends, diffuse, layer_mean, spmm, use_backend

__all__ = [
    'LazyPropagation',
    'SparseOperator',
    'backend',
    'backends',
    'diffuse',
    'layer_mean',
    'spmm',
    'use_backend',
]
