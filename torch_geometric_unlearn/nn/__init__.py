r"""Layers, losses and models."""

from .conv import LightConv
from .models import MGCN, Recommender, Table, Triplets

__all__ = ['MGCN', 'LightConv', 'Recommender', 'Table', 'Triplets']
