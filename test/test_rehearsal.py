r"""Everything runs on a device as CUDA has it, before there is one: no operator mixes
devices, no generator is on the wrong one, no training step waits, and results are those
of the CPU.
"""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter

import pytest
import torch
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.audit import (
    backdoor,
    compare_completion,
    compare_membership,
    completion,
    exchangeability,
    hold_out_users,
    likelihood_ratio,
    membership,
    relearn_time,
    shadow,
)
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.evaluation import Comparison
from torch_geometric_unlearn.metrics import (
    closeness,
    cross_modal_cka,
    evaluate_request,
    evaluate_split,
    exposure,
    item_persistence,
    layer_shift,
)
from torch_geometric_unlearn.nn import MGCN, MIGGT, RecommenderAdapter
from torch_geometric_unlearn.ops.spmm import use_backend
from torch_geometric_unlearn.report import build_report, render_html
from torch_geometric_unlearn.testing import check_model, check_unlearner, rehearse_cuda
from torch_geometric_unlearn.train import fit, load_model, save_model
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
    InjectBackdoor,
    ItemKNNGraph,
    SplitInteractions,
)
from torch_geometric_unlearn.unlearn import (
    COVA,
    TRU,
    EdgeDrop,
    FineTune,
    GNNDelete,
    InfluenceFunction,
    MMRecUn,
    MultiDelete,
    NegGrad,
    PartialRetrain,
    Retrain,
    RowReset,
    ScaleGUN,
    UltraRE,
)
from torch_geometric_unlearn.utils.seed import isolated_seed

#: Where a training step may wait, with the reason.
ALLOWED = {
    # PyG's LightGCN normalises its CSR matrix in every pass, and counts rows for it.
    'adapter.py:_embed_sparse',
}
DROPOUTS = ('feature', 'hidden', 'user', 'item', 'edge', 'out')
NO_DROPOUT = {f'{name}_dropout': 0.0 for name in DROPOUTS}  # Draws on its own there.


def build_mgcn(data):
    return MGCN.from_data(data, hidden_channels=8)


def build_miggt(data, **kwargs):
    kwargs = NO_DROPOUT | kwargs
    return MIGGT.from_data(data, hidden_channels=8, encoder_channels=16, **kwargs)


def build_lightgcn(data):
    sizes = data['user'].num_nodes, data['item'].num_nodes
    return RecommenderAdapter(LightGCN(sum(sizes), 8, 2), *sizes)


BACKBONES = {'MGCN': build_mgcn, 'MIGGT': build_miggt, 'LightGCN': build_lightgcn}
FEW = {'num_epochs': 1, 'batch_size': 256}
METHODS = {
    'COVA': lambda build: COVA(),
    'EdgeDrop': lambda build: EdgeDrop(),
    'FineTune': lambda build: FineTune(**FEW),
    'GNNDelete': lambda build: GNNDelete(num_epochs=1, num_steps=2),
    'InfluenceFunction': lambda build: InfluenceFunction(max_iter=3),
    'MMRecUn': lambda build: MMRecUn(**FEW),
    'MultiDelete': lambda build: MultiDelete(**FEW),
    'NegGrad': lambda build: NegGrad(**FEW),
    'PartialRetrain': lambda build: PartialRetrain(min_steps=3, **FEW),
    'Retrain': lambda build: Retrain(build, **FEW),
    'RowReset': lambda build: RowReset(),
    'ScaleGUN': lambda build: ScaleGUN(max_iter=3),
    'TRU': lambda build: TRU(**FEW),
    'UltraRE': lambda build: UltraRE(build, 2, grouping='random', **FEW),
}
REQUESTS = [ForgetUsers([3, 17]), ForgetItems([5]), ForgetInteractions(ratio=0.05)]


@pytest.fixture(scope='module')
def small():
    return SyntheticMultimodal('tiny', num_users=60, num_items=40)[0]


@pytest.fixture(scope='module', params=list(BACKBONES))
def backbone(request, small):
    build = BACKBONES[request.param]
    with isolated_seed(0):
        model = build(small)
    fit(model, small, lr=5e-3, **FEW)
    return build, model.eval()


def on_device(build):
    return lambda data: build(data).cuda()


def assert_same(x, y):
    x, y = x.state_dict(), y.state_dict()
    assert all(value.is_cuda for value in y.values())
    assert all(torch.equal(x[name], y[name].cpu()) for name in x)


