r"""Recommender models."""

from .adapter import InteractionGraph, RecommenderAdapter
from .base import Recommender, Table, Triplets
from .deletion_operators import DeletionOperators
from .embedding_table import EmbeddingTable
from .mgcn import MGCN, MGCNGraph
from .mig_gt import MIGGT, MIGGTGraph
from .shard_ensemble import ShardEnsemble

__all__ = [
    'MGCN',
    'MIGGT',
    'DeletionOperators',
    'EmbeddingTable',
    'InteractionGraph',
    'MGCNGraph',
    'MIGGTGraph',
    'Recommender',
    'RecommenderAdapter',
    'ShardEnsemble',
    'Table',
    'Triplets',
]
