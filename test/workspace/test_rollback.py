import json

import pandas as pd
import pytest
import torch

from torch_geometric_unlearn.data import from_frame, to_frame
from torch_geometric_unlearn.data.request import is_erased
from torch_geometric_unlearn.data.schema import EDGE_TYPE, SPLITS, held_out
from torch_geometric_unlearn.nn.models import Served
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import EdgeDrop, FineTune
from torch_geometric_unlearn.workspace import gates, verify, worker


@pytest.fixture(autouse=True)
def _wide_limits(monkeypatch):
    r"""A training of a few epochs differs by more than a real one."""
    wide = {'service': 0.9, 'full': 0.9, 'forget': 0.9, 'membership': 0.49}
    monkeypatch.setattr(gates, 'LIMITS', wide)


def users_of(data):
    parts = [data[EDGE_TYPE].edge_index]
    parts += [held_out(data, split) for split in SPLITS]
    return set(torch.cat(parts, dim=1)[0].tolist())


def new_data(ws, data, extra=()):
    frame = pd.concat([to_frame(data), pd.DataFrame(
        extra, columns=['user', 'item']).assign(split='train')])  # fmt: skip
    return from_frame(ws.filter(frame), split='split', like=ws.load()[1])


def events(ws, kind):
    rows = ws.ledger.rows('SELECT body FROM event WHERE kind = ? ORDER BY id', kind)
    return [json.loads(row['body']) for row in rows]


def state_of(ws, version):
    row = ws.ledger.row('SELECT state FROM version WHERE id = ?', version)
    return None if row is None else row['state']


# To a clean version -------------------------------------------------------------------


def test_to_a_version_that_is_clean(cheap, ask, data, shop):
    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    before = cheap.status()
    new = new_data(cheap, data, [('new@shop.org', shop.item(1))])
    version = cheap.refresh(new, 'eve', 'a new month')
    assert cheap.rollback('eve', 'it is worse') == before['version']
    status = cheap.status()
    assert status['version'] == before['version']
    assert status['watermark'] == before['watermark']
    assert status['rollback'] is None
    assert state_of(cheap, version) == 'withdrawn'
    assert cheap.load()[1]['user'].num_nodes == 200
    # The training that settled its gates is no more.
    assert cheap.ledger.row('SELECT verdict FROM job')['verdict'] == 'inconclusive'
    assert cheap.plan().reason == 'nothing is waiting'
    cheap.doctor()
    shop.check(cheap)


def test_a_version_is_not_clean_whose_data_know_more(cheap, data, shop):
    service = cheap.status()['version']
    gone = to_frame(data)
    gone = gone[gone['user'] != data['user'].raw_id[7]]  # By nobody's request.
    like = cheap.load()[1]
    cheap.refresh(from_frame(gone, split='split', like=like), 'eve', 'a new month')
    # Its data have more, so that it serves with less of them, which no row shows.
    assert cheap.rollback('eve', 'it is worse') == service
    assert 7 not in users_of(cheap.load()[1])
    assert cheap.plan().methods == ['RowReset', 'Retrain']
    [job] = cheap.work()
    assert job.gates['0 RowReset']['data'] == 'pass'
    assert 7 not in users_of(cheap.load()[1])
    assert cheap.doctor() == []
    shop.check(cheap)


# Old weights without what was erased since --------------------------------------------


