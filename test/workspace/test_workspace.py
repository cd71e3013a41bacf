import json
import stat
import threading
from collections import Counter
from contextlib import suppress

import pandas as pd
import pytest
import torch

from torch_geometric_unlearn.data import from_frame, raw_to_internal, to_frame
from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.data.schema import EDGE_TYPE, held_out
from torch_geometric_unlearn.workspace import Busy, Workspace, schedule
from torch_geometric_unlearn.workspace.settings import Settings


def all_pairs(data):
    parts = [data[EDGE_TYPE].edge_index]
    parts += [held_out(data, split) for split in ('val', 'test', 'control')]
    return set(map(tuple, torch.cat(parts, dim=1).t().tolist()))


# Making and opening -------------------------------------------------------------------


def test_key_lies_outside_and_is_private(ws, make, tmp_path, shop):
    path = tmp_path / 'fresh' / 'w'
    path.parent.mkdir()
    data = ws.versions.get_data(ws.versions.service['data'])
    model = ws.versions.get_model(ws.versions.service['id'])
    made = {'data': data, 'model': model, 'build_model': shop.build}
    Workspace.create(path, **made)
    key = path.with_name('w.key')
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not shop.places(path, key.read_text().strip())
    for name in ('key', 'sub/key', '../v/key'):
        other = path.with_name('v')
        with pytest.raises(ValueError, match="'key' must lie outside"):
            Workspace.create(other, key=other / name, **made)
        assert not other.exists()
    with pytest.raises(FileExistsError, match='is not empty'):
        Workspace.create(path, **made)
    key.rename(path.with_name('elsewhere'))
    with pytest.raises(FileNotFoundError, match='There is no key'):
        Workspace(path, shop.build)
    key.write_text('abc')
    with pytest.raises(ValueError, match='no key in hexadecimal'):
        Workspace(path, shop.build)
    key.write_text('abcd')
    with pytest.raises(ValueError, match='a key of 2 bytes'):
        Workspace(path, shop.build)
    with pytest.raises(FileNotFoundError, match='There is no workspace'):
        Workspace(path.with_name('none'), shop.build)


@pytest.mark.parametrize(
    ('settings', 'error', 'match'),
    [
        ({'mehtod': 'TRU'}, TypeError, 'mehtod'),
        ({'method': 'TRUU'}, ValueError, "'method' must be the name"),
        ({'method': 'UnlearnResult'}, ValueError, "'method' must be the name"),
        ({'method_args': {'no_such': 1}}, TypeError, 'no_such'),
        ({'method_args': [1]}, TypeError, "'method_args' must be a dict"),
        ({'min_users': 0}, ValueError, "'min_users' must be at least 1"),
        ({'min_users': 2.5}, TypeError, "'min_users' must be an integer"),
        ({'surge_share': 2}, ValueError, "'surge_share' must be a finite"),
        ({'surge_share': float('nan')}, ValueError, "'surge_share' must be a finite"),
        ({'probation_days': -1}, ValueError, "'probation_days' must be a finite"),
        ({'k': 'ten'}, TypeError, "'k' must be an integer"),
    ],
)
def test_bad_settings_leave_nothing(
    data, model, shop, tmp_path, settings, error, match
):
    with pytest.raises(error, match=match):
        Workspace.create(
            tmp_path / 'w', data=data, model=model, build_model=shop.build, **settings
        )
    assert list(tmp_path.iterdir()) == []


def test_bad_data_leave_nothing(data, model, shop, tmp_path):
    for change, match in (
        (lambda d: d['user'].raw_id.__setitem__(1, d['user'].raw_id[0]), 'each once'),
        (lambda d: d['item'].raw_id.__setitem__(0, 1.5), 'strings or integers'),
        (lambda d: d.__setattr__('thing', object()), 'thing'),
        (lambda d: d[EDGE_TYPE].update(
            forget_mask=torch.zeros(d[EDGE_TYPE].num_edges, dtype=torch.bool)),
         'must hold no request'),
    ):  # fmt: skip
        bad = data.clone()
        for kind in ('user', 'item'):
            bad[kind].raw_id = list(data[kind].raw_id)
        change(bad)
        with pytest.raises((TypeError, ValueError), match=match):
            Workspace.create(
                tmp_path / 'w', data=bad, model=model, build_model=shop.build
            )
        assert list(tmp_path.iterdir()) == []


