import pytest
import torch
from scipy.stats import chisquare

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import Triplets


def as_set(pairs):
    return set(map(tuple, pairs.t().tolist()))


def test_each_pair_once_and_negatives_unknown(data):
    edge_index = data[schema.EDGE_TYPE].edge_index
    loader = TripletLoader(edge_index, num_items=60, batch_size=128)
    known, orders = as_set(edge_index), []
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 5
        assert [batch.user.numel() for batch in batches] == [128] * 4 + [599 - 512]
        assert isinstance(batches[0], Triplets)
        user, pos, neg = (torch.cat(x) for x in zip(*batches))
        assert user.numel() == len(known)
        assert as_set(torch.stack([user, pos])) == known
        assert not as_set(torch.stack([user, neg])) & known
        orders.append(torch.stack([user, pos, neg]))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0][:2], edge_index)


def test_negatives_are_uniform():
    # User 0 knows items 0 to 3, so 4 to 9 are left; user 1 knows items 4 to 9.
    items = torch.arange(10)
    edge_index = torch.stack([(items > 3).long(), items])
    loader = TripletLoader(edge_index, num_items=12, seed=5)
    neg = loader.sample_negatives(torch.zeros(30_000, dtype=torch.long))
    counts = neg.bincount(minlength=12)
    assert counts[:4].sum() == counts[10:].sum() == 0  # 10 and 11 occur in no pair.
    assert chisquare(counts[4:10].numpy()).pvalue > 1e-3
    neg = loader.sample_negatives(torch.ones(30_000, dtype=torch.long))
    counts = neg.bincount(minlength=12)
    assert counts[4:].sum() == 0
    assert chisquare(counts[:4].numpy()).pvalue > 1e-3


def test_seed(data):
    edge_index = data[schema.EDGE_TYPE].edge_index

    def draw(seed):
        torch.manual_seed(seed + 100)  # The global generator plays no part.
        loader = TripletLoader(edge_index, 60, batch_size=200, seed=seed)
        return [torch.stack(batch) for _ in range(2) for batch in loader]

    assert all(torch.equal(a, b) for a, b in zip(draw(0), draw(0)))
    assert not torch.equal(draw(0)[0], draw(1)[0])


def test_known_and_negative_items():
    edge_index = torch.tensor([[0, 0, 1], [0, 1, 2]])
    known = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 2, 5, 2]])
    loader = TripletLoader(
        edge_index,
        num_items=7,
        known=known,
        negative_items=torch.tensor([5, 3, 4, 3, 2]),
    )
    assert loader.negative_items.tolist() == [2, 3, 4, 5]
    user = torch.tensor([0, 1]).repeat(500)
    neg = loader.sample_negatives(user)
    assert set(neg[user == 0].tolist()) == {3, 4}
    assert set(neg[user == 1].tolist()) == {3, 4, 5}


def test_nothing_known():
    edge_index = torch.tensor([[0, 0], [0, 1]])
    loader = TripletLoader(edge_index, 2, known=edge_index[:, :0])
    neg = loader.sample_negatives(torch.zeros(100, dtype=torch.long))
    assert set(neg.tolist()) == {0, 1}


def test_one_user_falls_back_to_the_catalogue():
    edge_index = torch.tensor([[0, 0], [1, 3]])
    loader = TripletLoader(edge_index, num_items=5)
    assert loader.negative_items.tolist() == [0, 1, 2, 3, 4]
    neg = loader.sample_negatives(torch.zeros(200, dtype=torch.long))
    assert set(neg.tolist()) == {0, 2, 4}


def test_user_who_has_everything():
    edge_index = torch.tensor([[4, 4, 4, 1], [0, 1, 2, 0]])
    # Their pairs have no negative and are left out, as long as others are left.
    loader = TripletLoader(edge_index, num_items=3)
    assert loader.edge_index.tolist() == [[1], [0]]
    assert {n for _ in range(9) for n in next(iter(loader)).neg_item.tolist()} == {1, 2}
    match = r'1 users \(first: 4\) already have all 3 items'
    with pytest.raises(ValueError, match=match):
        TripletLoader(edge_index[:, :3], num_items=3)
    match = r'2 users \(first: 1\) already have all 1 items'
    with pytest.raises(ValueError, match=match):
        TripletLoader(edge_index, num_items=3, negative_items=torch.tensor([0]))
    # Their pairs may be known without being drawn from.
    loader = TripletLoader(edge_index[:, 3:], num_items=3, known=edge_index)
    assert all(batch.user.tolist() == [1] for batch in loader)
    with pytest.raises(ValueError, match=r'1 users \(first: 4\) already have all 3'):
        loader.sample_negatives(torch.tensor([1, 4]))


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'edge_index': torch.empty(2, 0, dtype=torch.long)}, 'holds no pair'),
        ({'batch_size': 0}, r"'batch_size' must be at least 1 \(got 0\)"),
        ({'num_items': 0}, r"'num_items' must be at least 1 \(got 0\)"),
        ({'num_items': 3}, r"'edge_index' holds item ids outside \[0, 2\]"),
        ({'edge_index': torch.tensor([[0], [-1]])}, "'edge_index' holds item ids out"),
        ({'known': torch.tensor([[0], [9]])}, "'known' holds item ids outside"),
        ({'negative_items': torch.tensor([9])}, "'negative_items' holds item ids out"),
        ({'seed': -1}, r"'seed' must be an integer in \[0, 2\*\*63\) \(got -1\)"),
    ],
)
def test_bad_input(kwargs, match):
    default = {'edge_index': torch.tensor([[0, 1], [3, 0]]), 'num_items': 5}
    with pytest.raises(ValueError, match=match):
        TripletLoader(**{**default, **kwargs})
