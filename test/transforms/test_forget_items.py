import pytest
import torch
from torch_geometric.data.datapipes import DatasetAdapter

from torch_geometric_unlearn.data import from_frame, schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.transforms import ForgetItems, ForgetUsers

EDGE = schema.EDGE_TYPE


def marked_pairs(data):
    return set(map(tuple, schema.forgotten_edge_index(data).t().tolist()))


def pairs_of(data, items):
    pairs = data[EDGE].edge_index.t().tolist()
    return {(user, item) for user, item in pairs if item in items}


def test_ids(data):
    out = ForgetItems([30, 2, 30])(data)
    assert out.forget_items.tolist() == [2, 30]
    assert out.forget_level == 'item'
    assert marked_pairs(out) == pairs_of(data, {2, 30})
    assert len(marked_pairs(out)) > 0
    assert torch.equal(out['item'].x_image, data['item'].x_image)
    assert 'forget_mask' not in data[EDGE]


@pytest.mark.parametrize('ratio', [1e-6, 0.05, 0.5])
def test_ratio_and_seed(data, ratio):
    pool = set(data[EDGE].edge_index[1].tolist())
    out = [ForgetItems(ratio=ratio, seed=seed)(data) for seed in (4, 4, 5)]
    items = out[0].forget_items.tolist()
    assert len(items) == max(1, round(ratio * len(pool)))
    assert set(items) <= pool
    assert marked_pairs(out[0]) == pairs_of(data, set(items))
    assert out[1].forget_items.tolist() == items
    assert out[2].forget_items.tolist() != items


def test_combines_with_users(data):
    out = ForgetItems([2])(ForgetUsers([3])(data))
    assert out.forget_level == 'mixed'
    users = {(u, i) for u, i in data[EDGE].edge_index.t().tolist() if u == 3}
    assert marked_pairs(out) == pairs_of(data, {2}) | users
    assert ForgetItems([9])(out).forget_level == 'mixed'


def test_item_without_training_edges(data):
    keep = data[EDGE].edge_index[1] != 4
    data[EDGE].edge_index = data[EDGE].edge_index[:, keep]
    out = ForgetItems([4])(data)
    assert not out[EDGE].forget_mask.any()
    assert out.forget_items.tolist() == [4]


def test_raw_ids():
    pd = pytest.importorskip('pandas')
    rows = [('zoe', 7), ('al', 9), ('zoe', 9), ('bo', 8)]
    data = from_frame(pd.DataFrame(rows, columns=['user', 'item']))
    out = ForgetItems(raw_items=[9])(data)
    assert out[EDGE].forget_mask.tolist() == [False, True, True, False]
    match = r"must name known items, but 1 of \d are unknown \(at position \d\)"
    with pytest.raises(ValueError, match=match):
        ForgetItems(raw_items=['9'])(data)


def test_functional_name_and_repr():
    (out,) = DatasetAdapter(SyntheticMultimodal('tiny')).forget_items([2])
    assert out.forget_items.tolist() == [2]
    assert str(ForgetItems([2, 3])) == 'ForgetItems(num_items=2)'
    assert str(ForgetItems(ratio=0.1, seed=2)) == 'ForgetItems(ratio=0.1, seed=2)'


@pytest.mark.parametrize(
    ('kwargs', 'error', 'match'),
    [
        ({}, ValueError, r"one of \['items', 'raw_items', 'ratio'\] \(got none\)"),
        ({'items': []}, ValueError, "'items' must name at least one id"),
        ({'items': [60]}, ValueError, r'\(first: 60\). Known are 0 to 59.*raw_items'),
        ({'items': [-3, 1]}, ValueError, r"'items' names 1 unknown ids \(first: -3\)"),
        ({'items': [0.5]}, TypeError, "'items' must hold integer ids"),
        ({'items': [True]}, TypeError, r'must hold integer ids \(got torch.bool\)'),
        ({'ratio': 1}, ValueError, r"'ratio' must be in \(0, 1\) \(got 1\)"),
        ({'item': [1]}, TypeError, "unexpected keyword argument 'item'"),
        ({'users': [1]}, TypeError, "unexpected keyword argument 'users'"),
        ({'items': range(60)}, ValueError, 'deletes all 599.*or name fewer items'),
    ],
)
def test_bad_requests(data, kwargs, error, match):
    with pytest.raises(error, match=match):
        ForgetItems(**kwargs)(data)
