import math

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import DatasetAdapter
from torch_geometric.transforms import ToUndirected

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetUsers,
    SplitInteractions,
)
from torch_geometric_unlearn.transforms.split_interactions import split_per_user

EDGE, REV = schema.EDGE_TYPE, schema.REV_EDGE_TYPE


def as_list(pairs):
    return list(map(tuple, pairs.t().tolist()))


def naive_sizes(count, ratio=0.2):
    r"""Train, validation and test sizes of a user, by the MMRec rule."""
    if count < 3:
        return [count, 0, 0]
    if count < 10:
        return [count - 2, 1, 1]
    held = math.floor(ratio * count)
    return [count - held, held // 2, held - held // 2]


def unsplit_data(max_degree=60):
    r"""User :obj:`u` has :obj:`u` interactions, in random order."""
    user = torch.arange(max_degree + 1).repeat_interleave(torch.arange(max_degree + 1))
    item = torch.cat([torch.randperm(70)[:n] for n in range(max_degree + 1)])
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = max_degree + 1, 70
    perm = torch.randperm(user.numel())
    data[EDGE].edge_index = torch.stack([user, item])[:, perm]
    return data


@pytest.mark.parametrize('ratio', [0.1, 0.2, 0.5, 0.7])
def test_sizes_of_every_user(ratio):
    data = unsplit_data()
    out = SplitInteractions(ratio)(data)
    parts = [out[EDGE].edge_index, *(out[key] for key in schema.HELD_OUT)]
    for user in range(61):
        sizes = [int((part[0] == user).sum()) for part in parts]
        assert sizes == naive_sizes(user, ratio), user
    together = torch.cat(parts, dim=1)
    assert sorted(as_list(together)) == sorted(as_list(data[EDGE].edge_index))
    assert 'val_edge_label_index' not in data
    assert schema.validate(out) is out


def test_split_per_user_is_uniform():
    user = torch.zeros(10, dtype=torch.long)
    splits = torch.stack([split_per_user(user, seed=seed) for seed in range(400)])
    assert ((splits == 0).sum(dim=1) == 8).all()
    for part in (1, 2):  # Each place is held out 40 times, give or take 6.
        counts = (splits == part).sum(dim=0)
        assert counts.sum() == 400
        assert counts.min() > 15
        assert counts.max() < 65


def test_seed():
    data = unsplit_data()
    state = torch.get_rng_state()
    out = [SplitInteractions(seed=seed)(data) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(out[0].test_edge_label_index, out[1].test_edge_label_index)
    assert not torch.equal(out[0].test_edge_label_index, out[2].test_edge_label_index)


def test_split_again(data):
    everything = as_list(data[EDGE].edge_index)
    for key in schema.HELD_OUT:
        everything += as_list(data[key])
    out = SplitInteractions(seed=1)(data)
    parts = [out[EDGE].edge_index, *(out[key] for key in schema.HELD_OUT)]
    assert [part.size(1) for part in parts] == [599, 104, 107]
    assert sorted(as_list(torch.cat(parts, dim=1))) == sorted(everything)
    assert set(as_list(parts[2])) != set(as_list(data.test_edge_label_index))
    assert data[EDGE].edge_index.size(1) == 599


def test_attributes_and_reverse_edges_follow():
    data = unsplit_data()
    user, item = data[EDGE].edge_index
    data[EDGE].time = 1000 * user + item
    data[EDGE].review = [f'{u} likes {i}' for u, i in as_list(data[EDGE].edge_index)]
    data[EDGE].source = 'web'
    data = ToUndirected(merge=False)(data)
    data[REV].edge_index = data[REV].edge_index[:, torch.randperm(user.numel())]
    del data[REV].time, data[REV].review
    out = SplitInteractions()(data)
    user, item = out[EDGE].edge_index
    assert out[EDGE].time.tolist() == (1000 * user + item).tolist()
    reviews = [f'{u} likes {i}' for u, i in as_list(out[EDGE].edge_index)]
    assert out[EDGE].review == reviews
    assert out[EDGE].source == 'web'
    assert torch.equal(out[REV].edge_index, out[EDGE].edge_index.flip(0))
    assert out[REV].time.tolist() == out[EDGE].time.tolist()
    assert data[REV].edge_index.size(1) == data[EDGE].time.numel()


def test_functional_name_and_repr():
    (out,) = DatasetAdapter(SyntheticMultimodal('tiny')).split_interactions(seed=3)
    expected = SplitInteractions(seed=3)(SyntheticMultimodal('tiny')[0])
    assert torch.equal(out.test_edge_label_index, expected.test_edge_label_index)
    assert str(SplitInteractions(0.1, 3)) == 'SplitInteractions(ratio=0.1, seed=3)'


@pytest.mark.parametrize(
    ('kwargs', 'error', 'match'),
    [
        ({'ratio': 0}, ValueError, r"'ratio' must be in \(0, 1\) \(got 0\)"),
        ({'ratio': 20}, ValueError, r"'ratio' must be in \(0, 1\) \(got 20\)"),
        ({'ratio': '0.2'}, TypeError, r"'ratio' must be a number \(got str\)"),
        ({'seed': -1}, ValueError, r"'seed' must be an integer .* \(got -1\)"),
        ({'seed': 1.5}, ValueError, r"'seed' must be an integer .* \(got 1.5\)"),
        ({'ratios': 0.2}, TypeError, "unexpected keyword argument 'ratios'"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        SplitInteractions(**kwargs)


def test_pending_request(data):
    match = r"holds a pending request \('forget_mask'\). Split first"
    with pytest.raises(ValueError, match=match):
        SplitInteractions()(ForgetUsers([3])(data))


def test_attributes_that_held_out_pairs_lack(data):
    data[EDGE].time = torch.arange(599)
    match = r"is split already, and its training interactions carry \['time'\]"
    with pytest.raises(ValueError, match=match):
        SplitInteractions()(data)


def timed(num_users=40):
    data = unsplit_data()
    num = data[EDGE].edge_index.size(1)
    data[EDGE].time = torch.randperm(num, generator=torch.Generator().manual_seed(0))
    return data


def test_global_cut():
    data = timed()
    out = SplitInteractions(0.2, by='time')(data)
    num = data[EDGE].edge_index.size(1)
    num_held, train = int(0.2 * num), out[EDGE]
    assert train.edge_index.size(1) == num - num_held
    assert train.time.max() < out.val_edge_time.min()
    assert out.val_edge_time.max() < out.test_edge_time.min()
    when = {p: t for p, t in zip(as_list(data[EDGE].edge_index), data[EDGE].time)}
    for split in ('val', 'test'):
        pairs = as_list(out[f'{split}_edge_label_index'])
        assert [when[p] for p in pairs] == out[f'{split}_edge_time'].tolist()
        assert {u for u, _ in pairs} <= set(train.edge_index[0].tolist())


def test_leave_last_out_by_brute_force():
    data = timed()
    out = SplitInteractions(by='last')(data)
    expected = {'val': set(), 'test': set()}
    for u in data[EDGE].edge_index[0].unique().tolist():
        own = data[EDGE].edge_index[0] == u
        items = data[EDGE].edge_index[1, own][data[EDGE].time[own].argsort()].tolist()
        if len(items) >= 3:
            expected['val'].add((u, items[-2]))
            expected['test'].add((u, items[-1]))
    for split, pairs in expected.items():
        assert set(as_list(out[f'{split}_edge_label_index'])) == pairs


@pytest.mark.parametrize('by', ['random', 'time', 'last'])
def test_control_pairs(by):
    data = timed()
    plain = SplitInteractions(by=by)(data)
    out = SplitInteractions(by=by, control=0.1)(data)
    num = plain[EDGE].edge_index.size(1)
    control = as_list(out.control_edge_label_index)
    assert len(control) == round(0.1 * num) == out.control_edge_time.numel()
    for key in schema.HELD_OUT:
        assert torch.equal(out[key], plain[key])
    both = as_list(out[EDGE].edge_index) + control
    assert sorted(both) == sorted(as_list(plain[EDGE].edge_index))
    assert set(plain[EDGE].edge_index[0].tolist()) == set(
        out[EDGE].edge_index[0].tolist()
    )
    schema.validate(out)
    assert schema.held_out(out, 'control').size(1) == len(control)
    again = SplitInteractions(by='last', control=0.1)(out)  # Merged back first.
    sizes = [again[EDGE].edge_index.size(1), *(
        schema.held_out(again, split).size(1) for split in schema.SPLITS)]
    kept = [out[EDGE].edge_index.size(1), *(
        schema.held_out(out, split).size(1) for split in schema.SPLITS)]
    assert sum(sizes) == sum(kept)
    gone = DropForgotten()(ForgetUsers([control[0][0]])(out))
    left = as_list(gone.control_edge_label_index)
    assert left == [p for p in control if p[0] != control[0][0]]
    assert gone.control_edge_time.numel() == len(left)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'by': 'last', 'ratio': 0.1}, "'ratio' can't act with by='last'"),
        ({'control': 1}, r"'control' must be in \[0, 1\)"),
        ({'by': 'newest'}, "'by' must be one of"),
    ],
)
def test_bad_kinds(kwargs, match):
    with pytest.raises(ValueError, match=match):
        SplitInteractions(**kwargs)


def test_bad_times_and_too_few_pairs(data):
    with pytest.raises(ValueError, match="by='time' needs the time"):
        SplitInteractions(by='time')(unsplit_data())
    broken = timed()
    broken[EDGE].time = broken[EDGE].time.double()
    broken[EDGE].time[3] = torch.nan
    with pytest.raises(ValueError, match=r"'time' must be finite .* 1 of"):
        SplitInteractions(by='last')(broken)
    with pytest.raises(ValueError, match="'control' would set 0 of"):
        SplitInteractions(control=1e-6)(data)
    with pytest.raises(ValueError, match='every user keeps one'):
        SplitInteractions(control=0.99)(data)


def test_control_pairs_must_not_be_trained_on(data):
    data.control_edge_label_index = data[EDGE].edge_index[:, :3]
    with pytest.raises(ValueError, match=r'control_edge.*must not overlap'):
        schema.validate(data)


def test_published_counts(real_data):
    path = real_data / 'amazon_baby' / 'baby.inter'
    pairs = torch.from_numpy(np.loadtxt(path, np.int64, skiprows=1)[:, :2].T.copy())
    split = split_per_user(pairs[0], seed=999)
    assert split.bincount().tolist() == [118_551, 20_559, 21_682]
