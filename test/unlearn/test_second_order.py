import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn import EmbeddingTable, RecommenderAdapter
from torch_geometric_unlearn.unlearn._second_order import (
    FixedTriples,
    RankingProblem,
    conjugate_gradient,
    mean_curvature,
    near_nodes,
    regulariser_weight,
    table_masks,
)

SCALE = 1.5  # Plays the graph.


class Bilinear(torch.nn.Module):
    r"""A model with products of parameters and a bend, in float64."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        sizes = {'unused': (3,), 'user': (4, 2), 'item': (5, 2), 'mix': (2, 2)}
        for name, size in sizes.items():
            value = torch.randn(size, dtype=torch.float64, generator=rng)
            setattr(self, name, torch.nn.Parameter(value))

    def tables(self):
        return []

    def forward(self, graph):
        return graph * self.user @ self.mix, torch.tanh(graph * self.item)


@pytest.fixture
def triples():
    return FixedTriples(
        torch.tensor([0, 0, 1, 3]),
        torch.tensor([[0, 1, 2], [4, 1, 1], [2, 3, 0], [0, 4, 3]]),
    )


def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def outputs(x, model, triples, decay):
    r"""Margins and weighted representations, triple by triple."""
    named = dict(model.named_parameters())
    parts = x.split([p.numel() for p in named.values()])
    values = {k: v.view(p.shape) for (k, p), v in zip(named.items(), parts)}
    user_emb, item_emb = functional_call(model, values, (SCALE,))
    margins, rest = [], []
    for u, row in zip(triples.user.tolist(), triples.items.tolist()):
        for negative in row[1:]:
            vectors = user_emb[u], item_emb[row[0]], item_emb[negative]
            margins.append(vectors[0] @ vectors[1] - vectors[0] @ vectors[2])
            rest.extend(vectors)
    return torch.stack(margins), decay**0.5 * torch.cat(rest)


def dense_loss(x, model, triples, decay):
    margins, rest = outputs(x, model, triples, decay)
    return -F.logsigmoid(margins).sum() + 0.5 * rest.pow(2).sum()


def dense_gauss_newton(model, triples, decay):
    x = flat(model)
    jac = jacobian(lambda x: torch.cat(outputs(x, model, triples, decay)), x)
    margins, rest = outputs(x, model, triples, decay)
    slope = margins.sigmoid()
    weight = torch.cat([slope * (1 - slope), torch.ones_like(rest)])
    return jac.t() @ (weight.unsqueeze(1) * jac)


def entries(model, masks):
    r"""Positions in :meth:`flat` of the parameters that are named in the masks, and
    which of them may move.
    """
    start, where = 0, {}
    for name, p in model.named_parameters():
        where[name] = torch.arange(start, start + p.numel()).view(p.shape)
        start += p.numel()
    place = torch.cat([where[name].flatten() for name in masks])
    free = [
        (torch.ones_like(where[name]) if mask is None else mask.expand_as(where[name]))
        for name, mask in masks.items()
    ]
    return place, torch.cat([x.flatten() for x in free]).bool()


@pytest.mark.parametrize('decay', [0.0, 0.3])
@pytest.mark.parametrize(
    'masks',
    [
        {'unused': None, 'user': None, 'item': None, 'mix': None},
        {'mix': None, 'user': torch.tensor([[True], [False], [True], [True]])},
    ],
    ids=['all', 'some'],
)
def test_derivatives_agree_with_dense_matrices(masks, decay, triples):
    model = Bilinear()
    problem = RankingProblem(model, decay, masks)
    place, free = entries(model, masks)
    assert torch.equal(problem.mask.bool(), free)
    args = model, triples, decay
    grad = jacobian(lambda x: dense_loss(x, *args), flat(model))[place] * free
    assert torch.allclose(problem.gradient(SCALE, triples), grad, atol=1e-12)
    first = torch.tensor([True, False, True, False])
    halves = triples.rows(first), triples.rows(~first)
    assert torch.allclose(problem.gradient(SCALE, *halves), grad, atol=1e-12)

    dense = [hessian(lambda x: dense_loss(x, *args), flat(model))]
    dense.append(dense_gauss_newton(*args))
    dense = [x[place][:, place] * torch.outer(free, free) for x in dense]
    assert not torch.allclose(*dense, atol=0.1)
    for name, expected in zip(('hessian', 'gauss_newton'), dense):
        product = getattr(problem, name)(SCALE, triples)
        got = torch.stack([product(e) for e in torch.eye(place.numel()).double()], 1)
        assert torch.allclose(got, expected, atol=1e-12), name
    values = torch.linalg.eigvalsh(dense[1])
    assert values.min() > -1e-9 > torch.linalg.eigvalsh(dense[0]).min()


@pytest.mark.parametrize('name', ['trained', 'trained_miggt'])
def test_products_of_real_models(name, data, request):
    model = request.getfixturevalue(name)
    graph = model.build_graph(data)
    pairs = data[schema.EDGE_TYPE].edge_index
    few = FixedTriples.draw(pairs[:, ::100], pairs, 60, 2, seed=0)
    names = dict.fromkeys(name for name, _ in model.named_parameters())
    problem = RankingProblem(model, 0.0, names)
    v, w = torch.randn(2, problem.mask.numel(), generator=torch.Generator())
    for kind in ('hessian', 'gauss_newton'):
        product = getattr(problem, kind)(graph, few)
        left, right = float(v @ product(w)), float(w @ product(v))
        assert left == pytest.approx(right, rel=1e-3, abs=1e-3 * float(v.norm()))

    # The Jacobian row by row, and plain indexing instead of our kernels.
    parameters = list(model.parameters())
    user_emb, item_emb = model(graph)
    rows = item_emb[few.items]
    scores = (user_emb[few.user].unsqueeze(1) * rows).sum(-1)
    margin = (scores[:, :1] - scores[:, 1:]).flatten()
    kwargs = {'allow_unused': True, 'materialize_grads': True}
    jac = torch.stack(
        [
            torch.cat(
                [
                    x.flatten()
                    for x in torch.autograd.grad(
                        m, parameters, retain_graph=True, **kwargs
                    )
                ]
            )
            for m in margin
        ]
    )
    slope = margin.detach().sigmoid()
    expected = jac.t() @ (slope * (1 - slope) * (jac @ v))
    got = problem.gauss_newton(graph, few)(v)
    assert float((got - expected).norm() / expected.norm()) < 1e-4

    loss = F.softplus(-margin).sum()
    grads = torch.autograd.grad(loss, parameters, create_graph=True, **kwargs)
    slope = sum((g.flatten() * x).sum() for g, x in zip(
        grads, v.split([p.numel() for p in parameters])
    ))
    expected = torch.cat(
        [x.flatten() for x in torch.autograd.grad(slope, parameters, **kwargs)]
    )
    got = problem.hessian(graph, few)(v)
    assert float((got - expected).norm() / expected.norm()) < 1e-4


def test_fixed_triples(data):
    pairs = data[schema.EDGE_TYPE].edge_index
    some = pairs[:, ::3]
    triples = FixedTriples.draw(some, pairs, 60, 3, seed=1)
    assert triples.items.shape == (some.size(1), 4)
    assert torch.equal(torch.stack([triples.user, triples.items[:, 0]]), some)
    known = set(map(tuple, pairs.t().tolist()))
    negatives = triples.items[:, 1:]
    for u, row in zip(triples.user.tolist(), negatives.tolist()):
        assert all((u, j) not in known for j in row)
    assert negatives.unique().numel() > 50  # From all items, not a few of them.
    again = FixedTriples.draw(some, pairs, 60, 3, seed=1)
    assert torch.equal(triples.items, again.items)
    other = FixedTriples.draw(some, pairs, 60, 3, seed=2)
    assert not torch.equal(triples.items, other.items)


def test_margins_and_counts_by_loops(triples):
    user_emb, item_emb = Bilinear()(SCALE)
    users, items = [0] * 4, [0] * 5
    margins = triples.margins(user_emb, item_emb)
    for row, u in enumerate(triples.user.tolist()):
        positive, *negatives = triples.items[row].tolist()
        for column, j in enumerate(negatives):
            expected = user_emb[u] @ (item_emb[positive] - item_emb[j])
            assert margins[row, column].item() == pytest.approx(expected.item())
            users[u] += 1
            items[positive] += 1
            items[j] += 1
    counts = triples.counts(4, 5)
    assert [x.tolist() for x in counts] == [users, items]


def random_matrix(size, definite=True):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(size, size))
    return root @ root.T if definite else root + root.T


@pytest.mark.parametrize('damping', [0.0, 0.7])
def test_conjugate_gradient_agrees_with_numpy(damping):
    matrix, target = random_matrix(8), np.arange(1.0, 9.0)
    dense = torch.from_numpy(matrix)
    out, log = conjugate_gradient(
        lambda x: dense @ x, torch.from_numpy(target), damping, 100, 1e-12
    )
    expected = np.linalg.solve(matrix + damping * np.eye(8), target)
    assert np.allclose(out, expected, rtol=1e-6)
    assert log['cg_residual'] <= 1e-12
    assert not log['negative_curvature']


def test_conjugate_gradient_stops():
    matrix = torch.from_numpy(random_matrix(8))
    target = torch.arange(1.0, 9.0).double()

    def solve(max_iter, tol, matrix=matrix, target=target):
        return conjugate_gradient(lambda x: matrix @ x, target, 0.0, max_iter, tol)

    out, log = solve(3, 0.0)
    assert log['cg_iterations'] == 3
    residual = float((target - matrix @ out).norm() / target.norm())
    assert log['cg_residual'] == pytest.approx(residual)
    out, log = solve(100, residual * 1.01)
    assert log['cg_iterations'] <= 3
    out, log = solve(100, 0.0, target=torch.zeros(8).double())
    assert out.abs().max() == 0
    assert log == {'cg_iterations': 0, 'cg_residual': 0, 'negative_curvature': False}

    indefinite = torch.diag(torch.tensor([1.0, 2.0, -0.5]).double())
    ones = torch.ones(3).double()
    out, log = solve(100, 0.0, indefinite, ones)
    assert log['negative_curvature']
    # The first direction is fine: the best step along the target stays.
    assert torch.allclose(out, ones * 3 / 2.5)
    damped = indefinite + torch.eye(3)
    out, log = solve(100, 1e-12, damped, ones)
    assert not log['negative_curvature']
    assert torch.allclose(damped @ out, ones)


def test_mean_curvature():
    torch.manual_seed(0)
    mask = torch.ones(8).double()
    mask[3] = 0
    dense = torch.from_numpy(random_matrix(8))
    expected = float((dense.diagonal() * mask).sum() / 7)
    got = mean_curvature(lambda x: dense @ x, mask, 3000)
    assert got == pytest.approx(expected, rel=0.05)
    diagonal = dense.diagonal()
    got = mean_curvature(lambda x: diagonal * x, mask, 1)
    assert got == pytest.approx(expected)


@pytest.mark.parametrize('max_change', [0.0, 0.3, 1e6])
def test_cap_by_loops(max_change):
    model = Bilinear()
    with torch.no_grad():
        model.user[1] = 0
    problem = RankingProblem(model, 0.0, dict.fromkeys(['user', 'unused', 'mix']))
    rng = torch.Generator().manual_seed(1)
    change = torch.randn(problem.mask.shape, dtype=torch.float64, generator=rng)
    out, num_capped = problem.cap(change, max_change)
    count, got = 0, problem.split(out)
    for name, before in problem.split(change).items():
        old = getattr(model, name).detach()
        rows = [(old, before, got[name])]
        rows = list(zip(old, before, got[name])) if old.dim() > 1 else rows
        for parameter, wanted, row in rows:
            bound = max_change * float(parameter.norm())
            if float(parameter.norm()) > 0 and float(wanted.norm()) > bound:
                count += 1
                wanted = wanted * bound / wanted.norm()
            assert torch.allclose(row, wanted)
    assert num_capped == count
    assert (num_capped == 0) == (max_change == 1e6)


def test_move_is_additive(triples):
    model = Bilinear()
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    problem = RankingProblem(model, 0.0, dict.fromkeys(['mix', 'user']))
    problem.move(torch.arange(12.0).double())
    assert torch.equal(model.item, before['item'])
    expected = before['mix'] + torch.arange(4.0).view(2, 2)
    assert torch.allclose(model.mix, expected)
    expected = before['user'] + torch.arange(4.0, 12.0).view(4, 2)
    assert torch.allclose(model.user, expected)


@pytest.mark.parametrize('num_hops', [0, 1, 2, 3])
def test_near_nodes_by_search(num_hops, data):
    pairs = data[schema.EDGE_TYPE].edge_index
    start = pairs[:, [5, 200]]
    adjacent = {}
    for u, i in pairs.t().tolist():
        adjacent.setdefault(('user', u), set()).add(('item', i))
        adjacent.setdefault(('item', i), set()).add(('user', u))
    seen = {('user', u) for u in start[0].tolist()}
    seen |= {('item', i) for i in start[1].tolist()}
    border = set(seen)
    for _ in range(num_hops):
        border = {n for node in border for n in adjacent[node]} - seen
        seen |= border
    users, items = near_nodes(data, start, num_hops)
    assert set(users.nonzero().view(-1).tolist()) == {n for t, n in seen if t == 'user'}
    assert set(items.nonzero().view(-1).tolist()) == {n for t, n in seen if t == 'item'}
    assert users.sum() < 100 or num_hops == 3


def test_table_masks(trained, trained_miggt):
    users, items = torch.arange(100) < 3, torch.arange(60) < 2
    masks = table_masks(trained, users, items)
    assert set(masks) == {
        'user_embedding.weight',
        'item_embedding.weight',
        'features.image.weight',
        'features.text.weight',
    }
    assert torch.equal(masks['user_embedding.weight'], users.unsqueeze(1))
    assert torch.equal(masks['features.image.weight'], items.unsqueeze(1))
    assert set(table_masks(trained_miggt, users, items)) == {'user_embedding.weight'}
    lightgcn = RecommenderAdapter(LightGCN(160, 4, 2), 100, 60)
    [(name, mask)] = table_masks(lightgcn, users, items).items()
    assert name == 'module.embedding.weight'
    assert mask.view(-1).nonzero().view(-1).tolist() == [0, 1, 2, 100, 101]
    assert table_masks(Bilinear(), users, items) == {}


def test_regulariser_weight(trained):
    assert regulariser_weight(trained, None) == trained.weight_decay == 1e-4
    assert regulariser_weight(trained, 0.0) == 0.0
    assert regulariser_weight(trained, 0.5) == 0.5
    model = EmbeddingTable(torch.randn(3, 2), torch.randn(4, 2))
    assert regulariser_weight(model, None) == 1e-4


