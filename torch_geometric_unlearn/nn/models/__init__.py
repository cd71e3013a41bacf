r"""Recommender models."""

from .base import Recommender, Table, Triplets
from .mgcn import MGCN, MGCNGraph

__all__ = ['MGCN', 'MGCNGraph', 'Recommender', 'Table', 'Triplets']
