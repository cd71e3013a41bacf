import torch

from torch_geometric_unlearn.audit._attack import Settings
from torch_geometric_unlearn.audit._examples import ExampleSampler
from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.transforms import ForgetItems, ForgetUsers


def sampler(data, level='pair', negatives='heldout', **kwargs):
    return ExampleSampler(data, Settings(level, negatives, **kwargs))


def test_examples_are_balanced_within_users(marked):
    test = sampler(marked).test
    for user in test.group.unique():
        own = test.label[test.group == user]
        assert own.sum() == (~own).sum()
    codes = schema.pair_codes(test.pairs, 80)
    gone = schema.pair_codes(schema.forgotten_edge_index(marked), 80)
    held = schema.pair_codes(schema.held_out(marked, 'test'), 80)
    assert torch.isin(codes[test.label], gone).all()
    assert torch.isin(codes[~test.label], held).all()
    assert codes.unique().numel() == codes.numel()
    train = sampler(marked).train
    assert not torch.isin(train.group, marked['forget_users']).any()


def test_members_of_items_come_from_users_like_those_of_the_test_pairs():
    # Users with few items have a larger share of them held out.
    data = SyntheticMultimodal('tiny', num_users=2000, num_items=200)[0]
    marked = ForgetItems(ratio=0.5)(data)
    test = sampler(marked).test
    assert torch.equal(test.group, test.pairs[1])
    length = data[schema.EDGE_TYPE].edge_index[0].bincount(minlength=2000).double()
    means = [length[test.pairs[0, test.label == side]].mean() for side in (True, False)]
    plain = length[schema.forgotten_edge_index(marked)[0]].mean()
    assert abs(means[0] - means[1]) < 0.25 * abs(plain - means[1])


def test_random_negatives_are_nobodys_pairs(data):
    draws = sampler(ForgetUsers(ratio=0.6)(data), negatives='random')
    pairs = draws.test.pairs[:, ~draws.test.label]
    known = torch.cat([draws.trained, *draws.held_out.values()], dim=1)
    assert not torch.isin(
        schema.pair_codes(pairs, 60), schema.pair_codes(known, 60)
    ).any()
    items = ForgetItems(ratio=0.5)(data)
    test = sampler(items, negatives='random', max_examples=70).test
    assert test.counts == (70, 70)
    assert torch.isin(test.pairs[1], items['forget_items']).all()


def test_examples_do_not_depend_on_what_was_asked_before(marked):
    draws = sampler(marked)
    assert draws.null.counts[0] == draws.null.counts[1] > 0
    assert torch.equal(sampler(marked).train.pairs, draws.train.pairs)


def test_neighbours_share_items():
    data = SyntheticMultimodal('tiny', num_users=1500, num_items=300)[0]
    marked = ForgetUsers(ratio=0.05, seed=1)(data)
    test = sampler(marked, 'neighbours').test
    gone = set(marked['forget_users'].tolist())
    train = data[schema.EDGE_TYPE].edge_index
    items = [set() for _ in range(1500)]
    for u, i in train.t().tolist():
        items[u].add(i)
    for user, label in zip(test.ids.tolist(), test.label.tolist()):
        shared = max(len(items[user] & items[u]) for u in gone)
        assert (shared >= 3) == label
        assert user not in gone
    lengths = [
        sorted(len(items[u]) for u in test.ids[test.label == side].tolist())
        for side in (True, False)
    ]
    assert lengths[0] == lengths[1]
