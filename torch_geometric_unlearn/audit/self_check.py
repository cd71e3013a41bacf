r"""Does the attacker find memory where it is, and nothing where none is?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.nn.models.served import Served

from ._attack import CLASSIFIERS, METRICS, MembershipResult, Settings
from ._membership import MembershipAudit

#: Above this balanced accuracy, a comparison of equals is confounded.
MAX_NULL = 0.55


def self_check(
    original: Any,
    data: HeteroData,
    classifiers: Sequence[str] = CLASSIFIERS,
    num_folds: int = 5,
    max_examples: int = 10_000,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Checks the attacker itself on the original model in service.

    On held-out pairs, split at random per user into pseudo members and non-members, it
    must find nothing; on the request it must find memory, if the model has any. An
    audit of a model for which the second fails says little, as there was nothing that
    this attacker could have seen before.

    Args:
        original (torch.nn.Module or Served): The model before unlearning.
        data (HeteroData): The data with the request still marked.
        classifiers (sequence, optional): As for :meth:`membership`.
            (default: :obj:`('logistic', 'boosting')`)
        num_folds (int, optional): As for :meth:`membership`. (default: :obj:`5`)
        max_examples (int, optional): As for :meth:`membership`.
            (default: :obj:`10_000`)
        num_bootstrap (int, optional): As for :meth:`membership`. (default: :obj:`1000`)
        seed (int, optional): As for :meth:`membership`. (default: :obj:`0`)

    Returns:
        dict: :obj:`null` and :obj:`original` with the metrics and intervals of both
        direct attacks; :obj:`null_ok`, whether the first has 0.5 within the interval
        of the AUC or a balanced accuracy of at most 0.55; :obj:`original_ok`, whether
        the interval of the AUC of the second lies above 0.5.

    Example:
        >>> from torch_geometric_unlearn.audit import self_check
        >>> data = SyntheticMultimodal('tiny', num_users=400)[0]
        >>> model = MGCN.from_data(data, hidden_channels=16)
        >>> self_check(model, ForgetUsers(ratio=0.3)(data))['null_ok']
        True
    """
    settings = Settings(
        'pair', 'auto', classifiers, num_folds, max_examples, num_bootstrap, seed
    )
    return check_attacker(MembershipAudit(data, settings), original)


def check_attacker(audit: MembershipAudit, original: Any) -> dict[str, Any]:
    r"""Returns what :meth:`self_check` says, on the examples of an audit if they are
    pairs that may be the original's memory.
    """
    settings = audit.settings
    if settings.level != 'pair' or settings.negatives == 'random':
        settings = replace(settings, level='pair', negatives='auto')
        audit = MembershipAudit(audit.data, settings)
    source = audit.source(Served.before(original, audit.data))
    null = MembershipResult('direct', 'null')
    null = audit.attack(source, null, audit.examples.null)
    found = audit(source, 'direct')
    low, high = null.intervals['auc']
    holds = low <= 0.5 <= high or null.balanced_accuracy <= MAX_NULL
    out: dict[str, Any] = {}
    for name, result in (('null', null), ('original', found)):
        out[name] = {key: getattr(result, key) for key in METRICS}
        out[name]['intervals'] = result.intervals
    out['null_ok'] = bool(holds)
    out['original_ok'] = bool(found.intervals['auc'][0] > 0.5)
    return out
