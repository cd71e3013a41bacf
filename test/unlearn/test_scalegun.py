import copy

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.data.request import without_request
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import embed, evaluate_split
from torch_geometric_unlearn.nn import RecommenderAdapter
from torch_geometric_unlearn.nn.models import InteractionGraph
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    DropForgotten,
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import ScaleGUN
from torch_geometric_unlearn.unlearn._second_order import (
    FixedTriples,
    RankingProblem,
    near_nodes,
)
from torch_geometric_unlearn.utils.seed import isolated_seed

REQUESTS = [ForgetUsers(ratio=0.1), ForgetItems([2, 4]), ForgetInteractions(ratio=0.1)]
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def lightgcn():
    with isolated_seed(0):
        model = RecommenderAdapter(LightGCN(160, 16, 2), 100, 60)
    fit(model, SyntheticMultimodal('tiny')[0], num_epochs=20, lr=1e-2, batch_size=128)
    return model


def test_promises_nothing():
    assert ScaleGUN.exact is False
    assert 'Nothing is certified' in ScaleGUN.__doc__


class Ridge(torch.nn.Module):
    r"""One vector for all users, as good as their degrees allow: with equal items, all
    margins are zero, and what is left is least squares.
    """

    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(2))

    def tables(self):
        return []

    def build_graph(self, data):
        return InteractionGraph(schema.retained_edge_index(data), 100, 60)

    def forward(self, graph):
        degree = graph.edge_index[0].bincount(minlength=100).float().unsqueeze(1)
        user_emb = self.offset - degree * torch.tensor([0.1, -0.3])
        return user_emb, torch.ones(60, 2)

    def loss(self, graph, batch):
        return self(graph)[0][batch.user].pow(2).mean()

    def branches(self):
        return {'id': [self.offset]}


def ridge_solution(pairs, degree):
    r"""The mean target of all triples, which have the weight of their user."""
    targets = degree[pairs[0].numpy()][:, None] * np.array([0.1, -0.3])
    return targets.mean(axis=0)


@pytest.mark.parametrize('request_', REQUESTS[::2], ids=lambda x: type(x).__name__)
def test_one_step_is_exact_for_least_squares(request_, data):
    marked = request_(data)
    old, new = data[schema.EDGE_TYPE].edge_index, schema.retained_edge_index(marked)
    degrees = [np.bincount(pairs[0], minlength=100) for pairs in (old, new)]
    before, after = (ridge_solution(*x) for x in zip((old, new), degrees))
    assert np.abs(before - after).min() > 1e-3
    model = Ridge()
    model.offset.data[:] = torch.from_numpy(before)
    unlearner = ScaleGUN(weight_decay=1.0, damping=0.0, max_change=100.0)
    result = unlearner(model, marked)
    assert np.allclose(result.model.offset.detach(), after, atol=1e-5)
    assert result.history[0]['cg_iterations'] <= 2

    # The same interactions gone, but not from the graph: another solution.
    ablation = ScaleGUN(
        weight_decay=1.0, damping=0.0, max_change=100.0, graph_change=False
    )
    got = ablation(model, marked).model.offset.detach()
    assert np.allclose(got, ridge_solution(new, degrees[0]), atol=1e-5)
    differs = np.abs(got.numpy() - after).max() > 1e-3
    # Deleting whole users leaves the degrees of all others as they were.
    assert differs == (marked.forget_level == 'interaction')


def test_early_stopping_cancels(data):
    # Far from the minimum, the step is the same one.
    marked = REQUESTS[0](data)
    steps = []
    for start in (torch.zeros(2), torch.tensor([3.0, -2.0])):
        model = Ridge()
        model.offset.data[:] = start
        kept = ScaleGUN(weight_decay=1.0, damping=0.0, max_change=1e3)(model, marked)
        steps.append((kept.model.offset - start).detach())
    share = schema.forget_mask(marked).float().mean()
    # All but the part of the gradient that the forgotten triples themselves left.
    left = torch.tensor([3.0, -2.0]) * share / (1 - share)
    assert torch.allclose(steps[1] - steps[0], left, atol=1e-4)


