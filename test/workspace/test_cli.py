import importlib.machinery
import io
import json
import os
import runpy
import sqlite3
import sys
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from torch_geometric.testing import withPackage

import torch_geometric_unlearn as tgu
from torch_geometric_unlearn.workspace import Workspace, cli, gates, worker
from torch_geometric_unlearn.workspace.cli import main
from torch_geometric_unlearn.workspace.cli.source import find_function

SHOP = '''
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import LightGCN

def load_data(workspace=None):
    data = SyntheticMultimodal('tiny')[0]
    data['user'].raw_id = [f'user{i:03}@shop.org' for i in range(100)]
    data['item'].raw_id = [f'sku-{i}' for i in range(60)]
    return data if workspace is None else workspace.load()[1]

def all_data():
    return load_data()

def broken():
    return {}['nothing']

def numbered():
    return SyntheticMultimodal('tiny')[0]

def build_model(data):
    return LightGCN.from_data(data, hidden_channels=8)

number = 3
'''
SETTINGS = {
    'fit_args': {'num_epochs': 3, 'lr': 0.01, 'batch_size': 256},
    'method_args': {'num_epochs': 1, 'min_steps': 5, 'batch_size': 256},
    'surge_share': 0.5,
}
WHO = ['--who', 'dpo', '--why', 'asked']


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    r"""Calls the command in a folder with a shop, and returns code and both outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('TGU_WORKSPACE', raising=False)
    Path('shop.py').write_text(SHOP)
    Path('settings.json').write_text(json.dumps(SETTINGS))

    def run(*args, stdin=''):
        monkeypatch.setattr(sys, 'stdin', io.StringIO(stdin))
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def init(*more, data='load_data'):
    functions = ['--data', f'shop.py:{data}', '--model', 'shop.py:build_model']
    return ['init', 'ws', *functions, '--settings', 'settings.json', *more]


@pytest.fixture
def shop(run, monkeypatch):
    r"""The same with a workspace, whose gates are passed by any model."""
    assert run(*init())[0] == 0
    monkeypatch.setenv('TGU_WORKSPACE', 'ws')
    monkeypatch.setattr(
        'torch_geometric_unlearn.workspace.gates.LIMITS',
        {'service': 9.0, 'full': 9.0, 'forget': 9.0, 'membership': 9.0},
    )
    return run


def submit(name, *more, kind='erasure'):
    named = ['--client-id', name, '--verified-by', 'crm']
    return ['submit', '--kind', kind, *named, *more]


def test_from_receipt_to_evidence(shop):
    run, ann = shop, 'user003@shop.org'
    code, out, _ = run(*submit('T-1', '--user', '-', '--json'), stdin=f' {ann}\r\n\n')
    request = json.loads(out)
    assert code == 0
    assert (request['id'], request['state'], request['unknown']) == (1, 'queued', 0)
    again = json.loads(run(*submit('T-1', '--user', '-', '--json'), stdin=ann)[1])
    assert again == request
    assert run('plan')[1] == 'nothing is due\n'
    assert json.loads(run('plan', '--json')[1])['requests'] == []
    code, out, _ = run('work', '--json')
    assert code == 0
    assert json.loads(out)['jobs'] == []

    code, out, _ = run('work', '--now', '--json')
    (job,) = json.loads(out)['jobs']
    assert code == 0
    assert job['verdict'] in ('pass', 'inconclusive')
    assert job['requests'] == [1]
    assert json.loads(run('status', '--json')[1])['watermark'] == 1
    shown = json.loads(run('show', '1', '--json')[1])
    assert (shown['state'], shown['outcome']) == ('probation', 'erased')
    assert shown['targets'] == [
        {'level': 'user', 'outcome': 'erased', 'pairs': shown['num_pairs']}
    ]
    assert {gate['name'] for gate in shown['gates']} >= {'data', 'utility'}
    folder = json.loads(run('evidence', job['id'], '--json')[1])['folder']
    code, out, _ = run('verify', folder, '--json')
    assert code == 0
    assert json.loads(out)['job'] == job['id']
    (Path(folder) / 'limits.txt').write_text('none')
    code, out, err = run('verify', folder)
    assert (code, out) == (1, '')
    assert "'limits.txt' was changed" in err
    stats = json.loads(run('stats', '--json')[1])
    assert stats['requests_by_kind'] == {'erasure': 1}
    assert stats['erased_interactions'] == shown['num_pairs'] > 0

    # Older weights, then a new training on what is served, then on all there was.
    before = json.loads(run('status', '--json')[1])
    rolled = json.loads(run('rollback', *WHO, '--json')[1])['version']
    assert rolled != before['version']
    fresh = json.loads(run('refresh', *WHO, '--json')[1])['version']
    status = json.loads(run('status', '--json')[1])
    assert (status['version'], status['watermark']) == (fresh, 1)
    code, _, err = run('refresh', '--data', 'shop.py:all_data', *WHO)
    assert code == 1
    assert 'internal ids' in err or 'suppressed' in err
    assert json.loads(run('status', '--json')[1]) == status
    assert json.loads(run('doctor', '--json')[1])['done'] == []


def test_decisions(shop):
    run = shop
    Path('items.txt').write_text('sku-3\nsku-4\n')
    assert run(*submit('T-1', '--item', 'items.txt', kind='takedown'))[0] == 0
    pair = 'user003@shop.org\tsku-9'
    assert run(*submit('T-2', '--pair', '-', kind='correction'), stdin=pair)[0] == 0
    code, out, _ = run('hold', '1', *WHO)
    assert (code, out.splitlines()[0].split(', ')[1]) == (0, 'held')
    code, _, err = run('review', '1', '--approve', *WHO)
    assert (code, err) == (1, "tgu: Request 1 must be 'review' (it is 'held')\n")
    assert run('release', '1', *WHO)[0] == 0
    assert run('release', '1', *WHO)[0] == 1
    assert run('cancel', '2', *WHO)[0] == 0
    shown = json.loads(run('show', '2', '--json')[1])
    assert (shown['state'], shown['outcome']) == ('cancelled', 'asked')
    assert [x['decision'] for x in shown['decisions']] == ['cancelled']

    # A request for everything.
    users = '\n'.join(f'user{i:03}@shop.org' for i in range(100))
    assert run(*submit('T-3', '--user', '-'), stdin=users)[0] == 3
    code, out, _ = run('status', '--json')
    assert code == 3
    everything = {'id': 3, 'reason': 'it asks for everything'}
    assert json.loads(out)['to_decide'] == [everything]
    assert run('review', '3', '--reject', *WHO)[0] == 0
    assert run('status')[0] == 0
    # Who is refused is not suppressed; what is finished can be lifted only once.
    assert run('lift', '--user', '-', *WHO, stdin='user003@shop.org')[0] == 1
    late = submit('T-4', '--user', '-', '--received', '2020-01-01', '--due-days', '5')
    assert run(*late, stdin='user007@shop.org')[0] == 0
    code, out, _ = run('status')
    assert code == 4
    assert 'overdue: 1\nnext deadline: 2020-01-06 00:00 UTC (' in out


def test_a_signature(shop, monkeypatch):
    run, hard = shop, []

    class Failing:
        def __init__(self, ws, name):
            self.name, self.make = name, original(ws, name, 'j')

        def __getattr__(self, name):
            return getattr(self.make, name)

        def __call__(self, model, data):
            hard[:] = ['planted'] * (self.name == 'Retrain')
            return self.make(model, data)

    def check_data(*args):
        gate = check(*args)
        return gates.Gate('data', faults=gate.faults + hard)

    def fail(*args):
        return gates.Gate('utility', {'low': -99.0, 'high': -98.0, 'to_full': 0.0})

    original, check = worker.make_unlearner, gates.check_data
    monkeypatch.setattr(worker, 'make_unlearner', lambda ws, n, _: Failing(ws, n))
    monkeypatch.setattr(gates, 'check_data', check_data)
    monkeypatch.setattr(gates, 'utility', fail)
    assert run('review') == (0, 'Nothing to decide.\n', '')
    for number in (3, 4):
        line = f'user00{number}@shop.org'
        assert run(*submit(f'T-{number}', '--user', '-'), stdin=line)[0] == 0
    code, out, _ = run('work', '--now', '--json')
    (job,) = json.loads(out)['jobs']
    assert (code, job['verdict']) == (3, 'fail')
    code, out, _ = run('review', '--json')
    found = json.loads(out)
    assert code == 3
    assert [request['id'] for request in found['requests']] == [1, 2]
    (attempt,) = found['attempts']
    assert attempt['number'] == 0
    assert 'utility' in attempt['unpassed']
    although = [x for name in attempt['unpassed'] for x in ('--although', name)]
    code, out, _ = run('review')
    assert code == 3
    assert f'--sign 0 {" ".join(although)}' in out
    assert 'request 1 (erasure, due ' in out
    assert attempt['report'] in out
    # Wrong usage, and what is refused.
    for args, status, message in (
        (['1'], 2, "say '--approve'"),
        (WHO, 2, "say '--approve'"),
        (['1', '--approve', '--who', 'dpo'], 2, "'--who' and '--why'"),
        (['--approve', *WHO], 2, 'needs a request or a job'),
        (['1', '--again', '--although', 'utility', *WHO], 2, "belongs to '--sign'"),
        (['1', '--sign', '0', *WHO], 1, "'although' must name the gates"),
        (['1', '--sign', '1', *although, *WHO], 1, 'which nobody can overrule'),
        (['x', '--sign', '1', *although, *WHO], 1, "There is no job 'x'"),
        (['9', '--approve', *WHO], 1, 'There is no request 9'),
    ):
        code, out, err = run('review', *args)
        assert (code, out) == (status, ''), args
        assert message in err
    # All requests of a job at once: again, and then somebody signs.
    code, out, _ = run('review', job['id'], '--again', *WHO, '--json')
    assert code == 0
    assert [x['state'] for x in json.loads(out)['requests']] == ['queued'] * 2
    assert run('work', '--now')[0] == 3
    code, out, _ = run('review', '2', '--sign', '0', *although, *WHO)
    assert code == 0
    assert out.startswith(f'job {job["id"]}: signed, requests 1, 2\nin service: ')
    code, out, _ = run('show', '1')
    assert 'signed by dpo, asked' in out
    assert 'served although not passed: utility' in out
    folder = run('evidence', job['id'])[1].strip()
    code, out, _ = run('verify', folder)
    assert code == 0
    assert f'job {job["id"]}: signed, nothing was changed' in out
    assert 'signed by dpo (no roles were set): asked' in out
    assert run('review')[0] == 0
    # A request that no job has tried.
    users = '\n'.join(f'user{i:03}@shop.org' for i in range(100))
    assert run(*submit('T-9', '--user', '-'), stdin=users)[0] == 3
    code, _, err = run('review', '3', '--sign', '0', *WHO)
    assert (code, err) == (1, 'tgu: No job has tried to serve request 3\n')


@withPackage('cryptography')
def test_signed_evidence(shop, tmp_path):
    run = shop
    code, out, _ = run('keygen', 'secret', '--json')
    keys = json.loads(out)
    assert code == 0
    assert keys == {
        'private_key': str(tmp_path / 'secret'),
        'public_key': str(tmp_path / 'secret.pub'),
    }
    assert '"signing_key"' in run('keygen', 'other')[1]
    code, _, err = run('keygen', 'ws/key')
    assert (code, 'outside of the workspace' in err) == (1, True)
    settings = Path('ws/workspace.json')
    content = json.loads(settings.read_text()) | {'signing_key': keys['private_key']}
    settings.write_text(json.dumps(content))
    assert run(*submit('T-1', '--user', '-'), stdin='user003@shop.org')[0] == 0
    (job,) = json.loads(run('work', '--now', '--json')[1])['jobs']
    folder = run('evidence', job['id'])[1].strip()
    assert 'signature: not checked' in run('verify', folder)[1]
    code, out, _ = run('verify', folder, '--public-key', 'secret.pub')
    assert code == 0
    assert out.endswith('signature: by the given key\n')
    code, out, err = run('verify', folder, '--public-key', 'other.pub')
    assert (code, out) == (1, '')
    assert 'signed with another key' in err


def test_filter(shop, monkeypatch):
    run, table = shop, 'zip,user,item\n007,user003@shop.org,sku-1\n008,x,sku-1\n'
    assert run(*submit('T-1', '--user', '-'), stdin='user003@shop.org')[0] == 0
    left = b'zip,user,item\n008,x,sku-1\n'
    Path('new.csv').write_text(table)
    code, out, _ = run('filter', 'new.csv', '--to', 'clean.csv', '--json')
    assert code == 0
    assert json.loads(out) == {'rows': 2, 'left': 1, 'out': 1}
    assert Path('clean.csv').read_bytes() == left
    code, out, err = run('filter', 'new.csv')
    assert (code, out, err) == (0, left.decode(), 'rows: 2, left: 1, out: 1\n')

    def piped(*args, content):
        files = [io.TextIOWrapper(io.BytesIO(x)) for x in (content, b'', b'')]
        with monkeypatch.context() as patch:
            for name, file in zip(('stdin', 'stdout', 'stderr'), files):
                patch.setattr(sys, name, file)
            code = main(['filter', *args])
            for file in files[1:]:
                file.flush()
        return code, *(file.buffer.getvalue() for file in files[1:])

    code, out, err = piped('--json', content=table.encode())
    assert (code, out, json.loads(err)['left']) == (0, left, 1)
    tabs = table.replace(',', '\t').encode()
    code, out, _ = piped('--separator', 'tab', content=tabs)
    assert (code, out) == (0, left.replace(b',', b'\t'))
    frame = pd.read_csv('new.csv', dtype=str)
    frame.to_parquet('new.parquet')
    content = Path('new.parquet').read_bytes()
    code, out, _ = piped('--format', 'parquet', content=content)
    assert code == 0
    assert pd.read_parquet(io.BytesIO(out))['zip'].tolist() == ['008']
    code, _, _ = run('filter', 'new.parquet', '--to', 'new.parquet')  # In place.
    assert code == 0
    assert pd.read_parquet('new.parquet')['zip'].tolist() == ['008']
    # Nothing of a table that is broken further down, and no id in a message.
    broken = table.encode() + b'1,ann@shop.org\n'
    code, out, err = piped(content=broken)
    assert (code, out) == (1, b'')
    assert b'Row 3' in err
    Path('broken.csv').write_bytes(broken)
    code, out, err = run('filter', 'broken.csv', '--to', 'clean.csv')
    assert (code, out) == (1, '')
    assert Path('clean.csv').read_bytes() == left
    for args in (
        ['ann@shop.org'],
        ['new.csv', '--to', 'new.parquet'],
        ['new.csv', '--format', 'parquet'],
        ['new.csv', '--separator', 'ann@shop.org'],
        ['new.csv', '--user', 'ann@shop.org'],
    ):
        code, out, err = run('filter', *args)
        assert code in (1, 2)
        assert (out, 'ann' in err) == ('', False)


def test_what_has_ended_can_be_lifted(shop):
    assert shop(*submit('T-1', '--user', '-'), stdin='nobody@shop.org')[1].endswith(
        'Not in the data in service: 1\n'
    )
    assert shop('work', '--now')[0] == 0
    assert json.loads(shop('show', '1', '--json')[1])['outcome'] == 'nothing_found'
    code, out, _ = shop('lift', '--user', '-', *WHO, '--json', stdin='nobody@shop.org')
    assert (code, json.loads(out)) == (0, {'lifted': 1})
    assert shop('lift', '--user', '-', *WHO, stdin='nobody@shop.org')[0] == 1


@pytest.mark.parametrize(
    'args',
    [
        ['--user', 'ann@shop.org'],
        ['--user=ann@shop.org'],
        ['--user', '-', 'ann@shop.org'],
        ['--pair', 'ann@shop.org,sku-1'],
        ['--user', '.'],
    ],
)
@pytest.mark.parametrize('command', ['submit', 'lift'])
def test_ids_are_no_arguments(command, args, run):
    start = submit('T-1') if command == 'submit' else ['lift', *WHO]
    code, out, err = run(*start, *args)
    assert (code, out) == (2, '')
    assert 'history of the shell' in err
    assert 'ann' not in err


@pytest.mark.parametrize(
    ('args', 'stdin', 'message'),
    [
        (['--user', '-', '--item', '-'], 'x', "Only one of '--user'"),
        (['--user', '-'], ' \n\n', 'No id was given'),
        ([], '', 'No id was given'),
        (['--pair', '-'], 'ann@shop.org sku-1', 'a tab between them'),
        (['--user', '-', '--received', 'soon'], 'x', "such as 2026-03-01 (got 'soon')"),
    ],
)
def test_wrong_usage(args, stdin, message, shop):
    code, out, err = shop(*submit('T-1', *args), stdin=stdin)
    assert (code, out) == (2, '')
    assert message in err
    assert json.loads(shop('status', '--json')[1])['requests'] == {}


@pytest.mark.parametrize('days', ['nan', 'inf', '-1', '1e9'])
def test_deadlines_are_days(days, shop):
    ann = 'user003@shop.org'
    args = submit('T-1', '--user', '-', f'--due-days={days}')
    code, out, err = shop(*args, stdin=ann)
    assert (code, out) == (1, '')
    assert "'--due-days' must be a finite number in [0.0, 3660.0]" in err
    assert json.loads(shop('status', '--json')[1])['requests'] == {}


def test_integers_are_ids_too(run):
    assert run(*init(data='numbered'))[0] == 0
    args = [*submit('T-1', '--user', '-', '--json'), '--workspace', 'ws']
    assert json.loads(run(*args, stdin='3\n007\n')[1])['unknown'] == 0
    _, data = Workspace('ws', find_function('shop.py:build_model')).load()
    assert not {3, 7} & set(data['user'].raw_id)
    assert {4, 6} < set(data['user'].raw_id)
    code, _, err = run(*submit('T-2', '--user', '-'), '--workspace', 'ws', stdin='ann')
    assert code == 1
    assert 'integers' in err
    assert 'ann' not in err


def test_busy(shop):
    with FileLock('ws/worker.lock'):
        code, out, err = shop('work')
    assert (code, out) == (75, '')
    assert 'Another worker' in err


def test_a_locked_ledger_is_busy(shop, monkeypatch):
    for error, status, message in (
        (sqlite3.OperationalError('database is locked'), 75, 'database is locked'),
        (sqlite3.OperationalError('disk I/O error'), 1, 'disk I/O error'),
        (KeyboardInterrupt(), 1, 'safe to call the command again'),
    ):

        def fail(self, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Workspace, 'status', fail)
            code, out, err = shop('status')
        assert (code, out) == (status, '')
        assert message in err


def test_what_work_would_do(shop):
    page = shop('site')[1].strip()
    assert Path(page).is_file()
    late = submit('T-1', '--user', '-', '--received', '2020-01-01')
    assert shop(*late, stdin='user003@shop.org')[0] == 0
    assert shop('plan')[1].splitlines() == [
        'a deadline is near',
        'requests: 1',
        'methods: PartialRetrain, then Retrain',
    ]
    settings = Path('ws/workspace.json')
    content = json.loads(settings.read_text()) | {'surge_share': 0.0}
    settings.write_text(json.dumps(content))
    assert shop(*submit('T-2', '--user', '-'), stdin='user004@shop.org')[0] == 0
    code, out, _ = shop('plan')
    assert code == 3
    assert out.startswith('surge: ')
    assert out.endswith('to review: 1, 2\n')  # Both were accepted today.


def test_errors_are_one_line(run):
    for args, message in [
        (['status'], "no workspace in '.'"),
        (['verify', 'nowhere'], 'manifest.json'),
        (init(data='broken'), "KeyError: 'nothing' (shop.py, line"),
        (init(data='absent'), "has no 'absent'"),
        (init(data='number'), 'must be a function (got int)'),
        (init('--trained', 'nowhere'), 'nowhere'),
    ]:
        code, out, err = run(*args)
        assert (code, out) == (1, '')
        assert message in err
        assert err.startswith('tgu: ')
        assert 'Traceback' not in err
    assert not Path('ws').exists()
    Path('settings.json').write_text('{"metod": "TRU"}')
    code, _, err = run(*init())
    assert code == 1
    assert "'settings.json' is wrong" in err
    assert 'metod' in err
    Path('ws').mkdir()
    Path('ws/notes').touch()
    assert "'ws' is not empty" in run(*init())[2]


def test_a_trained_model_is_taken(run, tmp_path):
    load, build = (find_function(f'shop.py:{x}') for x in ('load_data', 'build_model'))
    data = load()
    tgu.train.save_model(build(data), 'model.st', data=data)
    assert run(*init('--trained', 'model.st', '--key', 'secret'))[0] == 0
    assert (tmp_path / 'secret').exists()
    source = json.loads(Path('ws/source.json').read_text())
    assert source['model'] == f'{tmp_path / "shop.py"}:build_model'
    # Only what builds the model needs the functions.
    Path('ws/source.json').unlink()
    named = ['--workspace', 'ws']
    ann = 'user003@shop.org'
    assert run(*submit('T-1', '--user', '-'), *named, stdin=ann)[0] == 0
    code, _, err = run('work', '--now', *named)
    assert code == 1
    assert '"model": "shop.py:build_model"' in err


def test_functions_by_place(run, tmp_path):
    name = 'torch_geometric_unlearn.nn:LightGCN.from_data'
    assert find_function(name) == tgu.nn.LightGCN.from_data
    for name, message in [
        ('shop.py', "must be named as 'shop.py:load_data'"),
        ('shop.py:', "must be named as 'shop.py:load_data'"),
        ('absent.py:f', "no file 'absent.py'"),
        ('no_such_module:f', "no module 'no_such_module'"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_function(name)
    Path('json.py').write_text('def f(): return 1')  # Shadows nothing afterwards.
    assert find_function('json.py:f')() == 1
    assert sys.modules['json'] is json
    found = importlib.machinery.PathFinder.find_spec('json')  # As a new process would.
    assert found.origin == json.__file__


def test_ways_to_call_it(run, monkeypatch, capsys):
    text = (Path(tgu.__file__).parents[1] / 'pyproject.toml').read_text()
    assert f'tgu = "{cli.__name__}:{main.__name__}"' in text
    monkeypatch.setattr(sys, 'argv', ['tgu', '--help'])
    with pytest.raises(SystemExit) as info:
        runpy.run_module('torch_geometric_unlearn', run_name='__main__')
    assert info.value.code == 0
    commands = 'init submit status plan work review hold release cancel show rollback '
    commands += 'refresh evidence verify doctor stats site filter keygen lift'
    out = capsys.readouterr().out.split()
    assert set(commands.split()) <= set(out)


def test_a_rollback_is_completed_by_work(shop):
    run = shop
    args = submit('T-1', '--item', '-', '--drop-features', kind='takedown')
    code, out, _ = run(*args, '--json', stdin='sku-5')
    assert code == 0
    assert json.loads(out)['drops_features'] is True
    code, _, err = run(*submit('T-2', '--user', '-', '--drop-features'), stdin='x')
    assert code == 1
    assert "'drop_features' is for requests of the kind ['takedown']" in err
    assert run('work', '--now')[0] == 0
    code, out, _ = run('rollback', '--who', 'kim', '--reason', 'it is worse')
    assert code == 0
    assert "'work' completes the rollback: job " in out
    job = json.loads(run('status', '--json')[1])['rollback']
    assert f"a rollback waits for 'work': job {job}" in run('status')[1]
    out = run('plan')[1].splitlines()
    assert out[0] == 'a rollback is to be completed'
    assert out[1] == 'requests: 1'
    code, out, _ = run('work', '--json')
    assert json.loads(out)['jobs'][0]['id'] == job
    assert json.loads(out)['status']['rollback'] is None


@pytest.mark.parametrize('command', ['status', 'filter'])
def test_whoever_reads_may_stop(shop, monkeypatch, capsys, command):
    Path('new.csv').write_text('user,item\nuser003@shop.org,sku-1\n')
    args = [command, '--workspace', 'ws'] + ['new.csv'] * (command == 'filter')
    read, write = os.pipe()
    os.close(read)  # As 'head' does.
    with os.fdopen(write, 'w') as stdout:
        monkeypatch.setattr(sys, 'stdout', stdout)
        code = main(args)
        # What the interpreter does at its end.
        stdout.flush()
    monkeypatch.undo()
    error = capsys.readouterr().err
    if command == 'status':
        assert (code, error) == (0, '')
    else:  # Not all of the table has come through.
        assert (code, error) == (1, 'tgu: The output was not read to its end.\n')
