r"""The report as one page of HTML: no script, no font, no image, no network.

Every string of the content is escaped. Light and dark follow the reader's system; wide
tables scroll inside their own box; every plot says in one sentence how to read it and
has its numbers below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import _page as page
from .svg import HATCH, bar_plot, heat_map, histogram, line_plot, path_plot

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
    'control': 'comparison',
    'unlearned': 'what this report is about',
}

_STATUS = {
    'within': ('✓', 'Like retraining, within the tolerance'),
    'outside': ('✗', 'Not like retraining: outside the tolerance'),
    'unknown': ('?', 'Cannot be judged: something to compare with is missing'),
}

_WORDS = {
    'Interaction': 'one user who had to do with one item, for example a purchase.',
    'Original': 'the model before the request, which was trained on everything.',
    'Retrained': 'a model trained again without the deleted data. Nothing it knows can '
    'come from them, so it is what every figure is compared with.',
    'Unlearned': 'the original model after the deletion that this report is about.',
    'Comparison (control)': 'a cheap way to meet the same request. A method that does '
    'not do better than it has shown nothing.',
    'Forget recall, forget NDCG': 'how many of the deleted interactions a user’s list '
    'still shows, and how far up. Not zero but the retrained model’s value is the '
    'goal: far below it, deleted interactions stand out again.',
    'Retain recall, retain NDCG': 'the same for the test interactions of everyone '
    'else: how useful the lists are. Higher is better.',
    'Exposure': 'the share of places in everyone else’s lists that items of the '
    'deleted interactions take. These items may stay: other users like them.',
    'Trade-off': 'one number from 0 to 1 for both sides; 1 means as useful and as '
    'forgetful as retraining. Only to be read beside the others.',
    'Membership, balanced accuracy': 'how often an attacker is right who must tell '
    'deleted interactions from ones the model never saw; 0.5 is guessing.',
    'Standardised score': 'how much higher the model ranks an item for a user than its '
    'average item for this user, in standard deviations.',
}

_LIMITS = [
    'Figures compare within this report only: other data, splits or list lengths give '
    'other figures.',
    'An attack that finds nothing does not show that no attack could.',
    'Content of deleted items (pictures, texts) holds no interaction and stays.',
    'Copies outside of this model and data set, such as backups, logs and models '
    'derived from the original, are not covered.',
]


def render_html(content: Mapping[str, Any]) -> str:
    r"""Returns the page for a report.

    Args:
        content (dict): Result of
            :meth:`~torch_geometric_unlearn.report.report.build_report`, or the
            JSON file that was written from it.
    """
    title = escape(content['title'])
    method, request = content['method'], content['request']
    name = ' on '.join(filter(None, [method['name'], method['model']]))
    short_hash = request.get('hash', '')[:12]
    parts = [
        f'<header><h1>{title}</h1>',
        f'<p class="soft">{escape(name)} · {escape(page.minute(content["created"]))}',
        f' · request <code>{escape(short_hash or page.NOTHING)}</code>'
        f'</p></header><main>',
        _verdict(content),
        _table(content),
        _request(request),
        _modules(content['modules']),
        _branches(content['branches']),
        _curve(content['curve']),
        _scores(content['scores']),
        _exposure(content['exposure'], content['k']),
        _audits(content['audits']),
        _settings(content),
        _failures(content['failures']),
        _words(),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{title}</title><style>{page.STYLE}</style></head><body>{HATCH}'
        + '\n'.join(parts)
        + '</main><footer>Written by torch_geometric_unlearn '
        + escape(str(content['versions'].get('torch_geometric_unlearn', '')))
        + f', schema version {content["schema_version"]}. This page loads nothing from '
        'elsewhere.</footer></body></html>\n'
    )


def _verdict(content: Mapping[str, Any]) -> str:
    verdict = content['verdict']
    sign, words = _STATUS[verdict['status']]
    lines = [escape(s).replace(' %', '&nbsp;%') for s in verdict['sentences']]
    items = ''.join(f'<li>{line}</li>' for line in lines)
    return (
        f'<section class="verdict {verdict["status"]}" aria-labelledby="verdict">'
        f'<h2 id="verdict"><span aria-hidden="true">{sign}</span> {words}</h2>'
        f'<ul>{items}</ul></section>'
    )


def _table(content: Mapping[str, Any]) -> str:
    table, k = content['table'], content['k']
    names = [n for n in _TITLES if f'{n}@{k}' in table['columns']]
    head = [('Model', '')]
    head += [(_TITLES[n][0], _TITLES[n][1].format(k=k)) for n in names]
    audits = [
        name
        for name, audit in content['audits'].items()
        if any('balanced_accuracy' in out for out in audit['models'].values())
    ]
    head += [(f'{name.capitalize()}', 'balanced accuracy') for name in audits]
    show_trade_off = 'trade_off' in table['columns']
    head += [('Trade-off', '0 to 1')] if show_trade_off else []
    head += [('Seconds', 'to get there')]
    rows = []
    for row in table['rows']:
        values, errors = row['values'], row['errors']
        role = _ROLES[row['role']]
        cells = [f'{escape(row["name"])}<small>{role}</small>']
        for name in names:
            source = 'exposure' if name in ('pair', 'exposure') else 'ranking'
            cells.append(page.cell(values.get(f'{name}@{k}'), errors.get(source)))
        for name in audits:
            out = content['audits'][name]['models'].get(row['name'], {})
            accuracy = page.value_of(out, 'balanced_accuracy')
            cells.append(page.cell(accuracy, out.get('error')))
        if show_trade_off:
            cells.append(page.cell(values.get('trade_off')))
        cells.append(page.cell(values.get('seconds'), form='{:.1f}'))
        rows.append((cells, row['role'] == 'unlearned'))
    body = page.grid(head, rows, 'All models, measured alike')
    note = (
        '<p>Read it line against line: <b>unlearned</b> should come close to '
        '<b>retrained</b> in every column, and be better at that than the comparisons. '
        'Both much higher and much lower forget figures are a fault.</p>'
    )
    return page.part('The models side by side', table, note + body)


def _request(request: Mapping[str, Any]) -> str:
    if request['missing']:
        return page.part('What was asked', request, '')
    facts = [
        ('Level', request['level']),
        ('Interactions to delete', f'{request["num_interactions"]:,}'),
        ('Share of the training data', page.percent(request['share'])),
        ('Users, items in them', f'{request["num_users"]:,}, {request["num_items"]:,}'),
        ('Still in the data', f'{request["remaining"]:,}'),
        ('Hash of the request (SHA-256)', request['hash']),
    ]
    subjects = request['subjects']
    lines = ', '.join(
        '<code>' + escape(' – '.join(f'{k} {v}' for k, v in s.items())) + '</code>'
        for s in subjects[:50]
    )
    rest = len(subjects) - 50
    more = f' and {rest:,} more (see the JSON file)' if rest > 0 else ''
    note = 'Ids are shown because the caller asked for it.'
    if request['ids'] == 'hashed':
        note = (
            'Ids are pseudonyms, hashed with the hash of the request. Whoever knows '
            'the ids can recompute them, so treat this page as personal data.'
        )
    return page.part(
        'What was asked',
        request,
        f'{page.facts(facts)}<details><summary>Who and what ({len(subjects):,})'
        f'</summary>'
        f'<p>{note}</p><p>{lines}{more}</p></details>',
    )


def _modules(section: Mapping[str, Any]) -> str:
    title = 'Where the model was corrected'
    rows = section.get('rows', [])
    if not rows:
        return page.part(title, section, '')
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
    largest = {
        key: max([row.get(key) or 0.0 for row in rows], default=0.0) or 1.0
        for key in kinds
    }
    both = max(largest.get('shift', 0.0), largest.get('retrained_shift', 0.0))
    largest |= {key: both for key in ('shift', 'retrained_shift') if key in kinds}
    shades, texts = [], []
    for row in rows:
        values = {key: row.get(key) for key in kinds}
        shades.append(
            [
                # Sensitivities span decades, so that their root is shaded.
                None
                if v is None
                else (v / largest[key]) ** (0.25 if key == 'sensitivity' else 1.0)
                for key, v in values.items()
            ]
        )
        texts.append([page.short(v, key == 'mask') for key, v in values.items()])
    names = [row['module'] for row in rows]
    label = (
        f'Heat map of {len(rows)} modules by {len(kinds)} measures; the numbers are in '
        f'the table below.'
    )
    plot = heat_map(names, list(kinds.values()), shades, texts, label)
    how = (
        'Each line is a part of the model; the bluer a cell, the more. “Moved” should '
        'look like “moved by retraining”: a part that only the method moved was '
        'disturbed without need.'
    )
    head = ['Module', 'Sensitivity', 'Reversed', 'Moved', 'Moved by retraining']
    table = page.grid(
        [(name, '') for name in [*head, 'Cosine']],
        [
            (
                [
                    escape(row['module']),
                    page.cell(row.get('sensitivity'), form='{:.3g}'),
                    page.cell(row.get('mask'), form='{:.0%}'),
                    page.cell(row.get('shift')),
                    page.cell(row.get('retrained_shift')),
                    page.cell(row.get('cosine')),
                ],
                False,
            )
            for row in rows
        ],
        'Sensitivity: mean squared gradient of the reverse loss. Reversed: share of '
        'epochs. Moved: relative to the size of the weights. Cosine: 1 if the way is '
        'the same as retraining’s.',
    )
    return page.part(title, section, page.figure(plot, how, table))


def _branches(section: Mapping[str, Any]) -> str:
    title = 'How strongly each branch was corrected'
    scales = section.get('scales', {})
    if not scales:
        return page.part(title, section, '')
    label = f'Line plot of the scales of {page.listing(list(scales))} over the epochs.'
    plot = line_plot(
        section['epochs'], scales, label, 'epoch', 'scale', 1.0, '1 = average'
    )
    how = (
        'A branch is what the model learned from ids, pictures or texts; above 1 it '
        'still carried more of the deleted data than the average branch and was '
        'corrected more strongly.'
    )
    table = page.series_table('Epoch', section['epochs'], scales)
    return page.part(title, section, page.figure(plot, how, table))


def _curve(section: Mapping[str, Any]) -> str:
    title, k = 'Forgetting against usefulness', section['k']
    points = [p for p in section.get('points', []) if p['retain'] is not None]
    if not points:
        return page.part(title, section, '')
    names: dict[tuple[float, float], list[str]] = {}  # Epochs may share a place.
    for point in points:
        place = (point['forget'], point['retain'])
        names.setdefault(place, []).append(str(point['epoch']))
    chosen = next(((p['forget'], p['retain']) for p in points if p['selected']), None)
    reference = next(
        (p['reference'] for p in reversed(points) if p['reference'] is not None), None
    )
    label = (
        f'Path of {len(points)} epochs through the share of deleted interactions in '
        f'the lists and the usefulness for everyone else.'
    )
    plot = path_plot(
        list(names),
        [', '.join(epochs) for epochs in names.values()],
        list(names).index(chosen) if chosen else None,
        label,
        f'deleted interactions in the top {k} (share)',
        f'retained NDCG@{k}',
        reference,
        'never seen',
    )
    how = (
        'Each point is an epoch, named by its number; left means more forgotten, up '
        'means more useful, the dotted line is where interactions lie that the model '
        'never saw, and the ring marks the epoch that was kept (both axes use '
        'validation data).'
    )
    head = [('Epoch', ''), ('Forget', ''), ('Never seen', ''), ('Retain', '')]
    table = page.grid(
        [*head, ('Kept', '')],
        [
            (
                [
                    str(p['epoch']),
                    page.cell(p['forget']),
                    page.cell(p['reference']),
                    page.cell(p['retain']),
                    'yes' if p['selected'] else 'no',
                ],
                p['selected'],
            )
            for p in points
        ],
    )
    return page.part(title, section, page.figure(plot, how, table))


def _scores(section: Mapping[str, Any]) -> str:
    title = 'Do deleted interactions stand out?'
    models = section.get('models', {})
    if not models:
        return page.part(title, section, '')
    plots = []
    for name, sides in models.items():
        gap = sides['gap']
        label = (
            f'Histogram of the scores of deleted and never-seen interactions in the '
            f'{name} model; deleted ones lie {page.short(gap)} higher on average.'
        )
        plot = histogram(
            section['edges'],
            {'deleted': sides['forgotten'], 'never seen': sides['unseen']},
            label,
            'standardised score',
            'share of interactions',
        )
        plots.append(
            f'<div><h3>{escape(name.capitalize())}</h3>{plot}'
            f'<p class="soft">Deleted minus never seen, on average: '
            f'{page.cell(gap)}</p>'
            f'</div>'
        )
    how = (
        'Where both outlines cover each other, deleted interactions look like ones '
        'that the model never saw; deleted ones further right are remembered, further '
        'left are over-forgotten and stand out again.'
    )
    note = (
        f'<p class="soft">{section["num_forgotten"]:,} deleted interactions against '
        f'{section["num_unseen"]:,} never seen ({escape(section["source"])}).</p>'
    )
    columns = {
        f'{name}, {words}': sides[side]
        for name, sides in models.items()
        for side, words in [('forgotten', 'deleted'), ('unseen', 'never seen')]
    }
    bins = [f'{left:.2f}' for left in section['edges'][:-1]]
    table = page.series_table('From score', bins, columns)
    plot = f'<div class="plots">{"".join(plots)}</div>'
    return page.part(title, section, note + page.figure(plot, how, table, wide=True))


def _exposure(section: Mapping[str, Any], k: int) -> str:
    title = 'Are the items still shown to others?'
    values = section.get('values', {})
    if not values:
        return page.part(title, section, '')
    plot = bar_plot(
        list(values),
        {'exposure': list(values.values())},
        f'Bars of the share of places in top {k} lists for {len(values)} models.',
        page.percent,
    )
    how = (
        'The share of places in everyone else’s lists that items of the deleted '
        'interactions take; a bar far shorter than that of retraining would mean that '
        'items are hidden which others like.'
    )
    facts = [
        ('Drop by unlearning', page.percent(section['drop'])),
        ('Drop by retraining', page.percent(section['retrained_drop'])),
        (
            'Correlation of an item’s drop with its deleted share',
            page.cell(section['correlation']),
        ),
    ]
    table = ''
    if section['groups']:
        head = ['Deleted share up to', 'Items', 'Before', 'Unlearned', 'Retrained']
        table = page.grid(
            [(name, '') for name in head],
            [
                (
                    [
                        page.percent(group['max_share']),
                        str(group['num_items']),
                        page.cell(group['before']),
                        page.cell(group['after']),
                        page.cell(group.get('retrained')),
                    ],
                    False,
                )
                for group in section['groups']
            ],
            'Share of users who see an item, by how much of the item was deleted',
        )
    return page.part(title, section, page.figure(plot, how, table) + page.facts(facts))


def _audits(audits: Mapping[str, Any]) -> str:
    parts = []
    for name, audit in audits.items():
        body = ''
        models = audit['models']
        errors = {m: out['error'] for m, out in models.items() if 'error' in out}
        good = {m: out for m, out in models.items() if 'error' not in out}
        for model, reason in errors.items():
            body += f'<p>{escape(model)}: {page.failed(reason)}</p>'
        if any('balanced_accuracy' in out for out in good.values()):
            body += _membership(good)
        elif any('num_targets' in out for out in good.values()):
            body += _completion(good)
        elif any(isinstance(out.get('recovered'), Mapping) for out in good.values()):
            body += ''.join(_closeness(m, out) for m, out in good.items())
        elif good:
            body += _flat_table(good)
        missing = page.missing(audit)
        parts.append(f'<h3>{escape(name.capitalize())}</h3>{missing}{body}')
    return f'<section><h2>Audits</h2>{"".join(parts)}</section>'


def _membership(models: Mapping[str, Any]) -> str:
    keys = {
        'balanced_accuracy': 'Balanced accuracy',
        'auc': 'AUC',
        'tpr_at_1_fpr': 'Found at 1 % false alarms',
    }
    head = [('Model', ''), *((name, '95 % interval') for name in keys.values())]
    head += [('Deleted ones are', ''), ('Attacker', '')]
    head += [('Examples', 'deleted, never seen')]
    rows = []
    for name, out in models.items():
        cells = [escape(name)]
        cells += [
            page.cell(page.value_of(out, key)) + page.interval(out, key) for key in keys
        ]
        words = [out.get('direction'), out.get('classifier')]
        cells += [escape(str(word or '–')) for word in words]
        sizes = [out.get('num_members'), out.get('num_nonmembers')]
        cells.append(', '.join(page.cell(size) for size in sizes))
        rows.append((cells, name == 'unlearned'))
    table = page.grid(head, rows)
    how = (
        '<p>An attacker who sees only the model tries to tell deleted interactions '
        'from ones it never saw: 0.5 is guessing, 1 is always right, and the retrained '
        'model’s figure is the goal.</p>'
    )
    bins = models.get('unlearned', {}).get('histogram')
    if not bins:
        return how + table
    plot = histogram(
        bins['edges'],
        {'deleted': bins['members'], 'never seen': bins['nonmembers']},
        'Histogram of the scores of deleted and never-seen examples of the attack.',
        'standardised score',
        'share of examples',
    )
    caption = (
        'The more the outlines cover each other, the less the score of the unlearned '
        'model gives away.'
    )
    sides = {'deleted': bins['members'], 'never seen': bins['nonmembers']}
    edges = [f'{left:.2f}' for left in bins['edges'][:-1]]
    numbers = page.series_table('From', edges, sides)
    return how + table + page.figure(plot, caption, numbers)


def _completion(models: Mapping[str, Any]) -> str:
    head = [('Model', ''), ('AUC', '95 % interval'), ('Users', ''), ('Guesses', '')]
    rows = []
    for name, out in models.items():
        low, high = (page.cell(bound) for bound in out['interval'])
        cells = [escape(name), f'{page.cell(out["auc"])} [{low}, {high}]']
        cells += [page.cell(out[key]) for key in ('num_users', 'num_targets')]
        rows.append((cells, name == 'unlearned'))
    how = (
        '<p>Someone who knows half of what a user had bought asks the model for the '
        'deleted rest: how often does a deleted item come before equally popular ones '
        'that the user never bought? 0.5 is guessing. Items that belong together '
        'anyway are found too, so the retrained model’s figure is the goal.</p>'
    )
    return how + page.grid(head, rows)


def _closeness(name: str, out: Mapping[str, Any]) -> str:
    columns = {
        'value': 'This model',
        'ceiling': 'Original',
        'floor': 'Another retraining',
        'recovered': 'Recovered',
    }
    columns = {c: words for c, words in columns.items() if out.get(c)}
    rows: list[tuple[list[str], bool]] = []
    inner_rows: list[tuple[list[str], bool]] = []
    for measure in out.get('value', {}):
        row = [escape(measure), *(page.cell(out[c].get(measure)) for c in columns)]
        (inner_rows if measure.startswith('cka_') else rows).append((row, False))
    head = [('Measure', ''), *((words, '') for words in columns.values())]
    how = (
        '<p>How alike the model and the retrained one are, in lists, scores and inner '
        'representations: it should be nearer to retraining than the original is, at '
        'best as near as another retraining; “recovered” is 0 for the original and 1 '
        'for that.</p>'
    )
    body = how + page.grid(head, rows, name.capitalize())
    layers = page.grid(head, inner_rows) if inner_rows else ''
    cka = out.get('branch_cka')
    if isinstance(cka, Mapping) and cka:
        inner = list(dict.fromkeys(key for row in cka.values() for key in row))
        values = [[row.get(key) for key in inner] for row in cka.values()]
        texts = [[page.short(v) for v in row] for row in values]
        plot = heat_map(
            list(cka),
            inner,
            values,
            texts,
            'Heat map of the similarity of branches of the model and of the retrained '
            'one.',
        )
        caption = (
            'Lines are branches of this model, columns those of the retrained one; 1 '
            'on the diagonal means that a branch represents users as retraining does.'
        )
        body += page.figure(plot, caption, layers)
    else:
        body += layers
    absent = out.get('missing')
    if absent:
        words = ', '.join(absent) if isinstance(absent, list) else str(absent)
        body += f'<p class="missing">The audit was run without: {escape(words)}.</p>'
    return body


def _flat_table(models: Mapping[str, Any]) -> str:
    flat = {name: dict(_flatten(out)) for name, out in models.items()}
    keys = dict.fromkeys(key for out in flat.values() for key in out)
    rows = [
        ([escape(key), *(page.cell(out.get(key)) for out in flat.values())], False)
        for key in keys
    ]
    return page.grid([('Measure', ''), *((name, '') for name in flat)], rows)


def _flatten(value: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
    r"""Returns numbers and strings of nested results; lists stay in the JSON file."""
    out: list[tuple[str, Any]] = []
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            out += _flatten(entry, f'{prefix}{key} / ')
        elif not isinstance(entry, (list, tuple)):
            out.append((f'{prefix}{key}', entry))
    return out


def _settings(content: Mapping[str, Any]) -> str:
    method = content['method']
    memory = method['peak_memory']
    facts = [
        ('Method', method['name'] or page.NOTHING),
        ('Model', method['model']),
        ('Promise', 'exact' if method['exact'] else 'approximate'),
        ('Epochs', str(method['num_epochs'])),
        ('Seconds', page.cell(method['seconds'], form='{:.1f}')),
        ('Peak memory', f'{memory / 1e6:,.0f} MB' if memory else page.NOTHING),
        ('Seed', str(method['settings'].get('seed', page.NOTHING))),
        ('Hash of the request', str(content['request'].get('hash', page.NOTHING))),
    ]
    groups = {
        'Settings of the method': method['settings'],
        'Further settings': content['settings'],
        'Sizes': content['sizes'],
        'Masked from the lists': content['masks'],
        'Versions': content['versions'],
    }
    absent = {
        'Settings of the method': 'The result does not tell them.',
        'Further settings': "Pass 'settings', e.g. how the original was trained.",
        'Sizes': "Pass 'data'.",
    }
    tolerance = ', '.join(
        f'{name} {value}' for name, value in content['verdict']['tolerance'].items()
    )
    facts.append(('Tolerances', tolerance))
    body = page.facts(facts)
    for name, group in groups.items():
        rows = [(key, page.plain(value)) for key, value in _flatten(group)]
        rows += [
            (key, ', '.join(page.plain(v) for v in value))
            for key, value in group.items()
            if isinstance(value, (list, tuple))
        ]
        inner = page.facts(rows)
        if not rows:
            inner = f'<p class="missing">{escape(absent.get(name, page.NOTHING))}</p>'
        # What identifies a run is open, so that it is printed.
        is_open = ' open' if name in ('Settings of the method', 'Versions') else ''
        body += f'<details{is_open}><summary>{name}</summary>{inner}</details>'
    return page.part('Settings, versions, seeds', {}, body)


def _failures(failures: Sequence[Mapping[str, str]]) -> str:
    if not failures:
        return page.part('Failed measurements', {}, '<p>None.</p>')
    items = ''.join(
        f'<li>{escape(f["where"])}: {page.failed(f["reason"])}</li>' for f in failures
    )
    return page.part('Failed measurements', {}, f'<ul>{items}</ul>')


def _words() -> str:
    limits = ''.join(f'<li>{escape(text)}</li>' for text in _LIMITS)
    words = ''.join(f'<dt>{k}</dt><dd>{v}</dd>' for k, v in _WORDS.items())
    bounds = page.part('What this report does not show', {}, f'<ul>{limits}</ul>')
    return bounds + page.part('Words used here', {}, f'<dl>{words}</dl>')
