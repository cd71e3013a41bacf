import json
import os
import shutil
from contextlib import suppress

import pytest
import torch

from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import RowReset
from torch_geometric_unlearn.workspace import (
    Workspace,
    gates,
    verify,
    worker,
)
from torch_geometric_unlearn.workspace.gates import Gate

ALTHOUGH = ['utility']


class Killed(BaseException):
    r"""Ends everything."""


@pytest.fixture(autouse=True)
def _planted(monkeypatch, quick):
    r"""A cheap method that fails the gate on utility, and a retraining that fails a
    hard one; the other soft gates are passed.
    """

    def soft(name, **figures):
        figures = {'low': 0.0, 'high': 0.0, 'to_full': 0.0, 'num_pairs': 99.0} | figures
        return lambda *_: Gate(name, figures)

    monkeypatch.setattr(gates, 'utility', soft('utility', low=-0.3, high=-0.2))
    monkeypatch.setattr(gates, 'forget', soft('forget'))
    monkeypatch.setattr(gates, 'attack', soft('membership', low=0.5, high=0.5))
    made, check = [], gates.check_data

    def make(ws, name, job):
        made.append(name)
        return RowReset(seed=1)

    def check_data(*args):
        faults = check(*args).faults + ['planted'] * (made[-1] == 'Retrain')
        return Gate('data', faults=faults)

    monkeypatch.setattr(worker, 'make_unlearner', make)
    monkeypatch.setattr(gates, 'check_data', check_data)


@pytest.fixture
def failed(ws, ask, shop):
    r"""A workspace with a job for two requests that no method has served."""
    for i in (3, 4):
        ask(ws, users=[shop.user(i)])
    [job] = ws.work(now=True)
    assert job.verdict == 'fail'
    return ws, job


def decisions(ws):
    sql = 'SELECT request, who, decision, reason FROM review ORDER BY id'
    return [tuple(row) for row in ws.ledger.rows(sql)]


def test_what_failed_is_kept_until_a_person_decides(failed, shop):
    ws, job = failed
    [attempt] = ws.attempts()  # That of the hard gate is not among them.
    assert (attempt.job, attempt.number) == (job.id, 0)
    assert attempt.method == 'PartialRetrain'
    assert (attempt.unpassed, attempt.requests) == (ALTHOUGH, [1, 2])
    assert attempt.gates == job.gates['0 PartialRetrain']
    assert not attempt.is_served
    assert attempt.report.is_file()
    assert not shop.places(attempt.report.parent, shop.user(3), shop.user(4))
    assert ws.versions.store.model_path(attempt.version).exists()
    assert ws.doctor() == []
    assert ws.work(now=True) == []
    assert ws.attempts() == [attempt]
    assert {info.state for info in ws.book.requests()} == {'review'}
    assert attempt.version != ws.status()['version']
    shop.check(ws)


def test_a_signature_serves_it(failed, shop, clock):
    ws, job = failed
    [attempt] = ws.attempts()
    before = ws.status()
    signed = ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='a small shop')
    assert (signed.verdict, signed.version) == ('signed', attempt.version)
    after = ws.status()
    assert after['version'] == attempt.version
    assert after['watermark'] == before['watermark'] + 2
    assert after['requests'] == {'probation': 2}
    assert decisions(ws) == [(n, 'dpo', 'signed', 'a small shop') for n in (1, 2)]
    alias = ws.ledger.row('SELECT who, why FROM alias_event ORDER BY id DESC LIMIT 1')
    assert tuple(alias) == ('dpo', 'a small shop')
    assert ws.attempts() == []
    assert list((ws.root / 'attempts').iterdir()) == []
    assert shop.user(3) not in ws.load()[1]['user'].raw_id

    # The bundle names whom, and verify finds that it follows.
    found = verify(ws.evidence(job.id))
    assert found['verdict'] == 'signed'
    assert found['gates']['utility'] == 'fail'
    assert found['signed_for'] == [
        {'who': 'dpo', 'why': 'a small shop', 'although': ALTHOUGH, 'has_role': False}
    ]
    page = (ws.root / 'site' / 'index.html').read_text()
    assert 'a small shop' in page
    assert 'no roles are set' in page
    assert ws.doctor() == []
    # It ends as others do.
    clock.wait(8)
    ws.work()
    assert {info.state for info in ws.book.requests()} == {'completed'}
    assert shop.places(ws.root, shop.user(3), shop.user(4)) == []
    assert verify(ws.root / 'evidence' / job.id)['verdict'] == 'signed'
    shop.check(ws)


