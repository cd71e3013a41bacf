import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.popularity import (
    PopularityMatcher,
    popularity_matched_pairs,
)


def test_popularity_matched_pairs():
    torch.manual_seed(0)
    train_items = torch.arange(100).repeat_interleave(torch.arange(100))
    pairs = torch.stack([torch.arange(100), torch.arange(100)])
    out = popularity_matched_pairs(pairs, pairs, train_items, 100)
    assert torch.equal(out[0], pairs[0])
    assert (out[1] != pairs[1]).all()
    assert torch.equal(out[1] // 10, pairs[1] // 10)
    again = popularity_matched_pairs(pairs, pairs, train_items, 100)
    assert torch.equal(out, again)
    everything = torch.cartesian_prod(torch.arange(3), torch.arange(100)).t()
    none = popularity_matched_pairs(everything[:, :2], everything, train_items, 100)
    assert none.size(1) == 0


def test_matcher_draws_anew(data):
    pairs = data[schema.EDGE_TYPE].edge_index
    matcher = PopularityMatcher(pairs, pairs[1], 60, seed=3)
    known = set(map(tuple, pairs.t().tolist()))
    count = pairs[1].bincount(minlength=60)
    # Decile by decile in the order of popularity, lowest id first.
    order = sorted(range(60), key=lambda i: (int(count[i]), i))
    decile = {item: place * 10 // 60 for place, item in enumerate(order)}
    draws = []
    for _ in range(30):
        item, found = matcher(pairs)
        for (u, i), j, ok in zip(pairs.t().tolist(), item.tolist(), found.tolist()):
            assert decile[i] == decile[j]
            assert ok == ((u, j) not in known)
        draws.append(item)
    first = popularity_matched_pairs(pairs, pairs, pairs[1], 60, seed=3)
    _, found = PopularityMatcher(pairs, pairs[1], 60, seed=3)(pairs)
    assert torch.equal(first, torch.stack([pairs[0], draws[0]])[:, found])
    draws = torch.stack(draws)
    assert not torch.equal(draws[0], draws[1])
    # Every item that is left for a pair is drawn sooner or later.
    for row, (u, i) in enumerate(pairs[:, :5].t().tolist()):
        left = {j for j in order if decile[j] == decile[i] and (u, j) not in known}
        assert set(draws[:, row].tolist()) == left


def test_matcher_without_an_item_left():
    # With fewer items than deciles, an item is alone in its own.
    pairs = torch.tensor([[0, 1], [3, 2]])
    item, found = PopularityMatcher(pairs, pairs[1], 5)(pairs)
    assert not found.any()
    assert torch.equal(item, pairs[1])
    item, found = PopularityMatcher(pairs[:, :1], pairs[1], 5)(pairs)
    assert found.tolist() == [False, True]
    item, found = PopularityMatcher(pairs, pairs[1], 5)(pairs[:, :0])
    assert item.shape == found.shape == (0,)