def test_replay_is_unlearning_from_the_old_weights(
    make, ask, data, model, shop, clock, tmp_path
):
    args = {'num_epochs': 1, 'batch_size': 512}
    ws = make(tmp_path / 'shop', method='FineTune', method_args=args)
    for i in (3, 4):
        ask(ws, users=[shop.user(i)])
        ws.work(now=True)
        clock.wait(1)
    withdrawn, jobs = [], [ws.book.info(n).job for n in (1, 2)]
    for _ in range(2):
        withdrawn.append(ws.status()['version'])
        version = ws.rollback('eve', 'it is worse')
        assert ws.status()['version'] == version not in withdrawn
        assert ws.status()['watermark'] == 2
    ask(ws, users=[shop.user(5)])
    plan = ws.plan()
    assert plan.reason == 'a rollback is to be completed'
    assert (plan.replays, plan.requests) == (True, [1, 2])
    assert plan.methods == ['FineTune', 'Retrain']
    [job] = ws.work()
    assert list(job.gates) == ['0 FineTune']
    assert set(job.gates['0 FineTune']) == set(gates.NAMES)
    assert ws.status()['version'] == job.version not in withdrawn
    assert (ws.status()['watermark'], ws.status()['rollback']) == (2, None)
    method = FineTune(seed=0, **args)
    alone = method(model, ForgetUsers([3, 4])(data)).model.state_dict()
    ours = ws.versions.get_model(job.version).state_dict()
    assert all(torch.equal(ours[name], x) for name, x in alone.items())
    assert not {3, 4, 5} & users_of(ws.load()[1])
    # It stands for the jobs that it has repeated, all of which can be checked.
    assert [ws.book.info(n).job for n in (1, 2)] == [job.id] * 2
    for name in (*jobs, job.id):
        assert verify(ws.evidence(name))['verdict'] == 'inconclusive'
    assert ws.ledger.row("SELECT 1 FROM job WHERE id = ? AND pairs IS NOT NULL", job.id)
    ws.doctor()
    shop.check(ws)
    assert ws.plan().requests == []  # And who came meanwhile waits for a batch.
    assert ws.work(now=True)[0].requests == [3]
    clock.wait(28)
    while any(info.state != 'completed' for info in ws.book.requests()):
        ws.work(now=True)
        clock.wait(8)
    original = [shop.row(model, u) for u in (3, 4, 5)]
    assert shop.places(ws.root, *original, *map(shop.user, (3, 4, 5))) == []
    assert ws.ledger.row('SELECT 1 FROM job WHERE pairs IS NOT NULL') is None


def test_what_was_taken_out_does_not_come_back(cheap, ask, shop):
    ask(cheap, users=[shop.user(3)])
    [first] = cheap.work(now=True)
    contained = cheap.rollback('eve', 'it is worse')
    [job] = cheap.work()  # The same from the same weights.
    refused = events(cheap, 'refused')
    assert [(x['job'], x['method']) for x in refused] == [(job.id, 'RowReset')]
    assert 'taken out of service' in refused[0]['why']
    assert list(job.gates) == ['1 Retrain']
    assert job.verdict == 'pass'
    assert cheap.status()['version'] not in (first.version, contained)
    cheap.doctor()
    shop.check(cheap)


def test_cleanups_are_trained_from_scratch(cheap, ask, shop):
    ask(cheap, 'cleanup', users=[shop.user(3)])
    cheap.work(now=True)
    cheap.rollback('eve', 'it is worse')
    assert cheap.plan().methods == ['Retrain']
    # The same seed on the same data: a person has to think of something.
    [job] = cheap.work()
    assert (job.verdict, job.version) == ('fail', None)
    assert cheap.status()['rollback'] is None
    assert 3 not in users_of(cheap.load()[1])
    cheap.doctor()
    shop.check(cheap)


def test_replay_goes_through_the_gates(cheap, ask, shop, clock, monkeypatch):
    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    contained = cheap.rollback('eve', 'it is worse')
    planted = gates.Gate('data', faults=['planted'])
    with monkeypatch.context() as patch:
        patch.setattr(gates, 'check_data', lambda *_: planted)
        [job] = cheap.work()
    assert (job.verdict, job.version) == ('fail', None)
    assert job.gates['1 Retrain']['data'] == 'fail'
    rows = cheap.ledger.rows('SELECT 1 FROM gate WHERE job = ?', job.id)
    assert len(rows) == len(gates.NAMES)  # The attempt is kept.
    assert cheap.status()['version'] == contained
    assert events(cheap, 'review')[-1]['reason'] == 'no method passed the gates'
    assert cheap.work() == []
    # What is not settled is trained for before the deadline.
    clock.wait(28)
    assert cheap.plan().decides
    cheap.work()
    assert cheap.status()['version'] != contained
    shop.check(cheap)


