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
    DeletionOperators,
    EmbeddingTable,
    LightGCN,
    Recommender,
    RecommenderAdapter,
    RecommenderLike,
    ShardEnsemble,
    Table,
    Triplets,
)

__all__ = [
    'MGCN',
    'MIGGT',
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
    'ShardEnsemble',
    'Table',
    'Triplets',
]
