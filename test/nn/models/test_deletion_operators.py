import copy

import pytest
import torch
from torch_geometric.nn import LightGCN

from torch_geometric_unlearn.metrics import embed
from torch_geometric_unlearn.nn import RecommenderAdapter, Triplets
from torch_geometric_unlearn.nn.models import DeletionOperators
from torch_geometric_unlearn.testing import check_model
from torch_geometric_unlearn.train import fit

MODELS = ['trained', 'trained_miggt', 'lightgcn']


@pytest.fixture
def lightgcn():
    return RecommenderAdapter(LightGCN(160, 16, 2), 100, 60)


def wrap(model, fresh=False):
    r"""Acts on every third node, by random operators."""
    nodes = torch.arange(160) % 3 == 0
    names = ['out']
    if hasattr(model, 'branch_embeddings'):
        names = ['id', 'image', 'text', 'out']
    out = DeletionOperators(copy.deepcopy(model), nodes, dict.fromkeys(names, 16))
    if not fresh:
        rng = torch.Generator().manual_seed(0)
        for operator in out.operators.values():
            operator.weight.data = torch.randn(16, 16, generator=rng)
    return out


@pytest.mark.parametrize('name', MODELS)
def test_contract(name, data, request):
    check_model(wrap(request.getfixturevalue(name)), data)


@pytest.mark.parametrize('name', MODELS)
def test_fresh_operators_change_nothing(name, data, request):
    model = request.getfixturevalue(name)
    graph = model.build_graph(data)
    for x, y in zip(embed(model, graph), embed(wrap(model, fresh=True), graph)):
        assert torch.allclose(x, y, atol=1e-6)


def by_loops(weight, nodes, x):
    rows = zip(nodes.tolist(), x.double())
    return torch.stack([weight.double() @ r if on else r for on, r in rows])


@pytest.mark.parametrize('name', MODELS)
@torch.no_grad()
def test_formula(name, data, request):
    model = wrap(request.getfixturevalue(name)).eval()
    inner, graph = model.model, model.build_graph(data)
    weights = {key: op.weight for key, op in model.operators.items()}
    branches = {}
    if len(weights) > 1:
        for key, x in inner.branch_embeddings(graph).items():
            branches[key] = by_loops(weights[key], model.nodes, x).float()
            got = model.branch_embeddings(graph)[key]
            assert torch.allclose(got, branches[key], atol=1e-4)
        fused = torch.cat(inner.fuse(graph, branches))
    else:
        assert model.branch_embeddings(graph) == {}
        fused = torch.cat(inner(graph))
    expected = by_loops(weights['out'], model.nodes, fused).float()
    got = torch.cat(model(graph))
    assert torch.allclose(got, expected, atol=1e-4, rtol=1e-4)
    for x, y in zip(model.fuse(graph, model.branch_embeddings(graph)), model(graph)):
        assert torch.equal(x, y)


def test_branches_and_tables(trained, lightgcn):
    model = wrap(trained)
    branches = {key: set(map(id, x)) for key, x in model.branches().items()}
    assert set(branches) == {'id', 'image', 'text', 'fusion'}
    for key, operator in model.operators.items():
        assert id(operator.weight) in branches['fusion' if key == 'out' else key]
    tables = model.tables()
    assert tables[0].parameter is model.model.user_embedding.weight
    assert [table.is_raw for table in tables] == [False, False, True, True]
    assert set(wrap(lightgcn).branches()) == {'id', 'fusion'}


def test_loss_is_bpr(data, trained):
    model = wrap(trained).eval()
    graph = model.build_graph(data)
    batch = Triplets(*torch.tensor([[0, 4, 7], [1, 2, 3], [9, 8, 7]]))
    user_emb, item_emb = (x.double() for x in embed(model, graph))
    losses = []
    for u, i, j in zip(*(x.tolist() for x in batch)):
        margin = user_emb[u] @ (item_emb[i] - item_emb[j])
        losses.append(torch.log1p((-margin).exp()))
    expected = torch.stack(losses).mean()
    loss = model.loss(graph, batch).item()
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_can_be_trained_saved_and_nested(data, trained):
    model = wrap(trained, fresh=True)
    state = copy.deepcopy(model.state_dict())
    assert torch.equal(state['nodes'], model.nodes)
    fit(model, data, num_epochs=1, batch_size=128)
    for name, operator in model.operators.items():
        assert not torch.equal(operator.weight, state[f'operators.{name}.weight'])
    model.load_state_dict(state)
    outer = DeletionOperators(model, ~model.nodes, dict.fromkeys(model.operators, 16))
    graph = outer.build_graph(data)
    for x, y in zip(embed(outer, graph), embed(trained, graph)):
        assert torch.allclose(x, y, atol=1e-6)