def test_unknown_settings_in_the_file_are_refused(ws, shop):
    path = ws.root / 'workspace.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {'mimimum': 3}))
    with pytest.raises(ValueError, match=r"unknown settings \['mimimum'\]"):
        Workspace(ws.root, shop.build)
    assert Settings(key='k').method == 'PartialRetrain'


def test_half_made_workspace_says_so(ws, shop):
    for table in ('alias_event', 'version'):
        ws.ledger.db.execute(f'DELETE FROM {table}')
    with pytest.raises(ValueError, match='was not made completely'):
        Workspace(ws.root, shop.build).load()


# Requests -----------------------------------------------------------------------------


def test_ids_of_another_form_are_refused(ws, data, shop, make, tmp_path):
    cases = [
        {'users': shop.user(1)},
        {'users': b'ann'},
        {'items': shop.item(1)},
        {'users': [1]},
        {'items': [1]},
        {'pairs': [(shop.user(1), 1)]},
        {'pairs': shop.pair(data, 0)},
        {'pairs': ['ab']},
    ]
    for case in cases:
        with pytest.raises(TypeError):
            ws.submit('erasure', client_id='T', verified_by='crm', **case)
    assert ws.status()['requests'] == {}


@pytest.mark.parametrize('what', ['users', 'items', 'pairs', 'both'])
def test_request_for_everything_goes_to_review(ws, ask, data, shop, what):
    users, items = data['user'].raw_id, data['item'].raw_id
    pairs = [shop.pair(data, i) for i in range(data[EDGE_TYPE].num_edges)]
    half = data[EDGE_TYPE].edge_index[1] < 30
    rest = data[EDGE_TYPE].edge_index[0][~half].unique().tolist()
    targets = {
        'users': {'users': users},
        'items': {'items': items},
        'pairs': {'pairs': pairs},
        'both': {'items': items[:30], 'users': [shop.user(i) for i in rest]},
    }[what]
    info = ask(ws, **targets)
    assert (info.state, info.outcome) == ('review', 'it asks for everything')
    ask(ws, users=[shop.user(0)])
    _, served = ws.load()  # Still serves.
    assert served[EDGE_TYPE].num_edges > 0
    assert is_erased(served['user'].raw_id[0])
    assert ws.work(now=True)[0].requests == [2]
    # Whoever lets it go all the same gets it back.
    ws.release(info.id, 'kim', 'go on')
    assert ws.plan().is_surge
    assert ws.work() == []
    assert ws.book.info(info.id).state == 'review'
    ws.reject(info.id, 'kim', 'a mistake')
    assert ws.load()[1][EDGE_TYPE].num_edges > 0


def test_requests_that_together_ask_for_everything(cheap, ask, data, shop):
    half = data['user'].raw_id[:100], data['user'].raw_id[100:]
    for users in half:
        assert ask(cheap, users=users).state == 'queued'
    served = cheap.load()[1]
    assert is_erased(served['user'].raw_id[0])
    plan = cheap.plan()
    assert (plan.is_surge, plan.requests) == (True, [2])
    assert cheap.work() == []
    assert [info.state for info in cheap.book.requests()] == ['queued', 'review']


# Serving ------------------------------------------------------------------------------


