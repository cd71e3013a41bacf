import math

import pytest
import torch
from scipy import stats

from torch_geometric_unlearn.audit import completion, membership
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.evaluation import Comparison, Difference, student
from torch_geometric_unlearn.metrics import evaluate_request, exposure, trade_off
from torch_geometric_unlearn.nn import MGCN, LightGCN
from torch_geometric_unlearn.transforms import ForgetItems, ForgetUsers
from torch_geometric_unlearn.unlearn import COVA, EdgeDrop, GNNDelete


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


def test_differences_are_those_of_the_figures(shop):
    data = SyntheticMultimodal('tiny')[0]
    for marked in (shop, ForgetItems(ratio=0.1)(data)):
        models = {'retrained': build(marked), 'unlearned': build(marked, 1)}
        comparison = Comparison(models, marked)
        goal, own = comparison.measure(k=10)
        found = comparison.difference('unlearned', 10)
        value = own['pair@10'] - goal['pair@10']
        assert found['pair@10'].value == pytest.approx(value)
        value = own['retain_ndcg@10'] / goal['retain_ndcg@10'] - 1
        assert found['retain_ndcg@10'].value == pytest.approx(value, abs=1e-6)
        same = comparison.difference('retrained', 10)
        assert {x.value for x in same.values()} == {0.0}
        for key, change in found.items():
            assert change.low < change.value < change.high
            assert same[key].high < change.high - change.value
    assert found['pair@10'].num_groups == 6  # The deleted items.
    plain = Comparison(models, data)  # Nothing is marked.
    assert list(plain.difference('unlearned')) == ['retain_ndcg@20']


def test_intervals_by_formula():
    gen = torch.Generator().manual_seed(0)
    change = torch.randn(40, generator=gen).double()
    own = Difference.of(change, torch.arange(40))
    wanted = stats.ttest_1samp(change.numpy(), 0).confidence_interval()
    assert (own.low, own.high) == pytest.approx(tuple(wanted), abs=2e-4)
    # Examples that only repeat their group say nothing new.
    place = torch.arange(40).repeat_interleave(5)
    twice = Difference.of(change[place], place)
    assert (twice.low, twice.high) == pytest.approx((own.low, own.high))
    assert (twice.num_examples, twice.num_groups) == (200, 40)
    # Matched pairs, 3 up and 1 down of 50, by Agresti and Min.
    pairs = torch.tensor([1.0] * 3 + [-1.0] + [0.0] * 46).double()
    found = Difference.of(pairs, torch.arange(50))
    half = ((4 + 1) - 2**2 / 52) ** 0.5 / 52
    half *= stats.t.ppf(0.975, 49)
    assert found.high - found.value == pytest.approx(half, rel=1e-3)
    none = Difference.of(torch.zeros(9).double(), torch.zeros(9))
    assert (none.low, none.value, none.high) == (-math.inf, 0.0, math.inf)
    for freedom in (*range(1, 40), 1000):
        wanted = stats.t.ppf(0.975, freedom)
        assert student(freedom) == pytest.approx(wanted, abs=6e-4)


def test_retrainings_cover_their_own_truth():
    r"""Ninety-five of a hundred intervals hold the truth, whatever the groups."""
    gen = torch.Generator().manual_seed(1)
    group = torch.arange(8).repeat_interleave(6)
    inside = 0
    for _ in range(400):
        taste = 0.5 * torch.randn(8, generator=gen).double()[group]
        noise = torch.rand(48, generator=gen).double()
        change = (noise < 0.2 + 0.2 * taste.tanh()).double()
        change -= (noise > 0.8 + 0.2 * taste.tanh()).double()
        found = Difference.of(change, group)
        inside += found.low <= 0 <= found.high
    assert inside >= 372  # 93 %


def test_models_of_other_kinds_and_sizes():
    data = SyntheticMultimodal('tiny')[0]
    marked = ForgetUsers([3])(data)
    model = MGCN.from_data(data, hidden_channels=8)
    larger = MGCN.from_data(data, hidden_channels=16)
    light = LightGCN.from_data(data, hidden_channels=8)
    message = r"'retrained' .* of shape \[100, 16\], not \[100, 8\]"
    with pytest.raises(ValueError, match=message):
        Comparison({'original': model, 'retrained': larger}, marked)
    with pytest.raises(ValueError, match=r"'drop' .* is a LightGCN, not a MGCN"):
        Comparison({'original': model, 'drop': EdgeDrop()(light, marked)}, marked)
    with pytest.raises(ValueError, match=r"'unlearned' .* is a LightGCN, not a MGCN"):
        Comparison({'retrained': model, 'unlearned': light}, marked)
    # A method may return another kind of model, and a baseline may be one.
    others = {
        'delete': GNNDelete(num_epochs=1, num_steps=1)(model, marked),
        'cova': COVA()(model, marked),
        'another recommender': light,
    }
    rows = Comparison({'original': model, **others}, marked).measure(['exposure'])
    assert len(rows) == 4
