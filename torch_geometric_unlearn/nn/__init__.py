r"""Layers, losses and models."""

from .conv import LayerMeanConv, LightConv
from .models import MGCN, Recommender, Table, Triplets

__all__ = ['MGCN', 'LayerMeanConv', 'LightConv', 'Recommender', 'Table', 'Triplets']
