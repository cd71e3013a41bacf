import builtins
import itertools
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
from torch_geometric_unlearn.workspace import Workspace, gates, verify
from torch_geometric_unlearn.workspace.ledger import Ledger

NUM_KILLS = int(os.environ.get('TGU_KILLS', '4'))
WRITES = ('replace', 'unlink', 'makedirs', 'rmdir')


class Killed(BaseException):
    r"""Ends everything: what would clean up fails with it as well."""


class Machine:
    r"""Lets every write after the first few fail."""

    def __init__(self, patch, last):
        self.last, self.num = last, 0
        for name in WRITES:
            patch.setattr(os, name, self.step(getattr(os, name)))
        patch.setattr(files, 'open', self.open, raising=False)
        patch.setattr(Ledger, 'transaction', self.commits(Ledger.transaction))

    def count(self):
        self.num += 1
        if self.num >= self.last:
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


OPS = {
    'submit': lambda ws, shop: ws.submit(
        'erasure', users=[shop.user(3)], items=[shop.item(5)], client_id='T-1',
        verified_by='crm'),
    'cancel': lambda ws, shop: ws.book.info(2).state == 'cancelled' or ws.cancel(
        2, 'eve', 'withdrawn'),
    'work': lambda ws, shop: ws.work(now=True),
    'rollback': lambda ws, shop: ws.ledger.row(
        "SELECT 1 FROM event WHERE kind = 'rolled_back'") or ws.rollback(
        'eve', 'a test'),
    'decide': lambda ws, shop: ws.ledger.row(
        "SELECT 1 FROM event WHERE kind = 'decided'") or ws.work(),
    'finalise': lambda ws, shop: ws.work(),
}  # fmt: skip


def summary(ws):
    events = Counter(row['kind'] for row in ws.ledger.rows('SELECT kind FROM event'))
    jobs = ws.ledger.rows('SELECT state, verdict, pairs IS NULL AS p FROM job')
    folders = Counter(p.parent.name for p in ws.root.rglob('*') if p.is_file())
    row = ws.ledger.row('SELECT COUNT(*) AS n FROM alias_event')
    versions = ws.ledger.rows('SELECT state, watermark, is_full FROM version')
    return (
        ws.book.requests(),
        {k: v for k, v in events.items() if k not in ('started', 'requeued')},
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
        if name == 'cancel':
            ask(ws, users=[shop.user(9)], client_id='T-2')
        clock.wait({'decide': 28, 'finalise': 8}.get(name, 0))
        ws.ledger.close()
        before = shutil.copytree(ws.root, tmp_path / name)
        ws = Workspace(ws.root, shop.build, clock)
        op(ws, shop)
        ws.doctor()
        out[name] = before, clock.now, summary(ws)
    assert ws.book.info(1).state == 'completed'
    return out


def test_crash_at_every_write(story, shop, clock, tmp_path, monkeypatch):
    steps = {}
    for name, op in OPS.items():
        before, clock.now, expected = story[name]
        # More of what differs least by the environment.
        is_all = name in ('submit', 'cancel', 'work') or NUM_KILLS >= 200
        for last in itertools.count(1, 1 if is_all else 3):
            root = tmp_path / 'crash' / 'shop'
            shutil.rmtree(root.parent, ignore_errors=True)
            shutil.copytree(before, root)
            ws, ended = Workspace(root, shop.build, clock), False
            with monkeypatch.context() as patch:
                machine = Machine(patch, last)
                try:
                    op(ws, shop)
                    ended = True
                except Killed:
                    pass
            ws.ledger.close()
            ws = Workspace(root, shop.build, clock)
            # Whatever waits is contained before anything is put in order.
            if name != 'submit':
                assert is_erased(ws.load()[1]['user'].raw_id[3])
            op(ws, shop)
            ws.doctor()
            assert summary(ws) == expected, (name, last)
            assert ws.doctor() == []
            shop.check(ws)
            ws.ledger.close()
            if ended:
                steps[name] = machine.num
                break
    job = next((ws.root / 'evidence').iterdir())
    assert verify(job)['verdict'] == 'pass'
    assert shop.places(ws.root, shop.user(3), shop.item(5)) == []
    assert all(steps[name] >= 3 for name in OPS), steps
    assert steps['work'] > 20


CODE = '''
import os, random, signal, threading
import torch
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.workspace import Workspace
torch.set_num_threads(1)
root, seed, delay, acknowledged = {root!r}, {seed}, {delay}, {acknowledged!r}
def build(data):
    return LightGCN.from_data(data, hidden_channels=8)
now = [1e9 + seed]
ws = Workspace(root, build, lambda: now[0])
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
        code = CODE.format(root=str(root), seed=seed, delay=rng.uniform(0, 0.8),
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
