r"""Batches of training triplets."""

from .triplet_loader import TripletLoader

__all__ = ['TripletLoader']
