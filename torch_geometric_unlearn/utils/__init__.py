r"""Free functions."""

from .resources import ResourceMeter
from .topk import topk_items

__all__ = ['ResourceMeter', 'topk_items']