def toy_data():
    user, item = [0, 0, 0, 1, 1, 2, 2, 3, 3, 4], [0, 1, 2, 1, 3, 0, 4, 2, 4, 3]
    pairs = torch.tensor([user, item])
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 5, 5
    data[schema.EDGE_TYPE].edge_index = pairs
    data['item'].x_text = torch.ones(5, 1)
    data.val_edge_label_index = torch.tensor([[0, 1, 3], [3, 0, 0]])
    return data


def toy_model():
    module = LightGCN(10, 2, 1)
    rng = torch.Generator().manual_seed(1)
    module.embedding.weight.data = torch.randn(10, 2, generator=rng)
    model = RecommenderAdapter(module, 5, 5, tables=[])
    return model


def toy_outputs(x, pairs, triples):
    r"""Margins and representations of every triple in plain float64."""
    adj = torch.zeros(10, 10, dtype=torch.float64)
    adj[pairs[0], pairs[1] + 5] = 1
    adj = adj + adj.t()
    scale = adj.sum(1).clamp(min=1).rsqrt()
    emb = x.view(10, 2)
    emb = (emb + scale[:, None] * adj * scale @ emb) / 2
    margins, rest = [], []
    for u, row in zip(triples.user.tolist(), triples.items.tolist()):
        for j in row[1:]:
            vectors = [emb[u], emb[row[0] + 5], emb[j + 5]]
            margins.append(vectors[0] @ (vectors[1] - vectors[2]))
            rest.extend(vectors)
    return torch.stack(margins), torch.cat(rest)


def toy_loss(x, pairs, triples, decay):
    margins, rest = toy_outputs(x, pairs, triples)
    return torch.nn.functional.softplus(-margins).sum() + decay / 2 * rest.pow(2).sum()


def toy_gauss_newton(x, pairs, triples, decay):
    jac = torch.autograd.functional.jacobian(
        lambda x: torch.cat(toy_outputs(x, pairs, triples)), x
    )
    margins, rest = toy_outputs(x, pairs, triples)
    slope = margins.sigmoid()
    weight = torch.cat([slope * (1 - slope), torch.full_like(rest, decay)])
    return jac.t() @ (weight[:, None] * jac)


@pytest.mark.parametrize('graph_change', [True, False])
def test_step_is_the_dense_solution(graph_change):
    data = toy_data()
    marked = ForgetInteractions(torch.tensor([[0, 3], [1, 4]]))(data)
    model, decay = toy_model(), 0.05
    unlearner = ScaleGUN(
        num_negatives=2,
        weight_decay=decay,
        tol=1e-8,
        max_iter=200,
        max_change=1e6,
        max_halvings=0,
        graph_change=graph_change,
        damping=0.1,
    )
    result = unlearner(model, marked)
    old, new = data[schema.EDGE_TYPE].edge_index, schema.retained_edge_index(marked)
    triples = FixedTriples.draw(old, old, 5, 2, 0)
    kept = triples.rows(~schema.forget_mask(marked))
    x = model.module.embedding.weight.detach().double().flatten()

    def grad(pairs, triples):
        return torch.autograd.functional.jacobian(
            lambda x: toy_loss(x, pairs, triples, decay), x
        )

    target = grad(old, triples) - grad(new if graph_change else old, kept)
    dense = toy_gauss_newton(x, new, kept, decay)
    [row] = result.history
    assert row['gradient_norm'] == pytest.approx(float(target.norm()), rel=1e-4)
    # Three probes estimate the mean of the diagonal.
    mean = float(dense.diagonal().mean())
    assert 0.3 * mean < row['damping'] / 0.1 < 3 * mean
    step = torch.linalg.solve(dense + row['damping'] * torch.eye(20), target)
    got = result.model.module.embedding.weight.detach().double().flatten() - x
    assert torch.allclose(got, step, atol=1e-3 * float(step.abs().max()))


