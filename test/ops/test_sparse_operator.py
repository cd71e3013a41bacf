import pytest
import torch
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.testing import withCUDA

from torch_geometric_unlearn.data import schema
from torch_geometric_unlearn.ops import SparseOperator, spmm
from torch_geometric_unlearn.ops.sparse_operator import (
    bipartite_operators,
    self_loop_operator,
    target_degree_operator,
)


def to_dense(operator):
    r"""The operator as a float64 matrix (target, source), read from its edges."""
    matrix = torch.zeros(operator.size[1], operator.size[0], dtype=torch.float64)
    edges = operator.edge_index.t().tolist()
    for (source, target), value in zip(edges, operator.edge_weight.tolist()):
        matrix[target, source] += value
    return matrix


def test_sparse_operator():
    edge_index = torch.tensor([[3, 0, 2, 0], [1, 1, 0, 0]])
    operator = SparseOperator(edge_index, torch.tensor([1.0, 2.0, 3.0, 4.0]), (4, 2))
    assert str(operator) == (
        'SparseOperator(size=(4, 2), num_entries=4, is_symmetric=False)'
    )
    assert operator.edge_index.tolist() == [[2, 0, 3, 0], [0, 0, 1, 1]]
    assert operator.edge_weight.tolist() == [3, 4, 1, 2]
    assert operator.rowptr.tolist() == [0, 2, 4]
    assert operator.rowptr_t.tolist() == [0, 2, 2, 3, 4]
    assert operator.col_t.tolist() == [1, 0, 0, 1]
    assert operator.value_t.tolist() == [2, 4, 3, 1]
    assert operator.col.dtype == operator.rowptr_t.dtype == torch.int32


@withCUDA
def test_to(device):
    edge_index = torch.tensor([[0, 1, 1], [1, 0, 2]])
    operator = SparseOperator(edge_index, torch.rand(3), (3, 3))
    out = operator.to(device).to(torch.float64)
    assert out.value.device == out.col_t.device == device
    assert out.value.dtype == out.value_t.dtype == torch.float64
    assert out.col.dtype == torch.int32
    assert operator.value.dtype == torch.float32
    assert torch.equal(out.edge_index.cpu(), operator.edge_index)
    both, _ = bipartite_operators(edge_index.to(device), 2, 3)
    assert both.to('cpu').value_t is not None
    assert both.to('cpu').is_symmetric


@pytest.mark.parametrize(
    ('shape', 'num_weights', 'size', 'is_symmetric', 'match'),
    [
        ((3, 2), 2, (4, 4), False, r"'edge_index' must have shape \[2, E\] \(got"),
        ((4,), 4, (4, 4), False, r"'edge_index' must have shape \[2, E\] \(got \[4\]"),
        ((2, 3), 2, (4, 4), False, r"'edge_weight' must have shape \[3\] \(got \[2\]"),
        ((2, 3), 3, (4, 5), True, r'operator must be square \(got size \(4, 5\)\)'),
    ],
)
def test_bad_input(shape, num_weights, size, is_symmetric, match):
    edge_index = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=match):
        SparseOperator(edge_index, torch.ones(num_weights), size, is_symmetric)


OUTSIDE = [([0, 3], [0, 1]), ([0, 1], [0, 4]), ([-1, 0], [0, 0]), ([0, 1], [-9, 0])]


@pytest.mark.parametrize('pairs', OUTSIDE)
@pytest.mark.parametrize('build', range(4))
def test_index_out_of_range(pairs, build):
    edge_index, weight = torch.tensor(pairs), torch.ones(2)
    if build == 3:
        edge_index[1, 1] += edge_index[1, 1] == 1  # Both are of the same kind there.
    match = r"'edge_index' must hold (source|target|user|item) nodes in \[0, [23]\]"
    with pytest.raises(ValueError, match=match):
        [
            lambda: SparseOperator(edge_index, weight, (3, 4)),
            lambda: bipartite_operators(edge_index, 3, 4),
            lambda: self_loop_operator(edge_index, 3, 4),
            lambda: target_degree_operator(edge_index, weight, 3),
        ][build]()


@pytest.mark.parametrize('far', [2**31, 2**40, -(2**40)])
def test_index_far_out_of_range(far):
    edge_index = torch.tensor([[0, far], [0, 1]])
    with pytest.raises(ValueError, match=rf'got {far}\)'):
        SparseOperator(edge_index, torch.ones(2), (2, 2))


