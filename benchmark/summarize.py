r"""Prints one Markdown table, mean +- standard deviation, from the result files of
several seeds of `examples/tru.py`, or from one of `methods.py`.

    python benchmark/summarize.py benchmark/results/baby_mgcn_user_*.json
"""

import json
import statistics
import sys

COLUMNS = {
    'retain R@20': ('retain_recall@20', 1, 4),
    'retain N@20': ('retain_ndcg@20', 1, 4),
    'forget R@20': ('forget_recall@20', 1, 4),
    'forget N@20': ('forget_ndcg@20', 1, 4),
    'exposure@20': ('exposure@20', 1, 4),
    'seconds': ('seconds', 1, 1),
    'peak memory (MB)': ('peak_memory', 1e-6, 0),
}


def cell(values, digits):
    if None in values:
        return '-'
    mean = f'{statistics.mean(values):.{digits}f}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {statistics.stdev(values):.{digits}f}'


def value(row, key, scale):
    return row[key] * scale if key in row else None


runs = []
for path in sys.argv[1:]:
    with open(path) as file:
        runs.append({row['method']: row for row in json.load(file)['rows']})
print('| method | ' + ' | '.join(COLUMNS) + ' |')
print('|---' * (len(COLUMNS) + 1) + '|')
for method in runs[0]:
    cells = [
        cell([value(run[method], key, scale) for run in runs], digits)
        for key, scale, digits in COLUMNS.values()
    ]
    print(f'| {method} | ' + ' | '.join(cells) + ' |')
