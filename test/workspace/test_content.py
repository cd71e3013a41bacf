r"""Takedowns that ask for the features as well."""

import json

import pandas as pd
import pytest
import torch

from torch_geometric_unlearn.data import from_frame, to_frame
from torch_geometric_unlearn.data.schema import EDGE_TYPE, features
from torch_geometric_unlearn.nn import MGCN
from torch_geometric_unlearn.transforms import ForgetItems, ItemKNNGraph
from torch_geometric_unlearn.unlearn import EdgeDrop
from torch_geometric_unlearn.utils.seed import isolated_seed
from torch_geometric_unlearn.workspace import Workspace, gates, verify, worker
from torch_geometric_unlearn.workspace.content import without_content


def build(data):
    return MGCN.from_data(data, hidden_channels=8)


@pytest.fixture
def mgcn(data):
    with isolated_seed(0):
        return build(data)


@pytest.fixture
def market(data, mgcn, clock, tmp_path):
    r"""A shop whose model holds trained copies of the features."""
    return Workspace.create(
        tmp_path / 'market', data=data, model=mgcn, build_model=build, clock=clock,
        method='EdgeDrop', k=10, surge_share=0.5, max_loss=1.0,
        fit_args={'num_epochs': 1},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _wide_limits(monkeypatch):
    wide = {'service': 9.0, 'full': 9.0, 'forget': 0.9, 'membership': 0.49}
    monkeypatch.setattr(gates, 'LIMITS', wide)


def rows(data, item):
    r"""The bytes of the features of an item."""
    return [x[item].numpy().tobytes() for x in features(data).values()]


def has_features(data, item):
    return any(bool(x[item].any()) for x in features(data).values())


def test_features_go_if_asked(market, ask, data, mgcn, shop, clock):
    info = ask(market, 'takedown', items=[shop.item(5)], drop_features=True)
    assert info.drops_features
    other = ask(market, 'takedown', items=[shop.item(6)])
    assert not other.drops_features
    model, served = market.load()  # At once.
    assert not has_features(served, 5)
    assert has_features(served, 6)
    assert not model.features['image'].weight[5].any()
    kept = [m.features['image'].weight[6] for m in (model, mgcn)]
    assert torch.equal(*kept)
    [job] = market.work(now=True)
    assert job.gates['0 EdgeDrop']['data'] == 'pass'
    stored = market.versions.get_data(market.versions.service['data'])
    assert not has_features(stored, 5)
    assert has_features(stored, 6)
    assert not (stored[EDGE_TYPE].edge_index[1] == 5).any()
    model = market.versions.get_model(job.version)
    assert not model.features['text'].weight[5].any()
    assert model.features['text'].weight[6].any()
    verify(market.evidence(job.id))
    while market.book.info(1).state != 'completed':
        clock.wait(8)
        market.work()
    assert shop.places(market.root, *rows(data, 5)) == []
    assert len(shop.places(market.root, *rows(data, 6))) >= 1
    shop.check(market)


def test_the_gate_looks_for_them(data, mgcn):
    marked = ForgetItems([5])(ItemKNNGraph(k=3)(data))
    result = EdgeDrop()(*without_content(mgcn, marked, [5]))
    after = result.model, result.data
    assert gates.features_left((mgcn, marked), after, [5], {'f': b'x'}) == []
    for name in ('image', 'text'):
        bad = result.data.clone()
        bad['item'][f'x_{name}'] = data['item'][f'x_{name}']
        [fault] = gates.features_left((mgcn, marked), (result.model, bad), [5], {})
        assert fault == f"features of dropped items in 'x_{name}' of the data"
    graphs = [t for t in marked.edge_types if t[0] == t[2] == 'item']
    assert graphs
    for edge_type in graphs:
        bad = result.data.clone()
        bad[edge_type].edge_index = marked[edge_type].edge_index
        [fault] = gates.features_left((mgcn, marked), (result.model, bad), [5], {})
        assert fault == f"dropped items in the graph '{'__'.join(edge_type)}'"
    # The row of the model, as it was or a few steps from there.
    for shift in (0.0, 0.1):
        with torch.no_grad():
            was = mgcn.features['image'].weight[5]
            result.model.features['image'].weight[5] = was * (1 + shift)
        found = gates.features_left((mgcn, marked), after, [5], {})
        assert found == ['features of dropped items in a table of the model']
    with torch.no_grad():
        result.model.features['image'].weight[5] = 0
    content = b'..' + rows(data, 5)[0] + b'..'
    found = gates.features_left((mgcn, marked), after, [5], {'model file': content})
    assert found == ['features of dropped items in the model file']


def test_features_that_others_have_as_well_are_no_fault(data, mgcn):
    same = data.clone()
    for x in features(same).values():
        x[7] = x[5]
    with isolated_seed(0):
        model = build(same)
    marked = ForgetItems([5])(same)
    result = EdgeDrop()(*without_content(model, marked, [5]))
    content = b''.join(rows(same, 7))
    after = result.model, result.data
    with torch.no_grad():  # The model has rows of its own.
        for table in model.features.values():
            table.weight += 1
    assert gates.features_left((model, marked), after, [5], {'f': content}) == []


def test_a_method_that_leaves_them_fails(market, ask, shop, monkeypatch):
    class Leaving(EdgeDrop):
        def __call__(self, model, data, drop=None):
            result = super().__call__(model, data, drop)
            result.data['item'].x_image = before['item'].x_image
            return result

    before = market.versions.get_data(market.versions.service['data'])
    original = worker.make_unlearner
    monkeypatch.setattr(worker, 'make_unlearner', lambda ws, name, job: (
        Leaving() if name == 'EdgeDrop' else original(ws, name, job)))  # fmt: skip
    ask(market, 'takedown', items=[shop.item(5)], drop_features=True)
    [job] = market.work(now=True)
    assert job.gates['0 EdgeDrop']['data'] == 'fail'
    assert job.gates['1 Retrain']['data'] == 'pass'
    row = market.ledger.row("SELECT content FROM gate WHERE verdict = 'fail'")
    faults = json.loads(row['content'])['faults']
    assert "features of dropped items in 'x_image' of the data" in faults
    assert 'features of dropped items in the data file' in faults


def test_no_path_brings_them_back(market, ask, data, shop, clock):
    ask(market, 'takedown', items=[shop.item(5)], drop_features=True)
    market.work(now=True)
    contained = market.rollback('eve', 'it is worse')
    model = market.versions.get_model(contained)
    assert not model.features['image'].weight[5].any()
    assert not has_features(market.load()[1], 5)
    [job] = market.work()
    assert job.version is not None
    assert not has_features(market.load()[1], 5)
    # Nor new data, in its old place or as a new item.
    table = market.filter(to_frame(data))
    new = from_frame(table, split='split', like=market.load()[1])
    assert not has_features(new, 5)
    bad = new.clone()
    bad['item'].x_text = data['item'].x_text
    with pytest.raises(ValueError, match='bring back features of items'):
        market.refresh(bad, 'eve', 'a new month')
    again = {name: pd.DataFrame(x[5:6].numpy(), index=[shop.item(5)])
             for name, x in features(data).items()}  # fmt: skip
    bad = from_frame(table, split='split', like=new, item_features=again,
                     items=[shop.item(5)])  # fmt: skip
    with pytest.raises(ValueError, match='bring back features of items'):
        market.refresh(bad, 'eve', 'a new month')
    market.refresh(new, 'eve', 'a new month')
    assert not has_features(market.load()[1], 5)
    market.doctor()
    shop.check(market)


def test_what_may_be_asked(market, ask, shop, clock):
    with pytest.raises(ValueError, match=r"for requests of the kind \['takedown'\]"):
        ask(market, items=[shop.item(5)], drop_features=True)
    with pytest.raises(TypeError, match="'drop_features' must be True or False"):
        ask(market, 'takedown', items=[shop.item(5)], drop_features='no')
    assert market.book.requests() == []
    kwargs = {'items': [shop.item(5)], 'client_id': 'T-50'}
    first = ask(market, 'takedown', drop_features=True, **kwargs)
    assert ask(market, 'takedown', drop_features=True, **kwargs) == first
    with pytest.raises(ValueError, match="'T-50' was used for another one"):
        ask(market, 'takedown', **kwargs)
    ask(market, 'takedown', items=[shop.item(6)])
    market.work(now=True)
    # Erased without them: which were its own is not known any more.
    with pytest.raises(ValueError, match='comes too late'):
        ask(market, 'takedown', items=[shop.item(6)], drop_features=True)
    assert ask(market, 'takedown', drop_features=True, **kwargs).id == first.id
    again = ask(market, 'takedown', items=[shop.item(5)], drop_features=True)
    market.work(now=True)
    assert market.book.info(again.id).outcome == 'already_erased'


def test_a_signature_serves_what_was_measured(
    market, ask, data, shop, clock, monkeypatch
):
    bad = gates.Gate('utility', {'low': -12.0, 'high': -10.0, 'to_full': 0.0})
    monkeypatch.setattr(gates, 'utility', lambda *_: bad)
    monkeypatch.setattr(worker, 'make_unlearner', lambda *_: EdgeDrop())
    ask(market, 'takedown', items=[shop.item(5)], drop_features=True)
    [job] = market.work(now=True)
    assert job.verdict == 'fail'
    attempt = market.attempts()[0]
    files = [market.versions.store.model_path(attempt.version)]
    assert shop.places(attempt.report.parent, shop.item(5)) == []
    assert not set(shop.places(files[0].parent, *rows(data, 5))) & {files[0].name}
    market.sign(job.id, 0, although=attempt.unpassed, who='dpo', why='a small shop')
    assert market.status()['version'] == attempt.version
    service = market.versions.service
    assert not has_features(market.versions.get_data(service['data']), 5)
    model = market.versions.get_model(service['id'])
    assert not model.features['image'].weight[5].any()
    assert not has_features(market.load()[1], 5)
    assert verify(market.evidence(job.id))['verdict'] == 'signed'
    clock.wait(8)
    market.work()
    assert market.book.info(1).state == 'completed'
    assert shop.places(market.root, *rows(data, 5)) == []
    shop.check(market)
