import itertools

import torch

from torch_geometric_unlearn.data.known_pairs import KnownPairs, draw_free
from torch_geometric_unlearn.utils.seed import generator


def test_contains_by_loops():
    rng = generator(0)
    pairs = torch.stack([torch.randint(n, (40,), generator=rng) for n in (9, 7)])
    known = KnownPairs(pairs, 7)
    every = torch.cartesian_prod(torch.arange(9), torch.arange(7))
    expected = [pair in pairs.t().tolist() for pair in every.tolist()]
    assert known.contains(*every.t()).tolist() == expected
    assert 0 < sum(expected) < 63


def test_nothing_is_known():
    known = KnownPairs(torch.empty(2, 0, dtype=torch.int64), 7)
    assert not known.contains(torch.tensor([0, 5]), torch.tensor([6, 0])).any()


def test_draws_until_free():
    rng, places_seen = generator(0), []

    def draw(places):
        places_seen.append(places.tolist())
        return torch.randint(4, places.shape, generator=rng)

    out, failed = draw_free(50, draw, lambda places, x: x == places % 4)
    assert failed.numel() == 0
    assert not (out == torch.arange(50) % 4).any()
    assert places_seen[0] == list(range(50))
    for before, after in itertools.pairwise(places_seen):
        assert set(after) < set(before)  # Only what was taken is drawn again.


def test_gives_up_after_max_draws():
    draws = []

    def draw(places):
        draws.append(places.tolist())
        return torch.zeros_like(places)

    out, failed = draw_free(3, draw, lambda places, x: places == 1, max_draws=5)
    assert out.tolist() == [0, 0, 0]
    assert failed.tolist() == [1]
    assert draws == [[0, 1, 2], *[[1]] * 4]