def test_a_signature_names_all_gates(failed):
    ws, job = failed
    before = ws.status()
    for although in ([], ['forget'], ['utility', 'forget'], 'utility'):
        with pytest.raises(ValueError, match=r"did not pass, \['utility'\]"):
            ws.sign(job.id, 0, although=although, who='dpo', why='it is fine')
    for who, why, match in (
        ('', 'it is fine', "'who' must be a text"),
        ('dpo', ' ', "'why' must be a text"),
        ('dpo', 'as user003@shop.org asked', "'why' must not name"),
    ):
        with pytest.raises(ValueError, match=match):
            ws.sign(job.id, 0, although=ALTHOUGH, who=who, why=why)
    assert ws.status() == before
    assert decisions(ws) == []
    assert len(ws.attempts()) == 1


def test_nobody_overrules_a_hard_gate(failed):
    ws, job = failed
    with pytest.raises(ValueError, match="failed the gate 'data', which nobody can"):
        ws.sign(job.id, 1, although=['data'], who='dpo', why='it is fine')
    with pytest.raises(ValueError, match='no attempt 2 of a job'):
        ws.sign(job.id, 2, although=[], who='dpo', why='it is fine')
    with pytest.raises(ValueError, match="no attempt 0 of a job 'x'"):
        ws.sign('x', 0, although=[], who='dpo', why='it is fine')


@pytest.mark.parametrize('way', ['release', 'reject', 'cancel', 'hold'])
def test_a_decision_on_one_request_ends_it(failed, shop, way):
    ws, job = failed
    [attempt] = ws.attempts()
    getattr(ws, way)(2, 'kim', 'another way')
    assert ws.attempts() == []
    with pytest.raises(ValueError, match='no attempt 0'):
        ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='it is fine')
    assert not ws.versions.store.model_path(attempt.version).exists()
    assert not attempt.report.parent.exists()
    [event] = ws.ledger.rows("SELECT body FROM event WHERE kind = 'attempt_destroyed'")
    assert json.loads(event['body']) == {'attempt': 0, 'job': job.id}
    assert ws.doctor() == []
    shop.check(ws)


def test_another_version_in_service_ends_it(failed, ask, shop, monkeypatch):
    r"""It would bring back what was erased since."""
    ws, job = failed
    [attempt] = ws.attempts()
    ask(ws, users=[shop.user(5)])
    good = {'low': 0.0, 'high': 0.0, 'to_full': 0.0, 'num_pairs': 99.0}
    monkeypatch.setattr(gates, 'utility', lambda *_: Gate('utility', good))
    assert ws.work(now=True)[0].verdict == 'pass'
    assert ws.attempts() == []
    assert not ws.versions.store.model_path(attempt.version).exists()
    with pytest.raises(ValueError, match='no attempt 0'):
        ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='it is fine')
    assert {info.state for info in ws.book.requests()} == {'review', 'probation'}
    shop.check(ws)


def test_trying_again(failed, shop, monkeypatch):
    ws, job = failed
    for number in (1, 2):
        ws.release(number, 'kim', 'again')
    [again] = ws.work(now=True)
    assert (again.id, again.verdict) == (job.id, 'fail')
    assert len(ws.attempts()) == 1
    rows = ws.ledger.rows("SELECT body FROM event WHERE kind = 'review'")
    assert [json.loads(row['body'])['gates'] for row in rows] == [job.gates] * 2
    # What another run has found is not taken for this one.
    for number in (1, 2):
        ws.release(number, 'kim', 'again')
    good = {'low': 0.0, 'high': 0.0, 'to_full': 0.0, 'num_pairs': 99.0}
    monkeypatch.setattr(gates, 'utility', lambda *_: Gate('utility', good))
    [last] = ws.work(now=True)
    assert (last.id, last.verdict) == (job.id, 'pass')
    assert verify(ws.evidence(job.id))['verdict'] == 'pass'
    shop.check(ws)


