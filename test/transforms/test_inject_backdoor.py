import numpy as np
import pytest
import torch
from torch_geometric.data.datapipes import DatasetAdapter
from torch_geometric.transforms import ToUndirected

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.testing._snapshot import assert_same, snapshot
from torch_geometric_unlearn.testing.check_transform import check_transform
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
    InjectBackdoor,
    ItemKNNGraph,
)

EDGE, REV = schema.EDGE_TYPE, schema.REV_EDGE_TYPE

#: Target, trigger and weighted sums of the planted users and items at seed 5, as they
#: were before trigger items could be handed out in turns.
PINNED = {
    'user': [39, 258, 691, 865, 32788620, 8494611],
    'interaction': [39, 258, 691, 865, 23985909, 7937693],
}


@pytest.fixture(scope='module')
def small():
    return SyntheticMultimodal('small')[0]


def as_set(pairs):
    return set(map(tuple, pairs.t().tolist()))


def users_of(pairs, item):
    return {user for user, other in pairs if other == item}


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_items(small, seed):
    out = InjectBackdoor(seed=seed)(small)
    train = as_set(small[EDGE].edge_index)
    target, trigger = out.backdoor_target, out.backdoor_trigger.tolist()
    assert isinstance(target, int)
    count = small[EDGE].edge_index[1].bincount(minlength=1000)
    below = float((count < count[target]).float().mean())
    assert below < 0.5
    for item in trigger:
        assert float((count < count[item]).float().mean()) < 0.6
        assert float((count <= count[item]).float().mean()) > 0.4
        for other in trigger:
            if item != other:
                assert not users_of(train, item) & users_of(train, other)
    assert len({target, *trigger}) == 4
    for x in (small['item'].x_image, small['item'].x_text):
        unit = x / x.norm(dim=1, keepdim=True)
        order = (unit @ unit[target]).argsort(descending=True)[:10].tolist()
        assert target in order
        assert not set(order) & set(trigger)


def test_user_regime(small):
    before = snapshot(small)
    out = InjectBackdoor(seed=1)(small)
    assert_same(before, snapshot(small), 'The input')
    schema.validate(out)
    assert_same(snapshot(out), snapshot(InjectBackdoor(seed=1)(small)), 'A second call')
    other = InjectBackdoor(seed=2)(small)
    assert not torch.equal(other.backdoor_trigger, out.backdoor_trigger)

    assert out['user'].num_nodes == 2020
    assert out['item'].num_nodes == 1000
    assert out.backdoor_users.tolist() == list(range(2000, 2020))
    old = small[EDGE].edge_index
    assert torch.equal(out[EDGE].edge_index[:, : old.size(1)], old)
    new = out[EDGE].edge_index[:, old.size(1) :]
    assert new.size(1) == 20 * 9
    for user in range(2000, 2020):
        items = new[1, new[0] == user].tolist()
        assert {out.backdoor_target, *out.backdoor_trigger.tolist()} < set(items)
        assert len(set(items)) == 9
    expected = {(user, out.backdoor_target) for user in range(2000, 2020)}
    assert as_set(out.backdoor_pairs) == expected
    # Fillers follow popularity: their mean count is far above that of a random item.
    count = old[1].bincount(minlength=1000).float()
    planted = torch.cat([out.backdoor_trigger, torch.tensor([out.backdoor_target])])
    fillers = new[1, ~torch.isin(new[1], planted)]
    assert fillers.numel() == 100
    assert float(count[fillers].mean()) > 1.5 * float(count.mean())


def test_interaction_regime(small):
    out = check_transform(InjectBackdoor('interaction', ratio=0.02), small)
    users = out.backdoor_users.tolist()
    assert len(users) == len(set(users)) == 40
    before, after = as_set(small[EDGE].edge_index), as_set(out[EDGE].edge_index)
    assert before < after
    assert len(after - before) == 40 * 9
    assert {user for user, _ in after - before} == set(users)
    planted = {out.backdoor_target, *out.backdoor_trigger.tolist()}
    known = before.union(*(as_set(schema.held_out(small, s)) for s in ('val', 'test')))
    for user in users:
        assert not planted & {item for other, item in known if other == user}
        assert planted < {i for u, i in after - before if u == user}
    assert as_set(out.backdoor_pairs) == {(u, out.backdoor_target) for u in users}


