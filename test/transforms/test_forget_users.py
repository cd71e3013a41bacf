import numpy as np
import pytest
import torch
from torch_geometric.data.datapipes import DatasetAdapter

from torch_geometric_unlearn.data import from_frame, schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)

EDGE = schema.EDGE_TYPE


def marked_pairs(data):
    return set(map(tuple, schema.forgotten_edge_index(data).t().tolist()))


def pairs_of(data, users):
    pairs = data[EDGE].edge_index.t().tolist()
    return {(user, item) for user, item in pairs if user in users}


@pytest.mark.parametrize(
    'users',
    [
        [17, 3, 3],
        (3, 17),
        np.array([3, 17]),
        torch.tensor([17, 3]),
        torch.tensor([3, 17], dtype=torch.int32),
        range(3, 18, 14),
    ],
)
def test_ids(data, users):
    out = ForgetUsers(users)(data)
    assert out.forget_users.tolist() == [3, 17]
    assert out.forget_level == 'user'
    assert out[EDGE].forget_mask.dtype == torch.bool
    assert marked_pairs(out) == pairs_of(data, {3, 17})
    assert schema.validate(out) is out


def test_input_is_unchanged(data):
    before = data.clone()
    out = ForgetUsers([3])(data)
    again = ForgetUsers([5])(out)
    assert data.keys() == before.keys()
    assert 'forget_mask' not in data[EDGE]
    assert out.forget_users.tolist() == [3]
    assert marked_pairs(out) == pairs_of(data, {3})
    assert again.forget_users.tolist() == [3, 5]
    assert torch.equal(out[EDGE].edge_index, before[EDGE].edge_index)
    assert out['user'].num_nodes == 100


@pytest.mark.parametrize('ratio', [1e-6, 0.05, 0.333, 0.9])
def test_ratio(data, ratio):
    data['user'].num_nodes = 150  # The last 50 have nothing to forget.
    pool = set(data[EDGE].edge_index[0].tolist())
    out = ForgetUsers(ratio=ratio)(data)
    users = out.forget_users.tolist()
    assert users == sorted(set(users))
    assert len(users) == max(1, round(ratio * len(pool)))
    assert set(users) <= pool
    assert marked_pairs(out) == pairs_of(data, set(users))


def test_seed(data):
    draws = [ForgetUsers(ratio=0.1, seed=s)(data).forget_users for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    state = torch.get_rng_state()
    ForgetUsers(ratio=0.1)(data)
    assert torch.equal(torch.get_rng_state(), state)


def test_requests_combine(data):
    out = ForgetUsers([3])(ForgetUsers([17, 3])(data))
    assert out.forget_users.tolist() == [3, 17]
    assert out.forget_level == 'user'
    assert marked_pairs(out) == pairs_of(data, {3, 17})

    pair = tuple(data[EDGE].edge_index[:, -1].tolist())
    mixed = ForgetUsers([5])(ForgetInteractions([pair])(ForgetItems([2])(out)))
    assert mixed.forget_level == 'mixed'
    assert mixed.forget_users.tolist() == [3, 5, 17]
    assert mixed.forget_items.tolist() == [2]
    items = {(u, i) for u, i in data[EDGE].edge_index.t().tolist() if i == 2}
    assert marked_pairs(mixed) == pairs_of(data, {3, 5, 17}) | items | {pair}


def test_user_without_training_edges(data):
    data['user'].num_nodes = 101
    out = ForgetUsers([100])(data)
    assert not out[EDGE].forget_mask.any()
    assert out.forget_users.tolist() == [100]


@pytest.mark.parametrize('as_array', [False, True])
def test_raw_ids(as_array):
    pd = pytest.importorskip('pandas')
    rows = [('zoe', 7), ('al', 9), ('zoe', 9), ('bo', 7)]
    data = from_frame(pd.DataFrame(rows, columns=['user', 'item']))
    raw = np.array(['bo', 'al']) if as_array else ['bo', 'al']
    transform = ForgetUsers(raw_users=raw)
    assert str(transform) == 'ForgetUsers(num_users=2)'
    out = transform(data)
    assert [data['user'].raw_id[u] for u in out.forget_users] == ['al', 'bo']
    assert out[EDGE].forget_mask.tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match=r"must name known users.*\(at position \d\)"):
        ForgetUsers(raw_users=['al', 'eve'])(data)


