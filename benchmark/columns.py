r"""Rows and columns of the tables of the grid: means over seeds, with the standard
deviation where there are several.
"""

from __future__ import annotations

import statistics

from torch_geometric_unlearn.metrics import trade_off

REGIMES = ('user', 'item', 'interaction')


def figure(content, name):
    r"""Returns a figure of a cell, or nothing."""
    known = content.get('metrics', {}).get(name)
    return None if known is None else known['value']


def _excess(name):
    def change(content, retrain):
        values = figure(content, name), figure(retrain, name)
        return None if None in values else values[0] - values[1]

    return change


def _relative(name):
    def change(content, retrain):
        values = figure(content, name), figure(retrain, name)
        return None if None in values or not values[1] else values[0] / values[1] - 1

    return change


#: By header: a figure, its format, whether a single cell shows its interval, and what
#: stands in brackets beside it, a function of the name and its format.
MAIN = {
    'retain R@20': ('retain_recall@20', '.4f', False),
    'retain N@20': ('retain_ndcg@20', '.4f', False, _relative, '+.1%'),
    'forget R@20': ('forget_recall@20', '.4f', False),
    'forget N@20': ('forget_ndcg@20', '.4f', False),
    'exposure@20': ('exposure@20', '.3f', False),
    'membership': ('membership_balanced_accuracy', '.3f', False, _excess, '+.3f'),
    'transfer': ('transfer_balanced_accuracy', '.3f', False, _excess, '+.3f'),
    'completion': ('completion', '.3f', False, _excess, '+.3f'),
    'trade-off': ('trade_off', '.3f', False),
    'seconds': ('seconds', '.1f', False),
    'speed-up': ('speed_up', 'times', False),
    'memory (MB)': ('peak_memory', 'MB', False),
}
SHORT = {
    key: MAIN[key]
    for key in (
        'retain N@20', 'forget R@20', 'membership', 'completion', 'trade-off', 'seconds'
    )
}  # fmt: skip
CLOSENESS = {
    'Jaccard@20': ('jaccard@20', '.3f', False),
    'RBO': ('rbo', '.3f', False),
    'Kendall@50': ('kendall@50', '.3f', False),
    'JSD': ('jsd', '.3f', False),
    'KS of forgotten pairs': ('ks_forget', '.3f', False),
    'CKA users': ('cka_users', '.3f', False),
    'CKA forgotten items': ('cka_forget_items', '.3f', False),
    'CKA other items': ('cka_other_items', '.3f', False),
}


class Rows:
    r"""Cells of one table, by regime and method.

    Args:
        wanted (list): The cells that the grid has.
        found (dict): Contents of those that are there, by name.
        methods (list): The methods in their order.
    """

    def __init__(self, wanted, found, methods):
        self.methods = methods
        self.by_place = {
            (cell.regime, cell.method, cell.seed): found[cell.name]
            for cell in wanted
            if cell.name in found
        }

    def lines(self, columns):
        r"""Returns the lines of a Markdown table."""
        header = ['', 'seeds', *columns]
        lines = [f'| {" | ".join(header)} |'.replace('|  |', '| |')]
        lines.append('|---' * len(header) + '|')
        for regime in REGIMES:
            rows = [self._row(regime, method, columns) for method in self.methods]
            rows = [row for row in rows if row]
            if rows:
                lines.append(f'| **{regime}-level** |' + ' |' * (len(header) - 1))
                lines += rows
        return lines

    def seeds(self, regime, method):
        r"""Returns contents by seed."""
        return {
            seed: content
            for (r, m, seed), content in self.by_place.items()
            if (r, m) == (regime, method)
        }

    def value(self, regime, method, seed, name):
        r"""Returns a figure of one cell, or nothing."""
        content = self.by_place.get((regime, method, seed), {})
        if name != 'trade_off':
            return figure(content, name)
        keys = ('retain_ndcg@20', 'forget_recall@20')
        rows = []
        for other in ('original', 'retrain', method):
            other = self.by_place.get((regime, other, seed), {})
            rows.append({key: figure(other, key) for key in keys})
        if any(None in row.values() for row in rows):
            return None
        return trade_off(*rows)

    def _row(self, regime, method, columns):
        seeds = self.seeds(regime, method)
        if not seeds:
            return ''
        refused = [c['refused'] for c in seeds.values() if 'refused' in c]
        if refused:
            return f'| {method} | {len(seeds)} | refused: {refused[0]} |'
        shown = [self._cell(regime, method, seeds, *c) for c in columns.values()]
        return f'| {method} | {len(seeds)} | {" | ".join(shown)} |'

    def _cell(self, regime, method, seeds, name, form, interval, change=None, style=''):
        values = [self.value(regime, method, seed, name) for seed in seeds]
        values = [value for value in values if value is not None]
        if not values:
            return '–'
        text = spread(values, form)
        if interval and len(values) == 1:
            known = next(iter(seeds.values()))['metrics'][name]
            if known['low'] is not None:
                text += f' [{known["low"]:{form}}, {known["high"]:{form}}]'
        if change is not None and method != 'retrain':
            found = [
                change(name)(content, self.by_place.get((regime, 'retrain', seed), {}))
                for seed, content in seeds.items()
            ]
            found = [value for value in found if value is not None]
            if found:
                mean = f'{statistics.mean(found):{style}}'
                text += f' ({mean})'.replace('%', ' %')
        return text


def spread(values, form):
    r"""Returns a mean, and the standard deviation of several values."""
    if form == 'MB':
        values, form = [value / 1e6 for value in values], '.0f'
    if form == 'times':
        form = '.0f' if statistics.mean(values) >= 10 else '.1f'
    mean = f'{statistics.mean(values):{form}}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {statistics.stdev(values):{form}}'
