import copy

import pytest
import torch
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import RecommenderAdapter
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import GNNDelete
from torch_geometric_unlearn.unlearn.gnndelete import _Targets
from torch_geometric_unlearn.utils.seed import isolated_seed

REQUESTS = [ForgetUsers(ratio=0.1), ForgetItems([2, 4]), ForgetInteractions(ratio=0.1)]


@pytest.fixture(scope='module')
def lightgcn():
    with isolated_seed(0):
        model = RecommenderAdapter(LightGCN(160, 16, 2), 100, 60)
    fit(model, SyntheticMultimodal('tiny')[0], num_epochs=20, lr=1e-2, batch_size=128)
    return model


def near_by_loops(pairs, num_hops=1):
    r"""Nodes within some hops of the forgotten pairs, and their ends."""
    forgotten, known = pairs
    ends = {('user', u) for u in forgotten[0].tolist()}
    ends |= {('item', i) for i in forgotten[1].tolist()}
    near = set(ends)
    for u, i in known.t().tolist():
        if ('user', u) in ends:
            near.add(('item', i))
        if ('item', i) in ends:
            near.add(('user', u))
    return near, ends


def as_mask(nodes):
    out = torch.zeros(160, dtype=torch.bool)
    out[[i + (100 if kind == 'item' else 0) for kind, i in nodes]] = True
    return out


def one_pair(data):
    pairs = data[schema.EDGE_TYPE].edge_index
    marked = ForgetInteractions(pairs[:, 7:8])(data)
    near, ends = near_by_loops((pairs[:, 7:8], pairs))
    return marked, as_mask(near), as_mask(ends)


@pytest.mark.parametrize('name', ['trained', 'lightgcn'])
def test_only_near_nodes_change(name, data, request):
    model = request.getfixturevalue(name)
    marked, near, _ = one_pair(data)
    assert 2 < near.sum() < 100
    result = GNNDelete(lr=1e-2, num_steps=20)(model, marked)
    assert torch.equal(result.model.nodes, near)
    graph = model.build_graph(result.data)
    before = torch.cat(embed(model, graph))
    after = torch.cat(embed(result.model, graph))
    assert torch.equal(before[~near], after[~near])
    assert ((before - after)[near].abs().amax(dim=1) > 1e-4).all()
    state = model.state_dict()
    for key, value in result.model.model.state_dict().items():
        assert torch.equal(state[key], value)


def test_without_decoupling_the_identity_is_perfect(data, trained):
    marked, _, _ = one_pair(data)
    result = GNNDelete(weight=0.0, num_steps=5)(trained, marked)
    for loss in result.history[0]['first_loss'].values():
        assert loss == pytest.approx(0, abs=1e-9)
    for operator in result.model.operators.values():
        assert torch.allclose(operator.weight, torch.eye(16), atol=1e-2)


@torch.no_grad()
def test_first_loss_by_loops(data, trained):
    marked, near, ends = one_pair(data)
    unlearner = GNNDelete(weight=0.3, num_epochs=1, num_steps=1)
    result = unlearner(trained, marked)
    assert list(result.history[0]['first_loss']) == ['id', 'image', 'text', 'out']
    graph = trained.build_graph(result.data)
    pair = schema.forgotten_edge_index(marked)
    trained = copy.deepcopy(trained).eval()
    z = trained.branch_embeddings(graph)
    fused = trained.fuse(graph, result.model.branch_embeddings(graph))
    source = z | {'out': torch.cat(fused)}
    z['out'] = torch.cat(trained(graph))
    shifted = torch.tensor([int(pair[0]), int(pair[1]) + 100])
    targets = _Targets(marked, shifted, near, seed=0)
    for key, loss in result.history[0]['first_loss'].items():
        x, original = source[key].double(), z[key].double()
        drawn = targets.draw()
        assert drawn[0] < 100 <= drawn[1]
        forget = [(x[a] - original[b]).pow(2) for a, b in zip(shifted, drawn)]
        keep = [
            (x[w] - original[w]).pow(2)
            for w in range(160)
            if near[w] and not ends[w]
        ]
        expected = 0.3 * torch.cat(forget).mean() + 0.7 * torch.cat(keep).mean()
        assert loss == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_second_loss_weighs_both_parts(data, trained):
    marked, near, ends = one_pair(data)
    # The first step of the first layer is the same one in both runs.
    kwargs = {'weight': 0.3, 'lr': 0.1, 'num_epochs': 1}
    operator = GNNDelete(num_steps=1, **kwargs)(trained, marked).model.operators['id']
    result = GNNDelete(num_steps=2, **kwargs)(trained, marked)
    graph = trained.build_graph(result.data)
    z = copy.deepcopy(trained).eval().branch_embeddings(graph)['id'].double()
    x = z @ operator.weight.double().t()
    user, item = schema.forgotten_edge_index(marked).view(-1).tolist()
    shifted = torch.tensor([user, item + 100])
    targets = _Targets(marked, shifted, near, seed=0)
    targets.draw()
    forget = (x[shifted] - z[targets.draw()]).pow(2).mean()
    keep = (x - z)[near & ~ends].pow(2).mean()
    assert keep > 0.1 * forget
    expected = 0.3 * forget + 0.7 * keep
    assert result.history[0]['last_loss']['id'] == pytest.approx(
        float(expected), rel=1e-4
    )


