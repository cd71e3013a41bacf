import json

import pytest
import torch

from torch_geometric_unlearn.metrics.ranking import retained_ndcg
from torch_geometric_unlearn.nn.models import Served
from torch_geometric_unlearn.unlearn import EdgeDrop
from torch_geometric_unlearn.workspace import Workspace, gates, verify, worker
from torch_geometric_unlearn.workspace.book import DAY

CHAIN = ['PartialRetrain', 'Retrain']


class Broken(EdgeDrop):
    r"""Destroys the model."""

    def _unlearn(self, model, data, retained):
        with torch.no_grad():
            model.item_embedding.weight.neg_()
        return model, []


class Leaving(EdgeDrop):
    r"""Leaves all pairs in the data, and the ids."""

    def __call__(self, model, data):
        result = super().__call__(model, data)
        result.data['user', 'interacts', 'item'].edge_index = data[
            'user', 'interacts', 'item'].edge_index  # fmt: skip
        result.data['user'].raw_id = data['user'].raw_id
        return result


class Refusing(EdgeDrop):
    def supports(self, model, data):
        return False, 'it is not its day'


@pytest.fixture
def plant(monkeypatch):
    r"""Puts methods in the place of others."""
    original = worker.make_unlearner

    def plant(**methods):
        monkeypatch.setattr(
            worker,
            'make_unlearner',
            lambda ws, name, job: (
                methods[name]() if name in methods else original(ws, name, job)
            ),
        )

    return plant


def test_a_batch(ws, ask, shop):
    for i in (3, 4, 5):
        assert ws.plan().requests == []
        ask(ws, users=[shop.user(i)])
    plan = ws.plan()
    assert (plan.reason, plan.requests) == ('enough users or items wait', [1, 2, 3])
    assert plan.methods == CHAIN
    [job] = ws.work()
    assert job.requests == [1, 2, 3]
    assert list(job.gates) == ['0 PartialRetrain']
    hard = {name: job.gates['0 PartialRetrain'][name] for name in ('data', 'integrity')}
    assert set(hard.values()) == {'pass'}
    assert ws.status()['version'] == job.version
    assert ws.status()['watermark'] == 3
    assert ws.work() == []
    assert ws.plan().reason == 'nothing is waiting'


# Rules --------------------------------------------------------------------------------


def test_rule_of_deadlines(ws, ask, shop, clock):
    ask(ws, users=[shop.user(3)], due_days=6)
    clock.wait(3.9)  # A day for a retraining, and one as a margin.
    assert ws.plan().reason == 'nothing is due'
    clock.wait(0.2)
    assert ws.plan().reason == 'a deadline is near'


def test_rule_of_waiting(ws, ask, shop, clock):
    ask(ws, users=[shop.user(3)])
    clock.wait(6.9)
    assert ws.plan().reason == 'nothing is due'
    assert ws.work() == []
    clock.wait(0.2)
    assert ws.plan().reason == 'the oldest request has waited'


def test_rule_of_pairs(make, ask, data, shop, tmp_path):
    ws = make(tmp_path / 'shop', min_pairs=5)
    ask(ws, 'correction', pairs=[shop.pair(data, i) for i in range(4)])
    assert ws.plan().reason == 'nothing is due'
    ask(ws, 'correction', pairs=[shop.pair(data, 3)])  # Overlaps.
    assert ws.plan().reason == 'nothing is due'
    ask(ws, 'correction', pairs=[shop.pair(data, 4)])
    assert ws.plan().reason == 'enough interactions wait'


def test_rule_of_surges(make, ask, shop, tmp_path, clock):
    ws = make(tmp_path / 'shop', surge_share=0.025)
    ws.settings = ws.settings.__class__(**(vars(ws.settings) | {
        'method': 'RowReset', 'method_args': {}}))  # fmt: skip
    infos = [ask(ws, users=[shop.user(i)]) for i in range(20)]
    plan = ws.plan()
    assert plan.is_surge
    assert plan.reason.startswith('surge: ')
    assert ws.work(now=True) == []
    assert {info.state for info in ws.book.requests()} == {'review'}
    assert 'user000@shop.org' not in ws.load()[1]['user'].raw_id
    for info in infos:
        ws.release(info.id, 'kim', 'a campaign')
    assert ws.plan().reason == 'enough users or items wait'
    for info in infos[2:]:
        ws.cancel(info.id, 'kim', 'not theirs')
    ws.work(now=True)
    # Whoever comes a bit at a time is found as well.
    days, is_surge = [], False
    for i in range(20, 60):
        ask(ws, users=[shop.user(i)])
        is_surge = ws.plan().is_surge
        if is_surge:
            break
        assert ws.work(now=True)[0].version is not None
        clock.wait(0.01)
        days.append(i)
    assert is_surge
    assert len(days) > 2
    clock.wait(1)
    assert not ws.plan().is_surge


