r"""Any order of what may happen to a workspace, against a small model of it."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

pytest.importorskip('hypothesis')

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from torch_geometric_unlearn.data import from_frame, to_frame
from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.data.schema import EDGE_TYPE, SPLITS, held_out
from torch_geometric_unlearn.unlearn import RowReset
from torch_geometric_unlearn.workspace import Workspace, gates, upkeep, worker
from torch_geometric_unlearn.workspace.keys import keyed
from torch_geometric_unlearn.workspace.kinds import KINDS
from torch_geometric_unlearn.workspace.ledger import Ledger

NUM = int(os.environ.get('TGU_STEPS', '6'))  # More by the environment.
ENDS = ('completed', 'rejected', 'cancelled')


class Killed(BaseException):
    r"""Ends everything."""


numbers = st.integers(0, 11)


class Shop(RuleBasedStateMachine):
    r"""What was asked, by whom, and what may be served."""

    make = clock = open = shop = data = None
    failing, current, is_worse = (), '', False

    @initialize()
    def start(self):
        self.folder = Path(mkdtemp())
        self.clock.now = 1e9
        self.ws = self.make(self.folder / 'shop', method='RowReset', method_args={})
        self.asked = {}  # Level and raw ids by client id.
        self.ended = set()  # Taken back or rejected.
        self.lifted = set()
        self.dropped = set()  # Asked for the features as well.
        self.watermark, self.names = 0, 0

    def teardown(self):
        if hasattr(self, 'ws'):
            self.ws.ledger.close()
            shutil.rmtree(self.folder)

    def raw(self, level, number):
        if level == 'pair':  # Some are those of named users and items.
            return self.shop.pair(self.data, number)
        return (self.shop.user if level == 'user' else self.shop.item)(number)

    # What may happen ------------------------------------------------------------------

    @rule(
        kind=st.sampled_from(sorted(KINDS)),
        number=numbers,
        again=st.booleans(),
        drops=st.booleans(),
    )
    def submit(self, kind, number, again, drops):
        level = {'takedown': 'item', 'correction': 'pair'}.get(kind, 'user')
        raw, drops = self.raw(level, number), drops and kind == 'takedown'
        if drops and raw in {x for _, x in self.asked.values()}:
            # It may have been taken down without them before.
            with suppress(ValueError):
                self._submit(kind, level, raw, again, drop_features=True)
        else:
            self._submit(kind, level, raw, again, drop_features=drops)

    @rule(number=st.integers(0, 3))
    def submit_what_is_unknown(self, number):
        self._submit('erasure', 'user', f'nobody{number}@shop.org', False)

    def _submit(self, kind, level, raw, again, **more):
        name = f'T-{self.names}'
        self.names += 1
        for _ in range(1 + again):
            info = self.ws.submit(
                kind, **{f'{level}s': [raw]}, client_id=name, verified_by='crm', **more
            )
        assert info.client_id == name
        self.asked[name] = level, raw
        if more.get('drop_features'):
            self.dropped.add(name)
        self.lifted.discard((level, raw))

    @rule(fails=st.sampled_from(['', 'first', 'all']))
    def work(self, fails):
        failing = {'': (), 'first': ('RowReset',), 'all': ('RowReset', 'Retrain')}
        type(self).failing = failing[fails]
        before = self.ws.status()['version']
        jobs = self.ws.work(now=True)
        type(self).failing = ()
        if fails == 'all':
            # A way back without old weights is a training, which has no gates.
            made = [job for job in jobs if job.version is not None]
            assert not any(job.gates for job in made)
            decided = self.ws.ledger.row("SELECT 1 FROM event WHERE kind = 'decided'")
            assert made or decided or self.ws.status()['version'] == before

    @rule(last=st.integers(1, 30))
    def die(self, last):
        left = [last]

        def step(function):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] <= 0:
                    raise Killed
                return function(*args, **kwargs)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in ('replace', 'unlink'):
                patch.setattr(os, name, step(getattr(os, name)))
            patch.setattr(Ledger, 'event', step(Ledger.event))
            with suppress(Killed):
                self.ws.work(now=True)
        self.ws.ledger.close()
        self.ws = self.open(self.ws.root)

    @rule(days=st.sampled_from([0.5, 5, 20]))
    def wait(self, days):
        self.clock.wait(days)

    @rule(to=st.sampled_from(['hold', 'release', 'cancel', 'reject']), k=numbers)
    def move(self, to, k):
        allowed = {
            'hold': ('queued', 'review'),
            'release': ('held', 'review'),
            'cancel': ('queued', 'review', 'held'),
            'reject': ('review',),
        }[to]
        infos = [info for info in self.ws.book.requests() if info.state in allowed]
        if infos:
            info = infos[k % len(infos)]
            getattr(self.ws, to)(info.id, 'kim', 'as it is')
            if to in ('cancel', 'reject'):
                self.ended.add(info.client_id)

    @rule(k=numbers)
    def lift(self, k):
        wanted = sorted(self.suppressed(), key=repr)
        if wanted:
            level, raw = wanted[k % len(wanted)]
            states = [
                info.state
                for info in self.ws.book.requests()
                if self.asked[info.client_id] == (level, raw)
            ]
            if 'completed' in states and set(states) <= set(ENDS):
                self.ws.lift(level, raw, 'kim', 'new consent')
                self.lifted.add((level, raw))

    @rule()
    def roll_back(self):
        before = self.ws.status()
        assert self.ws.rollback('kim', 'a test') == self.ws.status()['version']
        # Another version serves, or something is to make one.
        after = self.ws.status()
        assert after['rollback'] or after['version'] != before['version']

    @rule()
    def refresh(self):
        like = self.ws.load()[1]
        data = from_frame(self.ws.filter(to_frame(self.data)), split='split', like=like)
        self.ws.refresh(data, 'kim', 'a new month')

    @rule()
    def fail_softly(self):
        type(self).is_worse = True
        jobs = self.ws.work(now=True)
        type(self).is_worse = False
        for job in jobs:
            assert job.verdict != 'nothing' or not job.gates
            kept = [x for x in self.ws.attempts() if x.job == job.id]
            assert len(kept) == len(job.gates)
            assert not any(x.is_served for x in kept)

    @rule(k=numbers)
    def sign(self, k):
        attempts = self.ws.attempts()
        if attempts:
            x = attempts[k % len(attempts)]
            who = {'who': 'kim', 'why': 'as it is'}
            self.ws.sign(x.job, x.number, although=x.unpassed, **who)
            status = self.ws.status()
            assert x.is_served or status['version'] == x.version
            assert not any(y.job == x.job for y in self.ws.attempts())
            states = {self.ws.book.info(number).state for number in x.requests}
            assert states <= {'probation', 'completed'}

    @rule()
    def doctor(self):
        self.ws.doctor()
        assert self.ws.doctor() == []
        self.shop.check(self.ws)

    @precondition(lambda self: self.asked)
    @rule()
    def finish(self):
        r"""Everything comes to its end, and nothing tells who it was."""
        for info in self.ws.book.requests():
            if info.state in ('review', 'held'):
                self.ws.release(info.id, 'kim', 'go on')
        for _ in range(12):
            if {info.state for info in self.ws.book.requests()} <= set(ENDS):
                break
            self.ws.work(now=True)
            self.clock.wait(28)
        assert {info.state for info in self.ws.book.requests()} <= set(ENDS)
        self.clock.wait(8)
        self.ws.finalise()
        known = {x for level, x in self.suppressed() if level != 'pair'}
        assert not known or self.shop.places(self.ws.root, *known) == []
        assert self.ws.ledger.row('SELECT 1 FROM target WHERE raw IS NOT NULL') is None
        self.shop.check(self.ws)

    # What must hold -------------------------------------------------------------------

    def suppressed(self):
        r"""What was asked and neither taken back nor lifted, by the small model."""
        asked = {v for k, v in self.asked.items() if k not in self.ended}
        return asked - self.lifted

    @invariant()
    def nothing_comes_back(self):
        if not hasattr(self, 'ws'):
            return
        ws, wanted = self.ws, self.suppressed()
        found = ws.book.suppressed()
        assert {d for digests in found.values() for d in digests} == {
            keyed(ws.key, level, raw) for level, raw in wanted
        }
        model, served = ws.load()
        users, items = served['user'].raw_id, served['item'].raw_id
        parts = [served[EDGE_TYPE].edge_index]
        parts += [held_out(served, split) for split in SPLITS]
        pairs = {(users[u], items[i]) for u, i in torch.cat(parts, 1).t().tolist()}
        lists, _ = model.recommend(model.build_graph(served), torch.arange(20), k=10)
        for level, raw in wanted:
            if level == 'user':
                assert raw not in users
            elif level == 'pair':
                assert raw not in pairs
            else:
                assert not any(i == raw for _, i in pairs)
                place = int(raw[-2:])
                assert is_erased(items[place]) or items[place] == raw
                assert not (lists == place).any()

    @invariant()
    def features_stay_away(self):
        if not hasattr(self, 'ws'):
            return
        _, served = self.ws.load()
        for name in self.dropped - self.ended:
            level, raw = self.asked[name]
            if (level, raw) not in self.lifted:
                assert not served['item'].x_text[int(raw[-2:])].any()

    @invariant()
    def the_watermark_never_falls(self):
        if hasattr(self, 'ws'):
            watermark = self.ws.status()['watermark']
            assert watermark >= self.watermark
            self.watermark = watermark

    @invariant()
    def nobody_is_lost(self):
        if hasattr(self, 'ws'):
            self.ws.ledger.check_chain()
            infos = {info.client_id: info for info in self.ws.book.requests()}
            assert set(infos) == set(self.asked)
            for name in self.ended:
                assert infos[name].state in ('cancelled', 'rejected')


def test_any_order(make, clock, shop, data, quick, monkeypatch):
    r"""With methods that draw rows anew and gates that see what is hard only."""
    def check(marked, after, files, ids):
        gate = real(marked, after, files, ids)
        failing = Bound.current in Bound.failing
        return gates.Gate('data', faults=gate.faults + ['planted'] * failing)

    def make_unlearner(ws, name, job):
        Bound.current = name
        return RowReset(seed=1 if name == 'RowReset' else len(job))

    def good(name):
        figures = {'low': 0.0, 'high': 0.0, 'to_full': 0.0, 'num_pairs': 99.0}
        return lambda *_: gates.Gate(name, figures)

    def utility(*_):
        figures = {'low': -0.3, 'high': -0.2} if Bound.is_worse else {}
        return gates.Gate('utility', good('utility')().figures | figures)

    real = gates.check_data
    monkeypatch.setattr(gates, 'check_data', check)
    monkeypatch.setattr(gates, 'utility', utility)
    monkeypatch.setattr(gates, 'forget', good('forget'))
    monkeypatch.setattr(gates, 'attack', lambda *_: gates.Gate(
        'membership', {'low': 0.5, 'high': 0.5, 'num_pairs': 49.0}))  # fmt: skip
    monkeypatch.setattr(worker, 'make_unlearner', make_unlearner)
    monkeypatch.setattr(upkeep, 'fit', lambda *_, **__: None)

    class Bound(Shop):
        pass

    Bound.make, Bound.clock, Bound.shop = staticmethod(make), clock, shop
    Bound.open = staticmethod(lambda root: Workspace(root, shop.build, clock))
    Bound.data = data
    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=NUM,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
