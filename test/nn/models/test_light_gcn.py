import pytest
import torch
from torch_geometric.nn import LightGCN as PyGLightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.testing import check_model


def of_pyg(model):
    r"""PyG's model with the same embeddings."""
    x = model.node_embedding().detach()
    other = PyGLightGCN(*x.shape, model.num_layers).to(x.dtype)
    alpha = torch.full_like(other.alpha, 1 / (1 + model.num_layers))  # Not via float32.
    other.load_state_dict({'embedding.weight': x, 'alpha': alpha})
    return other


def edges_both_ways(data):
    user, item = data[schema.EDGE_TYPE].edge_index
    item = item + 100
    return torch.stack([torch.cat([user, item]), torch.cat([item, user])])


@pytest.mark.parametrize('num_layers', [0, 1, 2, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_embeddings_and_gradients_of_pyg(dtype, num_layers, data):
    model = LightGCN.from_data(data, hidden_channels=8, num_layers=num_layers)
    model = model.to(dtype)
    other = of_pyg(model)
    expected = other.get_embedding(edges_both_ways(data))
    got = torch.cat(model(model.build_graph(data)))
    atol = 1e-6 if dtype == torch.float32 else 1e-14
    assert torch.allclose(got, expected, atol=atol, rtol=0)
    weight = torch.randn(160, 8, dtype=dtype)
    (weight * got).sum().backward()
    (weight * expected).sum().backward()
    grad = torch.cat([p.grad for p in model.parameters()])
    assert torch.allclose(grad, other.embedding.weight.grad, atol=10 * atol, rtol=0)


@pytest.mark.parametrize('weight_decay', [0.0, 1e-2])
def test_training_equals_that_of_pyg(weight_decay, data):
    model = LightGCN.from_data(data, hidden_channels=8, weight_decay=weight_decay)
    model = model.double()
    other, both = of_pyg(model), edges_both_ways(data)
    graph = model.build_graph(data)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, other)]
    loader = TripletLoader(graph.edge_index, 60, 128)
    for batch in list(loader) + list(loader):
        user, pos, neg = batch.nodes(100).chunk(3)
        pairs = torch.stack([torch.cat([user, user]), torch.cat([pos, neg])])
        # PyG leaves out the half; its regulariser looks at the nodes that it is told.
        expected = other.recommendation_loss(
            *other(both, pairs).chunk(2), batch.nodes(100), lambda_reg=weight_decay / 2
        )
        got = model.loss(graph, batch)
        assert torch.allclose(got, expected, atol=1e-12)
        for loss, optimizer in zip((got, expected), optimizers):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x = model.node_embedding()
    assert torch.allclose(x, other.embedding.weight, atol=1e-10, rtol=0)
    items, _ = model.recommend(graph, range(100), 5, exclude=torch.empty(2, 0).long())
    users = torch.arange(100)
    expected = other.recommend(both, None, users, torch.arange(100, 160), 5) - 100
    assert torch.equal(items, expected)


def test_half_precision_adds_up_in_single(data):
    model = LightGCN.from_data(data, hidden_channels=8)
    half = LightGCN.from_data(data, hidden_channels=8)
    half.load_state_dict(model.state_dict())
    half = half.bfloat16()
    graph = half.build_graph(data)
    assert graph.user_item.value.dtype == torch.float32
    for x, y in zip(half(graph), model(graph)):
        assert x.dtype == torch.bfloat16
        assert torch.allclose(x.float(), y, atol=0.01 * float(y.detach().abs().max()))


def test_loss_by_hand(data):
    model = LightGCN.from_data(data, hidden_channels=8, weight_decay=0.1)
    graph = model.build_graph(data)
    batch = next(iter(TripletLoader(graph.edge_index, 60, 64)))
    user_emb, item_emb = (x.double() for x in model(graph))
    total = torch.zeros((), dtype=torch.float64)
    for u, p, n in zip(*batch):
        difference = user_emb[u] @ (item_emb[p] - item_emb[n])
        total -= torch.nn.functional.logsigmoid(difference)
        for table, row in (('user', u), ('item', p), ('item', n)):
            x = getattr(model, f'{table}_embedding').weight[row].double()
            total += 0.1 * 0.5 * x.pow(2).sum()
    loss = float(model.loss(graph, batch).detach())
    assert loss == pytest.approx(float(total.detach()) / 64, rel=1e-5)


def test_contract(data):
    check_model(LightGCN.from_data(data, hidden_channels=8), data)


def test_zero_layers_are_the_embeddings(data):
    model = LightGCN.from_data(data, hidden_channels=8, num_layers=0)
    got = torch.cat(model(model.build_graph(data)))
    assert torch.equal(got, model.node_embedding())
    assert 'LightGCN(100, 60' in repr(model)


def test_bad_arguments(data):
    with pytest.raises(ValueError, match="'num_layers' must be at least 0"):
        LightGCN(3, 3, num_layers=-1)
    with pytest.raises(ValueError, match='The model has 3 users'):
        LightGCN(3, 60).build_graph(data)
