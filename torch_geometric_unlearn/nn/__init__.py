r"""Layers, losses and models."""

from .conv import (
    LayerMeanConv,
    LightConv,
    MarkovDiffusionConv,
    SampledAttentionConv,
)
from .models import (
    MGCN,
    MIGGT,
    CertifiedHead,
    DeletionOperators,
    EmbeddingTable,
    LightGCN,
    Recommender,
    RecommenderAdapter,
    RecommenderLike,
    Served,
    ShardEnsemble,
    Table,
    Triplets,
)

__all__ = [
    'MGCN',
    'MIGGT',
    'CertifiedHead',
    'DeletionOperators',
    'EmbeddingTable',
    'LayerMeanConv',
    'LightConv',
    'LightGCN',
    'MarkovDiffusionConv',
    'Recommender',
    'RecommenderAdapter',
    'RecommenderLike',
    'SampledAttentionConv',
    'Served',
    'ShardEnsemble',
    'Table',
    'Triplets',
]
