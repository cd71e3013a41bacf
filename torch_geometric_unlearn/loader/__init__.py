r"""Batches of training triplets."""

from .row_loader import RowLoader
from .triplet_loader import TripletLoader

__all__ = ['RowLoader', 'TripletLoader']
