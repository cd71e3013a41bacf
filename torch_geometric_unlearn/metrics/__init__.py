r"""Ranking quality and exposure."""

from .exposure import (
    deleted_share,
    exposure,
    exposure_drop,
    exposure_profile,
    item_reach,
)
from .ranking import embed, evaluate_request, evaluate_split, ranking_metrics
from .trade_off import trade_off

__all__ = [
    'deleted_share',
    'embed',
    'evaluate_request',
    'evaluate_split',
    'exposure',
    'exposure_drop',
    'exposure_profile',
    'item_reach',
    'ranking_metrics',
    'trade_off',
]
