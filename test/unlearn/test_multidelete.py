import copy

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.popularity import PopularityMatcher
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import embed, evaluate_request
from torch_geometric_unlearn.nn import RecommenderAdapter
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import MultiDelete
from torch_geometric_unlearn.unlearn.iterative import Workspace
from torch_geometric_unlearn.unlearn.multidelete import Partners, _Run, _views
from torch_geometric_unlearn.unlearn.selection import ForgetTarget
from torch_geometric_unlearn.utils.seed import isolated_seed

REQUESTS = [ForgetUsers(ratio=0.1), ForgetItems([2, 4]), ForgetInteractions(ratio=0.1)]
KINDS = ['popularity', 'uniform', 'batch']
LOSSES = ['decoupling_loss', 'multimodal_loss', 'unimodal_loss']


@pytest.fixture(scope='module')
def lightgcn():
    with isolated_seed(0):
        model = RecommenderAdapter(LightGCN(160, 16, 2), 100, 60)
    fit(model, SyntheticMultimodal('tiny')[0], num_epochs=20, lr=1e-2, batch_size=128)
    return model


def start(unlearner, model, marked):
    retained = DropForgotten()(marked)
    model = copy.deepcopy(model).eval()
    target = ForgetTarget(marked, retained)
    size = unlearner.batch_size, unlearner.seed
    work = Workspace(model, marked, retained, target, *size)
    return work, _Run(unlearner, work)


def far_pair(model, data):
    r"""Marks the interaction that scores furthest above its user's average item."""
    user_emb, item_emb = embed(model, model.build_graph(data))
    scores = user_emb @ item_emb.t()
    user, item = data[schema.EDGE_TYPE].edge_index
    place = (scores[user, item] - scores.mean(dim=1)[user]).argmax()
    return ForgetInteractions(torch.stack([user, item])[:, place : place + 1])(data)


def one_pair(data, place=7):
    return ForgetInteractions(data[schema.EDGE_TYPE].edge_index[:, [place]])(data)


def test_history(data, trained):
    result = MultiDelete(num_epochs=2)(trained, ForgetItems([2, 4])(data))
    assert set(LOSSES) <= set(result.history[0])
    assert 'reversed' not in result.history[0]  # It has no reverse step.


@pytest.mark.parametrize(
    ('name', 'kind'),
    [('trained', 'uniform'), ('trained', 'popularity'), ('trained_miggt', 'batch')],
)
def test_one_pair_approaches_its_partners(kind, name, data, request):
    model = request.getfixturevalue(name)
    marked = far_pair(model, data)
    # Divided by the norm of every single target, small ones would count more.
    unlearner = MultiDelete(
        multimodal=0, unimodal=0, partner=kind, normalise=False, lr=1e-2
    )
    work, run = start(unlearner, model, marked)
    (user,), (item,) = schema.forgotten_edge_index(marked).tolist()

    known = data[schema.EDGE_TYPE].edge_index
    others = torch.ones(60, dtype=torch.bool)
    others[known[1, known[0] == user]] = False
    if kind == 'popularity':
        decile = PopularityMatcher(known, known[1], 60).decile
        others &= decile == decile[item]

    def scores():
        user_emb, item_emb = embed(work.model, work.graph)
        return user_emb[user] @ item_emb.t()

    before = scores()
    wanted, first = float(before[others].mean()), float(before[item])
    last = []
    for step in range(300):
        run.decouple()
        if step >= 150:
            last.append(float(scores()[item]))
    assert abs(sum(last) / 150 - wanted) < 0.15 * abs(first - wanted)