def test_a_replay_that_dies_goes_on_three_times(cheap, ask, shop, monkeypatch):
    class Dying(EdgeDrop):
        def __call__(self, model, data, drop=None):
            raise KeyboardInterrupt

    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    contained = cheap.rollback('eve', 'it is worse')
    job = cheap.status()['rollback']
    monkeypatch.setattr(worker, 'make_unlearner', lambda *_: Dying())
    for attempt in range(3):
        with pytest.raises(KeyboardInterrupt):
            cheap.work()
        row = cheap.ledger.row('SELECT * FROM job WHERE id = ?', job)
        assert (row['state'], row['attempts']) == ('waiting', attempt + 1)
        assert 3 not in users_of(cheap.load()[1])
    [found] = cheap.work()
    assert (found.id, found.verdict) == (job, 'fail')
    assert events(cheap, 'review')[-1]['reason'] == 'a worker died three times'
    assert cheap.status()['version'] == contained
    shop.check(cheap)


def test_new_data_end_a_rollback(cheap, ask, data, shop):
    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    cheap.rollback('eve', 'it is worse')
    version = cheap.refresh(new_data(cheap, data), 'eve', 'a new month')
    assert cheap.status()['rollback'] is None
    assert cheap.work(now=True) == []
    assert cheap.status()['version'] == version


@pytest.mark.parametrize('returns', [False, True])
def test_new_data_settle_what_could_not_be_told(
    cheap, ask, data, shop, clock, returns
):
    for i in (3, 4):
        ask(cheap, users=[shop.user(i)])
        cheap.work(now=True)
    before = cheap.status()['version']
    rows = cheap.ledger.rows('SELECT id, verdict FROM job')
    assert [row['verdict'] for row in rows] == ['inconclusive'] * 2
    version = cheap.refresh(new_data(cheap, data), 'eve', 'a new month')
    assert events(cheap, 'decided')[-1]['version'] == version
    assert cheap.attempts() == []
    for row in rows:
        assert verify(cheap.evidence(row['id']))['verdict'] == 'pass'
    if returns:  # Nothing is settled any more, not even what came before the last job.
        assert cheap.rollback('eve', 'it is worse') == before
        for row in rows:
            assert verify(cheap.evidence(row['id']))['verdict'] == 'inconclusive'
        clock.wait(28)
        assert cheap.plan().decides
    else:
        clock.wait(8)
        assert cheap.work() == []
        assert cheap.status()['requests'] == {'completed': 2}
        assert cheap.status()['version'] == version  # Without another training.
    shop.check(cheap)


# Without old weights ------------------------------------------------------------------


def test_without_old_weights_it_trains_new_ones(cheap, shop):
    before = cheap.status()['version']
    assert cheap.rollback('eve', 'it is worse') == before  # There is no other.
    assert cheap.status()['rollback'] is not None
    assert cheap.plan().methods == ['Retrain']
    [job] = cheap.work()
    assert job.verdict == 'pass'
    assert cheap.status()['version'] == job.version != before
    assert state_of(cheap, before) == 'withdrawn'
    # Once more gives the same.
    cheap.rollback('eve', 'it is worse')
    [job] = cheap.work()
    assert job.verdict == 'fail'
    assert 'the version that was taken out' in events(cheap, 'review')[-1]['reason']
    assert cheap.status()['rollback'] is None
    assert cheap.doctor() == []
    shop.check(cheap)


def test_old_weights_end_with_the_first_erasure_they_know(
    cheap, ask, shop, model, clock, good_gates
):
    for i, days in ((3, 5), (4, 1)):
        ask(cheap, users=[shop.user(i)])
        cheap.work(now=True)
        clock.wait(days)
    cheap.rollback('eve', 'it is worse')  # To the one between; the first is before it.
    first = shop.row(model, 3)
    assert shop.places(cheap.root, first)
    clock.wait(1.5)
    assert cheap.finalise() == [1]
    assert [cheap.book.info(n).state for n in (1, 2)] == ['completed', 'probation']
    assert shop.places(cheap.root, first, shop.user(3)) == []
    # What the rollback starts from stays.
    row = cheap.ledger.row("SELECT parent FROM job WHERE state = 'waiting'")
    assert cheap.versions.store.model_path(row['parent']).exists()
    assert cheap.work()[0].verdict == 'pass'
    clock.wait(8)
    cheap.finalise()
    assert cheap.book.info(2).state == 'completed'
    rows = [shop.row(model, 4), shop.user(4)]
    assert shop.places(cheap.root, *rows) == []
    shop.check(cheap)


