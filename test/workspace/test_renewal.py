r"""What follows from the ledger is as new as the ledger."""

import json
import os
import sqlite3

import pytest

from torch_geometric_unlearn.workspace import Workspace

PAGE, METRICS, SERVING = 'site/index.html', 'metrics.prom', 'serving.json'


def heads(ws):
    r"""Which derived files name the last event of the chain."""
    head = ws.ledger.head
    names = (SERVING, PAGE, METRICS)
    return {name for name in names if head in (ws.root / name).read_text('utf-8')}


def test_all_that_changes_the_ledger_renews(cheap, quick, ask, shop, clock):
    ws, everything = cheap, {SERVING, PAGE, METRICS}
    steps = [
        lambda: ask(ws, users=[shop.user(3)], client_id='A'),
        lambda: ask(ws, users=[shop.user(4)], client_id='B'),
        lambda: ws.hold(1, 'kim', 'a lawsuit'),
        lambda: ws.release(1, 'kim', 'it is over'),
        lambda: ws.cancel(1, 'kim', 'withdrawn'),
        lambda: ask(ws, users=ws.versions.internal('user'), client_id='C'),
        lambda: ws.reject(3, 'kim', 'a mistake'),
        lambda: ask(ws, users=['nobody'], client_id='D'),
        lambda: ws.work(now=True),
        lambda: ws.lift('user', 'nobody', 'kim', 'new consent'),
        lambda: ws.rollback('kim', 'a test'),
        lambda: ws.work(),  # Completes it.
        lambda: ask(ws, 'takedown', items=[shop.item(5)], drop_features=True,
                    client_id='I'),
        lambda: ws.accept_clock('kim', 'it is right'),
        lambda: ws.submit_all([{'kind': 'erasure', 'users': [shop.user(k)],
                                'client_id': f'E-{k}', 'verified_by': 'crm'}
                               for k in (5, 6)]),
        lambda: ws.work(now=True),
        lambda: ws.rollback('kim', 'a test'),  # To older weights, contained.
        lambda: ws.refresh(ws.load()[1], 'kim', 'a new month'),
    ]  # fmt: skip
    head = ws.ledger.head
    for step in steps:
        step()
        assert ws.ledger.head != head
        head = ws.ledger.head
        assert heads(ws) == everything
        assert ws.doctor() == []
    page = (ws.root / PAGE).read_text('utf-8')
    assert 'E-5' not in page  # It is unlearned, and waits no more.
    ask(ws, users=[shop.user(8)], client_id='F')
    assert '>F<' in (ws.root / PAGE).read_text('utf-8')
    assert 'tgu_requests{state="queued"} 1' in (ws.root / METRICS).read_text()
    assert json.loads((ws.root / SERVING).read_text())['contained_requests'] == 1


def test_a_new_workspace_has_all(ws, data, model, shop, clock, tmp_path):
    new = Workspace.create(
        tmp_path / 'market', data=data, model=model, build_model=shop.build,
        clock=clock,
    )  # fmt: skip
    assert heads(new) == {SERVING, PAGE, METRICS}
    # It was made in a folder of another name.
    assert '<h1>Deletion requests: market</h1>' in (new.root / PAGE).read_text('utf-8')
    assert new.doctor() == []


def test_many_requests_renew_once(ws, shop, monkeypatch):
    calls, original = [], Workspace.renew
    monkeypatch.setattr(
        Workspace, 'renew', lambda self: calls.append(1) or original(self)
    )
    ws.submit_all(
        {'kind': 'erasure', 'users': [shop.user(k)], 'client_id': f'T-{k}',
         'verified_by': 'crm'} for k in range(20)
    )  # fmt: skip
    assert len(calls) == 1


@pytest.mark.parametrize('last', range(1, 8))
def test_the_doctor_renews_after_a_crash(ws, ask, shop, monkeypatch, last):
    ask(ws, users=[shop.user(3)])
    left, original = [last], os.replace

    def replace(source, target):
        left[0] -= 1
        if left[0] <= 0:
            raise KeyboardInterrupt
        return original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', replace)
        try:
            ask(ws, users=[shop.user(4)])
            killed = False
        except KeyboardInterrupt:
            killed = True
    assert ws.status()['requests'] == {'queued': 2}  # It is accepted all the same.
    assert killed == (last <= 3)
    stale = {PAGE, METRICS} - heads(ws)
    assert {name.removeprefix('renewed ') for name in ws.doctor()} == stale
    assert heads(ws) == {SERVING, PAGE, METRICS}
    assert ws.doctor() == []


def test_missing_and_broken_files_are_renewed(ws):
    (ws.root / PAGE).unlink()
    (ws.root / METRICS).write_bytes(b'\xff')
    assert ws.doctor() == [f'renewed {PAGE}', f'renewed {METRICS}']
    assert ws.doctor() == []


def test_no_older_state_is_written_over_a_newer_one(ws, ask, shop, clock, monkeypatch):
    r"""Whoever collects what the page says lets nobody else write meanwhile."""
    from torch_geometric_unlearn.workspace import site

    other = Workspace(ws.root, shop.build, clock)
    other.ledger.db.execute('PRAGMA busy_timeout=0')

    def collect(own):
        with pytest.raises(sqlite3.OperationalError, match='locked'):
            other.submit('erasure', users=[shop.user(4)], client_id='X',
                         verified_by='crm')  # fmt: skip
        return original(own)

    original = site.collect
    monkeypatch.setattr(site, 'collect', collect)
    ask(ws, users=[shop.user(3)])
    monkeypatch.undo()
    assert heads(ws) == {SERVING, PAGE, METRICS}
