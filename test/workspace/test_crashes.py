import builtins
import itertools
import json
import os
import random
import shutil
import signal
from collections import Counter
from contextlib import contextmanager, suppress

import pytest
from torch_geometric.testing import onlyLinux

from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.utils import files
from torch_geometric_unlearn.workspace import Workspace, gates, verify, worker
from torch_geometric_unlearn.workspace.ledger import Ledger

#: With 200 or more every write is killed, by a signal in a process of its own, and
#: 'pytest -s' shows a table of what was found.
NUM_KILLS = int(os.environ.get('TGU_KILLS', '4'))
IS_REAL = NUM_KILLS >= 200 and hasattr(os, 'fork')
WRITES = ('replace', 'rename', 'link', 'unlink', 'makedirs', 'mkdir', 'rmdir')


class Killed(BaseException):
    r"""Ends everything: what would clean up fails with it as well."""


class Machine:
    r"""Lets every write after the first few fail, or ends the process at it."""

    def __init__(self, patch, last, is_real=False):
        self.last, self.num, self.is_real = last, 0, is_real
        for name in WRITES:
            patch.setattr(os, name, self.step(getattr(os, name)))
        patch.setattr(files, 'open', self.open, raising=False)
        patch.setattr(Ledger, 'transaction', self.commits(Ledger.transaction))

    def count(self):
        self.num += 1
        if self.num >= self.last:
            if self.is_real:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed

    def step(self, function):
        def call(*args, **kwargs):
            self.count()
            return function(*args, **kwargs)

        return call

    def open(self, path, mode='r'):
        self.count()
        return builtins.open(path, mode)

    def commits(machine, original):
        @contextmanager
        def transaction(self):
            is_outer = not self.db.in_transaction
            with original(self):
                yield
                if is_outer:
                    machine.count()  # Everything is written but the end.

        return transaction


