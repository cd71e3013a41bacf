r"""Data sets of users, items and item features of several modalities."""

from .amazon_multimodal import AmazonMultimodal
from .synthetic import SyntheticMultimodal
from .tiktok import TikTok

__all__ = ['AmazonMultimodal', 'SyntheticMultimodal', 'TikTok']
