import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian, jacobian
from torch_geometric.data import HeteroData
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.datasets import SyntheticMultimodal
from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import RecommenderAdapter
from torch_geometric_unlearn.nn.models import Table
from torch_geometric_unlearn.train import fit
from torch_geometric_unlearn.transforms import (
    ForgetInteractions,
    ForgetItems,
    ForgetUsers,
)
from torch_geometric_unlearn.unlearn import InfluenceFunction
from torch_geometric_unlearn.unlearn._second_order import FixedTriples
from torch_geometric_unlearn.unlearn.influence_function import important_nodes
from torch_geometric_unlearn.utils.seed import isolated_seed

REQUESTS = [ForgetUsers(ratio=0.1), ForgetItems([2, 4]), ForgetInteractions(ratio=0.1)]


@pytest.fixture(scope='module')
def lightgcn():
    with isolated_seed(0):
        model = RecommenderAdapter(LightGCN(160, 16, 2), 100, 60)
    fit(model, SyntheticMultimodal('tiny')[0], num_epochs=20, lr=1e-2, batch_size=128)
    return model


def important_by_loops(marked, quantile):
    pairs = marked[schema.EDGE_TYPE].edge_index.t().tolist()
    gone = schema.forget_mask(marked).tolist()
    edges = {}
    for (u, i), is_gone in zip(pairs, gone):
        edges.setdefault(('user', u), []).append((('item', i), is_gone))
        edges.setdefault(('item', i), []).append((('user', u), is_gone))
    share = {
        node: sum(is_gone for _, is_gone in links) / len(links)
        for node, links in edges.items()
    }
    direct = {node for node, value in share.items() if value > 0}
    passed = {
        node: sum(share[other] for other, _ in links) / len(links)
        for node, links in edges.items()
        if node not in direct
    }
    passed = {node: value for node, value in passed.items() if value > 0}
    values = sorted(passed.values())
    bar = values[min(len(values) - 1, int(quantile * len(values)))]
    bar = bar if quantile > 0 else 0.0
    sure = {node for node, value in passed.items() if value > bar + 1e-6}
    tied = {node for node, value in passed.items() if abs(value - bar) <= 1e-6}
    return direct, sure, tied, passed


@pytest.mark.parametrize('quantile', [0.0, 0.4, 0.9, 1.0])
@pytest.mark.parametrize('request_', REQUESTS, ids=lambda x: type(x).__name__)
def test_important_nodes_by_loops(request_, quantile, data):
    marked = request_(data)
    direct, sure, tied, passed = important_by_loops(marked, quantile)
    users, items = important_nodes(marked, quantile)
    got = {('user', u) for u in users.nonzero().view(-1).tolist()}
    got |= {('item', i) for i in items.nonzero().view(-1).tolist()}
    assert direct | sure <= got <= direct | sure | tied
    share = len(got - direct) / len(passed)
    assert abs(share - (1 - quantile)) <= (1 + len(tied)) / len(passed)
    if quantile in (0, 1):
        assert len(got - direct) == (len(passed) if quantile == 0 else 0)


def test_without_neighbours(data):
    marked = ForgetInteractions(ratio=0.1)(data)
    marked[schema.EDGE_TYPE].forget_mask[1:] = True
    users, items = important_nodes(marked, 0.4)
    pairs = schema.forgotten_edge_index(marked)
    assert users.nonzero().view(-1).tolist() == pairs[0].unique().tolist()
    assert items.nonzero().view(-1).tolist() == pairs[1].unique().tolist()