def test_load_contains_at_once(ws, ask, data, shop):
    ask(ws, users=[shop.user(3)])
    ask(ws, 'takedown', items=[shop.item(5)])
    named = shop.pair(data, 40)
    ask(ws, 'correction', pairs=[named])
    before = ws.versions.get_model(ws.versions.service['id'])
    model, served = ws.load()
    codes = raw_to_internal(data, 'user', [named[0]]), raw_to_internal(
        data, 'item', [named[1]])  # fmt: skip
    assert (int(codes[0]), int(codes[1])) not in all_pairs(served)
    assert not any(u == 3 or i == 5 for u, i in all_pairs(served))
    with pytest.raises(ValueError, match='known users'):
        raw_to_internal(served, 'user', [shop.user(3)])
    assert shop.row(model.model, 3) != shop.row(before, 3)
    assert shop.row(model.model, 4) == shop.row(before, 4)
    graph = model.build_graph(served)
    items, scores = model.recommend(graph, torch.arange(200), k=10)
    assert scores[3].isnan().all()
    assert not scores[4].isnan().any()
    counts = served[EDGE_TYPE].edge_index[1].bincount(minlength=60)
    assert counts[items[3]].tolist() == counts.sort(descending=True)[0][:10].tolist()
    assert not (items == 5).any()
    more = model.recommend(graph, [4], k=10, exclude_items=[5, 7])[0]
    assert not torch.isin(more, torch.tensor([5, 7])).any()
    # A cancelled request takes effect no more.
    for info in ws.book.requests():
        ws.cancel(info.id, 'eve', 'withdrawn')
    model, served = ws.load()
    assert all_pairs(served) == all_pairs(data)
    assert (model.recommend(graph, torch.arange(200), k=10)[0] == 5).any()
    assert shop.row(model.model, 3) == shop.row(before, 3)


def test_held_out_pairs(cheap, ask, data, shop):
    u, i = held_out(data, 'test')[:, 0].tolist()
    ask(cheap, 'correction', pairs=[(shop.user(u), shop.item(i))])
    assert (u, i) not in all_pairs(cheap.load()[1])
    job = cheap.work(now=True)[0]
    assert job.version is not None
    info = cheap.book.info(1)
    assert (info.outcome, info.num_pairs) == ('erased', 0)
    stored = cheap.versions.get_data(cheap.versions.service['data'])
    assert len(all_pairs(data)) == len(all_pairs(stored)) + 1
    cheap.evidence(job.id)
    assert (u, i) not in all_pairs(cheap.load()[1])
    # The weights before are the same, and nothing to go back to.
    assert cheap.rollback('eve', 'a test') == cheap.versions.service['id']
    assert cheap.plan().methods == ['Retrain']
    cheap.work()
    assert (u, i) not in all_pairs(cheap.load()[1])
    ask(cheap, users=[shop.user(0 if u else 1)])
    cheap.work(now=True)
    cheap.rollback('eve', 'a test')
    assert (u, i) not in all_pairs(cheap.load()[1])


def test_changed_or_missing_files_are_refused(ws, shop):
    for name in ('model_path', 'data_path'):
        key = 'id' if name == 'model_path' else 'data'
        path = getattr(ws.versions.store, name)(ws.versions.service[key])
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(bytes(changed))
            with pytest.raises(ValueError, match='is not what it was'):
                Workspace(ws.root, shop.build).load()
        path.unlink()
        with pytest.raises(ValueError, match='is missing'):
            Workspace(ws.root, shop.build).load()
        path.write_bytes(content)
    Workspace(ws.root, shop.build).load()


# New data -----------------------------------------------------------------------------


def test_filter(ws, ask, data, shop):
    ask(ws, users=[shop.user(3)])
    ask(ws, 'takedown', items=[shop.item(5)])
    ask(ws, 'correction', pairs=[(shop.user(7), shop.item(8))])
    rows = [(u, i) for u in (2, 3, 7) for i in (5, 8, 9)]
    frame = pd.DataFrame({
        'user': [shop.user(u) for u, _ in rows],
        'item': [shop.item(i) for _, i in rows],
        'stars': range(len(rows)),
    }, index=[4] * len(rows))  # fmt: skip
    out = ws.filter(frame)
    left = {(2, 8), (2, 9), (7, 9)}
    assert out['stars'].tolist() == [k for k, row in enumerate(rows) if row in left]
    assert len(frame) == len(rows)
    narrow = frame.astype({'user': 'category', 'item': 'category'})
    out = ws.filter(narrow)
    assert list(out['user'].cat.categories) == [shop.user(2), shop.user(7)]
    assert list(out['item'].cat.categories) == [shop.item(8), shop.item(9)]
    assert len(out) == 3
    renamed = frame.rename(columns={'user': 'who', 'item': 'what'})
    assert len(ws.filter(renamed, user='who', item='what')) == 3
    for empty in (frame[:0], frame[frame['user'] == shop.user(3)]):
        none = ws.filter(empty)
        assert list(none.columns) == list(frame.columns)
        assert len(none) == 0
    with pytest.raises(TypeError, match=r'Ids of users .* strings .*got a int'):
        ws.filter(frame.assign(user=range(len(rows))))


