import pickle
import re

import numpy as np
import pytest
import torch
from torch_geometric.data.datapipes import DatasetAdapter
from torch_geometric.transforms import Compose, ToUndirected

from torch_geometric_unlearn.data import from_frame, schema, to_frame
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.testing._snapshot import assert_same, snapshot
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)

pd = pytest.importorskip('pandas')
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


GONE = [3, 17]


@pytest.fixture
def shop(data):
    r"""A shop that keeps more of its users and items than it should."""
    size, generator = data['user'].num_nodes, torch.Generator().manual_seed(0)
    data['user'].raw_id = [f'u{i}@shop.org' for i in range(size)]
    data['item'].raw_id = list(range(1000, 1060))
    data['user'].x = torch.rand(size, 4, generator=generator)
    data['user'].age = torch.arange(size) + 18
    data['user'].consents = torch.ones(size, dtype=torch.bool)
    data['user'].city_name = np.array([f'city of {i}' for i in range(size)])
    data['user'].visits = np.arange(size) + 1.0
    data['user'].notes = [f'note on {i}' for i in range(size)]
    data['user'].history = tuple([i] for i in range(size))
    data['user'].tags = torch.eye(size).to_sparse()
    data['user'].tags_by_row = torch.eye(size).to_sparse_csr()
    data['user'].version = 'v2'
    data['user'].scale = torch.tensor(2.0)
    data['item'].title = [f'title of {i}' for i in range(60)]
    follows = torch.randint(size, (2, 400), generator=generator)
    follows = torch.cat([follows, torch.tensor([[3, 50], [50, 17]])], dim=1)
    data['user', 'follows', 'user'].edge_index = follows
    data['user', 'follows', 'user'].since = follows[0] * 1000 + follows[1]
    data['review'].num_nodes = size  # Every user has written one.
    data['review'].text = [f'review of {i}' for i in range(size)]
    wrote = torch.arange(size).repeat(2, 1)
    data['user', 'wrote', 'review'].edge_index = wrote
    data['review', 'about', 'item'].edge_index = torch.stack([wrote[0], wrote[0] % 60])
    data['city'].x = torch.ones(2, 3)
    lives = torch.stack([torch.arange(size), torch.arange(size) % 2])
    data['user', 'lives_in', 'city'].edge_index = lives
    data.created_by = 'ops'
    return data


def test_everything_that_names_a_user_is_erased(shop):
    before, start = shop.clone(), snapshot(shop)
    out = DropForgotten()(ForgetUsers(raw_users=['u3@shop.org', 'u17@shop.org'])(shop))
    kept = torch.ones(100, dtype=torch.bool)
    kept[GONE] = False
    user, old = out['user'], before['user']
    for name in ('x', 'age', 'consents', 'tags', 'tags_by_row'):
        new, was = user[name], old[name]
        assert new.layout == was.layout
        assert new.dtype == was.dtype
        if new.layout != torch.strided:
            new, was = new.to_dense(), was.to_dense()
        assert not new[GONE].any()
        assert torch.equal(new[kept], was[kept])
    for name, nothing in {'city_name': '', 'visits': 0.0}.items():
        assert user[name][GONE].tolist() == [nothing] * 2
        assert user[name][kept.numpy()].tolist() == old[name][kept.numpy()].tolist()
    for name in ('notes', 'history'):
        assert type(user[name]) is type(shop['user'][name])
        assert [user[name][i] for i in GONE] == [None] * 2
    assert user.version == 'v2'
    assert user.scale == 2

    edges = before['user', 'follows', 'user'].edge_index
    stays = (kept[edges[0]] & kept[edges[1]]).nonzero().view(-1)
    assert stays.numel() < edges.size(1)
    store = out['user', 'follows', 'user']
    assert torch.equal(store.edge_index, edges[:, stays])
    assert store.since.tolist() == (edges[0] * 1000 + edges[1])[stays].tolist()

    assert [out['review'].text[i] for i in GONE] == [None] * 2
    wrote = out['user', 'wrote', 'review'].edge_index
    assert not torch.isin(wrote, torch.tensor(GONE)).any()
    about = out['review', 'about', 'item'].edge_index
    assert not torch.isin(about[0], torch.tensor(GONE)).any()
    assert about.size(1) == 98
    assert torch.equal(out['city'].x, before['city'].x)  # Others live there.
    assert out['user', 'lives_in', 'city'].edge_index.size(1) == 98

    tokens = [user.raw_id[i] for i in GONE]
    assert all(re.fullmatch('erased-[0-9a-f]{16}', token) for token in tokens)
    assert tokens[0] != tokens[1]
    others = [i for i in range(100) if i not in GONE]
    assert [user.raw_id[i] for i in others] == [old.raw_id[i] for i in others]
    assert out['item'].title == before['item'].title
    assert_same(start, snapshot(shop), 'The input')
    with pytest.raises(ValueError, match='are unknown'):
        ForgetUsers(raw_users=['u3@shop.org'])(out)


