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
    Recommender,
    RecommenderAdapter,
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
    'MarkovDiffusionConv',
    'Recommender',
    'RecommenderAdapter',
    'SampledAttentionConv',
    'ShardEnsemble',
    'Table',
    'Triplets',
]