@pytest.mark.parametrize('on_host', [True, False])
@pytest.mark.parametrize('name', list(BACKBONES))
def test_fit(name, on_host, small):
    models = []
    for device in ('cpu', 'cuda'):
        with isolated_seed(0), rehearse_cuda(ALLOWED), use_backend('torch_csr'):
            model = BACKBONES[name](small).to(device)
            data = small if on_host else copy.copy(small).to(device)
            result = fit(model, data, num_epochs=2, batch_size=256)
            models.append((model, result))
            if device == 'cuda':
                assert_same(models[0][0], model)
    (_, x), (_, y) = models
    assert [row['loss'] for row in x.history] == [row['loss'] for row in y.history]
    assert x.best_metric == y.best_metric


def test_fit_with_dropout(small):
    with rehearse_cuda() as rehearsal:
        model = MIGGT.from_data(small, hidden_channels=8, encoder_channels=16).cuda()
        fit(model, small, **FEW)
    assert not any(wait.in_step for wait in rehearsal.waits)


@pytest.mark.parametrize('name', list(BACKBONES))
def test_an_epoch_waits_as_often_for_more_steps(name, small):
    counts = []
    for batch_size in (256, 128):
        with rehearse_cuda(ALLOWED) as rehearsal:
            model = BACKBONES[name](small).cuda()
            rehearsal.waits.clear()
            fit(model, small, num_epochs=1, batch_size=batch_size)
        counts.append(Counter(w for w in rehearsal.waits if w.place not in ALLOWED))
    assert counts[0] == counts[1]


@pytest.mark.parametrize('optimizer', ['Adam', 'SGD'])
def test_resume(optimizer, small, tmp_path):
    def run(num_epochs, path, resume):
        with isolated_seed(0):
            model = build_mgcn(small).cuda()
        kwargs = {}
        if optimizer == 'SGD':
            kwargs = {'optimizer': torch.optim.SGD(model.parameters(), momentum=0.9)}
        fit(
            model,
            small,
            num_epochs=num_epochs,
            batch_size=256,
            checkpoint=path,
            resume=resume,
            **kwargs,
        )
        return model

    with rehearse_cuda():
        whole = run(2, tmp_path / 'whole.safetensors', False)
        run(1, tmp_path / 'part.safetensors', False)
        resumed = run(2, tmp_path / 'part.safetensors', True)
        for x, y in zip(whole.parameters(), resumed.parameters()):
            assert torch.equal(x, y)


@pytest.mark.parametrize('method', list(METHODS))
def test_unlearning(method, backbone, small):
    build, model = backbone
    place = list(METHODS).index(method)
    marked = REQUESTS[place % 3](small)
    with use_backend('torch_csr'):
        expected = METHODS[method](build)(model, marked)
        with rehearse_cuda(ALLOWED):
            data = copy.copy(marked).to('cuda') if place % 2 else marked
            unlearner = METHODS[method](on_device(build))
            result = unlearner(copy.deepcopy(model).cuda(), data)
            assert_same(expected.model, result.model)
            left = result.data[schema.EDGE_TYPE].edge_index
            assert left.is_cuda == bool(place % 2)
            left = left.cpu()
    assert torch.equal(left, expected.data[schema.EDGE_TYPE].edge_index)


@pytest.fixture(scope='module')
def shop():
    return SyntheticMultimodal('tiny', num_users=300, num_items=80)[0]


@pytest.fixture(scope='module')
def trained_shop(shop):
    with isolated_seed(0):
        model = build_mgcn(shop)
    fit(model, shop, lr=5e-3, num_epochs=2, batch_size=512)
    return model


@pytest.fixture
def case(shop, trained_shop, few_trees):
    r"""A model, its retrained one and requests, on a rehearsed device."""
    with rehearse_cuda(ALLOWED):
        yield Case(shop, trained_shop, moves=True)


@pytest.fixture(params=['data on the host', 'data on the device'])
def either(request, shop, trained_shop):
    r"""The same, also with the data left on the host."""
    with rehearse_cuda(ALLOWED):
        yield Case(shop, trained_shop, request.param == 'data on the device')


class Case:
    def __init__(self, shop, model, moves):
        self.moves = moves
        self.data = self.put(shop)
        self.marked = self.put(ForgetUsers(ratio=0.4, seed=1)(shop))
        self.items = self.put(ForgetItems(ratio=0.2)(shop))
        self.pairs = self.put(ForgetInteractions(ratio=0.2)(shop))
        self.model = copy.deepcopy(model).cuda()
        self.build = on_device(build_mgcn)
        self.result = EdgeDrop()(self.model, self.marked)
        self.retrained = RowReset()(self.model, self.marked)

    def put(self, data):
        return copy.copy(data).to('cuda') if self.moves else data

    @property
    def requests(self):
        return self.marked, self.items, self.pairs

    @property
    def models(self):
        results = {'unlearned': self.result.model, 'retrained': self.retrained.model}
        return {'original': self.model} | results


