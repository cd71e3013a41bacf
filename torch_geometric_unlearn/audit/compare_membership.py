r"""The membership attack on several models, beside the retrained one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch_geometric.data import HeteroData

from torch_geometric_unlearn.nn.models.served import Served
from torch_geometric_unlearn.utils.check import check_choice

from ._attack import CLASSIFIERS, METRICS, Settings, percentiles
from ._membership import MembershipAudit
from .self_check import MAX_NULL, check_attacker


def compare_membership(
    models: Mapping[str, Any],
    data: HeteroData,
    modes: Sequence[str] = ('direct', 'transfer'),
    level: str = 'pair',
    negatives: str = 'auto',
    classifiers: Sequence[str] = CLASSIFIERS,
    num_folds: int = 5,
    max_examples: int = 10_000,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Attacks several models in the same way, and compares with the retrained one.

    :obj:`'original'` is scored on all interactions, as it was in service, and every
    other model on the retained ones. With :obj:`'retrained'` among the models, every
    row has

    .. math::
        \textrm{priv_gap} = \textrm{BalAcc}(\theta) - \textrm{BalAcc}(\theta_R), \qquad
        \textrm{auc_relative} = 100 \,
        \frac{\textrm{AUC}(\theta) - \textrm{AUC}(\theta_R)}{\textrm{AUC}(\theta_R)},

    and :obj:`excess_balanced_accuracy` and :obj:`excess_auc` over the retrained model,
    with 95% intervals :obj:`_low` and :obj:`_high` from resamples of users (items) on
    which both models are compared.

    Args:
        models (dict): Models by name.
        data (HeteroData): The data with the request still marked.
        modes (sequence, optional): Modes to run; for neighbours, transfer is left out.
            (default: :obj:`('direct', 'transfer')`)
        level (str, optional): As for :meth:`membership`. (default: :obj:`'pair'`)
        negatives (str, optional): As for :meth:`membership`. (default: :obj:`'auto'`)
        classifiers (sequence, optional): As for :meth:`membership`.
            (default: :obj:`('logistic', 'boosting')`)
        num_folds (int, optional): As for :meth:`membership`. (default: :obj:`5`)
        max_examples (int, optional): As for :meth:`membership`.
            (default: :obj:`10_000`)
        num_bootstrap (int, optional): As for :meth:`membership`. (default: :obj:`1000`)
        seed (int, optional): As for :meth:`membership`. (default: :obj:`0`)

    Returns:
        dict: :obj:`rows`, one per model and mode: the name as :obj:`method`, and
        metrics; :obj:`results` with everything, as dictionaries in the same order;
        :obj:`missing`, by name of an absent model what can't be said without it;
        :obj:`confounded`, whether retraining lies above 0.55 in the direct mode, so
        that nothing should be concluded (:obj:`None` without it and for neighbours,
        where it does by nature); and
        :obj:`self_check` (:obj:`None` without the original).

    Example:
        >>> from torch_geometric_unlearn.audit import compare_membership
        >>> data = SyntheticMultimodal('tiny', num_users=400)[0]
        >>> models = {'edge_drop': MGCN.from_data(data, hidden_channels=16)}
        >>> out = compare_membership(
        ...     models, ForgetUsers(ratio=0.3)(data), modes=['direct'])
        >>> sorted(out['missing'])
        ['original', 'retrained']
    """
    for mode in modes:
        check_choice(mode, 'modes', ('direct', 'transfer'))
    settings = Settings(
        level, negatives, classifiers, num_folds, max_examples, num_bootstrap, seed
    )
    audit = MembershipAudit(data, settings)
    if level == 'neighbours':
        modes = ('direct',)
    rows: list[dict[str, Any]] = []
    results, resamples = [], {}
    for name, model in models.items():
        served = Served.before if name == 'original' else Served.of
        source = audit.source(served(model, data, name=name))
        for mode in modes:
            result = audit(source, mode)
            resamples[name, mode] = audit.resamples
            row: dict[str, Any] = {'method': name, 'mode': mode, 'level': level}
            row |= {key: getattr(result, key) for key in (*METRICS, 'deviation')}
            row |= {'direction': result.direction, 'classifier': result.classifier}
            for key, (low, high) in result.intervals.items():
                row |= {f'{key}_low': low, f'{key}_high': high}
            rows.append(row)
            results.append(result.to_dict())
    missing, confounded = {}, None
    if 'retrained' in models:
        reference = {row['mode']: row for row in rows if row['method'] == 'retrained'}
        for row in rows:
            mode, ours = row['mode'], reference[row['mode']]
            row['priv_gap'] = row['balanced_accuracy'] - ours['balanced_accuracy']
            change = row['auc'] - ours['auc']
            relative = 100 * change / ours['auc'] if ours['auc'] else math.nan
            row['auc_relative'] = relative
            sides = resamples[row['method'], mode], resamples['retrained', mode]
            for key in ('balanced_accuracy', 'auc'):
                low, high = percentiles(sides[0][key] - sides[1][key])
                row[f'excess_{key}'] = row[key] - ours[key]
                row |= {f'excess_{key}_low': low, f'excess_{key}_high': high}
        if 'direct' in reference and level != 'neighbours':
            confounded = reference['direct']['balanced_accuracy'] > MAX_NULL
    else:
        missing['retrained'] = 'priv_gap, auc_relative, and whether it is confounded'
    check = None
    if 'original' in models:
        check = check_attacker(audit, models['original'])
    else:
        missing['original'] = 'self_check'
    return {
        'rows': rows,
        'results': results,
        'missing': missing,
        'confounded': confounded,
        'self_check': check,
    }
