r"""Audits: what an attacker can still tell from a model."""

from .backdoor import (
    backdoor,
)
from .completion import (
    compare_completion,
    completion,
)
from .exchangeability import exchangeability
from .likelihood_ratio import likelihood_ratio
from .membership import compare_membership, hold_out_users, membership, self_check
from .relearn import relearn_time
from .shadow import shadow

__all__ = [
    'backdoor',
    'compare_completion',
    'compare_membership',
    'completion',
    'exchangeability',
    'hold_out_users',
    'likelihood_ratio',
    'membership',
    'relearn_time',
    'self_check',
    'shadow',
]
