r"""Batches of (user, positive, negative) triples."""

from .triplet_loader import TripletLoader

__all__ = ['TripletLoader']
