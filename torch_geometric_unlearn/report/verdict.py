r"""What the figures of a report mean, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from torch_geometric_unlearn.evaluation import (
    ORIGINAL,
    RETRAINED,
    SECOND,
    UNLEARNED,
)
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

    What is judged is the difference to the retrained model through its 95% interval: it
    is inside if the whole interval lies within the tolerance, outside if the whole of
    it lies beyond, and else the request is too small to tell. Where two retrained
    models differ by more than the tolerance, that is the limit.

    Args:
        content (dict): All other parts of the report.
        limits (dict): Result of :meth:`check_tolerance`.
    """
    k, request = content['k'], content['request']
    rows = {row['name']: row for row in content['table']['rows']}
    measures = []
    for key, kind in ((f'pair@{k}', 'forget'), (f'retain_ndcg@{k}', 'retain')):
        values = {name: _number(row['values'], key) for name, row in rows.items()}
        found = {n: d[key] for n, d in content['differences'].items() if key in d}
        measures.append(_judge(key, kind, values, limits[kind], found))
    for name, audit in content['audits'].items():
        audited = [x for x in _AUDITED if name.startswith(x)]
        for kind in audited if audit['models'] else []:
            key, models = _AUDITED[kind], audit['models']
            values = {model: _number(out, key) for model, out in models.items()}
            found = {
                model: _audited_difference(out, models[RETRAINED], key)
                for model, out in models.items()
                if values[model] is not None and values.get(RETRAINED) is not None
            }
            row = _judge(name, kind, values, limits[kind], found)
            shown = models.get(UNLEARNED, {}), models.get(RETRAINED, {})
            reasons = [out['reason'] for out in shown if out.get('reason')]
            measures.append(row | {'reason': reasons[0] if reasons else row['reason']})
    sentences = _sentences(request, content['method'], measures, rows, k, content)
    known = [m['within'] for m in measures if m['within'] is not None]
    status = 'unknown'
    if request.get('remaining', 0) > 0 or False in known:
        status = 'outside'
    elif len(known) == len(measures):
        status = 'within'
    elif all(m['within'] or m['reason'] for m in measures):
        status = 'unclear'
    return {
        'status': status,
        'sentences': sentences,
        'tolerance': dict(limits),
        'measures': measures,
    }


#: The figure of an audit that is judged, by how its name begins.
_AUDITED = {'membership': 'balanced_accuracy', 'completion': 'auc'}
#: What an audit calls the users (items) that it resamples.
_GROUPS = ('num_groups', 'num_users')
#: With fewer of these, an interval from resamples is too narrow.
MIN_GROUPS = 10


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


def interval_of(out: Mapping[str, Any], key: str) -> Sequence[Any] | None:
    r"""Returns the interval of a figure of an audit, if the result has one."""
    value, known = out.get(key), out.get('intervals')
    span = value.get('interval') if isinstance(value, Mapping) else None
    if span is None and isinstance(known, Mapping):
        span = known.get(key)
    if span is None and not isinstance(value, Mapping):
        span = out.get('interval')
    if not isinstance(span, (list, tuple)) or len(span) != 2 or None in span:
        return None
    return span


def _audited_difference(
    own: Mapping[str, Any], goal: Mapping[str, Any], key: str
) -> dict[str, Any]:
    r"""Returns the difference of two audited figures, its interval from both."""
    first, second = _number(own, key), _number(goal, key)
    assert first is not None
    assert second is not None
    sizes = [out[n] for out in (own, goal) for n in _GROUPS if out.get(n) is not None]
    out: dict[str, Any] = {'value': first - second, 'low': None, 'high': None}
    if sizes:
        out['num_groups'] = min(sizes)
    span, other = interval_of(own, key), interval_of(goal, key)
    if span is not None and other is not None and min(sizes, default=10) >= MIN_GROUPS:
        # Newcombe's: either end from those of both that make for it.
        out['low'] = out['value'] - math.hypot(first - span[0], other[1] - second)
        out['high'] = out['value'] + math.hypot(span[1] - first, second - other[0])
    return out


