import pytest
import torch
from torch_geometric.nn import LightGCN as PyGLightGCN

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import LightGCN
from torch_geometric_unlearn.testing import check_model


@pytest.mark.parametrize('num_layers', [1, 2, 3])
def test_against_pyg(data, num_layers):
    model = LightGCN.from_data(data, hidden_channels=8, num_layers=num_layers)
    other = PyGLightGCN(160, 8, num_layers)
    with torch.no_grad():
        other.embedding.weight.copy_(model.node_embedding())
    user, item = data[schema.EDGE_TYPE].edge_index
    both = torch.stack([torch.cat([user, item + 100]), torch.cat([item + 100, user])])
    expected = other.get_embedding(both)
    got = torch.cat(model(model.build_graph(data)))
    assert torch.allclose(got, expected, atol=1e-6)


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