def test_cleanup_is_trained_from_scratch(ws, ask, data, shop):
    ask(ws, users=[shop.user(3)])
    ask(ws, 'cleanup', pairs=[shop.pair(data, 40)])
    assert ws.plan().methods == []
    [job] = ws.work(now=True)
    assert list(job.gates) == ['0 Retrain']
    assert job.verdict in ('pass', 'fail')


@pytest.mark.parametrize('rule', ['max_updates', 'max_erased', 'max_days'])
def test_budgets(make, ask, data, shop, tmp_path, clock, rule):
    counts = data['user', 'interacts', 'item'].edge_index[0].bincount()
    most = counts.sort(descending=True)[0][:2].sum() - 0.5  # One fits, not two.
    share = float(most / counts.sum())
    limit = {'max_updates': 1, 'max_erased': share, 'max_days': 5.0}[rule]
    cheap = {'method': 'RowReset', 'method_args': {}, 'probation_days': 0.0}
    ws = make(tmp_path / 'shop', min_users=1, **cheap, **{rule: limit})
    busiest = counts.argsort()
    users = [shop.user(int(i)) for i in busiest.flip(0)[:4]]
    ask(ws, users=users[:1])
    assert ws.plan().methods == ['RowReset', 'Retrain']
    assert ws.work()[0].version is not None
    if rule == 'max_erased':
        # What is destroyed still counts.
        with ws.ledger.transaction():
            ws.ledger.write('UPDATE job SET pairs = NULL')
        ask(ws, users=users[1:2])
    else:
        clock.wait(6)
        ask(ws, users=[shop.user(int(busiest[0]))])
    assert ws.plan().methods == ['Retrain']
    [job] = ws.work()
    assert list(job.gates) == ['0 Retrain']
    ask(ws, users=[shop.user(int(busiest[1]))])
    assert ws.plan().methods == ['RowReset', 'Retrain']  # Spent no more.


@pytest.mark.parametrize(('loss', 'spent'), [(0.0199, False), (0.0201, True)])
def test_budget_of_utility(cheap, ask, shop, loss, spent):
    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    service, full = cheap.versions.service, cheap.versions.last_full
    data = cheap.versions.get_data(service['data'])
    model = cheap.versions.get_model(service['id'])
    users, ours = retained_ndcg(Served.of(model, data), data, cheap.settings.k)
    # What the last training had reached, on these users and one that is no more.
    best = torch.full_like(ours, float(ours.mean()) / (1 - loss))
    users, best = torch.cat([users, torch.tensor([9_999])]), torch.cat([best, best[:1]])
    best[-1] = 0.0
    cheap.versions.save_full_ndcg(full['id'], users, best)
    content = json.loads((cheap.root / 'workspace.json').read_text())
    path = cheap.root / 'workspace.json'
    path.write_text(json.dumps(content | {'max_loss': 0.02}))
    ws = Workspace(cheap.root, shop.build, cheap.clock)
    for i in (4, 5, 6):
        ask(ws, users=[shop.user(i)])
    assert ws.plan().methods == (['Retrain'] if spent else ['RowReset', 'Retrain'])


def test_time_of_past_jobs_moves_the_deadline(cheap, ask, shop, clock):
    ask(cheap, users=[shop.user(3)])
    cheap.work(now=True)
    with cheap.ledger.transaction():
        cheap.ledger.write('UPDATE job SET created_at = finished_at - 43200')
    ask(cheap, users=[shop.user(4)], due_days=5)
    clock.wait(2.4)  # A day for a retraining, half for a job, and one as a margin.
    assert cheap.plan().reason == 'nothing is due'
    clock.wait(0.2)
    assert cheap.plan().reason == 'a deadline is near'


@pytest.fixture(autouse=True)
def _wide_limits(monkeypatch):
    r"""A training of a few epochs differs by more than a real one."""
    wide = {'service': 0.9, 'full': 0.9, 'forget': 0.9, 'membership': 0.49}
    monkeypatch.setattr(gates, 'LIMITS', wide)


# Gates --------------------------------------------------------------------------------


@pytest.mark.parametrize(('method', 'gate'), [(Broken, 'utility'), (Leaving, 'data')])
def test_next_of_the_chain(ws, ask, shop, plant, method, gate, monkeypatch):
    if gate == 'utility':
        monkeypatch.setitem(gates.LIMITS, 'service', 0.3)
    plant(PartialRetrain=method)
    for i in (3, 4, 5):
        ask(ws, users=[shop.user(i)])
    [job] = ws.work()
    assert list(job.gates) == ['0 PartialRetrain', '1 Retrain']
    assert job.gates['0 PartialRetrain'][gate] == 'fail'
    assert job.verdict == 'pass'
    assert job.version == ws.status()['version']
    rows = ws.ledger.rows('SELECT DISTINCT attempt FROM gate WHERE job = ?', job.id)
    assert [row['attempt'] for row in rows] == [0, 1]  # All are kept.
    assert verify(ws.evidence(job.id))['verdict'] == 'pass'
    shop.check(ws)


