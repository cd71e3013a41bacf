import math

import numpy as np
import pytest
import torch
from torch_geometric.testing import withPackage

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.metrics import (
    embed,
    evaluate_request,
    evaluate_split,
    ranking_metrics,
)
from torch_geometric_unlearn.metrics.ranking import retained_ndcg, user_metrics
from torch_geometric_unlearn.nn import MGCN, Served
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)


def as_set(pairs):
    return set(map(tuple, pairs.t().tolist()))


def naive_metrics(user_emb, item_emb, relevant, masked=(), banned=(), ks=(10, 20)):
    r"""One user after the other, with sorted Python lists in float64."""
    scores = (user_emb.double() @ item_emb.double().t()).tolist()
    by_user = {}
    for user, item in sorted(relevant):
        by_user.setdefault(user, set()).add(item)
    out = {f'{name}@{k}': [] for k in ks for name in ('recall', 'ndcg')}
    for user, wanted in by_user.items():
        items = [
            item
            for item in range(item_emb.size(0))
            if (user, item) not in masked and item not in banned
        ]
        ranked = sorted(items, key=lambda item: (-scores[user][item], item))
        for k in ks:
            hits = [item in wanted for item in ranked[:k]]
            gain = sum(hit / math.log2(r + 2) for r, hit in enumerate(hits))
            ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(wanted))))
            out[f'recall@{k}'].append(sum(hits) / len(wanted))
            out[f'ndcg@{k}'].append(gain / ideal)
    return {name: float(np.mean(values)) for name, values in out.items()}


