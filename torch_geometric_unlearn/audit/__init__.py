r"""Audits: what an attacker can still tell from a model."""

from .backdoor import backdoor
from .compare_membership import compare_membership
from .completion import compare_completion, completion
from .exchangeability import exchangeability
from .hold_out_users import hold_out_users
from .likelihood_ratio import likelihood_ratio
from .membership import membership
from .relearn import relearn_time
from .self_check import self_check
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