def test_a_method_that_refuses_is_passed_over(ws, ask, shop, plant):
    plant(PartialRetrain=Refusing)
    ask(ws, users=[shop.user(3)])
    [job] = ws.work(now=True)
    assert list(job.gates) == ['1 Retrain']
    row = ws.ledger.row("SELECT body FROM event WHERE kind = 'refused'")
    assert json.loads(row['body'])['why'] == 'it is not its day'
    verify(ws.evidence(job.id))


def test_nothing_is_promoted_when_all_fail(ws, ask, shop, plant):
    plant(PartialRetrain=Leaving, Retrain=Leaving)
    ask(ws, users=[shop.user(3)])
    before = ws.status()
    for _ in range(4):  # However often: it is not a worker that died.
        [job] = ws.work(now=True)
        assert (job.verdict, job.version) == ('fail', None)
        info = ws.book.info(1)
        assert (info.state, info.outcome) == ('review', 'no method passed the gates')
        assert info.job == job.id
        assert ws.status()['version'] == before['version']
        assert shop.user(3) not in ws.load()[1]['user'].raw_id
        with pytest.raises(ValueError, match='no evidence of a job'):
            ws.evidence(job.id)
        shop.check(ws)
        ws.release(1, 'kim', 'again')
    plant()
    [job] = ws.work(now=True)
    assert job.version is not None


def test_a_job_that_dies_three_times_goes_to_review(ws, ask, shop, plant):
    class Dying(EdgeDrop):
        def __call__(self, model, data):
            raise KeyboardInterrupt

    plant(PartialRetrain=Dying)
    ask(ws, users=[shop.user(3)])
    for attempt in range(3):
        with pytest.raises(KeyboardInterrupt):
            ws.work(now=True)
        assert ws.ledger.row('SELECT attempts FROM job')['attempts'] == attempt + 1
    [job] = ws.work(now=True)
    assert job.verdict == 'fail'
    assert ws.book.info(1).outcome == 'a worker died three times'
    shop.check(ws)


def test_job_id_follows_from_what_it_does(make, ask, shop, tmp_path):
    ids = []
    for name, users, settings in (
        ('a', (3, 4), {}),
        ('b', (3, 4), {}),
        ('c', (3,), {}),
        ('d', (3, 4), {'seed': 1}),
    ):
        ws = make(tmp_path / name / 'shop', **settings)
        for i in users:
            ask(ws, users=[shop.user(i)])
        ids.append(ws.work(now=True)[0].id)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


# What the figures can't tell ----------------------------------------------------------


def test_pooled_jobs_are_decided_together(make, ask, shop, tmp_path, clock):
    ws = make(tmp_path / 'shop', method='RowReset', method_args={}, min_users=1)
    jobs = []
    for start in range(0, 200, 12):
        for i in range(start, start + 12):
            ask(ws, users=[shop.user(i)])
        [job] = ws.work()
        jobs.append(job)
        if job.verdict == 'pass':
            break
        clock.wait(0.1)
    assert len(jobs) > 1
    assert [job.verdict for job in jobs[:-1]] == ['inconclusive'] * (len(jobs) - 1)
    rows = ws.ledger.rows('SELECT verdict FROM job')
    assert {row['verdict'] for row in rows} == {'pass'}
    for job in jobs:
        assert verify(ws.evidence(job.id))['verdict'] == 'pass'
    assert verify(ws.evidence(jobs[0].id))['gates']['membership'] == 'inconclusive'


def test_retraining_decides_before_a_deadline(ws, ask, shop, clock):
    ask(ws, users=[shop.user(3)])
    [job] = ws.work(now=True)
    assert job.verdict == 'inconclusive'
    assert verify(ws.evidence(job.id))['verdict'] == 'inconclusive'
    clock.wait(20)
    assert ws.work() == []
    assert ws.finalise() == []  # Not before it is told.
    clock.wait(8.5)
    ask(ws, users=[shop.user(4)])  # Somebody waits meanwhile.
    assert ws.plan().decides
    [training] = ws.work(now=True)
    assert (training.verdict, training.requests) == ('pass', [])
    assert ws.status()['version'] == training.version != job.version
    assert {x['verdict'] for x in ws.ledger.rows('SELECT verdict FROM job')} == {'pass'}
    assert not ws.plan().decides
    assert shop.user(4) not in ws.load()[1]['user'].raw_id
    assert ws.finalise() == [1]
    assert verify(ws.evidence(job.id))['verdict'] == 'pass'
    assert ws.work(now=True)[0].requests == [2]
    assert (clock() - 1e9) / DAY < 30


def test_settings_reach_the_method(ws):
    method = worker.make_unlearner(ws, 'PartialRetrain', 'j')
    assert (method.num_epochs, method.min_steps) == (2, 2)
    assert worker.make_unlearner(ws, 'Retrain', 'j').seed == ws.settings.seed
