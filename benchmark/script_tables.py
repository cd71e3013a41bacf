r"""Tables of what scripts have measured: the deletion service, a backdoor, scaling."""

from __future__ import annotations

from markdown import line, load, percent, seconds, start, text


def service(name, part):
    r"""What became of a hundred users who leave, by seed; the part is `days` or
    `one-by-one`.
    """
    header = ['seed', 'NDCG@20 at the end, to retraining', 'lowest in service']
    header += ['lowest unlearned, to the last full training']
    header += ['unlearned / retrained / decided', 'failed attempts']
    header += ['membership (control)', 'intervals with the control', 'overdue']
    lines = start([*header, 'seconds'])
    for row in _of(name, part.replace('-', ' ')):
        made = [row[key] for key in ('unlearned', 'from_scratch', 'decided')]
        failed = str(row['failed_attempts'])
        if row['failed_gates']:
            failed += f' ({row["failed_gates"].split()[-1]})'
        cells = [row['seed'], percent(row['relative']), percent(row['worst_relative'])]
        cells += [percent(row['worst_to_full']), ' / '.join(map(str, made)), failed]
        cells += [f'{_within(row, "membership", "low", "high")} ({row["control"]:.3f})']
        cells += [f'{row["contained"]} of {row["attacks"]}', row['overdue']]
        lines.append(line([*cells, seconds(row['time_s'])]))
    return text(lines)


def costs(name):
    r"""One request, and an import of many, by seed."""
    header = ['seed', 'out of what is served (s)', 'promoted, with evidence (s)']
    header += ['of which unlearning (s)', 'requests imported', 'seconds']
    lines = start([*header, '`status` (ms)', 'ledger (MB)'])
    for one, many in zip(_of(name, 'single'), _of(name, 'import')):
        cells = [one['seed']]
        keys = ('contained_s', 'promoted_s', 'unlearning_s')
        cells += [f'{one[key]:.2f}' for key in keys]
        cells += [f'{many["requests"]:,}', seconds(many['time_s'])]
        cells += [f'{1000 * many["status_s"]:.0f}', f'{many["ledger_mb"]:.1f}']
        lines.append(line(cells))
    return text(lines)


def scenarios(name):
    r"""Methods after all requests of every case; seconds of all quarters."""
    rows, header = load(name), ['', 'retain N@20 to retraining', 'forget R@20']
    lines, last = start([*header, 'membership, excess', 'seconds']), None
    for row in _at(rows, 4):
        if row['scenario'] != last:
            last = row['scenario']
            lines.append(f'| **{last}** ({row["pairs"]:,} pairs) | | | | |')
        is_goal = row['method'] == 'retrained'
        utility = _within(row, 'relative', 'low', 'high', '+.1%')
        attack = _within(row, 'excess', 'excess_low', 'excess_high', '+.3f')
        if is_goal:
            keys = ('membership', 'membership_low', 'membership_high')
            utility, attack = f'({row["retain_ndcg@20"]:.4f})', _within(row, *keys)
            attack = attack if attack == '–' else f'({attack})'
        same = ('scenario', 'method')
        times = [x.get('seconds') for x in rows if all(x[k] == row[k] for k in same)]
        spent = '–' if None in times else f'{sum(times):.1f}'
        cells = [row['method'], utility, f'{row["forget_recall@20"]:.3f}', attack]
        lines.append(line([*cells, spent]))
    return text(lines)


def jobs(name):
    r"""How the versions of the workspace came about, by case and quarter."""
    rows = [row for row in load(name) if row['method'] == 'workspace']
    return _by_quarter(rows, 'scenario', lambda row: row['ran'])


def exposure(name):
    r"""The share of clean users who get the promoted item, by method and quarter."""
    rows = [row for row in load(name) if row.get('er@20') is not None]
    return _by_quarter(rows, 'method', lambda row: percent(row['er@20']).lstrip('+'))


def backdoor(*names):
    r"""Attack success of a planted backdoor before and after every method, by file."""
    files = [{row['method']: row for row in load(name)} for name in names]
    lines = start(['ASR@20 / ER@20 / seconds', *(name.split('_')[2] for name in names)])
    for method in files[0]:
        rows = [file[method] for file in files]
        cells = [
            f'{row["asr@20"]:.3f} / {row["er@20"]:.3f} / {seconds(row["seconds"])}'
            for row in rows
        ]
        lines.append(line([method, *cells]))
    return text(lines)


def scaling(*names):
    r"""Steps and requests by size and number of processes, of several files."""
    header = ['interactions', 'nodes', 'processes', 's per step', 'interactions per s']
    header += ['bytes sent per step', 'training, MB (formula)', 'request, s']
    lines = start([*header, 'request, MB (formula)'])
    for row in (row for name in names for row in load(name)):
        cells = [f'{row[key]:,}' for key in ('interactions', 'nodes', 'processes')]
        cells += [f'{row["s_per_step"]:.3g}', f'{row["interactions_per_s"]:,.0f}']
        cells += [f'{row["bytes_sent_per_step"]:,.0f}', _memory(row, 'train')]
        lines.append(line([*cells, f'{row["request_s"]:.3g}', _memory(row, 'request')]))
    return text(lines)


def _memory(row, part):
    return f'{row[f"{part}_memory_mb"]:,.0f} ({row[f"{part}_formula_mb"]:,.0f})'


def _by_quarter(rows, key, cell):
    lines = start(['', '1/4', '2/4', '3/4', '4/4'])
    for name in dict.fromkeys(row[key] for row in rows):
        lines.append(line([name, *(cell(row) for row in rows if row[key] == name)]))
    return text(lines)


def _of(name, part):
    return [row for row in load(name) if row['part'] == part]


def _at(rows, quarter):
    return [row for row in rows if row['quarter'] == quarter]


def _within(row, value, low, high, form='.3f'):
    if row.get(value) is None:
        return '–'
    if '%' in form:
        return f'{percent(row[value])} [{100 * row[low]:+.1f}, {100 * row[high]:+.1f}]'
    return f'{row[value]:{form}} [{row[low]:{form}}, {row[high]:{form}}]'


KINDS = {
    'service': service,
    'service-costs': costs,
    'scenarios': scenarios,
    'scenario-jobs': jobs,
    'scenario-exposure': exposure,
    'backdoor': backdoor,
    'scaling': scaling,
}