def test_withdrawn_while_it_is_signed(failed, clock, shop, monkeypatch):
    r"""Nobody is erased who has withdrawn the request."""
    ws, job = failed
    other = Workspace(ws.root, shop.build, clock)
    before = ws.status()['version']

    def late(*args):
        other.cancel(2, 'kim', 'withdrawn')
        return original(*args)

    original = worker.mark
    monkeypatch.setattr(worker, 'mark', late)
    with pytest.raises(ValueError, match='no attempt 0'):
        ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='it is fine')
    assert ws.status()['version'] == before
    assert {info.state for info in ws.book.requests()} == {'review', 'cancelled'}
    ws.doctor()
    shop.check(ws)


def test_a_changed_file_is_not_served(failed):
    ws, job = failed
    [attempt] = ws.attempts()
    path = ws.versions.store.model_path(attempt.version)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match='is not what it was'):
        ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='it is fine')
    assert ws.status()['requests'] == {'review': 2}


def test_a_signature_survives_every_crash(failed, shop, clock, tmp_path, monkeypatch):
    ws, job = failed
    ws.ledger.close()
    call = {'although': ALTHOUGH, 'who': 'dpo', 'why': 'a small shop'}
    ends = []
    for last in range(1, 60, 3):
        root = tmp_path / str(last) / 'shop'
        shutil.copytree(ws.root, root)
        own, left, original = Workspace(root, shop.build, clock), [last], os.replace

        def replace(source, target, left=left, original=original):
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return original(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, 'replace', replace)
            with suppress(Killed):
                own.sign(job.id, 0, **call)
        own.ledger.close()
        own = Workspace(root, shop.build, clock)
        assert shop.user(3) not in own.load()[1]['user'].raw_id
        own.doctor()
        shop.check(own)
        if own.attempts():
            own.sign(job.id, 0, **call)
        assert own.doctor() == []
        assert len(own.ledger.rows("SELECT 1 FROM event WHERE kind = 'signed'")) == 1
        assert decisions(own) == [(n, 'dpo', 'signed', 'a small shop') for n in (1, 2)]
        assert verify(own.evidence(job.id))['verdict'] == 'signed'
        shop.check(own)
        ends.append(own.status()['version'])
        own.ledger.close()
        if left[0] > 0:
            break
    assert left[0] > 0
    assert len(ends) > 2
    assert len(set(ends)) == 1


# What could not be told ---------------------------------------------------------------


@pytest.fixture
def undecided(ws, ask, shop, monkeypatch):
    figures = {'low': 0.5, 'high': 0.5, 'num_pairs': 9.0}
    monkeypatch.setattr(gates, 'attack', lambda *_: Gate('membership', figures))
    good = {'low': 0.0, 'high': 0.0, 'to_full': 0.0, 'num_pairs': 99.0}
    monkeypatch.setattr(gates, 'utility', lambda *_: Gate('utility', good))
    ask(ws, users=[shop.user(3)])
    [job] = ws.work(now=True)
    assert job.verdict == 'inconclusive'
    return ws, job