@pytest.mark.parametrize('name', ['trained', 'trained_miggt', 'lightgcn'])
def test_only_important_rows_move(name, data, request):
    model = request.getfixturevalue(name)
    marked = ForgetInteractions(data[schema.EDGE_TYPE].edge_index[:, 7:9])(data)
    result = InfluenceFunction(curvature='gauss_newton')(model, marked)
    important = dict(zip(('user', 'item'), important_nodes(marked, 0.4)))
    important['node'] = torch.cat([important['user'], important['item']])
    tables = {
        id(table.parameter): important[table.rows]
        for table in model.tables()
        if not table.is_raw
    }
    assert tables
    for key, old in model.named_parameters():
        moved = old != result.model.get_parameter(key)
        if id(old) in tables:
            expected = tables[id(old)]
            assert 0 < expected.sum() < expected.numel()
            assert torch.equal(moved.any(dim=1), expected)
        else:
            assert not moved.any()
            assert result.touched[key] == 0
    [row] = result.history
    assert row['num_moved_users'] == int(important['user'].sum())
    assert row['num_moved_items'] == int(important['item'].sum())


def toy_data():
    user, item = [0, 0, 0, 1, 1, 2, 2, 3, 3, 4], [0, 1, 2, 1, 3, 0, 4, 2, 4, 3]
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 5, 5
    data[schema.EDGE_TYPE].edge_index = torch.tensor([user, item])
    data['item'].x_text = torch.ones(5, 1)
    return data


def toy_model():
    module = LightGCN(10, 2, 1)
    rng = torch.Generator().manual_seed(1)
    module.embedding.weight.data = torch.randn(10, 2, generator=rng)
    tables = [Table(module.embedding.weight, 'node')]
    return RecommenderAdapter(module, 5, 5, tables=tables)


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
    return F.softplus(-margins).sum() + decay / 2 * rest.pow(2).sum()


def toy_gauss_newton(x, pairs, triples, decay):
    jac = jacobian(lambda x: torch.cat(toy_outputs(x, pairs, triples)), x)
    margins, rest = toy_outputs(x, pairs, triples)
    slope = margins.sigmoid()
    weight = torch.cat([slope * (1 - slope), torch.full_like(rest, decay)])
    return jac.t() @ (weight[:, None] * jac)


@pytest.mark.parametrize('curvature', ['gauss_newton', 'hessian'])
def test_update_is_the_formula(curvature):
    data = toy_data()
    marked = ForgetInteractions(torch.tensor([[0], [1]]))(data)
    model, decay = toy_model(), 0.05
    unlearner = InfluenceFunction(
        num_negatives=2,
        weight_decay=decay,
        damping=5.0,  # Enough to make the Hessian definite.
        curvature=curvature,
        tol=1e-7,
        max_change=1e6,
        step=2.0,
    )
    result = unlearner(model, marked)
    old, new = data[schema.EDGE_TYPE].edge_index, schema.retained_edge_index(marked)
    triples = FixedTriples.draw(old, old, 5, 2, 0)
    # Retained pairs of the same user or the same item.
    gone = schema.forget_mask(marked)
    changed = ((old[0] == 0) | (old[1] == 1)) & ~gone
    assert changed.sum() == 3
    x = model.module.embedding.weight.detach().double().flatten()

    def grad(pairs, mask):
        part = triples.rows(mask)
        return jacobian(lambda x: toy_loss(x, pairs, part, decay), x)

    target = grad(old, gone) + grad(old, changed) - grad(new, changed)
    if curvature == 'hessian':
        dense = hessian(lambda x: toy_loss(x, old, triples, decay), x)
    else:
        dense = toy_gauss_newton(x, old, triples, decay)
    free = torch.cat(important_nodes(marked, 0.4)).repeat_interleave(2)
    assert 0 < free.sum() < 20
    [row] = result.history
    assert not row['negative_curvature']
    diagonal = toy_gauss_newton(x, old, triples, decay).diagonal()[free]
    # Three probes estimate the mean of the diagonal.
    assert 0.3 < row['damping'] / 5.0 / float(diagonal.mean()) < 3
    matrix = dense[free][:, free] + row['damping'] * torch.eye(int(free.sum()))
    # The means of the formula over n interactions cancel.
    expected = torch.zeros_like(x)
    expected[free] = 2.0 * torch.linalg.solve(matrix, target[free])
    got = result.model.module.embedding.weight.detach().double().flatten() - x
    assert torch.allclose(got, expected, atol=1e-4 * float(expected.abs().max()))
    assert row['gradient_norm'] == pytest.approx(float(target[free].norm()), rel=1e-4)