def test_metrics(case):
    for split in ('val', 'test'):
        assert 0 < evaluate_split(case.model, case.data, split)['recall@20'] < 1
    for marked in case.requests:
        evaluate_request(case.model, marked)
        exposure(case.model, marked)
    closeness(case.result.model, case.retrained.model, case.marked)
    item_persistence(case.model, case.retrained.model, case.items)
    cross_modal_cka(case.model, case.model.build_graph(case.data))
    layer_shift(case.model, case.result.model, case.retrained.model, case.marked)
    models = {'original': case.model, 'unlearned': case.result}
    rows = Comparison(models, case.marked).measure(('ranking', 'exposure'))
    assert len(rows) == 2


def test_metrics_are_those_of_the_cpu(either, shop, trained_shop):
    expected = evaluate_split(trained_shop, shop, 'test')
    assert evaluate_split(either.model, either.data, 'test') == pytest.approx(expected)


def test_membership(case):
    options = {'num_bootstrap': 5, 'classifiers': ['logistic']}
    out = membership(case.result.model, case.marked, mode='transfer', **options)
    assert out.num_members >= 50
    compare_membership(case.models, case.marked, modes=['direct'], **options)


def test_attacks_that_train(case, shop, monkeypatch):
    monkeypatch.setattr(sys.modules[shadow.__module__], 'MIN_EXAMPLES', 20)
    kept = ForgetUsers(ratio=0.3)(hold_out_users(shop, 0.35))
    options = {'num_factors': 8, 'num_epochs': 2, 'num_bootstrap': 5}
    marked = case.put(kept)
    out = shadow(case.model, marked, case.build, FEW, **options)
    assert out.num_members >= 20
    options = {'num_models': 4, 'num_bootstrap': 5}
    likelihood_ratio(case.marked, case.build, EdgeDrop(), FEW, **options)


def test_other_audits(either):
    for marked in either.requests:
        completion(either.result.model, marked, num_bootstrap=2)
    compare_completion(either.models, either.marked, num_bootstrap=2)
    exchangeability(either.data)
    models = either.result.model, either.marked, either.model
    relearn_time(*models, retrained=either.retrained.model, max_steps=2, num_subsets=1)
    poisoned = InjectBackdoor(num_triggers=1)(either.data)
    backdoor(either.build(poisoned), poisoned)


def test_recommend(either, shop, trained_shop):
    graph = trained_shop.build_graph(shop)
    expected, _ = trained_shop.recommend(graph, [0, 1], 5)
    graph = either.model.build_graph(either.data)
    for users in ([0, 1], torch.tensor([0, 1]), torch.tensor([0, 1], device='cuda')):
        items, scores = either.model.recommend(graph, users, 5, exclude_items=[])
        assert items.is_cuda
        assert scores.is_cuda
        assert torch.equal(items.cpu(), expected)
    graph = either.model.build_graph(either.marked)
    everyone = torch.arange(shop['user'].num_nodes)
    pairs = shop[schema.EDGE_TYPE].edge_index
    either.model.recommend(graph, everyone, 5, exclude=pairs, exclude_items=[3])


def test_report(case):
    content = build_report(
        case.result,
        original=case.model,
        data=case.marked,
        retrained=case.retrained.model,
        audits={'closeness': lambda: closeness(*models, case.marked)},
        controls={'row reset': case.retrained},
    )
    models = case.result.model, case.retrained.model
    assert 'same device' not in json.dumps(content)
    assert '<html' in render_html(content)


def test_save_and_load(either, tmp_path):
    path = tmp_path / 'model.safetensors'
    save_model(either.model, path, data=either.data)
    other = copy.deepcopy(either.model)
    with torch.no_grad():
        other.user_embedding.weight.zero_()
    load_model(other, path, data=either.data)
    built, _ = load_model(path, data=either.data)
    assert not built.user_embedding.weight.is_cuda
    for model in (other, built.cuda()):
        for x, y in zip(either.model.parameters(), model.parameters()):
            assert torch.equal(x, y)


def test_transforms(either):
    for marked in either.requests:
        out = DropForgotten()(marked)
        assert out[schema.EDGE_TYPE].edge_index.is_cuda == either.moves
    for transform in (
        ForgetUsers([3]),
        ForgetUsers(ratio=0.1),
        ForgetItems([3]),
        ForgetInteractions(ratio=0.1),
        ForgetInteractions(either.data[schema.EDGE_TYPE].edge_index[:, :1].cpu()),
        ItemKNNGraph(),
        SplitInteractions(),
    ):
        out = transform(either.data)
        assert out[schema.EDGE_TYPE].edge_index.is_cuda == either.moves
    hold_out_users(either.data, 0.1)


def test_contracts(case):
    check_model(case.model, case.data)
    check_unlearner(RowReset(), case.model, case.items)
