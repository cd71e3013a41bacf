from .amazon_multimodal import AmazonMultimodal
from .synthetic import SyntheticMultimodal
from .tiktok import TikTok

__all__ = ['AmazonMultimodal', 'SyntheticMultimodal', 'TikTok']