@pytest.mark.parametrize('curvature', ['gauss_newton', 'hessian'])
@pytest.mark.parametrize('name', ['trained', 'lightgcn'])
@pytest.mark.parametrize('request_', REQUESTS, ids=lambda x: type(x).__name__)
def test_forgotten_pairs_fall(request_, name, curvature, data, request):
    model, marked = request.getfixturevalue(name), request_(data)
    # So much damping that the matrix is as good as the identity: a small step uphill.
    unlearner = InfluenceFunction(damping=100.0, curvature=curvature)
    result = unlearner(model, marked)
    assert not result.history[0]['negative_curvature']
    pairs = schema.forgotten_edge_index(marked)
    graph = model.build_graph(data)
    means = []
    for out in (model, result.model):
        user_emb, item_emb = embed(out, graph)
        own = (user_emb[pairs[0]] * item_emb[pairs[1]]).sum(-1)
        means.append(float((own - (user_emb @ item_emb.t())[pairs[0]].mean(1)).mean()))
    assert means[1] < means[0] - 1e-3


def test_max_change_holds(data, trained):
    marked = ForgetUsers(ratio=0.1)(data)
    kwargs = {'max_change': 0.02, 'curvature': 'gauss_newton'}
    for step in (1.0, 10.0):
        result = InfluenceFunction(step=step, **kwargs)(trained, marked)
        count = 0
        for key in ('user_embedding.weight', 'item_embedding.weight'):
            old = trained.get_parameter(key)
            change = (result.model.get_parameter(key) - old).norm(dim=1)
            ratio = change / old.norm(dim=1)
            assert ratio.max() <= 0.02 * 1.0001
            count += int((ratio > 0.02 * 0.999).sum())
        assert result.history[0]['num_capped_rows'] == count > 0


def test_needs_a_table(data):
    marked = REQUESTS[0](data)
    unlearner = InfluenceFunction(max_iter=1)
    module = LightGCN(160, 4, 1)
    table = Table(module.embedding.weight, 'node', is_raw=True)
    for tables in ([], [table]):
        model = RecommenderAdapter(module, 100, 60, tables=tables)
        ok, reason = unlearner.supports(model, marked)
        assert not ok
        assert 'has no ID table' in reason
        with pytest.raises(ValueError, match="'RecommenderAdapter' has no ID table"):
            unlearner(model, marked)
    model = RecommenderAdapter(module, 100, 60)
    assert unlearner.supports(model, marked) == (True, '')
    ok, reason = unlearner.supports(torch.nn.Linear(1, 1), marked)
    assert not ok
    assert reason.startswith("'Linear' lacks ['build_graph', 'loss', 'branches', 'ta")


def test_bad_arguments():
    for kwargs, message in [
        ({'num_negatives': 0}, "'num_negatives' must be at least 1"),
        ({'weight_decay': -1.0}, "'weight_decay' must be a finite number in"),
        ({'quantile': 1.5}, "'quantile' must be a finite number in"),
        ({'damping': -1.0}, "'damping' must be a finite number in"),
        ({'max_iter': 0}, "'max_iter' must be at least 1"),
        ({'tol': -1.0}, "'tol' must be a finite number in"),
        ({'curvature': 'none'}, "'curvature' must be one of"),
        ({'step': -1.0}, "'step' must be a finite number in"),
        ({'max_change': -1.0}, "'max_change' must be a finite number in"),
    ]:
        with pytest.raises(ValueError, match=message):
            InfluenceFunction(**kwargs)
