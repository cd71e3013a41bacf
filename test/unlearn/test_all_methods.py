r"""Every method serves every backbone and every kind of request, by the contract."""

from __future__ import annotations

import io
import json

import pytest
import torch
from torch_geometric.nn import LightGCN as PyGLightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import Request
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import MGCN, MIGGT, LightGCN, RecommenderAdapter
from torch_geometric_unlearn.report import build_report, render_html
from torch_geometric_unlearn.testing import check_unlearner
from torch_geometric_unlearn.train import fit, save_model
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
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


def build_mgcn(data):
    return MGCN.from_data(data, hidden_channels=8)


def build_miggt(data):
    return MIGGT.from_data(data, hidden_channels=8, encoder_channels=16)


def build_lightgcn(data):
    return LightGCN.from_data(data, hidden_channels=8)


def build_adapter(data):
    sizes = data['user'].num_nodes, data['item'].num_nodes
    return RecommenderAdapter(PyGLightGCN(sum(sizes), 8, 2), *sizes)


BACKBONES = {
    'MGCN': build_mgcn,
    'MIGGT': build_miggt,
    'LightGCN': build_lightgcn,
    'adapter': build_adapter,
}
REQUESTS = [ForgetUsers([3, 17]), ForgetItems([5]), ForgetInteractions(ratio=0.05)]
FEW = {'num_epochs': 1, 'batch_size': 256}
METHODS = {
    'COVA': lambda build: COVA(),
    'EdgeDrop': lambda build: EdgeDrop(),
    'FineTune': lambda build: FineTune(**FEW),
    'GNNDelete': lambda build: GNNDelete(num_epochs=2, num_steps=3),
    'InfluenceFunction': lambda build: InfluenceFunction(max_iter=5),
    'MMRecUn': lambda build: MMRecUn(**FEW),
    'MultiDelete': lambda build: MultiDelete(**FEW),
    'NegGrad': lambda build: NegGrad(**FEW),
    'PartialRetrain': lambda build: PartialRetrain(min_steps=5, **FEW),
    'Retrain': lambda build: Retrain(build, **FEW),
    'RowReset': lambda build: RowReset(),
    'ScaleGUN': lambda build: ScaleGUN(max_iter=5),
    'TRU': lambda build: TRU(**FEW),
    'UltraRE': lambda build: UltraRE(build, 2, grouping='random', **FEW),
}


@pytest.fixture(scope='module', params=list(BACKBONES))
def backbone(request):
    data = SyntheticMultimodal('tiny')[0]
    data['user'].raw_id = [f'user{i:03}@shop.org' for i in range(100)]
    data['item'].raw_id = [f'SKU-{i:05}' for i in range(60)]
    build = BACKBONES[request.param]
    with isolated_seed(0):
        model = build(data)
    fit(model, data, num_epochs=5, lr=5e-3, batch_size=256)
    return build, model.eval(), data


@pytest.mark.parametrize('request_', REQUESTS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize('method', list(METHODS))
def test_method(method, request_, backbone, tmp_path):
    build, model, data = backbone
    unlearner = METHODS[method](build)
    marked = request_(data)
    result = check_unlearner(unlearner, model, marked)
    assert result.exact == (method in ('Retrain', 'UltraRE'))
    assert not result.model.training
    assert torch.is_grad_enabled()

    files = stored(result, marked, tmp_path / 'model.safetensors')
    for raw_id in deleted_ids(marked):
        assert not [name for name, content in files.items() if raw_id in content]
    assert all(parameter.grad is None for parameter in result.model.parameters())
    gone = set(map(tuple, schema.forgotten_edge_index(marked).t().tolist()))
    for name, pairs in all_pairs(result):
        assert not gone & set(map(tuple, pairs.t().tolist())), name
    rows = deleted_rows(model, marked)
    left = {name for name, row in rows if row in files['model']}
    if method in DROPS_ROWS:
        assert not left
    elif method in KEEPS_ROWS and rows:
        assert left


#: Of deleted users and items: methods whose result has none of the original rows, and
#: those that must have them, as their docstrings say.
DROPS_ROWS = ('PartialRetrain', 'Retrain', 'RowReset')
KEEPS_ROWS = ('EdgeDrop', 'GNNDelete')


def stored(result, marked, path):
    r"""What a caller may write of a result to disk, as bytes by name."""
    save_model(result.model, path)
    data, everything = io.BytesIO(), io.BytesIO()
    torch.save(result.data, data)
    torch.save([result.history, result.settings, result.dropped], everything)
    content = build_report(result, data=marked)
    return {
        'model': path.read_bytes(),
        'data': data.getvalue(),
        'log': everything.getvalue(),
        'report': json.dumps(content).encode(),
        'page': render_html(content).encode(),
    }


def deleted_ids(marked):
    request = Request.of(marked)
    ids = [marked['user'].raw_id[i] for i in request.users.tolist()]
    ids += [marked['item'].raw_id[i] for i in request.items.tolist()]
    return [raw_id.encode() for raw_id in ids]


def all_pairs(result):
    r"""Everything that looks like (user, item) pairs, of data, model and graph."""
    graph = result.model.build_graph(result.data)
    places = [('data', store) for store in map(dict, result.data.stores)]
    places += [('graph', vars(graph)), ('model', dict(result.model.named_buffers()))]
    for where, values in places:
        for name, value in values.items():
            is_integer = torch.is_tensor(value) and not value.is_floating_point()
            if is_integer and value.dim() == 2 and value.size(0) == 2:
                yield f'{where}.{name}', value


def deleted_rows(model, marked):
    r"""The rows of deleted users and items in the tables of a model, as bytes."""
    request, out = Request.of(marked), []
    sizes = marked['user'].num_nodes, marked['item'].num_nodes
    users, items = (torch.zeros(size, dtype=torch.bool) for size in sizes)
    users[request.users] = True
    items[request.items] = True
    for table in model.tables():
        if not table.is_raw:
            rows = table.parameter.detach()[table.of(users, items)]
            out += [(table.rows, row.numpy().tobytes()) for row in rows]
    return out


@pytest.mark.parametrize('method', [*METHODS, 'MMRecUn with row reset'])
def test_refuses_what_is_no_recommender(method, backbone):
    build, _, data = backbone
    if method in METHODS:
        unlearner = METHODS[method](build)
    else:
        unlearner = MMRecUn(row_reset=True, **FEW)
    ok, reason = unlearner.supports(torch.nn.Linear(1, 1), ForgetUsers([3])(data))
    assert not ok
    assert "'Linear' lacks ['build_graph', 'loss', 'branches', 'tables']" in reason
