import math

import pytest
import torch

from torch_geometric_unlearn.audit import completion, membership
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.evaluation import Comparison
from torch_geometric_unlearn.metrics import evaluate_request, exposure, trade_off
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.transforms import ForgetUsers
from torch_geometric_unlearn.unlearn import EdgeDrop


@pytest.fixture(scope='module')
def shop():
    return ForgetUsers(ratio=0.3)(SyntheticMultimodal('tiny', num_users=400)[0])


def build(shop, seed=0):
    torch.manual_seed(seed)
    return LightGCN.from_data(shop, hidden_channels=8)


@pytest.mark.usefixtures('few_trees')
def test_rows_are_those_of_the_metrics(shop):
    original, retrained = build(shop), build(shop, 1)
    result = EdgeDrop()(original, shop)
    models = {'original': original, 'retrained': retrained, 'drop': result}
    rows = Comparison(models, shop).measure(Comparison.MEASURES, k=10, seed=3)
    assert [row['method'] for row in rows] == list(models)
    whole = original.build_graph(SyntheticMultimodal('tiny', num_users=400)[0])
    cases = [(original, whole), (retrained, None), (result.model, None)]
    for row, (model, graph) in zip(rows, cases):
        expected = evaluate_request(model, shop, graph=graph, ks=(10,), seed=3)
        expected |= exposure(model, shop, 10, graph=graph)
        expected['completion'] = completion(model, shop, graph, seed=3).auc
        attack = membership(model, shop, graph, seed=3)
        expected['membership'] = attack.balanced_accuracy
        assert {key: row[key] for key in expected} == expected
    assert rows[2]['seconds'] == result.seconds
    assert rows[2]['peak_memory'] == result.peak_memory
    assert math.isnan(rows[0]['seconds'])
    assert rows[2]['trade_off'] == trade_off(rows[0], rows[1], rows[2], 10)


def test_without_a_retrained_model_there_is_no_trade_off(shop):
    (row,) = Comparison({'original': build(shop)}, shop).measure()
    assert 'trade_off' not in row
    assert 'retain_ndcg@20' in row


def test_a_measure_that_raises(shop, monkeypatch):
    models = {'original': build(shop), 'broken': build(shop, 1)}

    def broken(graph):
        raise RuntimeError('no way')

    monkeypatch.setattr(models['broken'], 'forward', broken)
    comparison = Comparison(models, shop)
    with pytest.raises(RuntimeError, match='no way'):
        comparison.measure()
    errors = []
    first, second = comparison.measure(errors=errors)
    reason = 'RuntimeError: no way'
    assert errors == [('broken', 'ranking', reason), ('broken', 'exposure', reason)]
    assert 'retain_ndcg@20' in first
    assert set(second) == {'method', 'seconds', 'peak_memory'}


def test_bad_input(shop):
    with pytest.raises(ValueError, match="'models' must hold at least one"):
        Comparison({}, shop)
    comparison = Comparison({'original': build(shop)}, shop)
    with pytest.raises(ValueError, match="'measures' must be one of"):
        comparison.measure(['fame'])
    with pytest.raises(ValueError, match="'k' must"):
        comparison.measure(k=0)
    with pytest.raises(ValueError, match="'name' must be one of"):
        comparison.serve('retrained')