def test_wrong_types():
    edge_index, weight = torch.tensor([[0], [1]]), torch.ones(1)
    for bad in (edge_index.int(), edge_index.double(), [[0], [1]]):
        with pytest.raises(TypeError, match="'edge_index' must be an int64 tensor"):
            SparseOperator(bad, weight, (2, 2))
    for bad in (weight.long(), weight > 0, [1.0]):
        with pytest.raises(TypeError, match="'edge_weight' must be a floating point"):
            SparseOperator(edge_index, bad, (2, 2))
        with pytest.raises(TypeError, match="'edge_weight' must be a floating point"):
            target_degree_operator(edge_index, bad, 2)
    with pytest.raises(ValueError, match=r"on the device of 'edge_index', 'cpu' \(got"):
        SparseOperator(edge_index, weight.to('meta'), (2, 2))
    for size, match in (((2.0, 2), 'source nodes'), ((2,), "'size' must be a tuple")):
        with pytest.raises(TypeError, match=match):
            SparseOperator(edge_index, weight, size)
    with pytest.raises(TypeError, match='would be cut to integers'):
        SparseOperator(edge_index, weight, (2, 2)).to(torch.int64)


@pytest.mark.parametrize('kind', ['synthetic', 'isolated', 'single', 'empty'])
def test_bipartite_operators(data, kind):
    sizes = {'synthetic': (100, 60), 'isolated': (120, 80)}
    num_users, num_items = sizes.get(kind, (3, 2))
    edge_index = data[schema.EDGE_TYPE].edge_index
    if kind == 'single':
        edge_index = torch.tensor([[1], [1]])
    if kind == 'empty':
        edge_index = edge_index[:, :0]
    both, item_to_user = bipartite_operators(edge_index, num_users, num_items)

    num_nodes = num_users + num_items
    adj = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    for user, item in edge_index.t().tolist():
        adj[user, num_users + item] = adj[num_users + item, user] = 1
    deg = adj.sum(dim=1)
    inv_sqrt = torch.where(deg > 0, deg.pow(-0.5), 0.0)
    expected = inv_sqrt.view(-1, 1) * adj * inv_sqrt
    assert both.size == (num_nodes, num_nodes)
    assert both.is_symmetric
    assert torch.allclose(to_dense(both), expected, atol=1e-7)
    assert item_to_user.size == (num_items, num_users)
    block = expected[:num_users, num_users:]
    assert torch.allclose(to_dense(item_to_user), block, atol=1e-7)

    shifted = edge_index + torch.tensor([[0], [num_users]])
    undirected = torch.cat([shifted, shifted.flip(0)], dim=1)
    index, weight = gcn_norm(undirected, None, num_nodes, add_self_loops=False)
    pyg = torch.zeros(num_nodes, num_nodes).index_put_((index[1], index[0]), weight)
    assert torch.allclose(to_dense(both).float(), pyg, atol=1e-7)
    assert item_to_user.value.isfinite().all()


def test_a_block_shares_its_values(data):
    both, item_to_user = bipartite_operators(data[schema.EDGE_TYPE].edge_index, 100, 60)
    num_pairs = item_to_user.num_entries
    assert item_to_user.value.data_ptr() == both.value.data_ptr()
    assert item_to_user.value_t.data_ptr() == both.value[num_pairs:].data_ptr()
    entries = item_to_user.edge_index.flip(0).unique(dim=1)
    assert torch.equal(entries, data[schema.EDGE_TYPE].edge_index.unique(dim=1))
    copy = item_to_user.to(torch.float64)
    assert torch.equal(to_dense(copy), to_dense(item_to_user))


@pytest.mark.parametrize('is_square_block', [False, True])
def test_symmetric_gradient(data, is_square_block):
    both, item_to_user = bipartite_operators(data[schema.EDGE_TYPE].edge_index, 100, 60)
    operator = item_to_user if is_square_block else both
    x = torch.randn(operator.size[0], 3, requires_grad=True)
    weight = torch.randn(operator.size[1], 3)
    spmm(operator, x).backward(weight)
    expected = to_dense(operator).t() @ weight.double()
    assert torch.allclose(x.grad.double(), expected, atol=1e-6)


