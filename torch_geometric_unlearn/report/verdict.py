r"""What the figures of a report mean, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from torch_geometric_unlearn.utils.check import check_float

#: How far from retraining still counts as the same [ours].
TOLERANCE = {'forget': 0.02, 'retain': 0.05, 'membership': 0.05, 'completion': 0.05}


def check_tolerance(tolerance: Mapping[str, float] | None) -> dict[str, float]:
    r"""Returns the limits to judge by.

    Raises:
        ValueError: If a name is unknown, or a limit is negative.
    """
    given = dict(tolerance or {})
    unknown = sorted(set(given) - set(TOLERANCE))
    if unknown:
        raise ValueError(
            f"'tolerance' must hold some of {list(TOLERANCE)} (got {unknown})"
        )
    for name, value in given.items():
        check_float(value, f'tolerance[{name!r}]', 0.0)
    return TOLERANCE | given


def judge(content: Mapping[str, Any], limits: Mapping[str, float]) -> dict[str, Any]:
    r"""Returns the verdict on a report.

    Args:
        content (dict): All other parts of the report.
        limits (dict): Result of :meth:`check_tolerance`.
    """
    k, request = content['k'], content['request']
    rows = {row['name']: row for row in content['table']['rows']}
    measures = [
        _measure(rows, f'pair@{k}', 'forget', limits['forget']),
        _measure(rows, f'retain_ndcg@{k}', 'retain', limits['retain']),
    ]
    for name, audit in content['audits'].items():
        if name.startswith('membership') and audit['models']:
            values = {
                model: _number(out, 'balanced_accuracy')
                for model, out in audit['models'].items()
            }
            measures.append(_judge(name, 'membership', values, limits['membership']))
        if name == 'completion' and audit['models']:
            values = {
                model: _number(out, 'auc') for model, out in audit['models'].items()
            }
            measures.append(_judge(name, 'completion', values, limits['completion']))
    sentences = _sentences(request, content['method'], measures, rows, k, content)
    known = [m['within'] for m in measures if m['within'] is not None]
    status = 'unknown'
    if request.get('remaining', 0) > 0 or False in known:
        status = 'outside'
    elif len(known) == len(measures):
        status = 'within'
    return {
        'status': status,
        'sentences': sentences,
        'tolerance': dict(limits),
        'measures': measures,
    }


def _number(values: Mapping[str, Any], key: str) -> float | None:
    r"""Returns a finite number, also of :obj:`{'value': ..., 'interval': ...}`."""
    value = values.get(key)
    if isinstance(value, Mapping):
        value = value.get('value')
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _measure(
    rows: Mapping[str, Any], key: str, kind: str, limit: float
) -> dict[str, Any]:
    values = {name: _number(row['values'], key) for name, row in rows.items()}
    return _judge(key, kind, values, limit)


def _judge(
    name: str, kind: str, values: Mapping[str, float | None], limit: float
) -> dict[str, Any]:
    def within(value: float | None, goal: float | None) -> bool | None:
        if value is None or goal is None:
            return None
        if kind == 'retain':  # Ranking better than the reference is no fault.
            return value >= (1 - limit) * goal
        return abs(value - goal) <= limit

    goal = values.get('retrained')
    return {
        'name': name,
        'kind': kind,
        'values': dict(values),
        'unlearned': values.get('unlearned'),
        'retrained': goal,
        'tolerance': limit,
        'within': within(values.get('unlearned'), goal),
        'within_by_model': {m: within(value, goal) for m, value in values.items()},
    }


def _sentences(
    request: Mapping[str, Any],
    method: Mapping[str, Any],
    measures: list[dict[str, Any]],
    rows: Mapping[str, Any],
    k: int,
    content: Mapping[str, Any],
) -> list[str]:
    out = []
    if not request['needs']:
        n, left = request['num_interactions'], request['remaining']
        gone = 'None of them is left in the data.'
        if left:
            gone = f'{left} of them are still in the data, so the deletion failed.'
        out.append(
            f'The request deletes {_count(n, "interaction")} '
            f'({_percent(request["share"])} of the training data) between '
            f'{_count(request["num_users"], "user")} and '
            f'{_count(request["num_items"], "item")}. {gone}'
        )
    out += [_sentence(measure, k) for measure in measures]
    if 'retrained' not in rows:
        out.append(
            'There is no model trained without the deleted data to compare with, so '
            'these figures cannot be judged.'
        )
    controls = [name for name, row in rows.items() if row['role'] == 'control']
    out += [_beware(name, measures) for name in controls]
    if content['failures']:
        out.append(
            f'{_count(len(content["failures"]), "measurement")} failed; see the end '
            f'of the report.'
        )
    if method['exact']:
        out.append(
            'The method promises the model that training without the data gives; the '
            'figures check its result, not its proof.'
        )
    else:
        out.append(
            'The method is approximate. A good report is evidence, not a legal '
            'guarantee that no influence of the deleted data is left.'
        )
    return [sentence for sentence in out if sentence]


def _beware(name: str, measures: list[dict[str, Any]]) -> str:
    r"""Returns a warning if a control would have passed as well."""
    judged = [m for m in measures if m['retrained'] is not None]
    own = [m['within_by_model'].get(name) for m in judged]
    if not any(own) or False in own:
        return ''
    part = '' if None not in own else ', as far as it was measured'
    return (
        f"Beware: the comparison '{name}' is within the same tolerance{part}. If it is "
        f'cheaper, these measures give no reason for the method.'
    )


def _sentence(measure: Mapping[str, Any], k: int) -> str:
    value, goal = measure['unlearned'], measure['retrained']
    if value is None:
        return ''
    before, limit = measure['values'].get('original'), measure['tolerance']
    points = f'{100 * limit:.1f} percentage points'
    if measure['kind'] == 'forget':
        text = (
            f'The unlearned model ranks {_percent(value)} of the deleted interactions '
            f'into the top {k}'
        )
        text += '' if before is None else f' (before the request: {_percent(before)})'
        if goal is None:
            return f'{text}.'
        text += f'; a model trained without them ranks {_percent(goal)}.'
        if measure['within']:
            return f'{text} That is within the tolerance of {points}.'
        kind = 'it still remembers' if value > goal else 'it has over-forgotten'
        return f'{text} That is outside the tolerance of {points}: {kind}.'
    if measure['kind'] == 'retain':
        text = (
            f'For everyone else, its lists score {value:.4f} (NDCG@{k}, 1 is a perfect '
            f'list)'
        )
        if goal is None:
            return f'{text}.'
        place = 'within' if measure['within'] else 'outside'
        return (
            f'{text}, against {goal:.4f} after retraining: {place} the tolerance of '
            f'a relative loss of {_percent(limit)}.'
        )
    if measure['kind'] == 'completion':
        text = (
            f'Someone who knows half of what a deleted user had bought finds the rest '
            f'in {_percent(value)} of comparisons with equally popular items (50.0 % '
            f'is guessing)'
        )
        return _against(text, measure, points)
    text = (
        f'An attacker who must tell deleted from never-seen interactions is right in '
        f'{_percent(value)} of cases ({measure["name"]}; 50.0 % is guessing)'
    )
    return _against(text, measure, points)


def _against(text: str, measure: Mapping[str, Any], points: str) -> str:
    goal = measure['retrained']
    if goal is None:
        return f'{text}.'
    place = 'within' if measure['within'] else 'outside'
    return (
        f'{text}, and in {_percent(goal)} for the retrained model: {place} the '
        f'tolerance of {points}.'
    )


def _count(number: int, noun: str) -> str:
    return f'{number:,} {noun}{"" if number == 1 else "s"}'


def _percent(value: float) -> str:
    return f'{100 * value:.1f} %'


def listing(names: Sequence[str]) -> str:
    r"""Returns names as a sentence has them: a, b and c."""
    return ' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)
