r"""Sparse propagation."""

from .lazy_propagation import (
    LazyPropagation,
    layer_mean_weights,
    personalized_pagerank_weights,
)
from .neighbor_sum import Neighbors, neighbor_dot, neighbor_sum
from .sparse_operator import (
    SparseOperator,
    bipartite_operators,
    self_loop_operator,
    target_degree_operator,
)
from .spmm import backend, backends, diffuse, layer_mean, spmm, use_backend

__all__ = [
    'LazyPropagation',
    'Neighbors',
    'SparseOperator',
    'backend',
    'backends',
    'bipartite_operators',
    'diffuse',
    'layer_mean',
    'layer_mean_weights',
    'neighbor_dot',
    'neighbor_sum',
    'personalized_pagerank_weights',
    'self_loop_operator',
    'spmm',
    'target_degree_operator',
    'use_backend',
]
