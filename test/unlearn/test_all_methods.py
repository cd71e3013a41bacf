r"""Every method serves every backbone and every kind of request, by the contract."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import MGCN, MIGGT, RecommenderAdapter
from torch_geometric_unlearn.testing import check_unlearner
from torch_geometric_unlearn.train import fit
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
    sizes = data['user'].num_nodes, data['item'].num_nodes
    return RecommenderAdapter(LightGCN(sum(sizes), 8, 2), *sizes)


BACKBONES = {'MGCN': build_mgcn, 'MIGGT': build_miggt, 'LightGCN': build_lightgcn}
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
    build = BACKBONES[request.param]
    with isolated_seed(0):
        model = build(data)
    fit(model, data, num_epochs=5, lr=5e-3, batch_size=256)
    return build, model.eval(), data


@pytest.mark.parametrize('request_', REQUESTS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize('method', list(METHODS))
def test_method(method, request_, backbone):
    build, model, data = backbone
    unlearner = METHODS[method](build)
    result = check_unlearner(unlearner, model, request_(data))
    assert result.exact == (method in ('Retrain', 'UltraRE'))
    assert not result.model.training
    assert torch.is_grad_enabled()


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
