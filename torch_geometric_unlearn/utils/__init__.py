r"""Free functions."""

from .resources import ResourceMeter
from .topk import pair_ranks, topk_items

__all__ = ['ResourceMeter', 'pair_ranks', 'topk_items']