def test_a_signature_ends_the_waiting(undecided, clock, shop):
    ws, job = undecided
    [attempt] = ws.attempts()
    assert attempt.is_served
    assert attempt.unpassed == ['membership']
    assert attempt.report.is_file()
    version = ws.status()['version']
    with pytest.raises(ValueError, match=r"did not pass, \['membership'\]"):
        ws.sign(job.id, 0, although=['utility'], who='dpo', why='too few')
    ws.sign(job.id, 0, although=['membership'], who='dpo', why='too few')
    assert ws.status()['version'] == version
    assert ws.attempts() == []
    assert decisions(ws) == [(1, 'dpo', 'signed', 'too few')]
    assert verify(ws.evidence(job.id))['verdict'] == 'signed'
    clock.wait(8)
    assert not ws.plan().decides
    ws.work()
    assert ws.book.info(1).state == 'completed'
    assert ws.status()['version'] == version
    assert verify(ws.evidence(job.id))['verdict'] == 'signed'


def test_a_rollback_ends_a_signature(undecided, ask, shop):
    ws, job = undecided
    ws.sign(job.id, 0, although=['membership'], who='dpo', why='too few')
    ask(ws, users=[shop.user(4)])
    ws.work(now=True)
    ws.rollback('ops', 'it is worse')
    rows = ws.ledger.rows('SELECT verdict FROM job')
    reopened = [row['verdict'] for row in rows].count('inconclusive')
    assert reopened
    # Other weights are served than those whose gates could be signed for.
    assert ws.attempts() == []
    for row in ws.ledger.rows("SELECT id FROM job WHERE state = 'done'"):
        assert verify(ws.evidence(row['id']))['verdict'] in ('inconclusive', 'signed')


def test_what_is_done_anew_can_be_signed_for(undecided):
    ws, job = undecided
    [attempt] = ws.attempts()
    for kind, body, found in (
        ('rolled_back', {'jobs': [job.id]}, []),
        ('started', {'job': 'another'}, []),
        ('started', {'job': job.id}, [attempt]),
    ):
        with ws.ledger.transaction():
            ws.ledger.event(ws.clock(), kind, **body)
        assert ws.attempts() == found


# Ways back ----------------------------------------------------------------------------


@pytest.fixture
def replayed(ws, ask, shop, monkeypatch):
    r"""A workspace whose rollback no method has completed."""
    with monkeypatch.context() as patch:
        good = {'low': 0.0, 'high': 0.0, 'to_full': 0.0, 'num_pairs': 99.0}
        patch.setattr(gates, 'utility', lambda *_: Gate('utility', good))
        ask(ws, users=[shop.user(3)])
        [first] = ws.work(now=True)
        assert first.verdict == 'pass'
    contained = ws.rollback('ops', 'it is worse')
    original = worker.make_unlearner
    monkeypatch.setattr(
        worker, 'make_unlearner', lambda *args: original(*args) and RowReset(seed=2)
    )
    [job] = ws.work()
    assert (job.verdict, job.requests) == ('fail', [1])
    assert ws.status()['version'] == contained
    return ws, first, job


def test_a_way_back_is_signed_for(replayed, data, model, shop, clock):
    ws, first, job = replayed
    assert ws.status()['requests'] == {'probation': 1}
    [attempt] = ws.attempts()
    assert (attempt.job, attempt.requests) == (job.id, [1])
    assert attempt.unpassed == ALTHOUGH
    assert ws.work() == []
    assert ws.attempts() == [attempt]
    assert ws.doctor() == []
    shop.check(ws)
    ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='a small shop')
    status = ws.status()
    assert (status['version'], status['watermark']) == (attempt.version, 1)
    # It is what the old weights give without the request.
    alone = RowReset(seed=2)(model, ForgetUsers([3])(data)).model.state_dict()
    ours = ws.versions.get_model(attempt.version).state_dict()
    assert all(torch.equal(ours[name], x) for name, x in alone.items())
    assert ws.attempts() == []
    assert ws.book.info(1).job == job.id
    assert decisions(ws) == [(1, 'dpo', 'signed', 'a small shop')]
    assert verify(ws.evidence(first.id))['verdict'] == 'inconclusive'
    assert verify(ws.evidence(job.id))['verdict'] == 'signed'
    assert ws.doctor() == []
    shop.check(ws)
    clock.wait(8)
    ws.work()
    assert ws.book.info(1).state == 'completed'
    assert shop.places(ws.root, shop.user(3), shop.row(model, 3)) == []
    for name in (first.id, job.id):
        verify(ws.root / 'evidence' / name)
    shop.check(ws)