def new_data(ws, data, extra=()):
    r"""The table of the shop, from which new data are made as everyone would."""
    frame = to_frame(data)
    frame = pd.concat([frame, pd.DataFrame(extra, columns=['user', 'item']).assign(
        split='train')])  # fmt: skip
    like = ws.load()[1]
    return from_frame(ws.filter(frame), split='split', like=like), frame


def test_refresh_leaves_out_whom_it_must(cheap, ask, data, shop, clock):
    ask(cheap, users=[shop.user(3), shop.user(4)])
    cheap.work(now=True)
    ask(cheap, users=[shop.user(5)])  # Waits.
    ask(cheap, 'correction', pairs=[shop.pair(data, 40)])
    watermark = cheap.status()['watermark']
    new, frame = new_data(cheap, data, [('new@shop.org', shop.item(1))])
    dirty = from_frame(frame, split='split', like=cheap.load()[1])
    service = cheap.status()['version']
    with pytest.raises(ValueError, match='The data bring back'):
        cheap.refresh(dirty, 'eve', 'a new month')
    with pytest.raises(ValueError, match="'why' must be a text"):
        cheap.refresh(new, 'eve', '')
    assert cheap.status()['version'] == service
    cheap.doctor()
    shop.check(cheap)
    version = cheap.refresh(new, 'eve', 'a new month')
    assert cheap.status()['version'] == version != service
    assert cheap.status()['watermark'] >= watermark + 2
    served = cheap.load()[1]
    assert served['user'].raw_id[200] == 'new@shop.org'
    assert not any(u in (3, 4, 5) for u, _ in all_pairs(served))
    # Who waited is erased by it; raw ids stay until the old files are destroyed.
    cheap.work(now=True)
    assert {info.outcome for info in cheap.book.requests()} == {'erased'}
    clock.wait(40)
    cheap.work()
    clock.wait(8)
    cheap.work()
    assert {info.state for info in cheap.book.requests()} == {'completed'}
    words = [shop.user(3), shop.user(4), shop.user(5)]
    assert shop.places(cheap.root, *words) == []
    shop.check(cheap)


def test_ids_must_not_move(cheap, ask, data, shop):
    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    new, _ = new_data(cheap, data)
    for change in (
        lambda ids: ids.__setitem__(0, 'someone@shop.org'),
        lambda ids: ids.__setitem__(3, 'someone@shop.org'),
        lambda ids: ids.__setitem__(slice(0, 2), ids[1::-1]),
    ):
        bad = new.clone()
        bad['user'].raw_id = list(new['user'].raw_id)
        change(bad['user'].raw_id)
        with pytest.raises(ValueError, match='internal ids of users to others'):
            cheap.refresh(bad, 'eve', 'a new month')


def test_new_consent_gets_a_new_slot(cheap, ask, data, shop, clock):
    ask(cheap, users=[shop.user(3)])
    ask(cheap, 'correction', pairs=[(shop.user(9), shop.item(11))])  # Unknown.
    cheap.work(now=True)
    while cheap.book.info(1).state != 'completed':
        clock.wait(28)
        cheap.work()
    cheap.lift('user', shop.user(3), 'eve', 'new consent')
    new, _ = new_data(cheap, data, [(shop.user(9), shop.item(11))])
    cheap.refresh(new, 'eve', 'a new month')
    served = cheap.load()[1]
    assert is_erased(served['user'].raw_id[3])
    assert served['user'].raw_id[200] == shop.user(3)
    old = {i for u, i in all_pairs(data) if u == 3}
    assert {i for u, i in all_pairs(served) if u == 200} == old
    # And can be forgotten once more.
    ask(cheap, users=[shop.user(3)])
    assert is_erased(cheap.load()[1]['user'].raw_id[200])
    cheap.work(now=True)
    assert cheap.book.info(3).outcome == 'erased'
    assert is_erased(cheap.load()[1]['user'].raw_id[200])