def test_target_degree_operator():
    gen = torch.Generator().manual_seed(0)
    edge_index = torch.randint(12, (2, 40), generator=gen).unique(dim=1)
    edge_weight = torch.rand(edge_index.size(1), generator=gen)
    num_nodes = 14  # The last two have no edge.
    operator = target_degree_operator(edge_index, edge_weight, num_nodes)
    index, weight = gcn_norm(edge_index, edge_weight, num_nodes, add_self_loops=False)
    pyg = torch.zeros(num_nodes, num_nodes).index_put_((index[1], index[0]), weight)
    dense = to_dense(operator)
    assert torch.allclose(dense.float(), pyg, atol=1e-6)

    matrix = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    matrix[edge_index[1], edge_index[0]] = edge_weight.double()
    deg = matrix.sum(dim=1)
    inv_sqrt = torch.where(deg > 0, deg.pow(-0.5), 0.0)
    assert torch.allclose(dense, inv_sqrt.view(-1, 1) * matrix * inv_sqrt, atol=1e-6)
    assert not torch.allclose(dense, dense.t())


def test_target_degree_operator_without_positive_degree():
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    weight = torch.tensor([0.0, -1.0, 4.0])
    operator = target_degree_operator(edge_index, weight, 3)
    assert operator.edge_weight.tolist() == [0, 0, 0]


@withCUDA
@pytest.mark.parametrize('kind', ['synthetic', 'isolated', 'single', 'empty'])
def test_self_loop_operator(data, kind, device):
    sizes = {'synthetic': (100, 60), 'isolated': (120, 80)}
    num_users, num_items = sizes.get(kind, (3, 2))
    edge_index = data[schema.EDGE_TYPE].edge_index
    if kind == 'single':
        edge_index = torch.tensor([[1], [1]])
    if kind == 'empty':
        edge_index = edge_index[:, :0]
    operator = self_loop_operator(edge_index.to(device), num_users, num_items)
    assert operator.value.device == device
    operator = operator.to('cpu')

    num_nodes = num_users + num_items
    assert operator.size == (num_nodes, num_nodes)
    assert operator.is_symmetric
    assert operator.num_entries == 2 * edge_index.size(1) + num_nodes
    shifted = edge_index + torch.tensor([[0], [num_users]])
    undirected = torch.cat([shifted, shifted.flip(0)], dim=1)
    index, weight = gcn_norm(undirected, None, num_nodes, add_self_loops=True)
    pyg = torch.zeros(num_nodes, num_nodes).index_put_((index[1], index[0]), weight)
    assert torch.allclose(to_dense(operator).float(), pyg, atol=1e-7)

    adj = torch.eye(num_nodes, dtype=torch.float64)
    for user, item in edge_index.t().tolist():
        adj[user, num_users + item] = adj[num_users + item, user] = 1
    inv_sqrt = adj.sum(dim=1).pow(-0.5)
    expected = inv_sqrt.view(-1, 1) * adj * inv_sqrt
    assert torch.allclose(to_dense(operator), expected, atol=1e-7)
    if kind == 'single':  # A self loop counts: degree 2 for both ends, 1 elsewhere.
        assert to_dense(operator).diag().tolist() == pytest.approx([1, 0.5, 1, 1, 0.5])


def make_transposable(kind):
    gen = torch.Generator().manual_seed(3)
    if kind == 'symmetric':
        return self_loop_operator(torch.tensor([[0, 0, 2, 3], [1, 2, 0, 2]]), 5, 3)
    if kind == 'empty':
        return SparseOperator(torch.empty(2, 0).long(), torch.empty(0), (4, 3))
    size = {'square': (9, 9), 'wide': (30, 4), 'tall': (4, 30)}[kind]
    code = torch.randperm(size[0] * size[1], generator=gen)[:40]
    edge_index = torch.stack([code // size[1], code % size[1]])
    return SparseOperator(edge_index, torch.rand(40, generator=gen), size)


@pytest.mark.parametrize('kind', ['symmetric', 'square', 'wide', 'tall', 'empty'])
def test_transpose_order(kind):
    operator = make_transposable(kind)
    order = operator.transpose_order
    assert order.dtype == torch.int64
    assert order.sort()[0].tolist() == list(range(operator.num_entries))
    assert torch.equal(operator.value[order], operator.value_t)
    assert operator.transpose_order is order  # Sorted once.

    # New values, no longer symmetric, must land at the same entries.
    value = torch.rand(operator.num_entries)
    source, target = operator.edge_index
    dense = torch.zeros(operator.size[::-1]).index_put_((target, source), value)
    row = torch.arange(operator.size[0]).repeat_interleave(
        operator.rowptr_t.diff().long()
    )
    entries = row, operator.col_t.long()
    dense_t = torch.zeros(operator.size).index_put_(entries, value[order])
    assert torch.equal(dense_t, dense.t())


def test_transpose_order_of_a_copy():
    operator = make_transposable('square')
    order = operator.transpose_order
    copy = operator.to(torch.float64)
    assert torch.equal(copy.transpose_order, order)