def test_who_and_why_are_asked_for(cheap, ask, shop):
    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    before = cheap.status()
    for who, why in (('', 'it is worse'), ('eve', ' ')):
        with pytest.raises(ValueError, match='must be a text'):
            cheap.rollback(who, why)
    assert cheap.status() == before


def test_no_path_brings_anything_back(cheap, ask, data, shop, clock):
    original = cheap.versions.get_model(cheap.versions.service['id'])
    for i in (3, 4):
        ask(cheap, users=[shop.user(i)])
        cheap.work(now=True)
        clock.wait(1)
    ask(cheap, users=[shop.user(5)])
    for _ in range(3):  # The last one has no weights to go back to.
        cheap.rollback('eve', 'it is worse')
        assert cheap.status()['watermark'] == 2
        model, served = cheap.load()
        assert not {3, 4, 5} & users_of(served)
        assert all(is_erased(served['user'].raw_id[u]) for u in (3, 4, 5))
        for u in (3, 4, 5):
            assert shop.row(model.model, u) != shop.row(original, u)
    cheap.doctor()
    shop.check(cheap)
    clock.wait(8)
    assert cheap.finalise() == []  # Old weights have learned from both.
    while any(info.state != 'completed' for info in cheap.book.requests()):
        cheap.work(now=True)
        clock.wait(8)
    words = [*map(shop.user, (3, 4, 5)), *(shop.row(original, u) for u in (3, 4, 5))]
    assert shop.places(cheap.root, *words) == []


def test_to_smaller_data(cheap, ask, data, shop):
    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    ask(cheap, users=[shop.user(5)])
    new = new_data(cheap, data, [('new@shop.org', shop.item(1))])
    cheap.refresh(new, 'eve', 'a new month')
    cheap.work(now=True)
    cheap.rollback('eve', 'it is worse')
    for _ in range(2):
        model, served = cheap.load()
        assert served['user'].num_nodes == 200
        assert all(is_erased(served['user'].raw_id[u]) for u in (3, 5))
        assert not {3, 5} & users_of(served)
        assert Served.of(model.model, served).is_finite
        cheap.doctor()
        shop.check(cheap)
        # The request that new data has served is open again with the old weights.
        if cheap.plan().replays:
            assert 2 in cheap.plan().requests
            assert cheap.work()[0].version is not None


def test_old_weights_that_are_destroyed_are_not_used(cheap, ask, shop, clock):
    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    while cheap.book.info(1).state != 'completed':
        clock.wait(28)
        cheap.work()
    clock.wait(28)
    cheap.work()  # The version before the last training is destroyed as well.
    service = cheap.status()['version']
    assert cheap.rollback('eve', 'it is worse') == service
    assert cheap.plan().methods == ['Retrain']
    assert cheap.status()['watermark'] == 1


def test_a_version_that_is_its_own_containment(make, ask, shop, tmp_path):
    ws = make(tmp_path / 'shop', method='RowReset', method_args={})
    ask(ws, users=[shop.user(3)])
    [first] = ws.work(now=True)
    # The weights before, without what was erased since, are just that.
    assert ws.rollback('eve', 'it is worse') == first.version
    assert ws.plan().methods == ['RowReset', 'Retrain']
    [job] = ws.work()
    assert [x['method'] for x in events(ws, 'refused')] == ['RowReset']
    assert list(job.gates) == ['1 Retrain']
    assert ws.status()['version'] == job.version != first.version
    assert state_of(ws, first.version) == 'withdrawn'
    assert ws.doctor() == []
    shop.check(ws)
