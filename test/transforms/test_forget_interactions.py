import numpy as np
import pytest
import torch
from torch_geometric.data.datapipes import DatasetAdapter

from torch_geometric_unlearn.data import from_frame, schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetUsers,
)

EDGE = schema.EDGE_TYPE


@pytest.mark.parametrize('kind', ['tensor', 'pairs', 'lists', 'array', 'int32'])
def test_pairs(data, kind):
    index = torch.tensor([40, 7, 598, 7])  # One of them is named twice.
    tensor = data[EDGE].edge_index[:, index]
    pairs = {
        'tensor': tensor,
        'pairs': list(map(tuple, tensor.t().tolist())),
        'lists': tensor.t().tolist(),
        'array': tensor.t().numpy(),
        'int32': tensor.int(),
    }[kind]
    out = ForgetInteractions(pairs)(data)
    assert out[EDGE].forget_mask.nonzero().view(-1).tolist() == [7, 40, 598]
    expected = set(map(tuple, tensor.t().tolist()))
    assert set(map(tuple, out.forget_interactions.t().tolist())) == expected
    assert out.forget_interactions.size(1) == 3
    assert out.forget_level == 'interaction'
    assert 'forget_mask' not in data[EDGE]


@pytest.mark.parametrize('ratio', [1e-6, 0.05, 0.5])
def test_ratio_and_seed(data, ratio):
    masks = [
        ForgetInteractions(ratio=ratio, seed=seed)(data)[EDGE].forget_mask
        for seed in (0, 0, 1)
    ]
    assert int(masks[0].sum()) == max(1, round(ratio * 599))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_requests_combine(data):
    edge_index = data[EDGE].edge_index
    first = ForgetInteractions(edge_index[:, [1, 2]])(data)
    second = ForgetInteractions(edge_index[:, [2, 3]])(first)
    assert second[EDGE].forget_mask.nonzero().view(-1).tolist() == [1, 2, 3]
    assert second.forget_interactions.size(1) == 3
    assert second.forget_level == 'interaction'
    assert first[EDGE].forget_mask.sum() == 2
    third = ForgetUsers([50])(second)
    assert third.forget_level == 'mixed'
    expected = (edge_index[0] == 50) | second[EDGE].forget_mask
    assert torch.equal(third[EDGE].forget_mask, expected)


@pytest.mark.parametrize('as_array', [False, True])
def test_raw_pairs(as_array):
    pd = pytest.importorskip('pandas')
    rows = [('zoe', 'x'), ('al', 'y'), ('zoe', 'y'), ('bo', 'x')]
    data = from_frame(pd.DataFrame(rows, columns=['user', 'item']))
    pairs = [('bo', 'x'), ('zoe', 'y')]
    pairs = np.array(pairs) if as_array else pairs
    transform = ForgetInteractions(raw_pairs=pairs)
    assert str(transform) == 'ForgetInteractions(num_interactions=2)'
    assert transform(data)[EDGE].forget_mask.tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match=r'no interactions of the data.*first: user 1'):
        ForgetInteractions(raw_pairs=[('al', 'x')])(data)
    with pytest.raises(ValueError, match="known items, but 1 of 1 are unknown"):
        ForgetInteractions(raw_pairs=[('al', 'al')])(data)


def test_functional_name_and_repr(data):
    pairs = data[EDGE].edge_index[:, :2]
    (out,) = DatasetAdapter(SyntheticMultimodal('tiny')).forget_interactions(pairs)
    assert torch.equal(out.forget_interactions, pairs)
    assert str(ForgetInteractions(pairs)) == 'ForgetInteractions(num_interactions=2)'
    out = ForgetInteractions(ratio=0.1, seed=3)
    assert str(out) == 'ForgetInteractions(ratio=0.1, seed=3)'


SHAPE = r"'pairs' must be a sequence of \(user, item\) pairs or a tensor of shape \[2, "
RAW = r"sequence of \(user, item\) pairs \(got a "