def test_items_lose_all_but_their_content(shop):
    out = DropForgotten()(ForgetItems(GONE)(shop))
    assert torch.equal(out['item'].x_text, shop['item'].x_text)
    assert [out['item'].title[i] for i in GONE] == [None] * 2
    assert all(str(out['item'].raw_id[i]).startswith('erased-') for i in GONE)
    about = out['review', 'about', 'item'].edge_index
    assert not torch.isin(about[1], torch.tensor(GONE)).any()
    assert out['user'].raw_id == shop['user'].raw_id
    bare = DropForgotten(keep=())(ForgetItems(GONE)(shop))
    assert not bare['item'].x_text[GONE].any()
    assert torch.equal(bare['item'].x_text[18:], shop['item'].x_text[18:])


def test_what_the_caller_keeps(shop):
    shop['user'].index = {'u3@shop.org': 3}
    keep = ['user.a*', 'user.index', 'user__follows__user', 'review', 'item.x_*']
    out = DropForgotten(keep=keep)(ForgetUsers(GONE)(shop))
    assert out['user'].age[3] == 21
    assert out['user'].index == {'u3@shop.org': 3}
    edge_type = 'user', 'follows', 'user'
    assert torch.equal(out[edge_type].edge_index, shop[edge_type].edge_index)
    assert out['review'].text == shop['review'].text
    assert not out['user'].x[GONE].any()
    bare = DropForgotten(keep=('*',))(ForgetUsers(GONE)(shop))
    assert bare['user'].raw_id == shop['user'].raw_id
    assert not torch.isin(bare[EDGE].edge_index[0], torch.tensor(GONE)).any()


@pytest.mark.parametrize(
    ('where', 'name', 'value'),
    [
        ('user', 'index', {'u3@shop.org': 3}),
        ('user', 'frame', pd.Series(range(100))),
        ('user', 'owner', 'u3@shop.org'),
        ('user', 'top', ['u3@shop.org', 'u4@shop.org']),
        ('', 'admins', {'u3@shop.org'}),
        ('', 'ranks', {'gold': ['u4@shop.org', ('u17@shop.org', 3)]}),
        ('', 'first', np.array(['u3@shop.org', 'u4@shop.org'])),
        (EDGE, 'reviewers', ['u3@shop.org', 'u4@shop.org']),
        (EDGE, 'lookup', {}),
        (('user', 'knows', 'user'), 'adj', torch.eye(100)),
    ],
)
def test_what_cannot_be_cut_is_refused(where, name, value, shop):
    store = shop[where] if where else shop
    setattr(store, name, value)
    before = snapshot(shop)
    marked = ForgetUsers(GONE)(shop)
    what = f'{where}' if isinstance(where, tuple) else where
    with pytest.raises(ValueError, match='would not reach') as error:
        DropForgotten()(marked)
    assert name in str(error.value) or 'no edge_index' in str(error.value)
    assert all(part in str(error.value) for part in what.split("'"))
    assert 'u3@' not in str(error.value)
    assert str(before) == str(snapshot(shop))


def test_stale_adjacency_is_refused_for_single_pairs_too(data):
    data[EDGE].adj_t = object()
    marked = ForgetInteractions(data[EDGE].edge_index[:, :1])(data)
    with pytest.raises(ValueError, match=r'would not reach.*adj_t'):
        DropForgotten()(marked)


def test_other_lists_of_pairs_are_cut(data):
    data.train_edge_label_index = data[EDGE].edge_index.clone()
    data.train_edge_label = torch.arange(599)
    out = DropForgotten()(ForgetUsers(GONE)(data))
    assert torch.equal(out.train_edge_label_index, out[EDGE].edge_index)
    user = data[EDGE].edge_index[0, out.train_edge_label]
    assert torch.equal(user, out[EDGE].edge_index[0])


def test_ids_stay_with_their_slots_through_a_table(shop):
    out = DropForgotten()(ForgetUsers(GONE)(shop))
    frame = to_frame(out)
    assert 'u3@shop.org' not in pickle.dumps(frame).decode('latin1')
    again = from_frame(frame, split='split')
    assert again['user'].raw_id == out['user'].raw_id
    assert torch.equal(again[EDGE].edge_index, out[EDGE].edge_index)
