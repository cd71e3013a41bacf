import copy

import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.nn.conv import LayerMeanConv, MarkovDiffusionConv
from torch_geometric_unlearn.ops import LazyPropagation
from torch_geometric_unlearn.ops.lazy_propagation import (
    layer_mean_weights,
    personalized_pagerank_weights,
)
from torch_geometric_unlearn.ops.sparse_operator import (
    bipartite_operators,
    self_loop_operator,
)

WEIGHTS = [[0.7], [0.2, 1.1], [0.5, -0.3, 0.4], [0.0, 0.1, 0.0, 0.9]]


def dense(pairs, x, weights, self_loops):
    r"""The propagation in float64 with dense matrices, by its definition."""
    x = x.double()
    adj = torch.zeros(x.size(0), x.size(0), dtype=torch.float64)
    for u, v in pairs.t().tolist():
        adj[u, v] = adj[v, u] = 1
    if self_loops:
        adj += torch.eye(x.size(0), dtype=torch.float64)
    degree = adj.sum(dim=1)
    norm = torch.where(degree > 0, degree.pow(-0.5), 0.0)
    matrix = norm.view(-1, 1) * adj * norm
    out = torch.zeros_like(x)
    for power, weight in enumerate(weights):
        out += weight * torch.linalg.matrix_power(matrix, power) @ x
    return out


def random_graph(num_nodes, num_edges, seed=0):
    gen = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(num_nodes)).t()
    return pairs[:, torch.randperm(pairs.size(1), generator=gen)[:num_edges]]


@withCUDA
@pytest.mark.parametrize('self_loops', [False, True])
@pytest.mark.parametrize('weights', WEIGHTS)
def test_any_sequence_of_removals_is_exact(weights, self_loops, device):
    pairs = random_graph(14, 30)
    x = torch.randn(16, 3, dtype=torch.float64)  # Two nodes never have an edge.
    prop = LazyPropagation(pairs.to(device), x.to(device), weights, self_loops)

    def check(pairs):
        expected = dense(pairs, x, weights, self_loops)
        assert torch.allclose(prop.embedding.cpu(), expected, atol=1e-13)
        left = {tuple(pair) for pair in prop.edge_index.t().tolist()}
        assert left == {tuple(sorted(pair)) for pair in pairs.t().tolist()}
        assert prop.num_edges == pairs.size(1)
        assert (prop.residue() == 0).all()

    check(pairs)
    prop.remove_edges(pairs[:, :1].flip(0).to(device))  # Either direction will do.
    check(pairs[:, 1:])
    prop.remove_edges(pairs[:, 1:8].to(device))
    check(pairs := pairs[:, 8:])
    nodes = torch.tensor([2, 5, 15, 2])
    prop.remove_nodes(nodes.to(device))
    check(pairs := pairs[:, ~torch.isin(pairs, nodes).any(dim=0)])
    prop.remove_edges(pairs[:, :0].to(device))
    check(pairs)
    for node in range(14):
        prop.remove_nodes(torch.tensor([node], device=device))
        check(pairs := pairs[:, (pairs != node).all(dim=0)])
    assert prop.num_edges == 0