def _judge(
    name: str,
    kind: str,
    values: Mapping[str, float | None],
    limit: float,
    found: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    noise = abs(found[SECOND]['value']) if SECOND in found else None
    bound = max(limit, noise or 0.0)

    def within(model: str) -> bool | None:
        span = _span(found.get(model))
        if model == RETRAINED and values.get(model) is not None:
            return True
        if span is None:
            return None
        low, high = span
        beyond = kind != 'retain' and low > bound
        if high < -bound or beyond:
            return False  # Ranking better than the reference is no fault.
        return True if low >= -bound and (kind == 'retain' or high <= bound) else None

    own, verdict = found.get(UNLEARNED), within(UNLEARNED)
    return {
        'name': name,
        'kind': kind,
        'values': dict(values),
        'unlearned': values.get(UNLEARNED),
        'retrained': values.get(RETRAINED),
        'tolerance': limit,
        'noise': noise,
        'interval': _span(own),
        'within': verdict,
        'within_by_model': {model: within(model) for model in values},
        'reason': _reason(kind, own, bound) if own and verdict is None else '',
    }


def _span(found: Mapping[str, Any] | None) -> list[float] | None:
    ends = [] if found is None else [found['low'], found['high']]
    if not ends or not all(x is not None and math.isfinite(x) for x in ends):
        return None
    return ends


def _reason(kind: str, found: Mapping[str, Any], bound: float) -> str:
    r"""Returns why a difference can't be told from the tolerance, in plain words."""
    span, num = _span(found), found.get('num_examples')
    if span is None and num is None:
        groups = found.get('num_groups', MIN_GROUPS)
        if groups < MIN_GROUPS:
            return (
                f'The audit has examples of {_count(groups, "user")} (or items), and '
                f'{MIN_GROUPS} are needed.'
            )
        return 'The audit came without intervals.'
    if span is None:
        return (
            'All of it belongs together, as the interactions of one user or item do, '
            'which is a single case.'
        )
    low, high = span
    text = (
        f'The difference may be anything from {_signed(low)} to {_signed(high)} '
        f'{"%" if kind == "retain" else "percentage points"}.'
    )
    ratio = ((high - low) / 2 / max(bound, 1e-9)) ** 2
    if ratio <= 1:
        return f'{text} It reaches beyond the tolerance on one side.'
    if num is None:
        return f'{text} About {ratio:.1f} times as many examples would be needed.'
    what = 'users' if found['num_examples'] == found['num_groups'] else 'interactions'
    return f'{text} About {_round_up(num * ratio):,} {what} would be needed.'


def _round_up(number: float) -> int:
    r"""Returns a number with two digits that count, not below the given one."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit


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
    if RETRAINED not in rows:
        out.append(
            'There is no model trained without the deleted data to compare with, so '
            'these figures cannot be judged.'
        )
    elif any(m['reason'] for m in measures):
        help_ = 'What helps: judging several requests together'
        if SECOND not in rows:
            help_ += (
                ', and a second model trained without the data, which shows how far '
                'two of them are apart by chance'
            )
        out.append(f'{help_}.')
    controls = [name for name, row in rows.items() if row['role'] == 'control']
    out += [_beware(name, measures, rows) for name in controls]
    out.append(_cost(rows))
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


def _seconds(rows: Mapping[str, Any], name: str) -> float:
    r"""Returns what was measured, or NaN."""
    value = _number(rows[name]['values'], 'seconds') if name in rows else None
    return value or math.nan  # A result that nobody timed has 0 seconds.


def _cost(rows: Mapping[str, Any]) -> str:
    ours, full = _seconds(rows, UNLEARNED), _seconds(rows, RETRAINED)
    if math.isnan(ours + full):
        return ''
    return (
        f'Unlearning took {ours:.3g} seconds here, training without the data '
        f'{full:.3g}.'
    )


def _beware(
    name: str, measures: list[dict[str, Any]], rows: Mapping[str, Any]
) -> str:
    r"""Returns a warning if a control would have passed as well."""
    judged = [m for m in measures if m['retrained'] is not None]
    own = [m['within_by_model'].get(name) for m in judged]
    if not any(own) or False in own:
        return ''
    part = '' if None not in own else ', as far as that can be told'
    text = f"Beware: the comparison '{name}' is within the same tolerance{part}"
    if _seconds(rows, name) < _seconds(rows, UNLEARNED):
        return f'{text}, and took less time: nothing here speaks for the method.'
    return f'{text}.'


def _sentence(measure: Mapping[str, Any], k: int) -> str:
    value, goal = measure['unlearned'], measure['retrained']
    if value is None:
        reason = measure['reason']
        return reason and f'Not judged by {measure["name"]}: {reason}'
    before, limit = measure['values'].get(ORIGINAL), measure['tolerance']
    points = f'{100 * limit:.1f} percentage points'
    if measure['kind'] == 'forget':
        text = (
            f'The unlearned model ranks {_percent(value)} of the deleted interactions '
            f'into the top {k}'
        )
        text += '' if before is None else f' (before the request: {_percent(before)})'
        if goal is None:
            return f'{text}.'
        text += f'; a model trained without them ranks {_percent(goal)}'
        place = _place(measure, points)
        if measure['within'] is False:
            kind = 'still remembers' if value > goal else 'has over-forgotten'
            place += f' It {kind}.'
        return f'{text}. {place}'
    if measure['kind'] == 'retain':
        text = (
            f'For everyone else, its lists score {value:.4f} (NDCG@{k}, 1 is a perfect '
            f'list)'
        )
        if goal is None:
            return f'{text}.'
        against = f', against {goal:.4f} after retraining'
        loss = f'a relative loss of {_percent(limit)}'
        return f'{text}{against}. {_place(measure, loss)}'
    if measure['kind'] == 'completion':
        text = (
            f'Someone who knows half of what a deleted user had bought finds the rest '
            f'in {_percent(value)} of comparisons with equally popular items (50.0 % '
            f'is guessing)'
        )
    else:
        text = (
            f'An attacker who must tell deleted from never-seen interactions is right '
            f'in {_percent(value)} of cases ({measure["name"]}; 50.0 % is guessing)'
        )
    if goal is None:
        return f'{text}. {measure["reason"]}'.strip()
    text += f', and in {_percent(goal)} for the retrained model'
    return f'{text}. {_place(measure, points)}'


def _place(measure: Mapping[str, Any], tolerance: str) -> str:
    r"""Returns what a measure says, beside how far two retrained models are apart."""
    if measure['noise'] is not None:
        apart = f'two models trained without the data differ by {_points(measure)}'
        tolerance += f' ({apart})'
    if measure['within'] is None:
        text = f'Too small to judge by the tolerance of {tolerance}.'
        return f'{text} {measure["reason"]}'.strip()
    if measure['within']:
        return f'That is within the tolerance of {tolerance}, chance included.'
    return f'That is outside the tolerance of {tolerance}, by more than chance.'


def _points(measure: Mapping[str, Any]) -> str:
    noise = 100 * measure['noise']
    return f'{noise:.1f} %' if measure['kind'] == 'retain' else f'{noise:.1f} points'


def _signed(value: float) -> str:
    return f'{100 * value:+.1f}'.replace('-', '\u2212')


def _count(number: int, noun: str) -> str:
    return f'{number:,} {noun}{"" if number == 1 else "s"}'


def _percent(value: float) -> str:
    return f'{100 * value:.1f} %'


def listing(names: Sequence[str]) -> str:
    r"""Returns names as a sentence has them: a, b and c."""
    return ' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)