@pytest.mark.parametrize('name', ['trained', 'trained_miggt', 'lightgcn'])
@torch.no_grad()
def test_losses_fall(name, data, request):
    model = copy.deepcopy(request.getfixturevalue(name)).eval()
    marked = ForgetUsers(ratio=0.2)(data)
    result = GNNDelete(lr=1e-2, num_epochs=1, num_steps=200)(model, marked)
    assert {'forget_hit_rate', 'gap', 'retain_val_ndcg@20'} <= set(result.history[-1])

    # A single random draw is noisy, so in expectation over all of them.
    out, graph = result.model.eval(), model.build_graph(result.data)
    source, original = {}, {'out': torch.cat(embed(model, graph))}
    if len(out.operators) > 1:
        source = model.branch_embeddings(graph)
        original |= source
        fused = model.fuse(graph, out.branch_embeddings(graph))
        source = source | {'out': torch.cat(fused)}
    else:
        source = dict(original)
    user, item = schema.forgotten_edge_index(marked)
    unrelated = torch.ones(100, 60, dtype=torch.bool)
    unrelated[tuple(marked[schema.EDGE_TYPE].edge_index)] = False
    other_user, other_item = unrelated.nonzero().t()
    neighbours = out.nodes.clone()
    neighbours[torch.cat([user, item + 100])] = False

    def expected_loss(key, weight):
        x, z = source[key] @ weight.t(), original[key]
        forget = [
            (x[a].unsqueeze(1) - z[b].unsqueeze(0)).pow(2).mean()
            for a, b in ((user, other_user), (item + 100, other_item + 100))
        ]
        keep = (x - z)[neighbours].pow(2).mean()
        return float(sum(forget) / 4 + keep / 2)

    [row] = result.history
    for key in original:
        before = expected_loss(key, torch.eye(16))
        after = expected_loss(key, out.operators[key].weight)
        assert after < before
        assert row['first_loss'][key] == pytest.approx(before, rel=0.2)
        assert row['last_loss'][key] == pytest.approx(after, rel=0.2)


@torch.no_grad()
def test_forgotten_pairs_fall(data, lightgcn):
    marked = ForgetInteractions(ratio=0.1)(data)
    result = GNNDelete(weight=0.9, lr=1e-2)(lightgcn, marked)
    pairs = schema.forgotten_edge_index(marked)
    graph = lightgcn.build_graph(result.data)
    means = []
    for model in (lightgcn, result.model):
        user_emb, item_emb = embed(model, graph)
        own = (user_emb[pairs[0]] * item_emb[pairs[1]]).sum(-1)
        means.append(float((own - (user_emb @ item_emb.t())[pairs[0]].mean(1)).mean()))
    assert means[1] < 0.5 * means[0]


def test_random_targets(data):
    marked = ForgetUsers(ratio=0.2)(data)
    pairs = schema.forgotten_edge_index(marked)
    ends = torch.cat([pairs[0], pairs[1] + 100])
    targets = _Targets(marked, ends, ends[:0], seed=0)
    user, item = torch.cat([targets.draw().view(2, -1) for _ in range(50)], dim=1)
    assert user.max() < 100 <= item.min()
    codes = schema.pair_codes(marked[schema.EDGE_TYPE].edge_index, 60)
    known = torch.isin(user * 60 + item - 100, codes).float().mean()
    share = codes.numel() / 6000
    assert known < 2 * share**2  # One redraw squares the share.
    assert user.unique().numel() == 100
    assert item.unique().numel() == 60


def test_no_neighbour_is_left(data, lightgcn):
    # All nodes are ends of forgotten pairs.
    marked = ForgetInteractions(ratio=0.9)(data)
    marked[schema.EDGE_TYPE].forget_mask[:] = True
    marked[schema.EDGE_TYPE].forget_mask[0] = False
    near, ends = near_by_loops(
        (schema.forgotten_edge_index(marked), marked[schema.EDGE_TYPE].edge_index)
    )
    assert near == ends
    result = GNNDelete(num_steps=3)(lightgcn, marked)
    assert result.history[0]['last_loss']['out'] > 0


def test_second_request_nests(data, trained):
    first = GNNDelete(num_steps=5)(trained, ForgetUsers([3])(data))
    second = GNNDelete(num_steps=5)(first.model, ForgetItems([2])(first.data))
    assert set(second.model.operators) == {'id', 'image', 'text', 'out'}
    inner = second.model.model
    for key, value in first.model.state_dict().items():
        assert torch.equal(inner.state_dict()[key], value)


@pytest.mark.parametrize('training', [False, True])
def test_mode_of_the_model_stays(training, data, trained):
    model = copy.deepcopy(trained).train(training)
    result = GNNDelete(num_steps=1)(model, ForgetUsers([3])(data))
    modes = {module.training for module in result.model.modules()}
    assert modes == {training}


def test_bad_arguments():
    for kwargs, message in [
        ({'weight': 1.5}, "'weight' must be a finite number in"),
        ({'lr': -1.0}, "'lr' must be a finite number in"),
        ({'num_steps': 0}, "'num_steps' must be at least 1"),
        ({'num_epochs': 0}, "'num_epochs' must be at least 1"),
        ({'seed': -1}, "'seed' must be an integer in"),
    ]:
        with pytest.raises(ValueError, match=message):
            GNNDelete(**kwargs)