def test_functional_name():
    dataset = SyntheticMultimodal('tiny')
    (out,) = DatasetAdapter(dataset).forget_users([3, 17])
    assert out.forget_users.tolist() == [3, 17]
    assert 'forget_mask' not in dataset[0][EDGE]


def test_repr():
    assert str(ForgetUsers([3, 17])) == 'ForgetUsers(num_users=2)'
    assert str(ForgetUsers(ratio=0.1)) == 'ForgetUsers(ratio=0.1, seed=0)'


NO_NAME = r"'ForgetUsers' needs exactly one of \['users', 'raw_users', 'ratio'\] \(got "


@pytest.mark.parametrize(
    ('kwargs', 'error', 'match'),
    [
        ({}, ValueError, NO_NAME + r'none\)'),
        ({'users': [1], 'ratio': 0.1}, ValueError, NO_NAME + r"\['users', 'ratio'\]"),
        ({'users': []}, ValueError, r'at least one id \(got an empty request\)'),
        ({'users': torch.tensor([]).long()}, ValueError, "'users' must name at least"),
        ({'raw_users': []}, ValueError, "'raw_users' must name at least one id"),
        ({'users': 3}, TypeError, r"'users' must be a list or tensor \(got 3\)"),
        ({'users': torch.tensor(3)}, TypeError, r'a list or tensor \(got tensor\(3'),
        ({'raw_users': 3}, TypeError, r"'raw_users' must be a list or tensor \(got 3"),
        ({'users': [1.0]}, TypeError, r'integer ids \(got torch.float32\)'),
        ({'users': 'al'}, TypeError, r"ids \(got 'al'\).*use the argument 'raw_users'"),
        ({'users': [None]}, TypeError, r"'users' must hold integer ids \(got \[None\]"),
        ({'users': torch.ones(100) > 0}, TypeError, r'bool\). For a mask, pass mask'),
        ({'users': torch.ones(100).byte()}, TypeError, r'torch.uint8\). For a mask'),
        ({'users': [1, 100]}, ValueError, r'names 1 unknown ids \(first: 100\). Know'),
        ({'users': [-1]}, ValueError, r'unknown ids \(first: -1\). Known are 0 to 99'),
        ({'raw_users': ['a']}, ValueError, "must hold the id map 'raw_id'"),
        ({'raw_users': 'al'}, TypeError, "an iterable of ids .got one of type 'str'"),
        ({'ratio': 0.0}, ValueError, r'must be in \(0, 1\) \(got 0.0\). For 5%, pass'),
        ({'ratio': 5}, ValueError, r"'ratio' must be in \(0, 1\) \(got 5\)"),
        ({'ratio': '5%'}, TypeError, r"'ratio' must be a number \(got str\)"),
        ({'ratio': 0.1, 'seed': -1}, ValueError, r"'seed' must be an integer in \[0,"),
        ({'ratio': 0.1, 'seed': 0.5}, ValueError, r"'seed' must be an integer in \[0,"),
        ({'user': [1]}, TypeError, "unexpected keyword argument 'user'"),
        ({'users': range(100)}, ValueError, 'deletes all 599 training interactions'),
        ({'ratio': 0.9999}, ValueError, 'Withdraw the model instead of unlearning'),
    ],
)
def test_bad_requests(data, kwargs, error, match):
    with pytest.raises(error, match=match):
        ForgetUsers(**kwargs)(data)


def test_other_positional_arguments():
    with pytest.raises(TypeError, match='positional argument'):
        ForgetUsers(None, ['al'])


def test_two_requests_that_delete_everything(data):
    out = ForgetUsers(range(50))(data)
    with pytest.raises(ValueError, match='or name fewer users'):
        ForgetUsers(range(50, 100))(out)


def test_bad_data(data):
    with pytest.raises(TypeError, match="'data' must be a 'HeteroData' object"):
        ForgetUsers([1])(data[EDGE].edge_index)
