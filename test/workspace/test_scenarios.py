r"""Cases from the field, from the first request to what is served at the end."""

import pandas as pd
import pytest
import torch

from torch_geometric_unlearn.audit import backdoor
from torch_geometric_unlearn.data import from_frame, to_frame
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetUsers,
    InjectBackdoor,
)
from torch_geometric_unlearn.utils.seed import isolated_seed
from torch_geometric_unlearn.workspace import Workspace


def pairs_of(data):
    r"""All pairs of some data in any split, by raw ids."""
    frame = to_frame(data)
    return set(zip(frame['user'].tolist(), frame['item'].tolist()))


def renew(ws, frame):
    r"""Trains a new model on a table, as everyone would."""
    like = ws.load()[1]
    new = from_frame(ws.filter(frame), split='split', like=like)
    return ws.refresh(new, 'eve', 'a new month')


def table(rows):
    return pd.DataFrame(rows, columns=['user', 'item']).assign(split='train')


def test_withdrawn_consent_never_comes_back(cheap, ask, data, shop, clock, quick):
    old, gone = to_frame(data), []

    def check():
        served = pairs_of(cheap.load()[1])
        assert not {user for user, _ in served} & set(gone)
        assert served == {pair for pair in pairs_of(data) if pair[0] not in gone}

    for day in range(6):  # Every three make a batch.
        gone.append(shop.user(day))
        ask(cheap, 'consent', users=gone[-1:])
        check()
        cheap.work()
        check()
        clock.wait(1)
    assert cheap.status()['watermark'] == 6
    renew(cheap, old)  # From the table of the time before.
    check()
    for _ in range(3):  # A full training settles what so few pairs can't tell.
        clock.wait(15)
        cheap.work()
    assert cheap.status()['requests'] == {'completed': 6}
    # Nothing knows their names any more, and yet they are known.
    assert shop.places(cheap.root, *gone) == []
    again = table([(user, shop.item(1)) for user in (*gone, 'new@shop.org')])
    assert cheap.filter(again)['user'].tolist() == ['new@shop.org']
    renew(cheap, pd.concat([old, again]))
    served = pairs_of(cheap.load()[1])
    assert ('new@shop.org', shop.item(1)) in served
    assert not {user for user, _ in served} & set(gone)


def test_sensitive_category_leaves_the_rest(cheap, ask, data, shop):
    every, frame = pairs_of(data), to_frame(data)
    category = {shop.item(i) for i in range(20)}
    users = sorted({user for user, item in every if item in category})[:3]
    asked = {(u, i) for u, i in every if u in users and i in category}
    for user in users:
        ask(cheap, pairs=[pair for pair in asked if pair[0] == user])
    assert pairs_of(cheap.load()[1]) == every - asked  # Before any work.
    [job] = cheap.work(now=True)
    assert job.requests == [1, 2, 3]
    _, served = cheap.load()
    assert pairs_of(served) == every - asked
    assert set(users) <= set(served['user'].raw_id)
    # Others keep the category, and they keep the other items.
    left = {user for user, item in every - asked if item in category}
    assert left
    assert not left & set(users)
    train = frame[frame['split'] == 'train']  # Some are held out.
    num = len(asked.intersection(zip(train['user'], train['item'])))
    assert sum(cheap.book.info(n).num_pairs for n in job.requests) == num > 0
    renew(cheap, frame)
    assert pairs_of(cheap.load()[1]) == every - asked


@pytest.fixture(scope='module')
def spam(data, shop):
    r"""The shop with an item that fake users promote, and a model of it."""
    plant = InjectBackdoor(ratio=0.2, num_triggers=1, num_fillers=3)
    poisoned = plant(data)
    with isolated_seed(0):
        model = shop.build(poisoned)
    fit(model, poisoned, seed=0, **shop.fit_args)
    return poisoned, model


def test_spam_wave_is_undone(spam, ask, shop, clock, tmp_path):
    poisoned, model = spam
    ws = Workspace.create(
        tmp_path / 'shop', data=poisoned, model=model, build_model=shop.build,
        clock=clock, fit_args=shop.fit_args, k=10, surge_share=0.05,
    )  # fmt: skip
    fakes = [poisoned['user'].raw_id[u] for u in poisoned.backdoor_users.tolist()]
    honest = {pair for pair in pairs_of(poisoned) if pair[0] not in fakes}

    def exposure(model, data):
        return backdoor(model, data, k=10, plant=poisoned).er

    before = exposure(model, poisoned)
    info = ask(ws, 'cleanup', users=fakes)
    assert pairs_of(ws.load()[1]) == honest
    assert ws.work(now=True) == []  # So many are looked at first.
    ws.release(info.id, 'kim', 'their accounts were made by one script')
    [job] = ws.work(now=True)
    assert list(job.gates) == ['0 Retrain']
    service, served = ws.load()
    assert pairs_of(served) == honest

    # The same as a model that never saw them, which shows the item less.
    clean = DropForgotten()(ForgetUsers(poisoned.backdoor_users)(poisoned))
    with isolated_seed(0):
        reference = shop.build(clean)
    fit(reference, clean, seed=0, **shop.fit_args)
    for name, value in reference.state_dict().items():
        assert torch.equal(service.model.state_dict()[name], value)
    goal = exposure(reference, clean)
    assert exposure(service.model, served) == goal
    assert before > goal + 0.1

    # No other way back.
    with pytest.raises(ValueError, match='The data bring back'):
        ws.refresh(
            from_frame(to_frame(poisoned), split='split', like=served), 'eve', 'a month'
        )
    renew(ws, to_frame(poisoned))
    assert pairs_of(ws.load()[1]) == honest
    ws.rollback('eve', 'it is worse')
    assert pairs_of(ws.load()[1]) == honest


def test_surge_waits_for_a_person(make, ask, data, shop, clock, tmp_path, quick):
    ws = make(
        tmp_path / 'shop', surge_share=0.04, method='RowReset', method_args={},
        fit_args=shop.fit_args | {'num_epochs': 1},
    )  # fmt: skip
    version, users = ws.status()['version'], [shop.user(i) for i in range(20)]
    old = ws.versions.get_model(version)
    infos = [ask(ws, users=[user]) for user in users]

    def check_contained(gone):
        model, served = ws.load()
        assert {user for user, _ in pairs_of(served)}.isdisjoint(gone)
        assert set(served['user'].raw_id).isdisjoint(gone)
        for user in range(20):  # No trace of the old row.
            is_gone = shop.user(user) in gone
            assert (shop.row(model.model, user) != shop.row(old, user)) == is_gone

    check_contained(users)
    for days in (0.1, 3, 26, 2):  # Past the deadline as well.
        for now in (False, True):
            assert ws.work(now=now) == []
        assert ws.status()['requests'] == {'review': 20}
        assert ws.status()['version'] == version
        check_contained(users)
        clock.wait(days)
    assert ws.status()['overdue'] == 20

    ws.reject(infos[0].id, 'kim', 'sent by a stranger')
    check_contained(users[1:])
    for info in infos[1:]:
        ws.release(info.id, 'kim', 'a campaign')
    [job] = ws.work()
    assert job.requests == [info.id for info in infos[1:]]
    status = ws.status()
    assert status['version'] == job.version != version
    assert (status['watermark'], status['overdue']) == (19, 0)
    served = pairs_of(ws.load()[1])
    assert served == {pair for pair in pairs_of(data) if pair[0] not in users[1:]}
    rows = ws.ledger.rows("SELECT who FROM review WHERE decision = 'queued'")
    assert [row['who'] for row in rows] == ['kim'] * 19