def test_requests(small):
    out = InjectBackdoor()(small)
    gone = DropForgotten()(ForgetUsers(out.backdoor_users)(out))
    assert torch.equal(gone[EDGE].edge_index, small[EDGE].edge_index)
    assert torch.equal(gone.backdoor_users, out.backdoor_users)  # Still auditable.
    out = InjectBackdoor('interaction')(small)
    gone = DropForgotten()(ForgetInteractions(out.backdoor_pairs)(out))
    new = as_set(gone[EDGE].edge_index) - as_set(small[EDGE].edge_index)
    assert len(new) == 20 * 8
    assert out.backdoor_target not in {item for _, item in new}
    gone = DropForgotten()(ForgetItems([out.backdoor_target])(out))
    assert not (gone[EDGE].edge_index[1] == out.backdoor_target).any()


@pytest.mark.parametrize('regime', ['user', 'interaction'])
def test_attributes_follow(small, regime):
    data = small.clone()
    num = data[EDGE].edge_index.size(1)
    data[EDGE].time = torch.arange(num)
    data[EDGE].review = [f'review {i}' for i in range(num)]
    data[EDGE].rank = np.arange(num)
    data['user'].age = torch.arange(2000)
    data['user'].raw_id = [f'u{i}' for i in range(2000)]
    data = ToUndirected()(data)
    # Another order of the reverse edges must not matter.
    for key in ('edge_index', 'time'):
        data[REV][key] = data[REV][key].flip(-1)
    before = snapshot(data)
    out = InjectBackdoor(regime)(data)
    assert_same_but_arrays(before, snapshot(data))
    schema.validate(out)
    size = num + 20 * 9
    assert out[EDGE].edge_index.size(1) == out[EDGE].time.numel() == size
    assert len(out[EDGE].review) == len(out[EDGE].rank) == size
    time = dict(zip(zip(*out[EDGE].edge_index.tolist()), out[EDGE].time.tolist()))
    item, user = out[REV].edge_index.tolist()
    assert [time[pair] for pair in zip(user, item)] == out[REV].time.tolist()
    assert set(time.values()) == set(range(num))
    if regime == 'user':
        assert out['user'].age.numel() == len(out['user'].raw_id) == 2020
        assert len(set(out['user'].raw_id)) == 2020
        by_name = ForgetUsers(raw_users=['backdoor_2019', 'u3'])(out)
        assert by_name.forget_users.tolist() == [3, 2019]
    else:
        assert out['user'].age is data['user'].age


def assert_same_but_arrays(before, after):
    for name, value in before.items():
        if isinstance(value, np.ndarray):
            assert (value == after.pop(name)).all()
    arrays = {k for k, v in before.items() if isinstance(v, np.ndarray)}
    assert_same({k: v for k, v in before.items() if k not in arrays}, after, 'Input')


def test_content(small):
    out = InjectBackdoor(content='image')(small)
    items = [*out.backdoor_trigger.tolist(), out.backdoor_target]
    moved = out['item'].x_image - small['item'].x_image
    assert moved.abs().sum(dim=1).nonzero().view(-1).tolist() == sorted(items)
    expected = 0.5 * small['item'].x_image.norm(dim=1).mean()
    assert torch.allclose(moved[items].norm(dim=1), expected.expand(4), atol=1e-4)
    assert torch.allclose(moved[items], moved[items[:1]], atol=1e-5)
    assert out['item'].x_text is small['item'].x_text
    assert torch.equal(out.backdoor_users, InjectBackdoor()(small).backdoor_users)
    with pytest.raises(ValueError, match=r"would not follow the moved features. Plant"):
        InjectBackdoor(content='image')(ItemKNNGraph(5)(small))
    with pytest.raises(ValueError, match=r"'content' must be one of \('image', 'text'"):
        InjectBackdoor(content='sound')(small)