# Ends ---------------------------------------------------------------------------------


def test_finalising_destroys(ws, ask, data, shop, clock):
    original = ws.versions.get_model(ws.versions.service['id'])
    old = ws.versions.service
    named = shop.pair(data, 40)
    ask(ws, users=[shop.user(3)])
    ask(ws, 'takedown', items=[shop.item(5)])
    ask(ws, 'correction', pairs=[named])
    job = ws.work(now=True)[0]
    assert shop.places(ws.root, shop.user(3), shop.row(original, 3))
    assert ws.finalise() == []
    while ws.status()['requests'] != {'completed': 3}:
        clock.wait(3.5)
        ws.work()
    assert clock() < min(info.due_at for info in ws.book.requests()) + 9 * 86_400
    words = [shop.user(3), shop.item(5), shop.row(original, 3)]
    assert shop.places(ws.root, *words) == []
    assert shop.places(ws.root, f'["{named[0]}", "{named[1]}"]') == []
    assert not ws.versions.store.model_path(old['id']).exists()
    assert not ws.versions.store.data_path(old['data']).exists()
    assert (ws.root / 'evidence' / job.id / 'manifest.json').exists()
    with pytest.raises(ValueError, match='is missing'):
        ws.versions.get_model(old['id'])
    assert ws.ledger.row('SELECT 1 FROM target WHERE raw IS NOT NULL') is None
    shop.check(ws)


def test_outcomes(cheap, ask, data, shop, clock):
    infos = [
        ask(cheap, users=[shop.user(3)]),
        ask(cheap, users=[shop.user(3), 'nobody@shop.org']),
        ask(cheap, users=['nobody@shop.org']),
        ask(cheap, pairs=[(shop.user(3), data['item'].raw_id[0]), ('x', 'y')]),
    ]
    cheap.work(now=True)
    found = [cheap.book.info(info.id) for info in infos]
    assert [(info.outcome, info.state) for info in found[:3]] == [
        ('erased', 'probation'),
        ('erased', 'probation'),
        ('nothing_found', 'completed'),
    ]
    row = {'user': ['nobody@shop.org'], 'item': [shop.item(0)]}
    assert len(cheap.filter(pd.DataFrame(row))) == 0  # Stays out.
    again = ask(cheap, users=[shop.user(3)])
    assert cheap.work(now=True)[0].verdict == 'nothing'
    again = cheap.book.info(again.id)
    assert (again.state, again.outcome) == ('completed', 'already_erased')


# Several at once ----------------------------------------------------------------------


def test_two_workers_at_once(ws, ask, shop, clock, monkeypatch):
    ask(ws, users=[shop.user(3)])
    other = Workspace(ws.root, shop.build, clock)
    with ws._locked():
        for call in (
            other.work,
            other.finalise,
            other.doctor,
            lambda: other.rollback('eve', 'a test'),
            lambda: other.refresh(None, 'eve', 'a test'),
        ):
            with pytest.raises(Busy, match='Another worker is at work'):
                call()
        ask(other, users=[shop.user(4)])  # But submits and loads.
        assert is_erased(other.load()[1]['user'].raw_id[4])
    assert ws.work(now=True)[0].requests == [1, 2]


