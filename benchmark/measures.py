r"""Everything that is measured of one model after one request, as values with their
95 % intervals where there are some.
"""

from __future__ import annotations

import math

from torch_geometric_unlearn.audit import compare_membership, completion
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.evaluation import Comparison
from torch_geometric_unlearn.metrics import (
    closeness,
    cross_modal_cka,
    evaluate_request,
    exposure,
    item_persistence,
    layer_shift,
)
from torch_geometric_unlearn.metrics.exposure import exposure_profile
from torch_geometric_unlearn.metrics.ranking import user_metrics

K = 20
_ATTACK = ('balanced_accuracy', 'auc', 'tpr_at_1_fpr')
#: What of `closeness` is kept; `Comparison.difference` adds the excess in forgotten
#: pairs that are listed, and in retained NDCG as a share of retraining's.
_CLOSE = (
    'jaccard@20', 'overlap@20', 'rbo', 'kendall@50', 'jsd', 'ks_forget', 'cka_users',
    'cka_forget_items', 'cka_other_items',
)  # fmt: skip


def value(x, low=math.nan, high=math.nan):
    r"""Returns a figure and its interval as they stand in a file."""
    return {'value': x, 'low': low, 'high': high}


def measure(name, view, marked, original, retrained, num_bootstrap=1000):
    r"""Returns figures and details of one model.

    Args:
        name (str): What errors call it; `original` for the model before the request,
            whose attacker is checked as well, `retrained` for the reference itself.
        view (Served): The model.
        marked (HeteroData): The data with the request still marked.
        original (Served): The model before the request.
        retrained (Served): The reference.
        num_bootstrap (int, optional): Resamples for the intervals.

    Returns:
        (dict, dict): Figures by name, and what plots are drawn from.
    """
    figures = {
        key: value(x)
        for key, x in evaluate_request(view, marked, ks=(10, K)).items()
    }
    figures |= _user_intervals(view, marked)
    figures |= {key: value(x) for key, x in exposure(view, marked, K).items()}
    known = completion(view, marked, num_bootstrap=num_bootstrap)
    figures['completion'] = value(known.auc, *known.interval)
    members, details = _membership(name, view, marked, retrained, num_bootstrap)
    figures |= members
    if name != 'retrained':
        near = closeness(view, retrained, marked)['value']
        figures |= {key: value(near[key]) for key in _CLOSE if key in near}
        pair = Comparison({'retrained': retrained, name: view}, marked)
        for key, change in pair.difference(name, K).items():
            bounds = (change.low, change.high) if change.num_groups > 1 else ()
            figures[f'excess_{key}'] = value(change.value, *bounds)
    return figures, details | _diagnosis(name, view, marked, original, retrained)


def describe(marked):
    r"""Returns the sizes of a request."""
    request = Request.of(marked)
    return {
        'pairs': schema.forgotten_edge_index(marked).size(1),
        'users': request.users.numel(),
        'items': request.items.numel(),
        'training_pairs': marked[schema.EDGE_TYPE].edge_index.size(1),
    }


def _user_intervals(view, marked):
    r"""Returns recall and NDCG on both sides, with intervals from the users' spread."""
    request, test = Request.of(marked), schema.held_out(marked, 'test')
    retained = schema.retained_edge_index(marked)
    none = request.items[:0]
    sides = {
        'retain': (test[:, ~request.covers(test)], request.items),
        'forget': (schema.forgotten_edge_index(marked), none),
    }
    out = {}
    for side, (label, banned) in sides.items():
        users, *both = user_metrics(view, label, retained, banned, K)
        for key, x in zip(('recall', 'ndcg'), both):
            mean, half = float(x.mean()), math.nan
            if users.numel() > 1:
                half = 1.96 * float(x.std()) / users.numel() ** 0.5
            bounds = max(0.0, mean - half), min(1.0, mean + half)
            out[f'{side}_{key}@{K}'] = value(
                mean, *(bounds if half == half else (math.nan, math.nan))
            )
    return out


def _membership(name, view, marked, retrained, num_bootstrap):
    r"""Returns the attack in both modes, and its excess over retraining."""
    models = {'retrained': retrained} if name == 'retrained' else {
        name: view, 'retrained': retrained
    }  # fmt: skip
    found = compare_membership(models, marked, num_bootstrap=num_bootstrap)
    out, details = {}, {'confounded': found['confounded']}
    for row in found['rows']:
        if row['method'] != name:
            continue
        prefix = 'membership' if row['mode'] == 'direct' else 'transfer'
        keys = [*_ATTACK]
        if name != 'retrained':
            keys += ['excess_balanced_accuracy', 'excess_auc']
        for key in keys:
            bounds = row.get(f'{key}_low'), row.get(f'{key}_high')
            out[f'{prefix}_{key}'] = value(row[key], *bounds)
        details[f'{prefix}_direction'] = row['direction']
        details[f'{prefix}_classifier'] = row['classifier']
    if found['self_check'] is not None:
        details['self_check'] = found['self_check']
    return out, details


def _diagnosis(name, view, marked, original, retrained):
    r"""Returns what the plots of persistence, branches and layers show."""
    out = {}
    if view.branches:
        names, matrix = cross_modal_cka(view.model, view.graph)
        out['branch_cka'] = {'names': names, 'matrix': matrix.tolist()}
    if name == 'original':
        return out
    found = item_persistence(original, view, marked, K)
    profile = exposure_profile(
        found['reach_before'], found['reach_after'], found['deleted_share']
    )
    out['persistence'] = {'summary': found['summary'], **profile}
    out['layers'] = layer_shift(original.model, view.model, retrained.model, marked)
    return out
