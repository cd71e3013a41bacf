import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch_geometric.testing import onlyFullTest

FOLDER = Path(__file__).parents[2] / 'benchmark'
SCRIPTS = sorted(
    path.name for path in FOLDER.glob('*.py') if 'parse_args(' in path.read_text()
)


@pytest.mark.parametrize('name', SCRIPTS)
def test_says_what_it_takes(name, monkeypatch, capsys):
    r"""Every script finds what it imports and explains its options."""
    monkeypatch.setattr(sys, 'argv', [name, '--help'])
    monkeypatch.syspath_prepend(FOLDER)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(FOLDER / name), run_name='__main__')
    assert stop.value.code == 0
    assert 'usage' in capsys.readouterr().out


@pytest.fixture
def run(monkeypatch):
    r"""Runs a script with some arguments."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(FOLDER)
        runpy.run_path(str(FOLDER / name), run_name='__main__')

    return run


TINY = ['--size', 'tiny', '--backbone', 'LightGCN', '--num-epochs', '2']
TINY += ['--min-steps', '5', '--requests', '4']


def by_place(content):
    rows = {(row['quarter'], row['method']): row for row in content['rows']}
    assert len(rows) == len(content['rows']) == 4 * 7
    return rows


def test_scenario_of_a_surge(run, tmp_path, capsys):
    path, plot = tmp_path / 'out.json', tmp_path / 'figures' / 'plot.svg'
    kwargs = [*TINY, '--scenarios', 'surge', '--out', tmp_path / 'kept']
    run('scenarios.py', *kwargs, '--json', path)
    content = json.loads(path.read_text())
    assert content['surges'] == {
        'surge': {'requests': 4, 'in_review': 4, 'contained': 4, 'promoted': False}
    }
    rows, pairs = by_place(content), 0
    for quarter in (1, 2, 3, 4):
        assert rows[quarter, 'retrained']['relative'] == 0
        service = rows[quarter, 'workspace']
        assert (service['jobs'], service['reviewed']) == (quarter, quarter)
        assert service['pairs'] > pairs
        pairs = service['pairs']
    # What is finished is kept, and of no use to other settings.
    capsys.readouterr()
    more = ['--plot', plot] if find_spec('matplotlib') else []
    run('scenarios.py', *kwargs, *more)
    assert '1 of 4' not in capsys.readouterr().out
    if more:
        text = plot.read_text()  # Words stand as comments beside their shapes.
        assert all(name in text for name in ('surge', 'retrained', 'workspace'))
    with pytest.raises(SystemExit):
        run('scenarios.py', *kwargs, '--seed', '1')
    assert 'is of other settings' in capsys.readouterr().err


@onlyFullTest
def test_scenario_of_spam(run, tmp_path):
    path = tmp_path / 'out.json'
    kwargs = ['--scenarios', 'spam wave', '--out', tmp_path / 'kept']
    run('scenarios.py', *TINY, *kwargs, '--json', path)
    rows = by_place(json.loads(path.read_text()))
    for quarter in (1, 2, 3, 4):
        # A cleanup is trained from scratch, on the same data with the same seed.
        ours, goal = (rows[quarter, name] for name in ('workspace', 'retrained'))
        for key in ('retain_ndcg@20', 'forget_recall@20', 'er@20', 'asr@20'):
            assert ours[key] == goal[key]
        assert ours['ran'] == f'{quarter} Retrain'


def test_backdoor(run, tmp_path, capsys):
    path, models = tmp_path / 'out.json', tmp_path / 'models'
    kwargs = ['--dataset', 'tiny', '--models', models, '--ratio', '0.05']
    kwargs += ['--triggers', '2', '--held', '1', '--num-epochs', '2']
    methods = ['edge drop', 'TRU', 'retrained']
    run('backdoor.py', *kwargs, '--methods', *methods, '--json', path)
    assert 'hardly learned the backdoor' in capsys.readouterr().out
    content = json.loads(path.read_text())
    rows = {row['method']: row for row in content['rows']}
    assert list(rows) == ['original', *methods]
    assert rows['retrained']['gap@20'] == 0
    assert content['missing'] == ['clean']
    assert content['original']['num_epochs'] == 2
    assert content['poisoned_users'] == 5
    # The models are kept: nothing is trained again.
    before = {file: file.stat().st_mtime_ns for file in models.glob('*.safetensors')}
    assert len(before) == 2
    run('backdoor.py', *kwargs, '--methods')
    assert before == {file: file.stat().st_mtime_ns for file in before}