@pytest.mark.parametrize('self_loops', [False, True])
def test_many_removals_do_not_drift(self_loops):
    gen = torch.Generator().manual_seed(3)
    num_users = 60
    pairs = torch.stack([torch.arange(600) % 60, torch.arange(600) // 15])
    pairs = pairs[:, torch.randperm(600, generator=gen)]
    x = torch.randn(100, 4, generator=gen)
    weights = layer_mean_weights(3)
    prop = LazyPropagation(pairs, x, weights, self_loops, num_users=num_users)
    for step in range(200):
        prop.remove_edges(pairs[:, step : step + 1])
    shifted = pairs[:, 200:] + torch.tensor([[0], [num_users]])
    expected = dense(shifted, x, weights, self_loops)
    assert prop.embedding.dtype == torch.float32
    assert torch.allclose(prop.embedding.double(), expected, atol=1e-6)
    # Before rounding to float32, hardly anything has been lost.
    precise = LazyPropagation(pairs, x.double(), weights, self_loops, 0.0, num_users)
    for step in range(200):
        precise.remove_edges(pairs[:, step : step + 1])
    assert torch.allclose(precise.embedding, expected, atol=1e-13)


def test_agrees_with_the_layers_of_the_models(data):
    edge_index = data[schema.EDGE_TYPE].edge_index
    num_users, num_items = schema.num_users(data), schema.num_items(data)
    x = torch.randn(num_users + num_items, 8)
    gone = edge_index[0] < 20  # Users without any interaction left among them.
    for weights, conv, operator, self_loops in [
        (
            layer_mean_weights(2),
            LayerMeanConv(2),
            lambda pairs: bipartite_operators(pairs, num_users, num_items)[0],
            False,
        ),
        (
            personalized_pagerank_weights(3, alpha=0.2, beta=0.7),
            MarkovDiffusionConv(3, alpha=0.2, beta=0.7),
            lambda pairs: self_loop_operator(pairs, num_users, num_items),
            True,
        ),
    ]:
        prop = LazyPropagation(edge_index, x, weights, self_loops, num_users=num_users)
        expected = conv(x, operator(edge_index))
        assert torch.allclose(prop.embedding, expected, atol=1e-6)
        prop.remove_edges(edge_index[:, gone])
        expected = conv(x, operator(edge_index[:, ~gone]))
        assert torch.allclose(prop.embedding, expected, atol=1e-6)
        assert set(map(tuple, prop.edge_index.t().tolist())) == set(
            map(tuple, edge_index[:, ~gone].t().tolist())
        )


@pytest.mark.parametrize('self_loops', [False, True])
def test_small_residues_stay_within_their_bound(self_loops):
    num_nodes, weights = 300, [0.2, 0.3, 0.5]
    pairs = random_graph(num_nodes, 450)
    x = torch.randn(num_nodes, 3, dtype=torch.float64)
    removed = pairs[:, :12]
    exact = dense(pairs[:, 12:], x, weights, self_loops)
    previous = None
    for r_max in [0.0, 1e-2, 0.1, 0.5, 1e9]:
        prop = LazyPropagation(pairs, x, weights, self_loops, r_max)
        pushed = 0
        for edge in removed.split(1, dim=1):
            update = prop.remove_edges(edge)
            pushed += update.touched_edges
            assert update.node_share < 0.5
        error = (prop.embedding - exact).abs().sum(dim=0)
        assert (error <= prop.residue() + 1e-12).all()
        if previous is not None:
            assert (prop.residue() >= previous[0]).all()
            assert pushed <= previous[1]
        previous = prop.residue(), pushed
        if r_max > 1:
            assert pushed == 0
            assert (error > 0.01).all()
        prop.flush()
        assert (prop.residue() == 0).all()
        assert torch.allclose(prop.embedding, exact, atol=1e-12)


def test_signed_residues_would_hide_an_error():
    # Both ends keep a residue; in the channel below, these cancel.
    pairs = torch.tensor([[0, 1, 2], [1, 2, 3]])
    x = torch.tensor([[0.0], [1.0], [-1.0], [0.0]], dtype=torch.float64)
    prop = LazyPropagation(pairs, x, [0.0, 1.0], r_max=1e9)
    prop.remove_edges(pairs[:, 1:2])
    error = (prop.embedding - dense(pairs[:, ::2], x, [0.0, 1.0], False)).abs().sum()
    assert prop._residue.sum().abs() < 1e-12
    assert error > 0.1
    # Here the bound is tight.
    assert float(prop.residue()) == pytest.approx(float(error))


def test_report_on_a_path():
    # 0 - 1 - ... - 9, without the edge 4 - 5. The ends are pushed, then they and
    # their neighbours 3 and 6, then these and 2 and 7.
    path = torch.stack([torch.arange(9), torch.arange(1, 10)])
    x = torch.randn(10, 2, dtype=torch.float64)
    prop = LazyPropagation(path, x, layer_mean_weights(2))
    update = prop.remove_edges(torch.tensor([[4], [5]]))
    assert update.nodes.tolist() == [2, 3, 4, 5, 6, 7]
    assert update.touched_nodes == 6
    assert update.pushes == [2, 4, 6]
    assert update.touched_edges == 4  # 2 - 3, 3 - 4, 5 - 6, 6 - 7.
    assert update.node_share == pytest.approx(6 / 10)
    assert update.edge_share == pytest.approx(4 / 8)
    nothing = prop.remove_nodes(torch.tensor([], dtype=torch.long))
    assert (nothing.touched_nodes, nothing.pushes) == (0, [0, 0, 0])


def test_embeddings_out_of_reach_stay_bit_identical():
    pairs = random_graph(200, 220)
    x = torch.randn(200, 3)
    prop = LazyPropagation(pairs, x, layer_mean_weights(2))
    before = prop.embedding.clone()
    update = prop.remove_edges(pairs[:, :1])
    changed = (prop.embedding != before).any(dim=1).nonzero().view(-1)
    assert torch.isin(changed, update.nodes).all()
    assert 0 < update.touched_nodes < 60


def test_inputs_stay_as_they_were():
    pairs, x = random_graph(8, 12), torch.randn(8, 2)
    weights = [0.5, 0.5]
    before = copy.deepcopy([pairs, x, weights])
    prop = LazyPropagation(pairs, x, weights)
    prop.remove_edges(pairs[:, :3])
    assert torch.equal(before[0], pairs)
    assert torch.equal(before[1], x)
    assert before[2] == weights
    x.zero_()  # Nor does the caller reach into the propagation.
    prop.remove_edges(pairs[:, 3:4])
    expected = dense(pairs[:, 4:], before[1], weights, False)
    assert torch.allclose(prop.embedding.double(), expected, atol=1e-6)


def test_deleted_edges_leave_no_trace():
    pairs = torch.tensor([[0, 0, 0, 1], [1, 2, 3, 2]])
    prop = LazyPropagation(pairs, torch.randn(4, 2), layer_mean_weights(2))
    prop.remove_nodes(torch.tensor([0]))
    assert prop._col[prop._col >= 0].tolist() == [2, 1]
    assert (prop._sent[:, [0, 3]] == 0).all()


def test_weights():
    assert layer_mean_weights(3) == [0.25] * 4
    weights = personalized_pagerank_weights(2, alpha=0.1, beta=0.5)
    assert weights == pytest.approx([0.1 / 0.4, 0.05 / 0.4, 0.25 / 0.4])
    assert personalized_pagerank_weights(0) == [1.0]
    with pytest.raises(ValueError, match="'num_layers' must be at least 0"):
        layer_mean_weights(-1)
    with pytest.raises(ValueError, match="'alpha' or 'beta' must be positive"):
        personalized_pagerank_weights(2, alpha=0.0, beta=0.0)


def test_bad_arguments():
    pairs, x = torch.tensor([[0, 0, 1], [1, 2, 2]]), torch.randn(4, 2)
    for args, kwargs, message in [
        ((pairs[0], x, [1.0]), {}, r"'edge_index' must have shape \[2, E\]"),
        ((pairs, x[0], [1.0]), {}, r"'x' must have shape \[N, F\]"),
        ((pairs, x, []), {}, "'weights' must hold finite numbers"),
        ((pairs, x, [float('nan')]), {}, "'weights' must hold finite numbers"),
        ((pairs, x, [1.0]), {'r_max': -1.0}, "'r_max' must be a finite number"),
        ((pairs, x, [1.0]), {'num_users': 9}, "'num_users' must be at most"),
        ((pairs, x[:2], [1.0]), {}, r"ids in \[0, 1\] \(got 2\)"),
        ((pairs, x, [1.0]), {'num_users': 2}, r"ids in \[0, 1\] \(got 2\)"),
        ((pairs.flip(0), x, [1.0]), {'num_users': 2}, r'ids in \[0, 1\] \(got 2\)'),
        ((pairs[:, [0, 0]], x, [1.0]), {}, r'every edge once \(got \(0, 1\)'),
        ((torch.ones(2, 1).long(), x, [1.0]), {}, r'\(got 1 with itself\)'),
    ]:
        with pytest.raises(ValueError, match=message):
            LazyPropagation(*args, **kwargs)
    both = torch.cat([pairs, pairs.flip(0)], dim=1)
    with pytest.raises(ValueError, match='every edge once'):
        LazyPropagation(both, x, [1.0])
    with pytest.raises(TypeError, match="'x' must be a floating point tensor"):
        LazyPropagation(pairs, x.long(), [1.0])
    with pytest.raises(TypeError, match="'edge_index' must be an int64 tensor"):
        LazyPropagation(pairs.int(), x, [1.0])


def test_bad_removals():
    pairs = torch.tensor([[0, 0, 1], [0, 1, 1]])
    prop = LazyPropagation(pairs, torch.randn(4, 2), [0.5, 0.5], num_users=2)
    before = prop.embedding.clone()
    for bad, message in [
        (torch.tensor([[0, 1], [1, 0]]), r'1 are not in it \(got \(1, 0\)'),
        (pairs[:, [2, 2]], r'every edge once \(got \(1, 1\) more than once'),
        (torch.tensor([[0], [2]]), r'ids in \[0, 1\] \(got 2\)'),
    ]:
        with pytest.raises(ValueError, match=message):
            prop.remove_edges(bad)
    with pytest.raises(ValueError, match=r"'nodes' must hold ids in \[0, 3\]"):
        prop.remove_nodes(torch.tensor([4]))
    with pytest.raises(ValueError, match=r"'nodes' must have shape \[n\]"):
        prop.remove_nodes(pairs)
    with pytest.raises(TypeError, match="'nodes' must be an int64 tensor"):
        prop.remove_nodes(torch.tensor([True]))
    assert torch.equal(prop.embedding, before)
    prop.remove_edges(pairs[:, :1])
    with pytest.raises(ValueError, match='can be removed only once'):
        prop.remove_edges(pairs[:, :1])
    assert str(prop) == (
        'LazyPropagation(num_nodes=4, num_edges=2, weights=[0.5, 0.5], '
        'self_loops=False, r_max=0.0)'
    )
