r"""Ranking quality, exposure, closeness to a retrained model."""

from ._similarity import (
    jaccard_at_k,
    jensen_shannon,
    kendall_tau_top,
    ks_statistic,
    linear_cka,
    overlap_at_k,
    rank_biased_overlap,
)
from .closeness import closeness, parameter_shift
from .diagnosis import cross_modal_cka, item_persistence, layer_shift
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
    'closeness',
    'cross_modal_cka',
    'deleted_share',
    'embed',
    'evaluate_request',
    'evaluate_split',
    'exposure',
    'exposure_drop',
    'exposure_profile',
    'item_persistence',
    'item_reach',
    'jaccard_at_k',
    'jensen_shannon',
    'kendall_tau_top',
    'ks_statistic',
    'layer_shift',
    'linear_cka',
    'overlap_at_k',
    'parameter_shift',
    'rank_biased_overlap',
    'ranking_metrics',
    'trade_off',
]
