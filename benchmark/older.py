r"""Tables of result files that scripts before the grid have written, of several
commits; a file names them. Each goes when the grid has its cells.
"""

from __future__ import annotations

import statistics

from columns import REGIMES
from markdown import line, load, seconds, start, text


def requests(*names):
    r"""Partial retraining beside the others, the mean over some requests, of several
    files; a name of a regime leaves out the others.
    """
    regimes = [name for name in names if name in REGIMES]
    rows = [row for name in names if name not in regimes for row in load(name)]
    rows = [row for row in rows if not regimes or row['regime'] in regimes]
    several = any(row['requests'] > 1 for row in rows)
    header = ['', *(['requests'] if several else []), 'retain R@20', 'retain N@20']
    header += ['forget R@20', 'membership bal. acc. (excess)', 'AUC']
    header += ['completion (excess)', 'seconds']
    lines, regime = start(header), None
    for row in rows:
        if row['regime'] != regime:
            regime = row['regime']
            lines.append(f'| **{regime}-level** |' + ' |' * (len(header) - 1))
        change = row['relative_retain_ndcg@20']
        cells = [row['method'], *([row['requests']] if several else [])]
        cells += [f'{row["retain_recall@20"]:.4f}']
        cells += [f'{row["retain_ndcg@20"]:.4f}' + _beside(change, row, '+.1%')]
        cells += [f'{row["forget_recall@20"]:.4f}']
        for key in ('balanced_accuracy', 'auc', 'completion'):
            excess = row.get(f'excess_{key}')
            cells.append(f'{row[key]:.3f}' + _beside(excess, row, '+.3f'))
        cells.append(seconds(row.get('time_s')))
        if row.get('speed_up'):
            cells[-1] += f' ({row["speed_up"]:.0f}x)'
        lines.append(line(cells))
    return text(lines)


def _beside(change, row, form):
    if change is None or row['method'] == 'retrain':
        return ''
    return f' ({change:{form}})'.replace('%', ' %')


_METHODS = {
    'retain R@20': ('retain_recall@20', 1, 4),
    'retain N@20': ('retain_ndcg@20', 1, 4),
    'forget R@20': ('forget_recall@20', 1, 4),
    'forget N@20': ('forget_ndcg@20', 1, 4),
    'exposure@20': ('exposure@20', 1, 4),
    'seconds': ('seconds', 1, 1),
    'peak memory (MB)': ('peak_memory', 1e-6, 0),
}


def methods(*names):
    r"""Methods on one request, or mean and standard deviation over several files."""
    runs = [{row['method']: row for row in load(name)} for name in names]
    lines = start(['method', *_METHODS])
    for method in runs[0]:
        cells = [method]
        for key, scale, digits in _METHODS.values():
            values = [run[method].get(key) for run in runs]
            if None in values:
                cells.append('–')
                continue
            values = [value * scale for value in values]
            cells.append(f'{statistics.mean(values):.{digits}f}')
            if len(values) > 1:
                cells[-1] += f' ± {statistics.stdev(values):.{digits}f}'
        lines.append(line(cells))
    return text(lines)


#: Where relearning gave up.
MAX_STEPS = 500
_AUDIT = {
    'retain N@20': ('retain_ndcg@20', 4),
    'forget R@20': ('forget_recall@20', 4),
    'exposure@20': ('exposure@20', 4),
    'direct: bal. acc.': ('balanced_accuracy', 3),
    'AUC': ('auc', 3),
    'transfer: AUC': ('transfer_auc', 3),
    'Jaccard@20': ('jaccard@20', 3),
    'RBO': ('rbo', 3),
    'JSD': ('jsd', 3),
    'KS forget': ('ks_forget', 3),
    'relearn steps': ('relearn_steps', 0),
}


def audit(name):
    r"""Every audit of one request."""
    rows = load(name)
    if any(row['method'] == 'tru_lowest' for row in rows):
        # 'tru' was another variant then, which is gone; this one is what TRU does now.
        rows = [row for row in rows if row['method'] != 'tru']
        rows = [
            row | {'method': 'tru'} if row['method'] == 'tru_lowest' else row
            for row in rows
        ]
    columns = {
        title: column
        for title, column in _AUDIT.items()
        if any(column[0] in row for row in rows)
    }
    lines = start(['', *columns])
    for row in rows:
        cells = [row['method']]
        for key, digits in columns.values():
            x = row.get(key)
            if key == 'relearn_steps' and x == MAX_STEPS:
                cells.append(f'> {MAX_STEPS}')
                continue
            cells.append('–' if x is None else f'{x:.{digits}f}')
            if key == 'auc':
                cells[-1] += ' [{:.3f}, {:.3f}]'.format(*row['auc_interval'])
        lines.append(line(cells))
    return text(lines)


KINDS = {'older-requests': requests, 'older-methods': methods, 'older-audit': audit}
