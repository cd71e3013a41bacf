import json
import re
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest

from torch_geometric_unlearn import train, unlearn
from torch_geometric_unlearn.workspace import gates

EXAMPLES = Path(__file__).parents[2] / 'examples'
# Tiny data is too little for some audits, which say so.
pytestmark = pytest.mark.filterwarnings('default::UserWarning')


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    r"""Runs an example as the command line would, and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *args):
        monkeypatch.setattr(sys, 'argv', [name, *args])
        try:
            runpy.run_path(str(EXAMPLES / name), run_name='__main__')
        except SystemExit as exit:
            if exit.code != 0:
                raise
        return capsys.readouterr().out

    return run


@pytest.fixture
def short(monkeypatch):
    r"""Shortens every training, for tests of what an example makes of the results."""
    for module, name, kwargs in [
        (train, 'fit', {'num_epochs': 3}),
        (unlearn, 'MMRecUn', {'num_epochs': 1}),
        (unlearn, 'PartialRetrain', {'num_epochs': 1, 'min_steps': 5}),
        (unlearn, 'Retrain', {'num_epochs': 3}),
        (unlearn, 'TRU', {'num_epochs': 1}),
    ]:
        monkeypatch.setattr(module, name, partial(getattr(module, name), **kwargs))


@pytest.mark.usefixtures('short')
def test_custom_data(run):
    out = run('custom_data.py')
    assert 'purchases left in the data: 0' in out
    assert len(re.findall(r'(garden|book)-\d+', out)) == 8 + 5 + 5


def test_week_in_a_shop(run):
    out = run('week_in_a_shop.py', '--size', 'tiny', '--epochs', '2')
    _, _, *lines = out.splitlines()
    assert [line.split()[0] for line in lines][:5] == [
        'Monday',
        'Tuesday',
        'Wednesday',
        'Thursday',
        'Friday',
    ]
    users = [int(line.split()[1]) for line in lines[:5]]
    assert users == sorted(users)
    assert users[0] < users[4] == 100
    assert sum('forgot' in line for line in lines) == 2
    assert lines[5].startswith('from scratch')


@pytest.mark.usefixtures('few_trees')
def test_workspace(run, monkeypatch):
    limits = dict.fromkeys(gates.LIMITS, 9.0)  # What any model passes.
    monkeypatch.setattr(gates, 'LIMITS', limits)
    args = ['--size', 'tiny', '--epochs', '2', '--folder', 'month']
    out = run('workspace.py', *args)
    for told in (
        'T-1, an erasure',
        'T-5, a cleanup',
        'is in review (surge: ',
        'A rollback: older weights, still free of all 5 requests.',
        'that are suppressed. Pass the table through',
        'is trained on the others and served',
        "All is done: {'completed': 5}; nothing to mend.",
    ):
        assert told in out
    assert re.search(r'Ids of 14 users found in \d+ files: 0\.', out)
    assert len(re.findall(r'Evidence of \w+: pass\.', out)) == 3


def test_custom_recommender(run):
    header, _, *lines = run('custom_recommender.py', '--size', 'tiny').splitlines()
    columns = header.split()
    rows = {line.split()[0]: dict(zip(columns, line.split())) for line in lines}
    assert list(rows) == ['original', 'retrained', 'TRU', 'PartialRetrain']
    forget = {name: float(row['forget_recall@20']) for name, row in rows.items()}
    assert min(forget, key=forget.get) != 'original' == max(forget, key=forget.get)
    for row in rows.values():
        assert 0 < float(row['retain_recall@20']) < 1


@pytest.mark.usefixtures('short')
def test_tru_writes_what_it_prints(run, tmp_path):
    args = ['--size', 'tiny', '--json', 'result.json', '--checkpoint', 'mgcn.st']
    out = run('tru.py', *args)
    content = json.loads((tmp_path / 'result.json').read_text())
    methods = ['original', 'retrained', 'edge_drop', 'row_reset', 'mmrecun', 'tru']
    methods.append('partial_retrain')
    assert [row['method'] for row in content['rows']] == methods
    for row in content['rows']:
        for side in ('retain', 'forget'):
            for metric in ('recall', 'ndcg'):
                assert 0 <= row[f'{side}_{metric}@20'] <= 1
        assert row['seconds'] >= 0
        assert f'{row["method"]} ' in out
    assert content['config']['regime'] == 'user'
    assert 'torch' in content['versions']
    # The second run takes the saved model.
    run('tru.py', *args, '--regime', 'item')
    repeated = json.loads((tmp_path / 'result.json').read_text())
    assert repeated['rows'][0]['seconds'] == content['rows'][0]['seconds']


@pytest.mark.usefixtures('few_trees', 'short')
def test_audit_writes_a_report(run, tmp_path):
    out = run('audit.py', '--size', 'tiny', '--out', 'page.html')
    assert 'of the deleted interactions into the top 20' in out
    content = json.loads((tmp_path / 'page.json').read_text())
    names = ['original', 'retrained', 'edge drop', 'row reset', 'TRU', 'unlearned']
    assert [row['name'] for row in content['table']['rows']] == names
    assert content['failures'] == []
    assert content['request']['ids'] == 'numbered'
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert f'{content["request"]["num_interactions"]}' in page


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--ratio', '5'], "'ratio' must be in (0, 1) (got 5.0). For 5%, pass 0.05."),
        (['--regim', 'user'], 'unrecognized arguments'),
        (['--dataset', 'Baby', '--root', 'file'], 'Cannot write to the folder'),
    ],
)
def test_errors_are_clear(args, message, run, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    with pytest.raises((OSError, SystemExit, ValueError)) as info:
        run('tru.py', '--size', 'tiny', *args)
    told = f'{info.value} {capsys.readouterr().err}'
    assert message in told.replace('\n', ' ')