def test_block_solves_every_parameter_alone(data):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            rng = torch.Generator().manual_seed(0)
            self.user = torch.nn.Parameter(torch.randn(3, 2, generator=rng))
            self.item = torch.nn.Parameter(torch.randn(4, 2, generator=rng))

        def forward(self, graph):
            return self.user, self.item

    items = torch.tensor([[0, 1], [2, 3], [3, 1]])
    triples = FixedTriples(torch.tensor([0, 1, 2]), items)
    problem = RankingProblem(Two().double(), 0.1, {'user': None, 'item': None})
    product = problem.gauss_newton(None, triples)
    dense = torch.stack([product(e) for e in torch.eye(14).double()])
    target = torch.arange(1.0, 15.0).double()
    unlearner = ScaleGUN(hessian='block', tol=1e-12)
    got, log = unlearner._solve(problem, product, target, 0.2)
    for block in (slice(0, 6), slice(6, 14)):
        matrix = dense[block, block] + 0.2 * torch.eye(block.stop - block.start)
        expected = torch.linalg.solve(matrix, target[block])
        assert torch.allclose(got[block], expected, atol=1e-8)
    full, _ = ScaleGUN(tol=1e-12)._solve(problem, product, target, 0.2)
    assert torch.allclose(full, torch.linalg.solve(dense + 0.2 * torch.eye(14), target))
    assert not torch.allclose(full, got, atol=1e-2)
    assert log['cg_residual'] <= 1e-12
    marked = REQUESTS[0](data)
    model = RecommenderAdapter(LightGCN(160, 4, 1), 100, 60)
    for hessian in ('block', 'full'):
        kwargs = {'hessian': hessian, 'max_iter': 3}
        assert ScaleGUN(**kwargs)(model, marked).history[0]['cg_iterations'] == 3


def test_nothing_forgotten_moves_nothing(data, trained):
    none = without_request(REQUESTS[0](data))
    model = copy.deepcopy(trained)
    unlearner = ScaleGUN()
    problem = RankingProblem(model, 1e-4, unlearner._masks(model, data))
    direction, row = unlearner._direction(problem, none, data, CPU)
    # Up to the order of the sums.
    old = problem.gradient(
        model.build_graph(data),
        FixedTriples.draw(*[data[schema.EDGE_TYPE].edge_index] * 2, 60, 4, 0),
    )
    assert row['gradient_norm'] < 1e-5 * float(old.norm())
    assert direction.abs().max() < 1e-3
    result = unlearner(trained, none)
    assert result.history == []
    assert set(result.touched.values()) == {0}