def test_another_way_back_ends_it(replayed, shop):
    ws, _, job = replayed
    [attempt] = ws.attempts()
    ws.rollback('ops', 'it is not better')
    assert ws.attempts() == []
    with pytest.raises(ValueError, match='no attempt 0'):
        ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='it is fine')
    assert not ws.versions.store.model_path(attempt.version).exists()
    assert ws.doctor() == []
    shop.check(ws)


def test_nothing_is_signed_for_while_a_rollback_waits(failed, shop):
    r"""The version that it came from is taken out of service, although it serves on."""
    ws, job = failed
    [attempt] = ws.attempts()
    service = ws.status()['version']
    assert ws.rollback('ops', 'it is worse') == service
    assert ws.attempts() == []
    with pytest.raises(ValueError, match='no attempt 0'):
        ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='it is fine')
    assert not ws.versions.store.model_path(attempt.version).exists()
    assert {info.state for info in ws.book.requests()} == {'review'}
    shop.check(ws)


def test_days_until_a_signature_are_no_work(failed, ask, shop, clock):
    ws, job = failed
    clock.wait(6)
    ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='a small shop')
    ask(ws, users=[shop.user(5)], due_days=5)
    assert ws.plan().reason == 'nothing is due'


def test_a_clock_that_is_set_back(failed, clock):
    ws, job = failed
    clock.wait(-2)
    with pytest.raises(ValueError, match='set back'):
        ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='a small shop')
    ws.accept_clock('kim', 'it had run ahead')
    ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='a small shop')


# Roles --------------------------------------------------------------------------------


def test_roles(make, ask, shop, tmp_path):
    roles = {'review': ['kim'], 'sign': ['dpo', 'eve']}
    ws = make(tmp_path / 'shop', roles=roles)
    for i in (3, 4):
        ask(ws, users=[shop.user(i)])
    for call in (ws.hold, ws.release, ws.cancel, ws.reject):
        with pytest.raises(PermissionError, match=r"'review', which \['kim'\] have"):
            call(1, 'dpo', 'a reason')
    with pytest.raises(PermissionError, match="'review'"):
        ws.lift('user', shop.user(3), 'dpo', 'a reason')
    with pytest.raises(PermissionError, match="'review'"):
        ws.accept_clock('dpo', 'a reason')
    ws.accept_clock('kim', 'a reason')
    for call in (ws.rollback, lambda who, why: ws.refresh(None, who, why)):
        with pytest.raises(PermissionError, match="'rollback', which nobody has"):
            call('kim', 'a reason')
    ws.hold(1, 'kim', 'a lawsuit')
    ws.release(1, 'kim', 'it is over')
    [job] = ws.work(now=True)
    with pytest.raises(PermissionError, match=r"'sign', .*\(got 'kim'\)"):
        ws.sign(job.id, 0, although=ALTHOUGH, who='kim', why='it is fine')
    assert ws.status()['requests'] == {'review': 2}
    ws.sign(job.id, 0, although=ALTHOUGH, who='dpo', why='it is fine')
    [entry] = verify(ws.evidence(job.id))['signed_for']
    assert entry['has_role']
    lineage = ws.root / 'evidence' / job.id / 'lineage.json'
    assert 'roles' not in json.loads(lineage.read_text())['settings']


@pytest.mark.parametrize(
    ('roles', 'error', 'match'),
    [
        ({'boss': ['kim']}, ValueError, r"must be some of .*\['boss'\]"),
        ({'sign': 'kim'}, TypeError, "'sign' must be a list of names"),
        ({'sign': ['']}, TypeError, "'sign' must be a list of names"),
        (['kim'], TypeError, "'roles' must be a dict"),
    ],
)
def test_wrong_roles(make, tmp_path, roles, error, match):
    with pytest.raises(error, match=match):
        make(tmp_path / 'shop', roles=roles)