def test_withdrawn_between_plan_and_work(cheap, ask, shop, clock):
    for i in (3, 4):
        ask(cheap, users=[shop.user(i)])
    other = Workspace(cheap.root, shop.build, clock)

    def late(ws, now):
        out = original(ws, now)
        other.cancel(1, 'eve', 'withdrawn')
        return out

    original = schedule.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, 'plan', late)
        assert cheap.work(now=True)[0].requests == [2]
    assert cheap.book.info(1).state == 'cancelled'
    assert not is_erased(cheap.load()[1]['user'].raw_id[3])


def test_submitters_at_once_lose_nothing(ws, shop, clock, run_in_threads):
    start = threading.Barrier(8)

    def submit(thread):
        def run():
            own = Workspace(ws.root, shop.build, clock)
            start.wait(60)
            for i in range(4):
                number = thread * 4 + i
                for _ in range(2):  # The second time it is the same.
                    own.submit('erasure', users=[shop.user(number)],
                               client_id=f'T-{number}', verified_by='crm')  # fmt: skip
                own.submit('erasure', users=[shop.user(i)],
                           client_id=f'U-{i}', verified_by='crm')  # fmt: skip
            own.ledger.close()
        return run

    run_in_threads(*map(submit, range(8)))
    names = Counter(info.client_id for info in ws.book.requests())
    assert set(names.values()) == {1}
    assert set(names) == {f'T-{i}' for i in range(32)} | {f'U-{i}' for i in range(4)}
    assert ws.ledger.check_chain() == 1 + 36
    assert sum(map(is_erased, ws.load()[1]['user'].raw_id)) == 32
    ws.doctor()
    serving = json.loads((ws.root / 'serving.json').read_text())
    assert serving['contained_requests'] == 36


def test_many_at_once_are_all_or_none(ws):
    users = list(ws.versions.internal('user'))
    requests = [
        {
            'kind': 'erasure',
            'users': users[k : k + 1],
            'client_id': f'T-{k}',
            'verified_by': 'crm',
        }
        for k in range(5)
    ]
    with pytest.raises(ValueError, match="'kind' must be one of"):
        ws.submit_all([*requests, {**requests[0], 'kind': 'other', 'client_id': 'T-9'}])
    assert ws.book.requests() == []
    infos = ws.submit_all(requests)
    assert [info.client_id for info in infos] == [f'T-{k}' for k in range(5)]
    assert ws.submit_all(requests) == infos
    assert ws.status()['requests'] == {'queued': 5}
    serving = json.loads((ws.root / 'serving.json').read_text())
    assert serving['contained_requests'] == 5


def test_submitters_and_workers_at_once(cheap, shop, clock, run_in_threads):
    done = threading.Event()

    def submit(thread):
        own = Workspace(cheap.root, shop.build, clock)
        for i in range(thread, 24, 4):
            own.submit('erasure', users=[shop.user(i)], client_id=f'T-{i}',
                       verified_by='crm')  # fmt: skip
            if i % 8 == 3:
                with suppress(ValueError):  # Too late.
                    own.cancel(own.book.requests()[-1].id, 'eve', 'withdrawn')
        own.ledger.close()

    def work():
        own, promoted = Workspace(cheap.root, shop.build, clock), []
        while True:
            is_last = done.is_set()
            with suppress(Busy):
                jobs = own.work(now=True)
                promoted += [number for job in jobs for number in job.requests]
                if is_last and not own.book.requests('queued'):
                    own.ledger.close()
                    return promoted

    def submit_all():
        run_in_threads(*(lambda t=t: submit(t) for t in range(4)))
        done.set()

    *parts, _ = run_in_threads(work, work, submit_all)
    infos = cheap.book.requests()
    assert {info.client_id for info in infos} == {f'T-{i}' for i in range(24)}
    assert {info.state for info in infos} <= {'probation', 'cancelled', 'review'}
    served = [number for part in parts for number in part]
    assert len(served) == len(set(served))
    assert set(served) == {info.id for info in infos if info.state != 'cancelled'}
    for i in range(24):
        [info] = [info for info in infos if info.client_id == f'T-{i}']
        raw = cheap.load()[1]['user'].raw_id[i]
        assert is_erased(raw) == (info.state != 'cancelled')
    shop.check(cheap)
