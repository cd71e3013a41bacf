r"""Draws the figures from the cells of the grid; needs `matplotlib`.

    python benchmark/figures.py      # All that stand in the README and have cells.

`figures/figures.json` holds of which cells a figure was drawn, and a hash of the file,
so that `tables.py --check` notices without drawing when one is not current.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import sys
from pathlib import Path

import cells
from columns import REGIMES, Rows, figure
from gathered import Refused, Results

FOLDER = cells.FOLDER / 'figures'
_MARKER = re.compile(r'<!-- figure: ([^>]+?) -->')
_SHOWN = ('retrain', 'tru', 'mmrecun', 'partial_retrain')


def parse(what, results):
    r"""Returns what draws a figure, its methods, and the cells that the grid has and
    those that are there.

    Raises:
        Refused: If there is no such figure, or its cells don't belong together.
    """
    kind, _, place = what.partition(' ')
    if kind not in _KINDS or place.count('/') != 2:
        raise Refused(
            f"'{what}' is no figure. Write one of {list(_KINDS)} and a place such as "
            f"'Baby/MGCN/0.05'."
        )
    draw, own, beside = _KINDS[kind]
    groups = results.grid.content['groups']
    own = [m for name in own for m in groups.get(name, [name])]
    methods = [*beside, *(m for m in own if m not in beside)]
    wanted, found = results.group(*place.split('/'), set(methods))
    if not any(cell.method in own and cell.name in found for cell in wanted):
        found = {}
    return draw, methods, (wanted, found)


def file(what):
    r"""Returns where a figure stands."""
    return FOLDER / (re.sub(r'[ /]', '-', what) + '.svg')


def source(found):
    r"""Returns a hash of the cells of a figure."""
    digests = sorted(content['digest'] for content in found.values())
    return hashlib.sha256(''.join(digests).encode()).hexdigest()


def drawn():
    r"""Returns what is known of the figures that were drawn, by marker."""
    path = FOLDER / 'figures.json'
    return json.loads(path.read_text()) if path.exists() else {}


def link(what, results):
    r"""Returns what stands between the markers of a figure."""
    _, _, (_, found) = parse(what, results)
    if not found:
        return 'None of its cells is there yet.\n'
    if what not in drawn():
        raise Refused("It was not drawn. Run 'python benchmark/figures.py'.")
    return f'![{what}](figures/{file(what).name})\n'


def problems(results):
    r"""Returns what is wrong with the figures that were drawn."""
    out = []
    for what, known in drawn().items():
        try:
            _, _, (_, found) = parse(what, results)
        except Refused as error:
            out.append(f'figure {what}: {error}')
            continue
        if not file(what).exists():
            out.append(f"figure {what}: '{file(what)}' is missing")
        elif _hash(file(what)) != known['file']:
            out.append(f"figure {what}: '{file(what)}' was changed after it was drawn")
        if source(found) != known['source']:
            out.append(f"figure {what}: drawn of other cells. Run 'figures.py'.")
    return out


def _hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _mean(rows, regime, method, read):
    r"""Returns the mean of what is read of the cells of all seeds, or nothing."""
    values = [read(content) for content in rows.seeds(regime, method).values()]
    values = [value for value in values if value is not None]
    return statistics.mean(values) if values else None


def _detail(rows, regime, method, name):
    r"""Returns what plots are drawn from, of the first seed, or nothing."""
    for content in rows.seeds(regime, method).values():
        return content.get('details', {}).get(name)
    return None


def _panels(plt, rows, width=4.0, height=3.2, without=()):
    r"""Returns a figure and an axis for every regime that has cells."""
    known = {place[0] for place in rows.by_place}
    regimes = [r for r in REGIMES if r in known and r not in without]
    if not regimes:
        raise Refused('It has nothing to show')
    fig, axes = plt.subplots(
        1, len(regimes), figsize=(width * len(regimes), height), squeeze=False
    )
    for ax, regime in zip(axes[0], regimes):
        ax.set_title(f'{regime}-level')
    return fig, dict(zip(regimes, axes[0]))


def _plane(plt, rows, methods):
    r"""What is kept against what is still listed; retraining is the aim."""
    fig, axes = _panels(plt, rows)
    for regime, ax in axes.items():
        for place, method in enumerate(methods):
            x = _mean(rows, regime, method, lambda c: figure(c, 'forget_recall@20'))
            y = _mean(rows, regime, method, lambda c: figure(c, 'retain_ndcg@20'))
            if x is None or y is None:
                continue
            style = {'marker': 'osD^v'[place // 10 % 5], 'color': f'C{place % 10}'}
            if method == 'retrain':
                style = {'marker': '*', 'color': 'k', 'markersize': 11}
            ax.plot(x, y, linestyle='', label=method, **style)
        ax.set_xlabel('forget Recall@20')
        ax.set_ylabel('retain NDCG@20')
    ax.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.02, 0.5))
    return fig


def _persistence(plt, rows, methods):
    r"""Reach of the touched items, by how much of them was deleted; deleted items are
    in no list.
    """
    fig, axes = _panels(plt, rows, without=('item',))
    for regime, ax in axes.items():
        is_first = True
        for method in methods:
            found = _detail(rows, regime, method, 'persistence')
            if not found:
                continue
            groups = found['groups']
            share = [group['max_share'] for group in groups]
            if is_first:
                before = [group['before'] for group in groups]
                ax.plot(share, before, 'k--', label='original')
                is_first = False
            ax.plot(share, [group['after'] for group in groups], '.-', label=method)
        ax.set_xlabel('deleted share of the item (groups)')
        ax.set_ylabel('reach in lists of others')
        ax.legend(fontsize=7)
    return fig


def _cka(plt, rows, methods):
    r"""Agreement of the branches, of the first regime that has cells."""
    regime = next(r for r in REGIMES if any(r == p[0] for p in rows.by_place))
    found = {}
    for method in methods:
        if matrix := _detail(rows, regime, method, 'branch_cka'):
            found[method] = matrix
    if not found:
        raise Refused('The model shows no branches')
    size = len(found)
    fig, axes = plt.subplots(1, size, figsize=(3.2 * size, 3.2), squeeze=False)
    for ax, (method, content) in zip(axes[0], found.items()):
        ax.imshow(content['matrix'], vmin=0, vmax=1, cmap='viridis')
        places = range(len(content['names']))
        ax.set_xticks(places, content['names'], fontsize=7)
        ax.set_yticks(places, content['names'], fontsize=7)
        for i in places:
            for j in places:
                ax.text(j, i, f'{content["matrix"][i][j]:.2f}', ha='center',
                        va='center', color='w', fontsize=7)  # fmt: skip
        ax.set_title(f'{method}, {regime}-level', fontsize=9)
    return fig


def _layers(plt, rows, methods):
    r"""How far every module has moved, beside how far retraining moves it."""
    fig, axes = _panels(plt, rows, 5.0, 4.2)
    for regime, ax in axes.items():
        is_first = True
        for method in methods:
            layers = _detail(rows, regime, method, 'layers')
            if not layers or method == 'retrain':
                continue
            names = [layer['module'] for layer in layers]
            if is_first:
                goal = [layer['retrained_shift'] for layer in layers]
                ax.plot(_gaps(goal), 'k--', label='retrain')
                ax.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
                is_first = False
            shift = [layer['shift'] for layer in layers]
            ax.plot(_gaps(shift), '.-', label=method)
        ax.set_ylabel('relative shift')
        ax.set_yscale('symlog', linthresh=1e-3)
        ax.legend(fontsize=7)
    return fig


def _gaps(values):
    return [float('nan') if value is None else value for value in values]


def _ablation(plt, rows, methods):
    r"""Bars of what is kept, listed and recognised, by variant."""
    keys = {
        'retain NDCG@20': 'retain_ndcg@20',
        'forget Recall@20': 'forget_recall@20',
        'membership': 'membership_balanced_accuracy',
    }
    regimes = [
        r
        for r in REGIMES
        if any(p[0] == r and p[1].startswith('tru-') for p in rows.by_place)
    ]
    fig, axes = plt.subplots(
        len(regimes), 3, figsize=(12, 3.2 * len(regimes)), squeeze=False
    )
    for line, regime in zip(axes, regimes):
        for ax, (title, key) in zip(line, keys.items()):
            values = {
                m: _mean(rows, regime, m, lambda c, key=key: figure(c, key))
                for m in methods
            }
            values = {m: value for m, value in values.items() if value is not None}
            goal = values.pop('retrain', None)
            ax.bar(range(len(values)), values.values())
            ax.set_xticks(range(len(values)), values, rotation=90, fontsize=7)
            if goal is not None:
                ax.axhline(goal, color='k', linestyle='--')
            ax.set_title(f'{title}, {regime}-level', fontsize=9)
    return fig


def _sensitivity(plt, rows, methods):
    r"""Figures of partial retraining by the setting that varies."""
    usual = {'tau': 0.05, 'epochs': 5, 'shared': 0.0}
    keys = ('retain_ndcg@20', 'membership_balanced_accuracy', 'completion')
    fig, axes = plt.subplots(3, 3, figsize=(11, 8), squeeze=False)
    regimes = [r for r in REGIMES if rows.seeds(r, 'partial_retrain')]
    for line, (name, default) in zip(axes, usual.items()):
        points = {default: 'partial_retrain'}
        for method in methods:
            parts = method.split('-')
            if len(parts) == 3 and parts[1] == name:
                points[float(parts[2])] = method
        for ax, key in zip(line, keys):
            for regime in regimes:
                curve = {
                    x: _mean(rows, regime, method, lambda c, key=key: figure(c, key))
                    for x, method in sorted(points.items())
                }
                curve = {x: y for x, y in curve.items() if y is not None}
                ax.plot(list(curve), list(curve.values()), '.-', label=regime)
            ax.set_xlabel(name)
            ax.set_ylabel(key)
            ax.legend(fontsize=7)
    return fig


#: What draws a figure, methods and groups without any of which there is none, and
#: others that it shows beside them.
_KINDS = {
    'plane': (_plane, ('core', 'others'), ()),
    'persistence': (_persistence, _SHOWN, ()),
    'cka': (_cka, ('original', *_SHOWN), ()),
    'layers': (_layers, _SHOWN[1:], ('retrain',)),
    'ablation': (_ablation, ('ablation',), ('retrain', 'tru')),
    'sensitivity': (_sensitivity, ('sensitivity',), ('partial_retrain',)),
}


def draw(what, results):
    r"""Draws a figure, and returns what is to be known of it; nothing without cells."""
    import matplotlib

    matplotlib.use('svg')
    matplotlib.rcParams['svg.hashsalt'] = what
    import matplotlib.pyplot as plt

    function, methods, (wanted, found) = parse(what, results)
    if not found:
        return None
    fig = function(plt, Rows(wanted, found, methods), methods)
    fig.tight_layout()
    FOLDER.mkdir(exist_ok=True)
    fig.savefig(file(what), metadata={'Date': None})
    plt.close(fig)
    return {'source': source(found), 'file': _hash(file(what))}


def main(argv=None):
    r"""Runs the command, and returns its exit status."""
    parser = cells.parser(__doc__)
    page = cells.FOLDER / 'README.md'
    parser.add_argument('--page', default=page, metavar='FILE')
    args = parser.parse_args(argv)
    results = Results(cells.Grid(args.grid), args.results)
    known, status = {}, 0
    for what in _MARKER.findall(Path(args.page).read_text()):
        try:
            entry = draw(what, results)
        except Refused as error:
            print(f'{what}: {error}', file=sys.stderr)
            status = 1
            continue
        if entry:
            known[what] = entry
            print(f'Drew {file(what)}')
    if known:
        cells.save_json(FOLDER / 'figures.json', known)
    return status


if __name__ == '__main__':
    sys.exit(main())
