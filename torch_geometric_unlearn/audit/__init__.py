r"""Audits: what an attacker can still tell from a model."""

from ._attack import MembershipResult
from .backdoor import (
    BackdoorResult,
    backdoor,
    backdoor_summary,
    backdoor_table,
)
from .completion import (
    CompletionResult,
    compare_completion,
    completion,
    completion_yardstick,
)
from .exchangeability import exchangeability
from .likelihood_ratio import likelihood_ratio
from .membership import compare_membership, hold_out_users, membership, self_check
from .relearn import relearn_time
from .shadow import shadow

__all__ = [
    'BackdoorResult',
    'CompletionResult',
    'MembershipResult',
    'backdoor',
    'backdoor_summary',
    'backdoor_table',
    'compare_completion',
    'compare_membership',
    'completion',
    'completion_yardstick',
    'exchangeability',
    'hold_out_users',
    'likelihood_ratio',
    'membership',
    'relearn_time',
    'self_check',
    'shadow',
]
