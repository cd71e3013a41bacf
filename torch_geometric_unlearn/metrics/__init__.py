r"""Ranking quality and exposure."""

from .exposure import exposure, exposure_drop
from .ranking import embed, evaluate_request, evaluate_split, ranking_metrics

__all__ = [
    'embed',
    'evaluate_request',
    'evaluate_split',
    'exposure',
    'exposure_drop',
    'ranking_metrics',
]
