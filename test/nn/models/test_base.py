from collections import Counter

import numpy as np
import pytest
import torch

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import evaluate_split
from torch_geometric_unlearn.nn import MGCN, Recommender, Served, Table, Triplets
from torch_geometric_unlearn.transforms import DropForgotten, ForgetUsers


def brute_force(model, graph, users, k, exclude):
    user_emb, item_emb = (x.detach().double() for x in model(graph))
    excluded = set(map(tuple, exclude.t().tolist()))
    lists = []
    for user in users.tolist():
        scores = (item_emb @ user_emb[user]).tolist()
        items = [i for i in range(len(scores)) if (user, i) not in excluded]
        items = sorted(items, key=lambda i: (-scores[i], i))[:k]
        lists.append(items + [-1] * (k - len(items)))
    return lists


@pytest.mark.parametrize('batch_size', [1, 7, 2048])
def test_recommend(data, trained, batch_size):
    graph = trained.build_graph(data)
    users = torch.tensor([5, 99, 0, 5])
    items, scores = trained.recommend(graph, users, k=15, batch_size=batch_size)
    expected = brute_force(trained, graph, users, 15, graph.edge_index)
    assert items.tolist() == expected
    assert items.dtype == torch.int64
    user_emb, item_emb = trained(graph)
    pairs = (user_emb[users].unsqueeze(1) * item_emb[items]).sum(-1)
    assert torch.allclose(scores, pairs, atol=1e-5)
    assert not scores.requires_grad


def test_recommend_with_exclude(data, trained):
    graph = trained.build_graph(data)
    users = torch.arange(100)
    exclude = torch.cat([graph.edge_index, data.test_edge_label_index], dim=1)
    items, scores = trained.recommend(graph, users, 60, exclude)
    assert items.tolist() == brute_force(trained, graph, users, 60, exclude)
    assert torch.equal(items == -1, scores == -torch.inf)
    assert (items == -1).sum() == exclude.size(1)
    everything, _ = trained.recommend(graph, users[:2], 60, exclude[:, :0])
    assert everything.sort(dim=1)[0].tolist() == [list(range(60))] * 2


def test_recommend_keeps_the_mode(data):
    model = MGCN.from_data(data, hidden_channels=4)
    graph = model.build_graph(data)
    for mode in (True, False):
        model.train(mode)
        model.recommend(graph, torch.tensor([0]))
        assert model.training is mode


def test_recommend_more_items_than_there_are(data, trained):
    graph = trained.build_graph(data)
    items, scores = trained.recommend(graph, torch.tensor([4]), k=80)
    known = data[schema.EDGE_TYPE].edge_index
    num_left = 60 - int((known[0] == 4).sum())
    assert items.shape == scores.shape == (1, 80)
    assert (items[0, :num_left] >= 0).all()
    assert (items[0, num_left:] == -1).all()
    with pytest.raises(ValueError, match=r"'k' must be at least 1 \(got 0\)"):
        trained.recommend(graph, torch.tensor([4]), k=0)


def test_triplets_and_table():
    batch = Triplets(torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    moved = batch.to('cpu')
    assert isinstance(moved, Triplets)
    assert [x.item() for x in moved] == [0, 1, 2]
    assert Table(torch.ones(2, 1), 'user').is_raw is False


def test_contract_is_abstract():
    with pytest.raises(TypeError, match='abstract'):
        Recommender()


@pytest.mark.parametrize(
    'users', [[7, 0, 7], np.array([7, 0, 7]), torch.tensor([7, 0, 7]).int()]
)
def test_recommend_takes_any_ids(data, trained, users):
    graph = trained.build_graph(data)
    expected = trained.recommend(graph, torch.tensor([7, 0, 7]), k=np.int64(5))
    got = trained.recommend(graph, users, k=5)
    assert all(torch.equal(*both) for both in zip(got, expected))
    assert torch.equal(got[0][0], got[0][2])


@pytest.mark.parametrize('users', [[], torch.empty(0, dtype=torch.int64)])
def test_recommend_to_nobody(data, trained, users):
    items, scores = trained.recommend(trained.build_graph(data), users, k=4)
    assert items.shape == scores.shape == (0, 4)


@pytest.mark.parametrize(
    ('users', 'kwargs', 'error', 'match'),
    [
        ([3, -1], {}, ValueError, r"'users' must hold ids from 0 to 99 \(got 1 others"),
        ([100], {}, ValueError, r"'users' must hold ids from 0 to 99 .*first: 100"),
        ([0.5], {}, TypeError, r"'users' must hold integer ids \(got torch.float32"),
        (['ann'], {}, TypeError, "'users' must hold integer ids"),
        (torch.ones(100) > 0, {}, TypeError, r'For a mask, pass mask.nonzero'),
        (3, {}, TypeError, 'pass a list of length one'),
        ([[3]], {}, TypeError, r"'users' must be a list or tensor \[n\]"),
        ([3], {'k': 0}, ValueError, "'k' must be at least 1"),
        ([3], {'k': '5'}, TypeError, "'k' must be an integer"),
        ([3], {'batch_size': 0}, ValueError, "'batch_size' must be at least 1"),
        (
            [3],
            {'exclude': torch.tensor([[3], [-1]])},
            ValueError,
            r"'exclude' must hold users from 0 to 99 .*first: \(3, -1\)",
        ),
        ([3], {'exclude': torch.tensor([3])}, ValueError, r'shape \[2, n\]'),
        ([3], {'exclude': torch.zeros(2, 1)}, TypeError, "'exclude' must be an int64"),
    ],
)
def test_recommend_refuses(data, trained, users, kwargs, error, match):
    with pytest.raises(error, match=match):
        trained.recommend(trained.build_graph(data), users, **kwargs)


def test_data_in_place_of_a_graph(data, trained):
    for call in (
        lambda: trained.recommend(data, [3]),
        lambda: Served(trained, data),
        lambda: evaluate_split(trained, data, graph=data),
    ):
        with pytest.raises(TypeError, match=r'HeteroData.*model.build_graph\(data\)'):
            call()


def test_users_without_interactions_get_what_is_popular(data, trained):
    dropped = DropForgotten()(ForgetUsers([3, 17])(data))
    graph = trained.build_graph(dropped)
    users = [5, 17, 3, 3]
    items, scores = trained.recommend(graph, users, k=10)
    own, own_scores = trained.recommend(graph, users, k=10, fallback='model')
    assert torch.equal(items[0], own[0])
    assert torch.equal(scores[0], own_scores[0])
    assert torch.isfinite(own_scores).all()
    assert torch.isnan(scores[1:]).all()
    counts = Counter(dropped[schema.EDGE_TYPE].edge_index[1].tolist())
    expected = sorted(range(60), key=lambda item: (-counts[item], item))
    assert items[1].tolist() == items[2].tolist() == expected[:10]
    known = torch.tensor([[3, 3], expected[:2]])
    items, _ = trained.recommend(graph, [3], k=59, exclude=known)
    assert items[0].tolist() == [*expected[2:], -1]
    with pytest.raises(ValueError, match="'fallback' must be one of"):
        trained.recommend(graph, users, fallback='random')
