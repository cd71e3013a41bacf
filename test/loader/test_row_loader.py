import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.loader.row_loader import RowLoader

USERS, ITEMS = torch.tensor([3, 17, 40]), torch.tensor([2, 5, 9])
NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture
def pairs(data):
    return data[schema.EDGE_TYPE].edge_index


def everything(loader):
    parts = list(loader)
    if not parts:
        return torch.empty(3, 0, dtype=torch.int64)
    return torch.stack([torch.cat(column) for column in zip(*parts)])


def test_every_pair_of_the_rows_once(pairs):
    loader = RowLoader(pairs, 60, USERS, ITEMS, batch_size=32)
    user, pos, neg = everything(loader)
    own = torch.isin(user, USERS) | torch.isin(pos, ITEMS)
    mine = torch.isin(pairs[0], USERS) | torch.isin(pairs[1], ITEMS)
    assert sorted(zip(user[own].tolist(), pos[own].tolist())) == sorted(
        map(tuple, pairs[:, mine].t().tolist())
    )
    assert torch.equal(loader.edge_index, pairs[:, mine])
    assert torch.isin(neg[~own], ITEMS).all()
    known = set(map(tuple, pairs.t().tolist()))
    assert not known & set(zip(user.tolist(), neg.tolist()))
    assert set(zip(user.tolist(), pos.tolist())) <= known


def test_as_much_as_an_epoch_of_training(pairs):
    r"""The triplets of a whole epoch that touch the rows, on average."""
    whole, rows = TripletLoader(pairs, 60, seed=1), RowLoader(pairs, 60, USERS, ITEMS)
    counts = []
    for _ in range(200):
        user, pos, neg = everything(whole)
        positive = torch.isin(user, USERS) | torch.isin(pos, ITEMS)
        negative = torch.isin(neg, ITEMS) & ~positive
        u, p, n = everything(rows)
        own = torch.isin(u, USERS) | torch.isin(p, ITEMS)
        counts.append([int(positive.sum()), int(own.sum()), int(negative.sum()), int(
            (~own).sum())])
        assert torch.isin(n[~own], ITEMS).all()
    mean = torch.tensor(counts).double().mean(dim=0)
    assert mean[0] == mean[1]
    # A known negative is dropped here and drawn anew there, so slightly fewer.
    assert 0.75 * mean[2] < mean[3] < 1.1 * mean[2]
    assert mean[3] <= rows.num_negatives


def test_batches_are_equally_large(pairs):
    loader = RowLoader(pairs, 60, USERS, ITEMS, batch_size=20)
    sizes = [batch.user.numel() for batch in loader]
    assert len(sizes) == len(loader) > 1
    assert max(sizes) - min(sizes) <= 1


def test_users_only_and_nobody(pairs):
    loader = RowLoader(pairs, 60, USERS, NONE)
    assert loader.num_negatives == 0
    assert everything(loader).size(1) == int(torch.isin(pairs[0], USERS).sum())
    nobody = RowLoader(pairs, 60, NONE, NONE)
    assert len(nobody) == 0
    assert list(nobody) == []


def test_seed(pairs):
    first, second = (everything(RowLoader(pairs, 60, USERS, ITEMS)) for _ in range(2))
    assert torch.equal(first, second)
    other = everything(RowLoader(pairs, 60, USERS, ITEMS, seed=1))
    assert first.shape != other.shape or not torch.equal(first, other)


def test_bad_arguments(pairs):
    with pytest.raises(ValueError, match="'batch_size' must be at least 1"):
        RowLoader(pairs, 60, USERS, ITEMS, batch_size=0)
    with pytest.raises(ValueError, match='holds no pair'):
        RowLoader(pairs[:, :0], 60, USERS, ITEMS)