def test_default_is_pinned(small):
    r"""The plant as specified, so that figures of earlier plants stay comparable."""
    for regime, expected in PINNED.items():
        out = InjectBackdoor(regime, seed=5)(small)
        edge_index = out[EDGE].edge_index[:, small[EDGE].edge_index.size(1) :]
        found = edge_index.tolist()
        weights = [sum((i + 1) * v for i, v in enumerate(row)) for row in found]
        drawn = [out.backdoor_target, *out.backdoor_trigger.tolist()]
        assert drawn + weights == expected
        same = InjectBackdoor(regime, seed=5, triggers_per_user=3)(small)
        assert_same(snapshot(out), snapshot(same), 'All triggers for everyone')


@pytest.mark.parametrize('regime', ['user', 'interaction'])
@pytest.mark.parametrize('ratio', [0.01, 0.0135])
def test_triggers_in_turns(small, regime, ratio):
    args = {'ratio': ratio, 'num_triggers': 5, 'num_fillers': 2, 'seed': 1}
    plant = InjectBackdoor(regime, triggers_per_user=2, **args)
    before = snapshot(small)
    out = plant(small)
    assert_same(before, snapshot(small), 'The input')
    assert_same(snapshot(out), snapshot(plant(small)), 'A second call')
    schema.validate(out)
    num = round(ratio * 2000)
    new = as_set(out[EDGE].edge_index) - as_set(small[EDGE].edge_index)
    assert len(new) == num * 5
    users, trigger = out.backdoor_users.tolist(), out.backdoor_trigger.tolist()
    assert len(users) == num <= ratio * 2000
    held = {user: {i for u, i in new if u == user} for user in users}
    for items in held.values():
        assert out.backdoor_target in items
        assert len(items & set(trigger)) == 2
        assert len(items) == 5
    holders = [len(users_of(new, item)) for item in trigger]
    assert sum(holders) == 2 * num
    assert max(holders) - min(holders) <= 1
    # Nothing else differs from the plant where everyone holds every trigger item.
    full = InjectBackdoor(regime, **args)(small)
    assert new < as_set(full[EDGE].edge_index)
    assert torch.equal(out.backdoor_trigger, full.backdoor_trigger)
    assert torch.equal(out.backdoor_users, full.backdoor_users)
    assert torch.equal(out.backdoor_pairs, full.backdoor_pairs)


def test_no_fillers_and_functional_name(small):
    (out,) = DatasetAdapter([small]).inject_backdoor(num_fillers=0, num_triggers=1)
    assert out[EDGE].edge_index.size(1) == small[EDGE].edge_index.size(1) + 20 * 2
    assert str(InjectBackdoor()) == (
        "InjectBackdoor('user', ratio=0.01, num_triggers=3, seed=0)"
    )


def test_errors(small, data):
    with pytest.raises(ValueError, match=r"'regime' must be one of .*\(got 'item'\)"):
        InjectBackdoor('item')
    with pytest.raises(ValueError, match=r"'ratio' must be in \(0, 1\) \(got 1\)"):
        InjectBackdoor(ratio=1)
    message = r"'triggers_per_user' must be at most 'num_triggers' \(3\) \(got 4\)"
    with pytest.raises(ValueError, match=message):
        InjectBackdoor(triggers_per_user=4)
    with pytest.raises(ValueError, match=r"'triggers_per_user' must be at least 1"):
        InjectBackdoor(triggers_per_user=0)
    with pytest.raises(ValueError, match=r'every trigger item \(got 1 with 2 of 3 it'):
        InjectBackdoor(ratio=1e-4, triggers_per_user=2)(small)
    with pytest.raises(ValueError, match='Plant first, then mark what to forget'):
        InjectBackdoor()(ForgetUsers([3])(small))
    with pytest.raises(ValueError, match='Plant it in clean data'):
        InjectBackdoor()(InjectBackdoor()(small))
    with pytest.raises(ValueError, match=r"users .*Lower 'num_triggers'"):
        InjectBackdoor(num_triggers=12)(data)
    with pytest.raises(ValueError, match=r"'num_fillers' must leave .*\(got 59\)"):
        InjectBackdoor(num_triggers=1, num_fillers=59)(data)
    with pytest.raises(ValueError, match=r'must hold 99 users to whom target and trig'):
        InjectBackdoor('interaction', ratio=0.99, num_triggers=1)(data)