def test_graph_change_matters(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    models = [
        ScaleGUN(graph_change=x, max_iter=10)(trained, marked).model
        for x in (True, False)
    ]
    weights = [model.user_embedding.weight for model in models]
    assert not torch.allclose(*weights, atol=1e-3)


@pytest.mark.parametrize('scope', ['all_but_raw', 'all', 'khop', 'rows'])
def test_scope(scope, data, trained):
    pairs = data[schema.EDGE_TYPE].edge_index
    marked = ForgetInteractions(pairs[:, 7:8])(data)
    near = {'num_hops': 1} if scope in ('khop', 'rows') else {}
    result = ScaleGUN(scope=scope, max_iter=5, **near)(trained, marked)
    touched = result.touched
    raw = [key for key in touched if key.startswith('features.')]
    rows = ['user_embedding.weight', 'item_embedding.weight']
    shared = [key for key in touched if key not in raw + rows]
    assert len(raw) == 2
    assert len(shared) > 5
    assert all((touched[key] > 0) == (scope == 'all') for key in raw)
    assert all((touched[key] > 0) == (scope != 'rows') for key in shared)
    near = near_nodes(marked, pairs[:, 7:8], 1)
    for key, is_near in zip(rows, near):
        old, new = trained.get_parameter(key), result.model.get_parameter(key)
        moved = (old != new).any(dim=1)
        assert moved[is_near].all()
        assert moved[~is_near].any() == (scope in ('all', 'all_but_raw'))
    sizes = {key: p.numel() for key, p in trained.named_parameters()}
    expected = sum(sizes.values())
    if scope != 'all':
        expected -= sum(sizes[key] for key in raw)
    if scope in ('khop', 'rows'):
        expected -= 16 * int(160 - sum(x.sum() for x in near))
    if scope == 'rows':
        expected -= sum(sizes[key] for key in shared)
    share = result.history[0]['moved_share']
    assert share == pytest.approx(expected / sum(sizes.values()))


@pytest.mark.parametrize('max_change', [0.0, 0.05])
def test_max_change_holds(max_change, data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    result = ScaleGUN(max_change=max_change, max_iter=20)(trained, marked)
    count = 0
    for old, new in zip(trained.parameters(), result.model.parameters()):
        if old.dim() == 1:
            old, new = old.unsqueeze(0), new.unsqueeze(0)
        ratio = (new - old).norm(dim=1) / old.norm(dim=1)
        assert ratio.max() <= max_change * 1.0001
        count += int((ratio > max_change * 0.999).sum())
    if max_change > 0:
        assert result.history[0]['num_capped_rows'] == count > 0


def test_step_is_halved_if_quality_collapses(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    kwargs = {'max_iter': 20, 'max_change': 0.3}
    graph = trained.build_graph(DropForgotten()(marked))

    def change(result):
        return torch.cat(
            [
                (new - old).flatten()
                for old, new in zip(trained.parameters(), result.model.parameters())
            ]
        ).detach()

    plain = ScaleGUN(**kwargs)(trained, marked)
    assert plain.history[0]['num_halvings'] == 0
    assert plain.history[0]['step'] == 1
    limited = ScaleGUN(step=64.0, **kwargs)(trained, marked).history[0]
    assert 0 < limited['num_halvings'] <= 5
    assert limited['step'] == 64 * 0.5 ** limited['num_halvings']
    result = ScaleGUN(step=64.0, max_halvings=20, **kwargs)(trained, marked)
    [row] = result.history
    assert row['step'] == 64 * 0.5 ** row['num_halvings'] < 64
    assert torch.allclose(change(result), row['step'] * change(plain), atol=1e-3)
    wild = ScaleGUN(step=64.0, max_halvings=0, **kwargs)(trained, marked)
    assert wild.history[0]['num_halvings'] == 0
    assert wild.history[0]['retain_val_ndcg@20'] < row['retain_val_ndcg@20']
    # Quality is that of the model that comes back.
    for out in (plain, result, wild):
        ndcg = evaluate_split(out.model, out.data, 'val', graph, ks=(20,))['ndcg@20']
        assert out.history[0]['retain_val_ndcg@20'] == pytest.approx(ndcg)


def test_without_validation_pairs(data, trained):
    del data['val_edge_label_index']
    marked = ForgetUsers(ratio=0.1)(data)
    row = ScaleGUN(step=64.0, max_iter=5)(trained, marked).history[0]
    assert row['num_halvings'] == 0
    assert row['step'] == 64


def test_noise(data, trained):
    marked = ForgetInteractions(data[schema.EDGE_TYPE].edge_index[:, 7:8])(data)
    kwargs = {'max_iter': 5, 'scope': 'rows', 'num_hops': 1}
    plain = ScaleGUN(**kwargs)(trained, marked)
    noisy = ScaleGUN(noise_std=0.1, **kwargs)(trained, marked)
    other = ScaleGUN(noise_std=0.1, seed=1, **kwargs)(trained, marked)
    noise, again = (
        (x.model.item_embedding.weight - plain.model.item_embedding.weight).detach()
        for x in (noisy, other)
    )
    _, near = near_nodes(marked, schema.forgotten_edge_index(marked), 1)
    assert noise[~near].abs().max() == 0
    assert float(noise[near].std()) == pytest.approx(0.1, rel=0.3)
    assert not torch.equal(noise, again)
    assert noisy.touched['projection.image.weight'] == 0
    ndcg = evaluate_split(noisy.model, noisy.data, 'val', ks=(20,))['ndcg@20']
    assert noisy.history[0]['retain_val_ndcg@20'] == pytest.approx(ndcg)
    assert ndcg != plain.history[0]['retain_val_ndcg@20']


@pytest.mark.parametrize('name', ['trained', 'lightgcn'])
def test_forgotten_pairs_fall(name, data, request):
    model = request.getfixturevalue(name)
    marked = ForgetInteractions(ratio=0.1)(data)
    result = ScaleGUN()(model, marked)
    pairs = schema.forgotten_edge_index(marked)
    graph = model.build_graph(result.data)
    means = []
    for out in (model, result.model):
        user_emb, item_emb = embed(out, graph)
        own = (user_emb[pairs[0]] * item_emb[pairs[1]]).sum(-1)
        means.append(float((own - (user_emb @ item_emb.t())[pairs[0]].mean(1)).mean()))
    assert means[1] < 0.8 * means[0]
    row = result.history[0]
    assert row['retain_val_ndcg@20'] > 0.3


def test_weight_decay_is_the_models_own(data, trained):
    marked = REQUESTS[0](data)
    models = [
        ScaleGUN(weight_decay=x, max_iter=3)(trained, marked).model
        for x in (None, trained.weight_decay, 0.1)
    ]
    weights = [model.user_embedding.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize('scope', ['khop', 'rows'])
def test_needs_tables(scope, data):
    marked = REQUESTS[0](data)
    untold = RecommenderAdapter(LightGCN(160, 4, 1), 100, 60, tables=[])
    for model in (Ridge(), untold):
        ok, reason = ScaleGUN(scope=scope).supports(model, marked)
        assert not ok
        assert f"scope='{scope}' needs to know which rows belong to nodes" in reason
        with pytest.raises(ValueError, match=r"'\w+' tells no such 'tables\(\)'"):
            ScaleGUN(scope=scope)(model, marked)
    assert ScaleGUN().supports(Ridge(), marked) == (True, '')


def test_needs_retained_interactions(data, trained):
    marked = REQUESTS[0](data)
    marked[schema.EDGE_TYPE].forget_mask[:] = True
    ok, reason = ScaleGUN().supports(trained, marked)
    assert not ok
    assert reason == 'there is no retained interaction left to hold on to'
    with pytest.raises(ValueError, match="'forget_mask' deletes every training"):
        ScaleGUN()(trained, marked)


def test_bad_arguments():
    for kwargs, message in [
        ({'num_negatives': 0}, "'num_negatives' must be at least 1"),
        ({'weight_decay': -1.0}, "'weight_decay' must be a finite number in"),
        ({'damping': -1.0}, "'damping' must be a finite number in"),
        ({'max_iter': 0}, "'max_iter' must be at least 1"),
        ({'tol': float('nan')}, "'tol' must be a finite number in"),
        ({'hessian': 'diagonal'}, "'hessian' must be one of"),
        ({'scope': 'none'}, "'scope' must be one of"),
        ({'num_hops': -1}, "'num_hops' must be at least 0"),
        ({'step': -1.0}, "'step' must be a finite number in"),
        ({'max_change': -1.0}, "'max_change' must be a finite number in"),
        ({'max_halvings': -1}, "'max_halvings' must be at least 0"),
        ({'noise_std': -1.0}, "'noise_std' must be a finite number in"),
    ]:
        with pytest.raises(ValueError, match=message):
            ScaleGUN(**kwargs)
