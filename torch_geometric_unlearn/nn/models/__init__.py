r"""Recommender models."""

from .adapter import RecommenderAdapter
from .base import Recommender, RecommenderLike, RowBranch, Table, Triplets
from .certified_head import CertifiedHead
from .column_parallel_light_gcn import ColumnParallelLightGCN
from .column_parallel_mgcn import ColumnParallelMGCN
from .column_parallel_mig_gt import ColumnParallelMIGGT
from .deletion_operators import DeletionOperators
from .embedding_table import EmbeddingTable
from .grow import grow
from .interaction_graph import InteractionGraph
from .light_gcn import LightGCN, LightGCNGraph
from .mgcn import MGCN, MGCNGraph
from .mig_gt import MIGGT, MIGGTGraph
from .served import Served
from .shard_ensemble import ShardEnsemble
from .trainable_rows import LinearRows, TableRows

__all__ = [
    'MGCN',
    'MIGGT',
    'CertifiedHead',
    'ColumnParallelLightGCN',
    'ColumnParallelMGCN',
    'ColumnParallelMIGGT',
    'DeletionOperators',
    'EmbeddingTable',
    'InteractionGraph',
    'LightGCN',
    'LightGCNGraph',
    'LinearRows',
    'MGCNGraph',
    'MIGGTGraph',
    'Recommender',
    'RecommenderAdapter',
    'RecommenderLike',
    'RowBranch',
    'Served',
    'ShardEnsemble',
    'Table',
    'TableRows',
    'Triplets',
    'grow',
]
