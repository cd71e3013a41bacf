r"""The report as one page of HTML: no script, no font, no image, no network.

What a section shows is chosen here, how it looks and what it says in
:obj:`templates/report.html`. The template escapes every string; the plots alone are
markup already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .svg import HATCH, bar_plot, heat_map, histogram, line_plot, path_plot
from .table import json_bytes, without_nan
from .verdict import interval_of, listing

_PACKAGE = 'torch_geometric_unlearn.report'
_NOTHING = 'not available'

_TITLES = {
    'pair': ('Deleted interactions in the lists', 'share of deleted pairs, top {k}'),
    'forget_recall': ('Forget recall', 'per user, top {k}'),
    'forget_ndcg': ('Forget NDCG', 'per user, top {k}'),
    'retain_recall': ('Retain recall', 'test, top {k}'),
    'retain_ndcg': ('Retain NDCG', 'test, top {k}'),
    'exposure': ('Exposure', 'share of list places, top {k}'),
}

_ROLES = {
    'original': 'before the request',
    'retrained': 'trained without the data: the goal',
    'retrained again': 'the same with another seed: what chance does',
    'control': 'comparison',
    'unlearned': 'what this report is about',
}

#: What a section may ask the caller for, as its reader knows it.
_INPUTS = {
    'data': 'the data of the request',
    'original': 'the model before the request',
    'retrained': 'a model trained without the deleted data',
    'controls': 'a simple method to compare with',
}

class Cell(NamedTuple):
    r"""What a place of a table shows: a text, its class, a hint, a line below."""

    text: str
    kind: str = ''
    title: str = ''
    small: str = ''


class _Table(NamedTuple):
    head: list[tuple[str, str]]  # Name and unit.
    rows: list[list[Cell]]
    caption: str = ''
    chosen: int | None = None


class _Note(NamedTuple):
    r"""A sentence in a marked box (kind :obj:`'missing'`) or in grey."""

    text: str
    kind: str = 'note'


def render_html(content: Mapping[str, Any]) -> str:
    r"""Returns the page for a report. Its :obj:`json-sha256` is the digest of the JSON
    file with the same content.

    Args:
        content (dict): Result of
            :meth:`~torch_geometric_unlearn.report.report.build_report`, or the
            JSON file that was written from it.

    Raises:
        ValueError: If a value is infinite.
    """
    content = without_nan(content)
    audits = content['audits']
    not_run = [name for name, audit in audits.items() if not audit['models']]
    shown = {
        **content,
        **{key: _part(content, key) for key in _SECTIONS},
        'audits': [_audit(n, out) for n, out in audits.items() if n not in not_run],
        'not_run': listing(not_run),
        'settings': _settings(content),
        'hints': _hints(content),
        'hatch': Markup(HATCH),
        'json_sha256': sha256(json_bytes(content)).hexdigest(),
    }
    return environment(_PACKAGE).get_template('report.html').render(shown)


@cache
def environment(package: str) -> Environment:
    r"""Returns what renders the templates of a package and those of reports."""
    packages = dict.fromkeys([package, _PACKAGE])
    out = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    out.filters |= {'percent': _percent, 'text': _text, 'count': '{:,}'.format}
    return out


def _part(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    r"""Returns what a section shows, and what is to be said of what it lacks."""
    title, is_needed, show = _SECTIONS[key]
    section, note = content[key], None
    if needs := section['needs']:
        words = listing([_INPUTS[name] for name in needs])
        kind = 'missing' if is_needed and needs != ['controls'] else 'note'
        note = _Note(f'This report was not given {words}.', kind)
    elif section['missing']:
        note = _Note(section['missing'])
    empty = {'plot': None, 'table': None, 'error': ''}
    return {**empty, **section, 'title': title, 'note': note, **show(content)}


def _hints(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    r"""Returns what the caller may pass to complete the report, by section."""
    hints = [
        (title, content[key]['missing'])
        for key, (title, *_) in _SECTIONS.items()
        if content[key]['needs']
    ]
    hints += [
        (f'Audit: {name}', audit['missing'])
        for name, audit in content['audits'].items()
        if not audit['models']
    ]
    if not content['settings']:
        what = "Pass 'settings', e.g. how the original was trained."
        hints.append(('Further settings', what))
    return hints


def _models(content: Mapping[str, Any]) -> dict[str, Any]:
    table, k = content['table'], content['k']
    names = [n for n in _TITLES if f'{n}@{k}' in table['columns']]
    head: list[Any] = ['Model']
    head += [(_TITLES[n][0], _TITLES[n][1].format(k=k)) for n in names]
    audits = [
        name
        for name, audit in content['audits'].items()
        if any('balanced_accuracy' in out for out in audit['models'].values())
    ]
    head += [(_capital(name), 'balanced accuracy') for name in audits]
    show_trade_off = 'trade_off' in table['columns']
    head += [('Trade-off', '0 to 1')] if show_trade_off else []
    head += [('Seconds', 'to get there')]
    rows = []
    for row in table['rows']:
        values, errors = row['values'], row['errors']
        cells = [Cell(row['name'], small=_ROLES[row['role']])]
        for name in names:
            source = 'exposure' if name in ('pair', 'exposure') else 'ranking'
            cells.append(_cell(values.get(f'{name}@{k}'), error=errors.get(source)))
        for name in audits:
            out = content['audits'][name]['models'].get(row['name'], {})
            accuracy = _value_of(out, 'balanced_accuracy')
            cells.append(_cell(accuracy, error=out.get('error')))
        if show_trade_off:
            cells.append(_cell(values.get('trade_off')))
        rows.append([*cells, _cell(values.get('seconds'), '{:.1f}')])
    roles = [row['role'] for row in table['rows']]
    chosen = roles.index('unlearned')
    return {'table': grid(head, rows, 'All models, measured alike', chosen)}


def _modules(content: Mapping[str, Any]) -> dict[str, Any]:
    rows = content['modules'].get('rows', [])
    if not rows:
        return {}
    kinds = {
        'sensitivity': 'Sensi- tivity',
        'mask': 'Re- versed',
        'shift': 'Moved',
        'retrained_shift': 'Moved by retraining',
    }
    kinds = {
        key: name
        for key, name in kinds.items()
        if any(row.get(key) is not None for row in rows)
    }
    largest = {key: max(row.get(key) or 0.0 for row in rows) or 1.0 for key in kinds}
    both = max(largest.get('shift', 0.0), largest.get('retrained_shift', 0.0))
    largest |= {key: both for key in ('shift', 'retrained_shift') if key in kinds}

    def shade(key: str, value: float | None) -> float | None:
        if value is None:
            return None
        # Sensitivities span decades, so that their root is shaded.
        return (value / largest[key]) ** (0.25 if key == 'sensitivity' else 1.0)

    plot = heat_map(
        [row['module'] for row in rows],
        list(kinds.values()),
        [[shade(key, row.get(key)) for key in kinds] for row in rows],
        [[_short(row.get(key), key == 'mask') for key in kinds] for row in rows],
        f'Heat map of {len(rows)} modules by {len(kinds)} measures; the numbers are in '
        f'the table below.',
    )
    head = ['Module', 'Sensitivity', 'Reversed', 'Moved', 'Moved by retraining']
    table = grid(
        [*head, 'Cosine'],
        [
            [
                row['module'],
                _cell(row.get('sensitivity'), '{:.3g}'),
                _cell(row.get('mask'), '{:.0%}'),
                *(row.get(key) for key in ('shift', 'retrained_shift', 'cosine')),
            ]
            for row in rows
        ],
        'Sensitivity: mean squared gradient of the reverse loss. Reversed: share of '
        'epochs. Moved: relative to the size of the weights. Cosine: 1 if the way is '
        'the same as retraining’s.',
    )
    return {'plot': Markup(plot), 'table': table}


def _branches(content: Mapping[str, Any]) -> dict[str, Any]:
    section = content['branches']
    scales = section.get('scales', {})
    if not scales:
        return {}
    label = f'Line plot of the scales of {listing(list(scales))} over the epochs.'
    plot = line_plot(
        section['epochs'], scales, label, 'epoch', 'scale', 1.0, '1 = average'
    )
    table = _series('Epoch', section['epochs'], scales)
    return {'plot': Markup(plot), 'table': table}


def _curve(content: Mapping[str, Any]) -> dict[str, Any]:
    section = content['curve']
    k = section['k']
    points = [p for p in section.get('points', []) if p['retain'] is not None]
    if not points:
        return {}
    names: dict[tuple[float, float], list[str]] = {}  # Epochs may share a place.
    for point in points:
        place = (point['forget'], point['retain'])
        names.setdefault(place, []).append(str(point['epoch']))
    chosen = next(((p['forget'], p['retain']) for p in points if p['selected']), None)
    reference = next(
        (p['reference'] for p in reversed(points) if p['reference'] is not None), None
    )
    plot = path_plot(
        list(names),
        [', '.join(epochs) for epochs in names.values()],
        list(names).index(chosen) if chosen else None,
        f'Path of {len(points)} epochs through the share of deleted interactions in '
        f'the lists and the usefulness for everyone else.',
        f'deleted interactions in the top {k} (share)',
        f'retained NDCG@{k}',
        reference,
        'never seen',
    )
    keys = ('epoch', 'forget', 'reference', 'retain', 'selected')
    table = grid(
        ['Epoch', 'Forget', 'Never seen', 'Retain', 'Kept'],
        [[point[key] for key in keys] for point in points],
        chosen=next((i for i, p in enumerate(points) if p['selected']), None),
    )
    return {'plot': Markup(plot), 'table': table}


def _scores(content: Mapping[str, Any]) -> dict[str, Any]:
    section = content['scores']
    models = section.get('models', {})
    if not models:
        return {}
    plots = [
        (
            _capital(name),
            _outlines(
                section['edges'],
                {'deleted': sides['forgotten'], 'never seen': sides['unseen']},
                f'Histogram of the scores of deleted and never-seen interactions in '
                f'the {name} model; deleted ones lie {_short(sides["gap"])} higher on '
                f'average.',
                'share of interactions',
            ),
            sides['gap'],
        )
        for name, sides in models.items()
    ]
    columns = {
        f'{name}, {words}': sides[side]
        for name, sides in models.items()
        for side, words in [('forgotten', 'deleted'), ('unseen', 'never seen')]
    }
    bins = [f'{left:.2f}' for left in section['edges'][:-1]]
    return {'plot': plots, 'table': _series('From score', bins, columns)}


def _outlines(edges: Any, series: Mapping[str, Any], label: str, y_name: str) -> Markup:
    return Markup(histogram(edges, series, label, 'standardised score', y_name))


def _exposure(content: Mapping[str, Any]) -> dict[str, Any]:
    section, k = content['exposure'], content['k']
    values = section.get('values', {})
    if not values:
        return {}
    plot = bar_plot(
        list(values),
        {'exposure': list(values.values())},
        f'Bars of the share of places in top {k} lists for {len(values)} models.',
        _percent,
    )
    groups = section['groups']
    table = grid(
        ['Deleted share up to', 'Items', 'Before', 'Unlearned', 'Retrained'],
        [
            [
                _percent(group['max_share']),
                group['num_items'],
                *(group.get(key) for key in ('before', 'after', 'retrained')),
            ]
            for group in groups
        ],
        'Share of users who see an item, by how much of the item was deleted',
    )
    return {'plot': Markup(plot), 'table': table if groups else None}


#: Sections by key: the title, whether the verdict rests on it, and what shows it.
_SECTIONS: dict[str, tuple[str, bool, Callable[[Mapping[str, Any]], dict[str, Any]]]]
_SECTIONS = {
    'table': ('The models side by side', True, _models),
    'request': ('What was asked', True, lambda content: {}),
    'modules': ('Where the model was corrected', False, _modules),
    'branches': ('How strongly each branch was corrected', False, _branches),
    'curve': ('Forgetting against usefulness', False, _curve),
    'scores': ('Do deleted interactions stand out?', True, _scores),
    'exposure': ('Are the items still shown to others?', True, _exposure),
}


def _audit(name: str, audit: Mapping[str, Any]) -> dict[str, Any]:
    models = audit['models']
    good = {model: out for model, out in models.items() if 'error' not in out}
    shown: dict[str, Any] = {'kind': ''}
    if any('balanced_accuracy' in out for out in good.values()):
        shown = {'kind': 'membership', **_membership(good)}
    elif any('num_targets' in out for out in good.values()):
        shown = {'kind': 'completion', 'table': _completion(good)}
    elif any(isinstance(out.get('recovered'), Mapping) for out in good.values()):
        shown = {
            'kind': 'closeness',
            'models': [_closeness(model, out) for model, out in good.items()],
        }
    elif good:
        shown = {'kind': 'other', 'table': _flat_table(good)}
    return {
        'name': _capital(name),
        'note': _Note(audit['missing'], 'missing') if audit['missing'] else None,
        'errors': [(m, out['error']) for m, out in models.items() if 'error' in out],
        'reasons': [(m, out['reason']) for m, out in good.items() if out.get('reason')],
        **shown,
    }


def _membership(models: Mapping[str, Any]) -> dict[str, Any]:
    keys = {
        'balanced_accuracy': 'Balanced accuracy',
        'auc': 'AUC',
        'tpr_at_1_fpr': 'Found at 1 % false alarms',
    }
    rows = []
    for name, out in models.items():
        sizes = [_text(out.get(key)) for key in ('num_members', 'num_nonmembers')]
        rows.append(
            [
                name,
                *(_bounded(_value_of(out, key), interval_of(out, key)) for key in keys),
                *(str(out.get(key) or '–') for key in ('direction', 'classifier')),
                ', '.join(sizes),
            ]
        )
    table = grid(
        [
            'Model',
            *((words, '95 % interval') for words in keys.values()),
            'Deleted ones are',
            'Attacker',
            ('Examples', 'deleted, never seen'),
        ],
        rows,
        chosen=_place(models),
    )
    bins = models.get('unlearned', {}).get('histogram')
    if not bins:
        return {'table': table, 'plot': None}
    sides = {'deleted': bins['members'], 'never seen': bins['nonmembers']}
    label = 'Histogram of the scores of deleted and never-seen examples of the attack.'
    return {
        'table': table,
        'plot': _outlines(bins['edges'], sides, label, 'share of examples'),
        'numbers': _series('From', [f'{x:.2f}' for x in bins['edges'][:-1]], sides),
    }


def _completion(models: Mapping[str, Any]) -> _Table:
    return grid(
        ['Model', ('AUC', '95 % interval'), 'Users', 'Guesses'],
        [
            [name, _bounded(out['auc'], out['interval'])]
            + [out[key] for key in ('num_users', 'num_targets')]
            for name, out in models.items()
        ],
        chosen=_place(models),
    )


_CLOSENESS = {
    'value': 'This model',
    'ceiling': 'Original',
    'floor': 'Another retraining',
    'recovered': 'Recovered',
}


def _closeness(name: str, out: Mapping[str, Any]) -> dict[str, Any]:
    columns = [column for column in _CLOSENESS if out.get(column)]
    head = ['Measure', *(_CLOSENESS[column] for column in columns)]
    rows = [
        [measure, *(out[column].get(measure) for column in columns)]
        for measure in out.get('value', {})
    ]
    inner = [row for row in rows if row[0].startswith('cka_')]
    plot, cka = None, out.get('branch_cka')
    if isinstance(cka, Mapping) and cka:
        names = list(dict.fromkeys(key for row in cka.values() for key in row))
        values = [[row.get(key) for key in names] for row in cka.values()]
        plot = heat_map(
            list(cka),
            names,
            values,
            [[_short(value) for value in row] for row in values],
            'Heat map of the similarity of branches of the model and of the retrained '
            'one.',
        )
    absent = out.get('missing') or []
    words = absent if isinstance(absent, (list, tuple)) else [str(absent)]
    words = [_CLOSENESS.get(word, word).lower() for word in words]
    return {
        'table': grid(head, [r for r in rows if r not in inner], _capital(name)),
        'numbers': grid(head, inner) if inner else None,
        'plot': plot and Markup(plot),
        'note': _Note(f'Not compared: {listing(words)}.') if words else None,
    }


def _flat_table(models: Mapping[str, Any]) -> _Table:
    flat = {name: dict(_flatten(out)) for name, out in models.items()}
    keys = dict.fromkeys(key for out in flat.values() for key in out)
    rows = [[key, *(out.get(key) for out in flat.values())] for key in keys]
    return grid(['Measure', *flat], rows)


def _flatten(value: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
    r"""Returns numbers and strings of nested results; lists stay in the JSON file."""
    out: list[tuple[str, Any]] = []
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            out += _flatten(entry, f'{prefix}{key} / ')
        elif not isinstance(entry, (list, tuple)):
            out.append((f'{prefix}{key}', entry))
    return out


def _settings(
    content: Mapping[str, Any],
) -> list[tuple[str, list[tuple[str, str]], bool]]:
    groups = {
        'Settings of the method': content['method']['settings'],
        'Further settings': content['settings'],
        'Sizes': content['sizes'],
        'Masked from the lists': content['masks'],
        'Versions': content['versions'],
    }
    out = []
    for name, group in groups.items():
        rows = [(key, _plain(value)) for key, value in _flatten(group)]
        rows += [
            (key, ', '.join(_plain(v) for v in value))
            for key, value in group.items()
            if isinstance(value, (list, tuple))
        ]
        out.append((name, rows, name in ('Settings of the method', 'Versions')))
    return out


def grid(
    head: Sequence[str | tuple[str, str]],
    rows: Iterable[Sequence[Any]],
    caption: str = '',
    chosen: int | None = None,
) -> _Table:
    r"""Returns a table of cells and of values, for the macro of this name."""
    titles = [(name, '') if isinstance(name, str) else name for name in head]
    cells = [[_cell(value) for value in row] for row in rows]
    return _Table(titles, cells, caption, chosen)


def _series(
    name: str, places: Sequence[Any], series: Mapping[str, Sequence[Any]]
) -> _Table:
    return grid([name, *series], zip(places, *series.values()))


def _cell(value: Any, form: str = '{:.4f}', error: str | None = None) -> Cell:
    if isinstance(value, Cell):
        return value
    if error:
        return Cell('failed', 'failed', error)
    text = _text(value, form)
    return Cell(text, 'soft' if text == _NOTHING else '')


def _text(value: Any, form: str = '{:.4f}') -> str:
    r"""Returns a value, a fraction in four decimals, or that there is none."""
    if value is None or value != value:
        return _NOTHING
    return form.format(value) if isinstance(value, float) else _plain(value)


def _bounded(value: Any, interval: Sequence[Any] | None) -> Cell:
    if interval is None:
        return _cell(value)
    low, high = (_text(bound) for bound in interval)
    return _cell(value)._replace(small=f'{low} to {high}')


def _value_of(out: Mapping[str, Any], key: str) -> Any:
    value = out.get(key)
    return value.get('value') if isinstance(value, Mapping) else value


def _place(models: Mapping[str, Any]) -> int | None:
    return list(models).index('unlearned') if 'unlearned' in models else None


def _short(value: float | None, percent: bool = False) -> str:
    if value is None:
        return '–'
    if percent:
        return f'{value:.0%}'
    if value == 0:
        return '0'
    return f'{value:.2f}' if abs(value) >= 0.01 else f'{value:.0e}'.replace('e-0', 'e-')


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f'{100 * value:.1f} %'


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return 'none' if value is None else str(value)


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
