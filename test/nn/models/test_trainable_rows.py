import copy

import pytest
import torch

from torch_geometric_unlearn.loader import TripletLoader
from torch_geometric_unlearn.nn import MGCN, LightGCN
from torch_geometric_unlearn.nn.models import LinearRows, TableRows

NODES = torch.tensor([1, 5, 9, 103, 107, 159])  # Three users, three items.


@pytest.fixture(params=[MGCN, LightGCN])
def parts(request, data):
    torch.manual_seed(0)
    model = request.param.from_data(data, hidden_channels=16)
    graph = model.build_graph(data)
    return model, graph, next(iter(TripletLoader(graph.edge_index, 60, 128)))


def flat(rows, batch):
    loss, grads = rows.gradients(batch)
    return loss, torch.cat([grad.view(-1, 16) for grad in grads])


def test_all_ways_agree(parts):
    model, graph, batch = parts
    expected = flat(TableRows(model, graph, NODES, 100), batch)
    assert expected[1].shape == (6, 16)
    for by_response in (True, False, None):
        loss, grad = flat(LinearRows(model, graph, NODES, by_response), batch)
        assert float(loss) == pytest.approx(float(expected[0]), rel=1e-5)
        assert torch.allclose(grad, expected[1], atol=1e-6)


def test_more_rows_than_columns(parts):
    r"""The response is computed some rows at a time, and the same."""
    model, graph, batch = parts
    nodes = torch.cat([torch.arange(0, 60, 2), torch.arange(100, 112)])
    expected = flat(LinearRows(model, graph, nodes, False), batch)
    rows = LinearRows(model, graph, nodes, True)
    loss, grad = flat(rows, batch)
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-5)
    assert torch.allclose(grad, expected[1], atol=1e-6)
    if isinstance(model, LightGCN):  # Only these rows answer without propagation.
        assert rows.response['initial'].value.size(0) == nodes.numel() + 1


def test_stays_true_as_the_rows_move(parts):
    model, graph, batch = parts
    ways = [LinearRows(model, graph, NODES, way) for way in (True, False)]
    for rows in ways:
        for _ in range(3):
            _, (grad,) = rows.gradients(batch)
            with torch.no_grad():
                rows.values[0] -= 5.0 * grad
    assert torch.allclose(ways[0].values[0], ways[1].values[0], atol=1e-5)
    ways[0].write()
    loss, _ = TableRows(model, graph, NODES, 100).gradients(batch)
    assert float(loss) == pytest.approx(float(ways[0].gradients(batch)[0]), rel=1e-5)


def test_gradient_by_differences(data):
    model = MGCN.from_data(data, hidden_channels=16)
    graph = model.build_graph(data)
    batch = next(iter(TripletLoader(graph.edge_index, 60, 128)))
    rows = LinearRows(model, graph, NODES)
    _, (grad,) = rows.gradients(batch)
    for place in ((0, 3), (4, 7)):
        losses = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                rows.values[0][place] += step
            losses.append(float(rows.gradients(batch)[0]))
            with torch.no_grad():
                rows.values[0][place] -= step
        slope = (losses[0] - losses[1]) / 2e-2
        assert float(grad[place]) == pytest.approx(slope, abs=2e-4)


def test_writes_its_rows_only(parts):
    model, graph, _ = parts
    before = copy.deepcopy(model)
    for rows in (LinearRows(model, graph, NODES), TableRows(model, graph, NODES, 100)):
        with torch.no_grad():
            for value in rows.values:
                value += 1
        rows.write()
    changed = {
        name
        for (name, old), new in zip(before.named_parameters(), model.parameters())
        if not torch.equal(old, new)
    }
    assert changed == {'user_embedding.weight', 'item_embedding.weight'}
    for table, expected in (('user', [1, 5, 9]), ('item', [3, 7, 59])):
        name = f'{table}_embedding'
        moved = getattr(before, name).weight != getattr(model, name).weight
        assert moved.any(dim=1).nonzero().view(-1).tolist() == expected


def test_shared_parameters_are_no_tables(data):
    model = MGCN.from_data(data, hidden_channels=16)
    graph = model.build_graph(data)
    rows = TableRows(model, graph, NODES, 100, shared=True)
    tables = {id(table.parameter) for table in model.tables()}
    shared = sum(id(p) not in tables for p in model.parameters())
    assert len(rows.values) == 2 + shared
    assert [rows is None for rows in rows.rows] == [False] * 2 + [True] * shared