def random_case(num_users=25, num_items=40, seed=0, levels=None):
    gen = torch.Generator().manual_seed(seed)
    user_emb = torch.randn(num_users, 6, generator=gen)
    item_emb = torch.randn(num_items, 6, generator=gen)
    if levels:  # Small integers, so that many scores are exactly equal.
        user_emb = torch.randint(levels, (num_users, 6), generator=gen).float()
        item_emb = torch.randint(levels, (num_items, 6), generator=gen).float()
    codes = torch.randperm(num_users * num_items, generator=gen)
    pairs = torch.stack([codes // num_items, codes % num_items])
    return user_emb, item_emb, pairs[:, :150], pairs[:, 150:400]


@pytest.mark.parametrize('levels', [None, 2, 1])
@pytest.mark.parametrize('batch_size', [1, 7, 2048])
def test_against_naive_loop(levels, batch_size):
    user_emb, item_emb, relevant, masked = random_case(levels=levels)
    banned = torch.tensor([0, 7, 39])
    ks = (1, 5, 20)
    out = ranking_metrics(
        user_emb, item_emb, relevant, masked, banned, ks=ks, batch_size=batch_size
    )
    args = (user_emb, item_emb, as_set(relevant), as_set(masked))
    expected = naive_metrics(*args, set(banned.tolist()), ks)
    assert list(out) == [f'{name}@{k}' for k in ks for name in ('recall', 'ndcg')]
    assert out == pytest.approx(expected, abs=1e-6)
    unmasked = ranking_metrics(user_emb, item_emb, relevant, ks=ks)
    assert unmasked == pytest.approx(naive_metrics(*args[:3], ks=ks), abs=1e-6)
    assert unmasked != out


@pytest.mark.parametrize('num_items', [1, 3, 12])
def test_fewer_items_than_k(num_items):
    user_emb, item_emb, _, _ = random_case(num_users=4, num_items=num_items)
    relevant = torch.tensor([[0, 1, 3], [0, num_items - 1, 0]])
    masked = torch.tensor([[1], [num_items - 1]])  # User 1 can't be served.
    out = ranking_metrics(user_emb, item_emb, relevant, masked)
    args = (user_emb, item_emb, as_set(relevant), as_set(masked))
    assert out == pytest.approx(naive_metrics(*args), abs=1e-6)
    assert out['recall@20'] == pytest.approx(2 / 3)


def test_worked_example():
    # The list is (a, x, b), the relevant items are a = 2 and b = 1.
    item_emb = torch.tensor([[0.5], [0.4], [0.9], [0.1]])
    relevant = torch.tensor([[0, 0], [2, 1]])
    out = ranking_metrics(torch.ones(1, 1), item_emb, relevant, ks=(1, 3))
    assert out['recall@3'] == 1
    assert out['ndcg@3'] == pytest.approx(0.9197, abs=5e-5)
    assert out['recall@1'] == 0.5  # Of both relevant items, not of min(K, 2).
    assert out['ndcg@1'] == 1


def test_empty_set_is_nan_with_warning():
    user_emb, item_emb, _, _ = random_case()
    empty = torch.empty(2, 0, dtype=torch.long)
    with pytest.warns(UserWarning, match='no relevant pair to rank'):
        out = ranking_metrics(user_emb, item_emb, empty, ks=(5,))
    assert list(out) == ['recall@5', 'ndcg@5']
    assert all(math.isnan(value) for value in out.values())


def test_a_pair_that_is_listed_twice_counts_once():
    user_emb, item_emb = torch.randn(3, 4), torch.randn(9, 4)
    pairs = torch.tensor([[0, 0, 2], [1, 5, 3]])
    twice = torch.cat([pairs, pairs[:, :2].flip(1)], dim=1)
    got = ranking_metrics(user_emb, item_emb, twice, ks=(3, 9))
    assert got == ranking_metrics(user_emb, item_emb, pairs, ks=(3, 9))
    with pytest.raises(ValueError, match=r"'edge_label_index' must hold .*\(0, -1\)"):
        ranking_metrics(user_emb, item_emb, torch.tensor([[0], [-1]]))


def test_ndcg_against_sklearn():
    from sklearn.metrics import ndcg_score

    user_emb, item_emb, relevant, _ = random_case()
    label = torch.zeros(25, 40)
    label[relevant[0], relevant[1]] = 1
    rows = label.sum(dim=1) > 0
    expected = ndcg_score(label[rows], (user_emb @ item_emb.t())[rows], k=10)
    out = ranking_metrics(user_emb, item_emb, relevant, ks=(10,))
    assert out['ndcg@10'] == pytest.approx(expected, abs=1e-6)


@withPackage('ogb')
def test_hits_against_ogb():
    from ogb.linkproppred import Evaluator

    user_emb, item_emb, _, _ = random_case(num_users=200)
    relevant = torch.stack([torch.arange(200), torch.randint(40, (200,))])
    scores = user_emb @ item_emb.t()
    pos = scores.gather(1, relevant[1].view(-1, 1))
    others = torch.ones_like(scores, dtype=torch.bool)
    others[relevant[0], relevant[1]] = False
    neg = scores[others].view(200, 39)
    result = Evaluator('ogbl-citation2').eval(
        {'y_pred_pos': pos.view(-1), 'y_pred_neg': neg}
    )
    out = ranking_metrics(user_emb, item_emb, relevant, ks=(1, 3, 10))
    for k in (1, 3, 10):
        expected = result[f'hits@{k}_list'].mean().item()
        assert out[f'recall@{k}'] == pytest.approx(expected, abs=1e-6)
    assert 0 < out['recall@10'] < 1


def sets_of(data):
    train = as_set(data[schema.EDGE_TYPE].edge_index)
    val, test = as_set(data.val_edge_label_index), as_set(data.test_edge_label_index)
    return train, val, test


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize('mask_validation', [False, True])
def test_evaluate_split(data, trained, split, mask_validation):
    train, val, test = sets_of(data)
    user_emb, item_emb = embed(trained, trained.build_graph(data))
    label, other = (val, test) if split == 'val' else (test, val)
    masked = train | other if mask_validation else train
    out = evaluate_split(trained, data, split, mask_validation=mask_validation)
    expected = naive_metrics(user_emb, item_emb, label, masked)
    assert out == pytest.approx(expected, abs=1e-6)


def test_evaluate_split_with_marked_edges(data, trained):
    marked = ForgetUsers([3, 17])(data)
    train, _, test = sets_of(marked)
    retained = {(u, i) for u, i in train if u not in (3, 17)}
    user_emb, item_emb = embed(trained, trained.build_graph(marked))
    expected = naive_metrics(user_emb, item_emb, test, retained)
    assert evaluate_split(trained, marked) == pytest.approx(expected, abs=1e-6)
    # Passing the graph of the unmarked data scores the model as it was in service.
    graph = trained.build_graph(data)
    expected = naive_metrics(*embed(trained, graph), test, retained)
    assert evaluate_split(trained, marked, graph=graph) == pytest.approx(
        expected, abs=1e-6
    )
    with pytest.raises(ValueError, match="'split' must be one of"):
        evaluate_split(trained, data, 'train')


def test_embed_keeps_the_mode(data):
    model = MGCN.from_data(data, hidden_channels=4).train()
    user_emb, _ = embed(model, model.build_graph(data))
    assert model.training
    assert not user_emb.requires_grad


REQUESTS = {
    'user': ({3, 17, 50}, set(), 0),
    'item': (set(), {2, 30}, 0),
    'interaction': (set(), set(), 25),
    'mixed': ({8}, {4, 11}, 10),
}


@pytest.mark.parametrize('level', REQUESTS)
@pytest.mark.parametrize('in_service', [False, True])
def test_evaluate_request(data, trained, level, in_service):
    users, items, num_pairs = REQUESTS[level]
    train, _, test = sets_of(data)
    pairs = sorted(train)[:: len(train) // 30][:num_pairs]
    marked = data
    if users:
        marked = ForgetUsers(sorted(users))(marked)
    if items:
        marked = ForgetItems(sorted(items))(marked)
    if pairs:
        marked = ForgetInteractions(pairs)(marked)
    forgotten = set(pairs) | {(u, i) for u, i in train if u in users or i in items}
    retained = train - forgotten
    deleted = {(u, i) for u, i in test if u in users or i in items}

    graph = trained.build_graph(data if in_service else marked)
    args = embed(trained, graph)
    sets = {'retain': (test - deleted, items), 'forget': (forgotten, set())}
    if items:
        sets['retain_open'] = (test - deleted, set())
    if deleted:
        sets['forget_heldout'] = (deleted, set())
    expected = {
        f'{name}_{key}': value
        for name, (label, banned) in sets.items()
        for key, value in naive_metrics(*args, label, retained, banned).items()
    }
    # The sample holds all users, and nothing is masked for them.
    train_set = naive_metrics(*args, retained, set(), set())
    expected |= {f'retain_train_{key}': value for key, value in train_set.items()}
    kwargs = {'graph': graph} if in_service else {}
    out = evaluate_request(trained, marked, ks=(10, 20), **kwargs)
    assert set(out) == set(expected)
    assert out == pytest.approx(expected, abs=1e-6)
    assert len(deleted) > 0 or level == 'interaction'


def test_evaluate_request_without_request(data, trained):
    with pytest.warns(UserWarning, match='no relevant pair to rank'):
        out = evaluate_request(trained, data, num_train_users=0)
    assert math.isnan(out.pop('forget_recall@20'))
    assert math.isnan(out.pop('forget_ndcg@20'))
    expected = evaluate_split(trained, data, ks=(20,))
    assert out == {f'retain_{key}': value for key, value in expected.items()}


@pytest.mark.parametrize('transform', [ForgetUsers, ForgetItems])
@pytest.mark.parametrize('k', [3, 20, 80])
def test_ndcg_by_user_averages_to_that_of_the_request(transform, k, data, trained):
    marked = transform(ratio=0.2)(data)
    served = Served.of(trained, marked)
    users, values = retained_ndcg(served, marked, k, batch_size=7)
    wanted = evaluate_request(served, marked, ks=(k,))[f'retain_ndcg@{k}']
    assert float(values.mean()) == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(users, users.unique())
    del marked.test_edge_label_index
    assert retained_ndcg(served, marked, k)[1].numel() == 0


@pytest.mark.parametrize('k', [1, 20, 80])
def test_metrics_by_user_are_those_of_each_alone(k, trained, data):
    served = Served.of(trained, data)
    label = schema.held_out(data, 'test')
    exclude = schema.retained_edge_index(data)
    banned = torch.tensor([2, 5])
    users, recall, ndcg = user_metrics(served, label, exclude, banned, k, batch_size=9)
    assert torch.equal(users, label[0].unique())
    for place in range(0, users.numel(), 10):
        mine = label[:, label[0] == users[place]]
        args = as_set(mine), as_set(exclude), {2, 5}, (k,)
        expected = naive_metrics(*served.embeddings, *args)
        found = {f'recall@{k}': recall[place], f'ndcg@{k}': ndcg[place]}
        for name, value in found.items():
            assert float(value) == pytest.approx(expected[name], abs=1e-6)
