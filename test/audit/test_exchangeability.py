import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from torch_geometric_unlearn.audit import exchangeability, membership
from torch_geometric_unlearn.audit.exchangeability import covariates
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.transforms import ForgetUsers, SplitInteractions

EDGE = schema.EDGE_TYPE


@pytest.fixture(scope='module')
def shop():
    return SyntheticMultimodal('tiny', num_users=600)[0]


def popular_first(shop):
    r"""Holds out what is least popular, as no random split would."""
    data = SplitInteractions(0.3, seed=1)(shop)
    pairs = torch.cat([data[EDGE].edge_index, data.test_edge_label_index], dim=1)
    count = pairs[1].bincount(minlength=schema.num_items(data))
    order = count[pairs[1]].argsort(descending=True, stable=True)
    num = data.test_edge_label_index.size(1)
    data[EDGE].edge_index = pairs[:, order[:-num]]
    data.test_edge_label_index = pairs[:, order[-num:]]
    return data


def test_covariates_by_loops(shop):
    train, test = shop[EDGE].edge_index, shop.test_edge_label_index
    pairs = torch.cat([train[:, :5], test[:, :5]], dim=1)
    x, names = covariates(shop, pairs)
    assert names == ['item_popularity', 'user_activity']
    for row, (u, i) in zip(x.tolist(), pairs.t().tolist()):
        others = [(a, b) for a, b in train.t().tolist() if (a, b) != (u, i)]
        assert row[0] == pytest.approx(np.log1p(sum(b == i for _, b in others)))
        own = sum(a == u for a, _ in train.t().tolist())  # Matched by user.
        assert row[1] == pytest.approx(np.log1p(own))


def test_random_split_is_exchangeable_and_a_planted_one_is_not(shop):
    for split in ('val', 'test'):
        assert exchangeability(shop, split)['exchangeable']
    control = SplitInteractions(0.2, control=0.1)(shop)
    assert exchangeability(control, 'control')['exchangeable']
    found = exchangeability(popular_first(shop))
    assert not found['exchangeable']
    assert found['interval'][0] > 0.6
    assert found['covariates']['item_popularity'] > 0.5


def test_split_by_time_is_told_by_time(shop):
    data = SplitInteractions(0.2)(shop)
    store = data[EDGE]
    everything = torch.cat([store.edge_index, *(data[k] for k in schema.HELD_OUT)], 1)
    for key in schema.HELD_OUT:
        del data[key]
    store.edge_index = everything
    store.time = torch.randperm(everything.size(1))
    data = SplitInteractions(0.3, by='time', control=0.05)(data)
    assert not exchangeability(data)['exchangeable']
    assert 'time' in exchangeability(data)['covariates']
    assert exchangeability(data, 'control')['exchangeable']


def test_auc_against_sklearn(shop):
    data = popular_first(shop)
    found = exchangeability(data)
    pairs = torch.cat([data[EDGE].edge_index, data.test_edge_label_index], dim=1)
    label = np.arange(pairs.size(1)) < data[EDGE].edge_index.size(1)
    x = covariates(data, pairs)[0].numpy()
    score = LogisticRegression().fit(x, label).decision_function(x)
    assert found['auc'] == pytest.approx(roc_auc_score(label, score), abs=0.05)


def test_too_few_pairs(shop):
    data = SplitInteractions(0.2, control=0.01)(shop)
    with pytest.raises(ValueError, match="'control' must have at least 50 pairs"):
        exchangeability(data, 'control')


@pytest.mark.usefixtures('few_trees')
def test_membership_says_what_it_compares_with(shop):
    model = LightGCN.from_data(shop, hidden_channels=8)
    marked = ForgetUsers(ratio=0.5, seed=1)(shop)
    details = membership(model, marked, num_bootstrap=200, seed=1).details
    assert details['negatives'] == 'heldout'
    assert details['exchangeability']['exchangeable']
    assert 'weighted' not in details
    control = SplitInteractions(0.2, control=0.2)(shop)
    marked = ForgetUsers(ratio=0.5)(control)
    details = membership(model, marked, num_bootstrap=20).details
    assert details['negatives'] == 'control'
    marked = ForgetUsers(ratio=0.5)(popular_first(shop))
    result = membership(model, marked, num_bootstrap=20)
    assert not result.details['exchangeability']['exchangeable']
    assert result.details['weighted']['auc'] != result.auc
