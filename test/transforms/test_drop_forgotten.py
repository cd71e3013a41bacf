import numpy as np
import pytest
import torch
from torch_geometric.data.datapipes import DatasetAdapter
from torch_geometric.transforms import Compose, ToUndirected

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)

EDGE, REV = schema.EDGE_TYPE, schema.REV_EDGE_TYPE


def as_list(pairs):
    return list(map(tuple, pairs.t().tolist()))


@pytest.mark.parametrize('users', [set(), {3, 17}])
@pytest.mark.parametrize('items', [set(), {2, 30}])
@pytest.mark.parametrize('num_pairs', [0, 4])
def test_against_sets(data, users, items, num_pairs):
    train = as_list(data[EDGE].edge_index)
    pairs = train[100 : 100 + num_pairs]
    out = ForgetUsers(sorted(users))(data) if users else data
    out = ForgetItems(sorted(items))(out) if items else out
    out = ForgetInteractions(pairs)(out) if pairs else out
    before = out.clone()
    dropped = DropForgotten()(out)

    assert out.keys() == before.keys()  # The input is as it was.
    assert torch.equal(out[EDGE].edge_index, before[EDGE].edge_index)
    assert torch.equal(out.test_edge_label_index, before.test_edge_label_index)

    kept = [(u, i) for u, i in train if u not in users and i not in items]
    kept = [pair for pair in kept if pair not in pairs]
    assert as_list(dropped[EDGE].edge_index) == kept
    for key in schema.HELD_OUT:
        expected = [(u, i) for u, i in as_list(data[key])]
        expected = [p for p in expected if p[0] not in users and p[1] not in items]
        assert as_list(dropped[key]) == expected
    assert dropped['user'].num_nodes == 100
    assert dropped['item'].num_nodes == 60
    assert torch.equal(dropped['item'].x_text, data['item'].x_text)
    assert not any('forget' in key for key in dropped.keys())
    assert schema.validate(dropped) is dropped


@pytest.mark.parametrize('mark_first', [False, True])
def test_reverse_edges_and_attributes(data, mark_first):
    store = data[EDGE]
    store.time = store.edge_index[0] * 1000 + store.edge_index[1]
    store.rating = torch.rand(599, 2)
    store.source = 'web'
    ratings = dict(zip(store.time.tolist(), store.rating.tolist()))
    order = [ToUndirected(merge=False), ForgetUsers([3, 17])]
    data = Compose(order[::-1] if mark_first else order)(data)
    data[EDGE].scale = data[REV].scale = torch.tensor(2.0)
    perm = torch.randperm(599)  # Reverse edges may come in any order.
    for key, value in data[REV].items():
        if torch.is_tensor(value) and value.dim() > 0:
            data[REV][key] = value[:, perm] if key == 'edge_index' else value[perm]

    out = DropForgotten()(data)
    for edge_type, flip in ((EDGE, (0, 1)), (REV, (1, 0))):
        cut = out[edge_type]
        user, item = cut.edge_index[flip[0]], cut.edge_index[flip[1]]
        assert cut.time.tolist() == (user * 1000 + item).tolist()
        assert [ratings[t] for t in cut.time.tolist()] == cut.rating.tolist()
        assert not torch.isin(user, torch.tensor([3, 17])).any()
        assert 'forget_mask' not in cut
    assert out[EDGE].source == 'web'
    assert out[EDGE].scale == out[REV].scale == 2
    expected = set(as_list(out[EDGE].edge_index))
    assert set(as_list(out[REV].edge_index.flip(0))) == expected
    assert data[REV].edge_index.size(1) == 599


@pytest.mark.parametrize('kind', [list, tuple, np.array])
def test_lists_and_arrays_are_cut(data, kind):
    texts = [f'{u} likes {i}' for u, i in as_list(data[EDGE].edge_index)]
    data[EDGE].review = kind(texts)
    data[EDGE].columns = ['user', 'item']
    out = DropForgotten()(ForgetUsers([3])(data))
    expected = [f'{u} likes {i}' for u, i in as_list(out[EDGE].edge_index)]
    assert list(out[EDGE].review) == expected
    assert not any(text.startswith('3 ') for text in out[EDGE].review)
    assert isinstance(out[EDGE].review, type(data[EDGE].review))
    assert len(data[EDGE].review) == 599
    assert out[EDGE].columns == ['user', 'item']


def test_without_request(data):
    out = DropForgotten()(data)
    assert torch.equal(out[EDGE].edge_index, data[EDGE].edge_index)
    assert out.keys() == data.keys()


def test_deleted_twice(data):
    out = DropForgotten()(ForgetUsers([3])(data))
    again = DropForgotten()(ForgetUsers([3])(out))
    assert torch.equal(again[EDGE].edge_index, out[EDGE].edge_index)
    assert torch.equal(again.val_edge_label_index, out.val_edge_label_index)


def test_user_without_training_edges_loses_held_out_pairs(data):
    keep = data[EDGE].edge_index[0] != 3
    data[EDGE].edge_index = data[EDGE].edge_index[:, keep]
    assert (data.test_edge_label_index[0] == 3).any()
    out = DropForgotten()(ForgetUsers([3])(data))
    assert torch.equal(out[EDGE].edge_index, data[EDGE].edge_index)
    assert not (out.test_edge_label_index[0] == 3).any()
    assert not (out.val_edge_label_index[0] == 3).any()


def test_data_without_held_out_pairs(data):
    del data.val_edge_label_index, data.test_edge_label_index
    out = DropForgotten()(ForgetItems([2])(data))
    assert 2 not in out[EDGE].edge_index[1]


def test_functional_name_and_repr():
    pipe = DatasetAdapter(SyntheticMultimodal('tiny')).forget_users([3])
    (out,) = pipe.drop_forgotten()
    assert 3 not in out[EDGE].edge_index[0]
    assert str(DropForgotten()) == 'DropForgotten()'
    kept = DropForgotten(keep=['user.age'])
    assert str(kept) == "DropForgotten(keep=['user.age'])"
    with pytest.raises(TypeError, match="unexpected keyword argument 'users'"):
        DropForgotten(users=[3])
    for keep in ('user.age', [3]):
        with pytest.raises(TypeError, match="'keep' must be a sequence of names"):
            DropForgotten(keep=keep)


@pytest.mark.parametrize(
    ('mask', 'error', 'match'),
    [
        (torch.ones(5) > 0, ValueError, r"must have shape \[599\].*\(got \[5\]\)"),
        (torch.ones(599, 1) > 0, ValueError, r"must have shape \[599\].*\[599, 1\]"),
        (torch.ones(599), TypeError, r'must be a bool tensor \(got torch.float32\)'),
        (torch.ones(599).long(), TypeError, r'a bool tensor \(got torch.int64\)'),
        ([True] * 599, TypeError, r"'forget_mask' must be a bool tensor \(got list\)"),
        (torch.ones(599) > 0, ValueError, 'deletes every training interaction'),
    ],
)
def test_bad_mask(data, mask, error, match):
    data[EDGE].forget_mask = mask
    with pytest.raises(error, match=match):
        DropForgotten()(data)
    with pytest.raises(error, match=match):
        ForgetUsers([3])(data)


def test_bad_reverse_attribute(data):
    data = ForgetUsers([3])(ToUndirected(merge=False)(data))
    data[REV].time = torch.arange(5)
    match = r'rev_interacts.*time must have length 599, one entry per edge \(got 5\)'
    with pytest.raises(ValueError, match=match):
        DropForgotten()(data)