@pytest.mark.parametrize(
    ('kwargs', 'error', 'match'),
    [
        ({}, ValueError, r"one of \['pairs', 'raw_pairs', 'ratio'\] \(got none\)"),
        ({'pairs': []}, ValueError, "'pairs' must name at least one id"),
        ({'pairs': torch.empty(2, 0).long()}, ValueError, "'pairs' must name at least"),
        ({'raw_pairs': []}, ValueError, "'raw_pairs' must name at least one id"),
        ({'pairs': 3}, TypeError, r"'pairs' must be a list or tensor \(got 3\)"),
        ({'pairs': (3, 5)}, ValueError, SHAPE + r'n\] \(got shape \[2\]\)'),
        ({'pairs': [(1, 2, 3)]}, ValueError, SHAPE),
        ({'pairs': torch.ones(3, 3).long()}, ValueError, SHAPE + r'n\] \(got shape'),
        ({'pairs': torch.ones(3, 2).long()}, ValueError, SHAPE + r'n\] \(got shape'),
        ({'pairs': [(1, 2), (3,)]}, TypeError, "'pairs' must hold integer ids"),
        ({'pairs': torch.ones(2, 1)}, TypeError, r'integer ids \(got torch.float32\)'),
        ({'pairs': torch.ones(599) > 0}, TypeError, r'\(got torch.bool\). For a mask'),
        ({'pairs': [(-1, 2)]}, ValueError, r'pairs with unknown ids \(first: \(-1, 2'),
        ({'pairs': [(1, 60)]}, ValueError, r'users 0 to 99 and items 0 to 59'),
        ({'raw_pairs': [('a', 'b', 'c')]}, ValueError, f"{RAW}'tuple'"),
        ({'raw_pairs': [('a', 'b'), 'ab']}, ValueError, f"{RAW}'str'.*position 1"),
        ({'raw_pairs': [7]}, ValueError, f"{RAW}'int'"),
        ({'raw_pairs': [('a', 'b')]}, ValueError, "must hold the id map 'raw_id'"),
        ({'ratio': -0.5}, ValueError, r"'ratio' must be in \(0, 1\) \(got -0.5\)"),
        ({'ratio': 0.5, 'seed': -1}, ValueError, "'seed' must be an integer"),
        ({'edges': [(1, 2)]}, TypeError, "unexpected keyword argument 'edges'"),
        ({'ratio': 0.9999}, ValueError, 'deletes all 599.*name fewer interactions'),
    ],
)
def test_bad_requests(data, kwargs, error, match):
    with pytest.raises(error, match=match):
        ForgetInteractions(**kwargs)(data)


@pytest.mark.parametrize('split', schema.SPLITS)
def test_held_out_pairs(data, split):
    if split == 'control':
        data.control_edge_label_index = data.test_edge_label_index[:, 20:]
        data.test_edge_label_index = data.test_edge_label_index[:, :20]
    key = f'{split}_edge_label_index'
    data[f'{split}_edge_time'] = torch.arange(data[key].size(1))
    pair, train = data[key][:, 5:6], data[EDGE].edge_index
    marked = ForgetInteractions(torch.cat([pair, train[:, 7:8]], dim=1))(data)
    assert marked[EDGE].forget_mask.nonzero().view(-1).tolist() == [7]
    assert marked.forget_level == 'interaction'

    out = DropForgotten()(marked)
    kept = [k for k in range(data[key].size(1)) if k != 5]
    assert torch.equal(out[key], data[key][:, kept])
    assert out[f'{split}_edge_time'].tolist() == kept
    assert torch.equal(out[EDGE].edge_index, train[:, torch.arange(599) != 7])
    for other in {'val', 'test'} - {split}:
        name = f'{other}_edge_label_index'
        assert torch.equal(out[name], data[name])

    alone = ForgetInteractions(pair)(data)
    assert not alone[EDGE].forget_mask.any()
    assert torch.equal(DropForgotten()(alone)[key], data[key][:, kept])


def test_unknown_pairs(data):
    pair = data[EDGE].edge_index[:, :1]
    dropped = DropForgotten()(ForgetInteractions(pair)(data))
    user, item = pair.view(-1).tolist()
    match = rf'1 of 2 requested pairs are no interactions.*user {user}, item {item}\)'
    both = torch.cat([pair, data.val_edge_label_index[:, :1]], dim=1)
    with pytest.raises(ValueError, match=match):
        ForgetInteractions(both)(dropped)
