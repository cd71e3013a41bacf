r"""Ranking quality, exposure, closeness to a retrained model."""

from .closeness import closeness, parameter_shift
from .diagnosis import cross_modal_cka, item_persistence, layer_shift
from .exposure import (
    exposure,
)
from .ranking import embed, evaluate_request, evaluate_split, ranking_metrics
from .trade_off import trade_off

__all__ = [
    'closeness',
    'cross_modal_cka',
    'embed',
    'evaluate_request',
    'evaluate_split',
    'exposure',
    'item_persistence',
    'layer_shift',
    'parameter_shift',
    'ranking_metrics',
    'trade_off',
]
