r"""What is held per interaction where there are many: counted, not timed."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_geometric.data import HeteroData

from torch_geometric_unlearn.data import known_pairs, schema
from torch_geometric_unlearn.loader import TripletLoader, triplet_loader
from torch_geometric_unlearn.loader.row_loader import RowLoader
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.utils import csr, topk
from torch_geometric_unlearn.utils.topk import PairIndex

NUM = 100_000


class Held(TorchDispatchMode):
    r"""Counts the bytes of the tensors that live at the same time at most."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.owners = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        known = {self._key(x) for x in tree_leaves((args, kwargs))}
        for x in tree_leaves(out):
            key = self._key(x)
            if key is None or (key in known and key not in self.owners):
                continue  # What was there before.
            if key not in self.owners:
                self.owners[key] = 0
                self.now += x.untyped_storage().nbytes()
            self.owners[key] += 1
            size = x.untyped_storage().nbytes()
            weakref.finalize(x, self._release, key, size)
        self.peak = max(self.peak, self.now)
        return out

    @staticmethod
    def _key(x):
        return x.untyped_storage()._cdata if isinstance(x, torch.Tensor) else None

    def _release(self, key, size):
        self.owners[key] -= 1
        if self.owners[key] == 0:
            del self.owners[key]
            self.now -= size


@pytest.fixture
def many(monkeypatch):
    r"""Data with few nodes, and small parts."""
    for module in (csr, known_pairs, triplet_loader):
        monkeypatch.setattr(module, 'PART', 2000)
    rng = torch.Generator().manual_seed(0)
    code = torch.randperm(2000 * 200, generator=rng)[:NUM]
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 2000, 200
    data[schema.EDGE_TYPE].edge_index = torch.stack([code // 200, code % 200])
    return data


def per_pair(function):
    with Held() as held:
        out = function()
    return held.peak / NUM, held.now / NUM, out


def test_counts_what_is_held():
    peak, now, _ = per_pair(lambda: (torch.ones(NUM) + 1).view(2, -1) * 2)
    assert (peak, now) == (8, 4)


def test_a_graph(many):
    schema.validate(many)
    model = LightGCN.from_data(many, hidden_channels=4)
    peak, now, graph = per_pair(lambda: model.build_graph(many))
    pairs = many[schema.EDGE_TYPE].edge_index
    assert graph.edge_index.data_ptr() == pairs.data_ptr()
    assert now < 17  # 4 + 4 bytes in both directions.
    assert peak < 20


def test_a_check(many):
    peak, _, _ = per_pair(lambda: schema.validate(many))
    assert peak < 26  # Of the message, if there were one, nothing.


def test_a_pass_of_triplets(many):
    pairs = many[schema.EDGE_TYPE].edge_index
    peak, now, loader = per_pair(lambda: TripletLoader(pairs, 200))
    assert now < 17
    assert peak < 28
    peak, _, _ = per_pair(lambda: next(iter(loader)))
    assert peak < 13  # 4 + 4, and a quarter of the places to draw again.


def test_the_triplets_of_a_row(many):
    pairs = many[schema.EDGE_TYPE].edge_index
    users, items = torch.tensor([3]), torch.tensor([5])
    _, now, _ = per_pair(lambda: RowLoader(pairs, 200, users, items))
    assert now < 18


def test_an_index_of_pairs(many):
    pairs = many[schema.EDGE_TYPE].edge_index
    _, now, _ = per_pair(lambda: PairIndex(pairs, 2000))
    assert now < 5


def test_parts_change_nothing(many, monkeypatch):
    pairs = many[schema.EDGE_TYPE].edge_index

    def everything():
        loader = TripletLoader(pairs, 200, seed=3)
        rows = RowLoader(pairs, 200, torch.arange(9), torch.arange(3), seed=1)
        out = [torch.stack(batch) for each in (loader, rows) for batch in each]
        index = PairIndex(pairs, 2000)
        graph = LightGCN.from_data(many, hidden_channels=4).build_graph(many)
        operator = graph.user_item
        return [*out, index.item, operator.rowptr, operator.col, operator.value]

    in_parts = everything()
    for module in (csr, known_pairs, triplet_loader):
        monkeypatch.setattr(module, 'PART', 10**9)
    at_once = everything()
    assert len(at_once) == len(in_parts)
    assert all(torch.equal(*both) for both in zip(at_once, in_parts))
    order = pairs[0].argsort(stable=True)
    assert torch.equal(at_once[-4], pairs[1, order].int())


def test_blocks_of_scores(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    user_emb = torch.randint(3, (50, 4), generator=rng).float()
    item_emb = torch.randint(3, (40, 4), generator=rng).float()
    pairs = torch.stack([torch.arange(50), torch.arange(50) % 40])
    expected = topk.topk_items(user_emb, item_emb, torch.arange(50), 7, pairs)
    monkeypatch.setattr(topk, 'MOST_SCORES', 100)
    got = topk.topk_items(user_emb, item_emb, torch.arange(50), 7, pairs)
    assert all(torch.equal(*both) for both in zip(got, expected))
    blocks = topk.score_blocks(user_emb, item_emb, torch.arange(50))
    assert {scores.size(0) for _, scores in blocks} == {2}