def stop_at(last, act, monkeypatch):
    r"""Does something that ends at a write, and returns how many there were, or nothing
    if it came to that one.
    """
    if not IS_REAL:
        with monkeypatch.context() as patch:
            machine = Machine(patch, last)
            with suppress(Killed):
                act()
                return machine.num
        return None
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            machine = Machine(pytest.MonkeyPatch(), last, is_real=True)
            act()
            os.write(write, str(machine.num).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as file:
        text = file.read()
    ended = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    assert ended or os.WIFSIGNALED(status), status
    return int(text) if ended else None


def num_rolled_back(ws):
    return len(ws.ledger.rows("SELECT 1 FROM event WHERE kind = 'rolled_back'"))


OPS = {
    'submit': lambda ws, shop: ws.submit(
        'erasure', users=[shop.user(3)], items=[shop.item(5)], client_id='T-1',
        verified_by='crm'),
    'cancel': lambda ws, shop: ws.book.info(2).state == 'cancelled' or ws.cancel(
        2, 'eve', 'withdrawn'),
    'work': lambda ws, shop: ws.work(now=True),
    'rollback': lambda ws, shop: num_rolled_back(ws) or ws.rollback('eve', 'a test'),
    'replay': lambda ws, shop: ws.plan().replays and ws.work(),
    'takedown': lambda ws, shop: ws.work(now=True),
    'decide': lambda ws, shop: ws.plan().decides and ws.work(),
    'return': lambda ws, shop: num_rolled_back(ws) > 1 or ws.rollback('eve', 'a test'),
    'finalise': lambda ws, shop: ws.work(),
}  # fmt: skip
#: Those of which the default run tries every fourth write, of others few.
CLOSELY = ('submit', 'cancel', 'rollback', 'return')


def prepare(name, ws, ask, shop, clock):
    r"""What comes before an operation, without a crash."""
    if name == 'cancel':
        ask(ws, users=[shop.user(9)], client_id='T-2')
    if name == 'takedown':
        ask(ws, 'takedown', items=[shop.item(7)], drop_features=True, client_id='T-3')
    if name == 'decide':
        clock.wait(28)
    if name == 'finalise':
        ws.work()  # The training that had settled it was taken out of service.
        clock.wait(8)


REPEATED = ('started', 'requeued', 'refused')


def summary(ws):
    events = Counter(row['kind'] for row in ws.ledger.rows('SELECT kind FROM event'))
    jobs = ws.ledger.rows('SELECT state, verdict, pairs IS NULL AS p FROM job')
    folders = Counter(p.parent.name for p in ws.root.rglob('*') if p.is_file())
    row = ws.ledger.row('SELECT COUNT(*) AS n FROM alias_event')
    versions = ws.ledger.rows('SELECT state, watermark, is_full FROM version')
    return (
        ws.book.requests(),
        {k: v for k, v in events.items() if k not in REPEATED},
        sorted(map(tuple, jobs)),
        {k: v for k, v in folders.items() if k != 'jobs'},
        row['n'],
        sorted(map(tuple, versions)),
        ws.status()['watermark'],
    )


@pytest.fixture
def story(cheap, quick, ask, shop, clock, tmp_path):
    r"""A workspace before every operation, and what it is like afterwards."""
    out, ws = {}, cheap
    for name, op in OPS.items():
        prepare(name, ws, ask, shop, clock)
        ws.ledger.close()
        before = shutil.copytree(ws.root, tmp_path / name)
        ws = Workspace(ws.root, shop.build, clock)
        op(ws, shop)
        ws.doctor()
        out[name] = before, clock.now, summary(ws)
    assert ws.book.info(1).state == 'completed'
    return out


def test_crash_at_every_write(story, shop, clock, tmp_path, monkeypatch):
    table = {}
    for name, op in OPS.items():
        before, clock.now, expected = story[name]
        first = shutil.copytree(before, tmp_path / 'first' / name / 'shop')
        ws = Workspace(first, shop.build, clock)
        ws.doctor()
        at_first = summary(ws)
        ws.ledger.close()
        # All of them by the environment.
        step = 1 if IS_REAL else 4 if name in CLOSELY else 24
        found = Counter()
        for last in itertools.count(1, step):
            root = tmp_path / 'crash' / 'shop'
            shutil.rmtree(root.parent, ignore_errors=True)
            shutil.copytree(before, root)

            def act(op=op, root=root):
                ws = Workspace(root, shop.build, clock)
                try:
                    op(ws, shop)
                finally:
                    ws.ledger.close()

            num = stop_at(last, act, monkeypatch)
            ws = Workspace(root, shop.build, clock)
            # Whatever waits is contained before anything is put in order.
            if name != 'submit':
                assert is_erased(ws.load()[1]['user'].raw_id[3])
            if num is None and IS_REAL:
                ws.doctor()
                now = summary(ws)
                found['after' if now == expected else
                      'before' if now == at_first else 'between'] += 1  # fmt: skip
            op(ws, shop)
            ws.doctor()
            assert summary(ws) == expected, (name, last)
            assert ws.doctor() == []
            shop.check(ws)
            assert promoted_once(ws)
            ws.ledger.close()
            if num is not None:
                table[name] = num, found
                break
    for job in (ws.root / 'evidence').iterdir():
        assert verify(job)['verdict'] in ('pass', 'inconclusive')
    assert shop.places(ws.root, shop.user(3), shop.item(5), shop.item(7)) == []
    assert all(num >= 3 for num, _ in table.values()), table
    assert table['work'][0] > 20
    if IS_REAL:
        print_table(table)


def promoted_once(ws):
    rows = ws.ledger.rows("SELECT body FROM event WHERE kind = 'promoted'")
    jobs = [json.loads(row['body'])['job'] for row in rows]
    return len(jobs) == len(set(jobs))


def print_table(table):
    names = ('operation', 'writes', 'kills', 'as before', 'between', 'as after')
    print('\n' + '  '.join(f'{name:>9}' for name in names))
    for name, (num, found) in table.items():
        row = name, num, sum(found.values()), *(
            found[key] for key in ('before', 'between', 'after'))  # fmt: skip
        print('  '.join(f'{value:>9}' for value in row))


def test_creation_is_whole_or_absent(data, model, shop, tmp_path, monkeypatch):
    source = {'data': 'shop.py:load_data', 'model': 'shop.py:build_model'}
    args = {'data': data, 'model': model, 'build_model': shop.build, 'source': source}
    found = Counter()
    for last in itertools.count(1):
        root = tmp_path / str(last) / 'shop'
        root.parent.mkdir()
        if last % 2:
            root.mkdir()  # An empty folder is taken as well.

        def act(root=root):
            Workspace.create(root, **args).ledger.close()

        num = stop_at(last, act, monkeypatch)
        is_made = (root / 'workspace.json').exists()
        found['after' if is_made else 'before'] += num is None
        if is_made:
            assert Workspace(root, shop.build).load()[1]['user'].num_nodes == 200
        else:
            assert not root.exists() or not list(root.iterdir())
            with pytest.raises(FileNotFoundError, match='no workspace'):
                Workspace(root, shop.build)
            Workspace.create(root, **args).ledger.close()
        # Nothing is left beside it, and what is made is in order.
        assert sorted(p.name for p in root.parent.iterdir()) == ['shop', 'shop.key']
        ws = Workspace(root, shop.build)
        assert json.loads((root / 'source.json').read_text()) == source
        assert ws.doctor() == []
        shop.check(ws)
        ws.ledger.close()
        if num is not None:
            break
    assert num > 15
    assert found['before'] > 10
    if IS_REAL:
        print_table({'create': (num, found)})


CODE = '''
import os, random, signal, threading
import torch
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.workspace import Workspace
torch.set_num_threads(1)
root, delay, acknowledged = {root!r}, {delay}, {acknowledged!r}
def build(data):
    return LightGCN.from_data(data, hidden_channels=8)
now = [1e9]
ws = Workspace(root, build, lambda: now[0])
now[0] = ws.ledger.row('SELECT MAX(at) AS at FROM event')['at'] + 1
threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
start = len(ws.book.requests())
for i in range(start, start + 50):
    name = f'T-{{i}}'
    ws.submit('erasure', users=[f'user{{i:03}}@shop.org'], client_id=name,
              verified_by='crm')
    with open(acknowledged, 'a') as file:
        file.write(name + chr(10))
    ws.work(now=True)
    now[0] += 86400.0 * 5
'''


@onlyLinux
def test_killed_at_any_moment(make, shop, clock, tmp_path, run_code):
    rng = random.Random(0)
    root, acknowledged = tmp_path / 'shop', tmp_path / 'acknowledged'
    settings = {'method': 'RowReset', 'method_args': {}, 'surge_share': 1.0}
    make(root, **settings).ledger.close()
    watermark = 0
    for seed in range(NUM_KILLS):
        if seed % 20 == 19:  # Before everyone is erased.
            shutil.rmtree(root)
            acknowledged.unlink(missing_ok=True)
            make(root, **settings).ledger.close()
            watermark = 0
        code = CODE.format(root=str(root), delay=rng.uniform(0, 0.8),
                           acknowledged=str(acknowledged))  # fmt: skip
        assert run_code(code) == -signal.SIGKILL
        ws = Workspace(root, shop.build, clock)
        known = {info.client_id for info in ws.book.requests()}
        told = acknowledged.read_text().split() if acknowledged.exists() else []
        assert set(told) <= known
        _, served = ws.load()
        assert all(is_erased(served['user'].raw_id[int(n[2:])]) for n in known)
        assert ws.status()['watermark'] >= watermark
        ws.doctor()
        assert ws.doctor() == []
        shop.check(ws)
        for row in ws.ledger.rows("SELECT id FROM job WHERE state = 'done'"):
            sql = "SELECT 1 FROM event WHERE kind = 'promoted' AND body LIKE ?"
            assert len(ws.ledger.rows(sql, f'%{row["id"]}%')) == 1
        watermark = ws.status()['watermark']
        ws.ledger.close()


def test_deaths_count_although_others_join(cheap, ask, shop, monkeypatch):
    def die(*_):
        raise Killed

    for number in range(3):
        ask(cheap, users=[shop.user(number)], client_id=f'T-{number}')
        with monkeypatch.context() as patch:
            patch.setattr(worker, 'make_unlearner', die)
            with pytest.raises(Killed):
                cheap.work(now=True)
    rows = cheap.ledger.rows('SELECT id, requests FROM job ORDER BY created_at, rowid')
    assert len({row['id'] for row in rows}) == 3  # Another job each time.
    ask(cheap, users=[shop.user(3)], client_id='T-3')
    [job] = cheap.work(now=True)
    assert job.requests == [2, 3, 4]  # These have died with it less often.
    first = cheap.book.info(1)
    assert (first.state, first.outcome) == ('review', 'a worker died three times')
    assert is_erased(cheap.load()[1]['user'].raw_id[0])
    rows = cheap.ledger.rows('SELECT id, attempts FROM request')
    assert {row['attempts'] for row in rows} == {0}  # All have come to an end.
    cheap.release(1, 'kim', 'the machine was broken')
    assert cheap.work(now=True)[0].requests == [1]
    shop.check(cheap)


def test_dead_retraining_goes_on(cheap, quick, ask, shop, clock, tmp_path, monkeypatch):
    wide = {'service': 0.9, 'full': 0.9, 'forget': 0.9, 'membership': 0.49}
    monkeypatch.setattr(gates, 'LIMITS', wide)  # It trains for one epoch only.
    ask(cheap, 'cleanup', users=[shop.user(3)])
    cheap.ledger.close()
    versions, resumed = [], 0
    for last in (None, *range(2, 100, 4)):
        root = tmp_path / str(last) / 'shop'
        shutil.copytree(cheap.root, root)
        ws = Workspace(root, shop.build, clock)
        ended = False
        if last is not None:
            with monkeypatch.context() as patch, suppress(Killed):
                Machine(patch, last)
                ws.work(now=True)
                ended = True
            resumed += len(list((root / 'jobs').glob('*.ck')))
            ws.doctor()
            shop.check(ws)
        ws.work(now=True)
        versions.append(ws.status()['version'])
        assert ws.book.info(1).state == 'probation'
        assert list((root / 'jobs').glob('*')) == []
        assert ws.doctor() == []
        shop.check(ws)
        if ended:
            break
    assert ended
    assert resumed > 1
    assert len(set(versions)) == 1  # The same model, however often it died.
