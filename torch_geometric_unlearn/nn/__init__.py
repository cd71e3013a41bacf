r"""Layers, losses and models."""

from .models import (
    MGCN,
    MIGGT,
    CertifiedHead,
    ColumnParallelLightGCN,
    ColumnParallelMGCN,
    ColumnParallelMIGGT,
    EmbeddingTable,
    LightGCN,
    Recommender,
    RecommenderAdapter,
    RecommenderLike,
    Served,
    ShardEnsemble,
    Table,
    Triplets,
    grow,
)

__all__ = [
    'MGCN',
    'MIGGT',
    'CertifiedHead',
    'ColumnParallelLightGCN',
    'ColumnParallelMGCN',
    'ColumnParallelMIGGT',
    'EmbeddingTable',
    'LightGCN',
    'Recommender',
    'RecommenderAdapter',
    'RecommenderLike',
    'Served',
    'ShardEnsemble',
    'Table',
    'Triplets',
    'grow',
]