def test_forgets_and_retains(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    before = evaluate_request(trained, marked, ks=(5,))
    result = MultiDelete(lr=2e-2, num_epochs=60)(trained, marked)
    after = evaluate_request(result.model, marked, ks=(5,))
    assert after['forget_recall@5'] < 0.6 * before['forget_recall@5']
    assert after['retain_recall@5'] > 0.8 * before['retain_recall@5']


def test_nothing_moves_at_first_without_decoupling(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    kwargs = {'num_epochs': 1, 'lr': 1e-2}  # One epoch is one step here.
    result = MultiDelete(decoupling=0, **kwargs)(trained, marked)
    assert set(result.touched.values()) == {0}
    assert [result.history[0][key] for key in LOSSES[1:]] == [0, 0]
    assert result.history[0]['decoupling_loss'] > 0
    assert MultiDelete(**kwargs)(trained, marked).touched['user_embedding.weight'] > 0
    kwargs |= {'decoupling': 0, 'target_graph': 'full'}
    assert MultiDelete(**kwargs)(trained, marked).touched['user_embedding.weight'] > 0


@pytest.mark.parametrize('request_', REQUESTS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize('kind', KINDS)
def test_partners_are_no_interactions(kind, request_, data):
    marked = request_(data)
    known = marked[schema.EDGE_TYPE].edge_index
    interactions = set(map(tuple, known.t().tolist()))
    pairs = schema.forgotten_edge_index(marked)
    touched = {}
    for u, i in interactions:
        touched.setdefault(u, set()).add(i)
    free = [[i for i in range(60) if i not in touched[u]] for u in pairs[0].tolist()]
    uniform = torch.tensor([x[0] for x in free])
    partners = Partners(marked, kind, seed=0)
    half = pairs.size(1) // 2 if marked.forget_level == 'item' else 0
    draws = []
    for _ in range(20):
        user, item = partners(pairs, uniform)
        assert not interactions & set(zip(user.tolist(), item.tolist()))
        assert torch.equal(user[half:], pairs[0, half:])
        assert torch.equal(item[:half], pairs[1, :half])
        if kind == 'uniform':
            assert torch.equal(item[half:], uniform[half:])
        if kind == 'batch':
            own = (item == uniform) | torch.isin(item, pairs[1])
            assert own[half:].all()
        draws.append(torch.stack([user, item]))
    assert draws[0][:, :half].ne(draws[1][:, :half]).any() or half == 0
    assert kind == 'uniform' or draws[0].ne(draws[1]).any()
    if kind == 'popularity':
        decile = PopularityMatcher(known, known[1], 60).decile
        item = torch.stack(draws)[:, 1, half:]
        same = decile[item] == decile[pairs[1, half:]]
        # Only where a decile has nothing left for the user is it another one.
        assert same.float().mean() > 0.9
        assert same.all(dim=0).eq(same.any(dim=0)).all()
    again = Partners(marked, kind, seed=0)(pairs, uniform)
    assert torch.equal(again, draws[0])


def test_nothing_as_popular_is_left():
    # With fewer items than deciles, an item is alone in its own.
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 3, 5
    pairs = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])
    data[schema.EDGE_TYPE].edge_index = pairs
    marked = ForgetInteractions(pairs[:, :2])(data)
    uniform = torch.tensor([4, 3])
    out = Partners(marked, 'popularity', seed=0)(pairs[:, :2], uniform)
    assert torch.equal(out, torch.stack([pairs[0, :2], uniform]))


def test_an_item_of_everyone(data):
    del data['val_edge_label_index'], data['test_edge_label_index']
    store = data[schema.EDGE_TYPE]
    store.edge_index = torch.cartesian_prod(torch.arange(100), torch.arange(30)).t()
    marked = ForgetItems([3, 4])(data)
    pairs = schema.forgotten_edge_index(marked)
    # No user is without it, so that all pairs take another item.
    out = Partners(marked, 'uniform', 0)(pairs, pairs[1] + 30)
    assert torch.equal(out, torch.stack([pairs[0], pairs[1] + 30]))


def pair_loss_by_loops(views, target, pairs, target_pairs, normalise, score_only):
    total = 0.0
    for side, side_o in zip(views.sides, target.sides):
        distance, norm, count = 0.0, 0.0, 0
        for (u, i), (v, j) in zip(pairs.t().tolist(), target_pairs.t().tolist()):
            new = side[0][u].double() * side[1][i].double()
            old = side_o[0][v].double() * side_o[1][j].double()
            if score_only:
                new, old = new.sum().view(1), old.sum().view(1)
            distance += float((new - old).pow(2).sum())
            norm += float(old.pow(2).sum())
            count += new.numel()
        total += distance / (norm if normalise else count)
    return total


def rows_loss_by_loops(x, target, index, normalise):
    distance, norm, count = 0.0, 0.0, 0
    for row in index.tolist():
        distance += float((x[row].double() - target[row].double()).pow(2).sum())
        norm += float(target[row].double().pow(2).sum())
        count += x.size(1)
    return distance / (norm if normalise else count)


@pytest.mark.parametrize('normalise', [False, True])
@pytest.mark.parametrize('score_only', [False, True])
@pytest.mark.parametrize('name', ['trained', 'trained_miggt', 'lightgcn'])
@torch.no_grad()
def test_losses_by_loops(name, score_only, normalise, data, request):
    model = request.getfixturevalue(name)
    marked = ForgetInteractions(ratio=0.1)(data)
    unlearner = MultiDelete(
        normalise=normalise, score_only=score_only, target_graph='full'
    )
    work, run = start(unlearner, model, marked)
    views = _views(work.model, work.graph)
    target = _views(work.model, work.model.build_graph(data))
    for x, y in zip(run.target.sides, target.sides):
        assert torch.equal(x[0], y[0])
        assert torch.equal(x[1], y[1])
    is_branched = name != 'lightgcn'
    assert len(views.sides) == (4 if is_branched else 1)
    assert set(views.content) == ({'image', 'text'} if is_branched else set())
    for x, y in zip((views.user, views.item), embed(work.model, work.graph)):
        assert torch.equal(x, y)

    pairs = schema.forgotten_edge_index(marked)
    retained = schema.retained_edge_index(marked)[:, :37]
    switches = normalise, score_only
    for first, second in ((pairs, pairs.flip(1)), (retained, retained)):
        expected = pair_loss_by_loops(views, target, first, second, *switches)
        got = unlearner._pair_loss(views, target, first, second).item()
        assert got == pytest.approx(expected, rel=1e-4)

    # Content does not depend on the graph, so from another model.
    other = copy.deepcopy(work.model)
    for p in other.parameters():
        p.mul_(1.1)
    views = _views(other, work.graph)
    expected = rows_loss_by_loops(views.user, target.user, retained[0], normalise)
    for key, x in views.content.items():
        expected += rows_loss_by_loops(x, target.content[key], pairs[1], normalise)
    got = unlearner._side_loss(views, target, pairs[1], retained[0]).item()
    assert got == pytest.approx(expected, rel=1e-4)
    no_one = retained[0, :0]
    got = unlearner._side_loss(views, target, pairs[1], no_one).item()
    expected -= rows_loss_by_loops(views.user, target.user, retained[0], normalise)
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize('request_', REQUESTS, ids=lambda x: type(x).__name__)
def test_logged_losses_are_those_of_the_batches(request_, data, trained):
    r"""The whole step by loops: who is paired with whom, and who is retained."""
    marked = request_(data)
    unlearner = MultiDelete(lr=0.0, target_graph='full', batch_size=32)
    work, run = start(unlearner, trained, marked)
    with torch.no_grad():
        for p in work.model.parameters():  # As if it had been trained for a while.
            p.mul_(1.1)
        views = _views(work.model, work.graph)
    seen = {'partners': [], 'retained': []}
    draw, stream = run.partners, run.retained

    def partners(pairs, uniform):
        out = draw(pairs, uniform)
        seen['partners'].append((pairs, out))
        return out

    def retained():
        for batch in stream:
            seen['retained'].append(batch)
            yield batch

    run.partners, run.retained = partners, retained()
    row = run.decouple()
    pairs = torch.cat([pairs for pairs, _ in seen['partners']], dim=1)
    assert sorted(pairs.t().tolist()) == sorted(
        schema.forgotten_edge_index(marked).t().tolist()
    )
    deleted = set(pairs[0].tolist())
    kept_pairs = set(map(tuple, schema.retained_edge_index(marked).t().tolist()))
    expected = torch.zeros(3, dtype=torch.float64)
    for (pairs, random), batch in zip(seen['partners'], seen['retained']):
        assert set(map(tuple, batch.t().tolist())) <= kept_pairs
        args = views, run.target
        expected[0] += pair_loss_by_loops(*args, pairs, random, True, False)
        expected[1] += pair_loss_by_loops(*args, batch, batch, True, False)
        users = torch.tensor([u for u in batch[0].tolist() if u not in deleted])
        if users.numel() > 0:
            expected[2] += rows_loss_by_loops(
                views.user, run.target.user, users, True
            )
        for key, x in views.content.items():
            expected[2] += rows_loss_by_loops(
                x, run.target.content[key], pairs[1], True
            )
    expected /= len(seen['partners'])
    got = torch.tensor([row[key] for key in LOSSES], dtype=torch.float64)
    assert torch.allclose(got, expected, rtol=1e-4)
    assert (got > 0).all()


def test_target_graph(data, trained):
    marked = one_pair(data)
    runs = {
        kind: start(MultiDelete(target_graph=kind), trained, marked)[1].target
        for kind in ('retained', 'full')
    }
    (user,), (item,) = schema.forgotten_edge_index(marked).tolist()
    pairs = schema.retained_edge_index(marked)
    near_items = pairs[1, pairs[0] == user]
    near_users = pairs[0, pairs[1] == item]
    assert near_items.numel() > 0
    assert near_users.numel() > 0
    change = (runs['retained'].user - runs['full'].user).abs().amax(dim=1)
    assert (change[near_users] > 1e-5).all()
    change = (runs['retained'].item - runs['full'].item).abs().amax(dim=1)
    assert (change[near_items] > 1e-5).all()
    kwargs = {'num_epochs': 2, 'lr': 1e-3}
    results = [
        MultiDelete(target_graph=kind, **kwargs)(trained, marked).model
        for kind in runs
    ]
    weights = [model.user_embedding.weight for model in results]
    assert not torch.equal(*weights)


@pytest.mark.parametrize('batch_size', [16, 1024])
def test_retained_batches_are_where_the_damage_is(batch_size, data, trained):
    unlearner = MultiDelete(batch_size=batch_size)
    work, run = start(unlearner, trained, one_pair(data))
    [user] = schema.forgotten_edge_index(work.data)[0].tolist()
    retained = schema.retained_edge_index(work.data)
    pairs = set(map(tuple, retained.t().tolist()))
    for _ in range(60):
        batch = next(run.retained)
        assert batch.size(1) <= batch_size
        assert set(map(tuple, batch.t().tolist())) <= pairs
        assert (batch[0] == user).sum() >= batch.size(1) / 2
    for request_ in REQUESTS[:2]:
        work, run = start(unlearner, trained, request_(data))
        total = torch.cat([next(run.retained) for _ in range(40)], dim=1)
        codes = schema.pair_codes(total, 60)
        everything = schema.pair_codes(schema.retained_edge_index(work.data), 60)
        assert torch.equal(codes.unique(), everything.unique())
        counts = codes.unique(return_counts=True)[1]
        assert counts.max() - counts.min() <= 1  # All of them in turn.


def test_all_users_own_a_forgotten_pair(data, trained):
    # There is no one whose vector is to be kept.
    store = data[schema.EDGE_TYPE]
    order = store.edge_index[0].argsort(stable=True)
    first = torch.ones(order.numel(), dtype=torch.bool)
    first[1:] = store.edge_index[0, order][1:] != store.edge_index[0, order][:-1]
    marked = ForgetInteractions(store.edge_index[:, order[first]])(data)
    _, run = start(MultiDelete(), trained, marked)
    assert not run.is_kept.any()
    row = run.decouple()
    assert row['unimodal_loss'] == 0


def test_score_only_is_another_method(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    kwargs = {'num_epochs': 1, 'lr': 1e-3}
    models = [
        MultiDelete(score_only=value, **kwargs)(trained, marked).model
        for value in (False, True)
    ]
    assert not torch.equal(*(model.user_embedding.weight for model in models))


def test_repair_is_a_separate_switch(data, trained):
    marked = ForgetUsers([3])(data)
    plain = MultiDelete(num_epochs=1)(trained, marked)
    assert plain.history[0]['repair_loss'] == 0
    repaired = MultiDelete(num_epochs=1, repair_batches=None)(trained, marked)
    assert repaired.history[0]['repair_loss'] > 0


def test_bad_arguments():
    for kwargs, message in [
        ({'decoupling': -1.0}, "'decoupling' must be a finite number in"),
        ({'multimodal': -1.0}, "'multimodal' must be a finite number in"),
        ({'unimodal': float('nan')}, "'unimodal' must be a finite number in"),
        ({'partner': 'nearest'}, "'partner' must be one of"),
        ({'target_graph': 'half'}, "'target_graph' must be one of"),
        ({'lr': -1.0}, "'lr' must be a finite number in"),
        ({'batch_size': 0}, "'batch_size' must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            MultiDelete(**kwargs)
