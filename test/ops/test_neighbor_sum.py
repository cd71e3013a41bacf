import pytest
import torch
from torch_geometric.testing import onlyLinux, withCUDA

from torch_geometric_unlearn.ops.neighbor_sum import (
    Neighbors,
    neighbor_dot,
    neighbor_sum,
)

# Number of nodes, neighbours per node, sources, and which of these are drawn.
SHAPES = {
    'plain': (9, 4, 7, 7),
    'one_source': (6, 3, 5, 1),  # Every neighbour is repeated.
    'one_neighbor': (8, 1, 12, 12),
    'no_node': (0, 3, 4, 4),
    'no_neighbor': (5, 0, 4, 4),
    'unused_sources': (3, 2, 40, 3),
    'one_row': (1, 5, 3, 3),
}


def make(name, dtype=torch.float64, device='cpu', channels=3):
    num_nodes, size, num_sources, drawn = SHAPES[name]
    gen = torch.Generator().manual_seed(4)
    index = torch.randint(drawn, (num_nodes, size), generator=gen) + num_sources - drawn
    sizes = (num_sources, channels), (num_nodes, size), (num_nodes, channels)
    x, weight, query = (
        torch.randn(size, dtype=torch.float64, generator=gen)
        .to(device, dtype)
        .requires_grad_()
        for size in sizes
    )
    return Neighbors(index.to(device), num_sources), x, weight, query


def loop_sum(index, x, weight):
    rows = []
    for v in range(index.size(0)):
        row = torch.zeros_like(x[0])
        for c, s in enumerate(index[v].tolist()):
            row = row + weight[v, c] * x[s]
        rows.append(row)
    return torch.stack(rows) if rows else x[:0]


def loop_dot(index, x, query):
    rows = [
        [(query[v] * x[s]).sum() for s in index[v].tolist()]
        for v in range(index.size(0))
    ]
    if index.numel() == 0:
        return x.new_zeros(index.shape)
    return torch.stack([torch.stack(row) for row in rows])


def check(out, expected, inputs, others, atol):
    assert out.shape == expected.shape
    assert torch.allclose(out.double().cpu(), expected, atol=atol)
    gen = torch.Generator().manual_seed(5)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=gen)
    grads = torch.autograd.grad(out, inputs, weight.to(out))
    if expected.requires_grad:
        others = torch.autograd.grad(expected, others, weight, allow_unused=True)
    else:
        others = [None] * len(others)
    for grad, other, x in zip(grads, others, inputs):
        assert grad.dtype == x.dtype
        other = torch.zeros_like(x).double().cpu() if other is None else other
        assert torch.allclose(grad.double().cpu(), other, atol=atol)


@withCUDA
@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_against_loops(device, name, dtype):
    neighbors, x, weight, query = make(name, dtype, device)
    _, x64, weight64, query64 = make(name)
    index = neighbors.index.cpu()
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    expected = loop_sum(index, x64, weight64)
    out = neighbor_sum(x, neighbors, weight)
    check(out, expected, (x, weight), (x64, weight64), atol)
    expected = loop_dot(index, x64, query64)
    out = neighbor_dot(x, neighbors, query)
    check(out, expected, (x, query), (x64, query64), atol)


@withCUDA
@pytest.mark.parametrize('name', ['plain', 'one_source', 'one_neighbor'])
def test_derivatives(device, name):
    neighbors, x, weight, query = make(name, device=device, channels=2)
    for fn, other in ((neighbor_sum, weight), (neighbor_dot, query)):
        inputs = (x, other)
        assert torch.autograd.gradcheck(
            lambda x, y, fn=fn: fn(x, neighbors, y).tanh(), inputs
        )
        assert torch.autograd.gradgradcheck(
            lambda x, y, fn=fn: fn(x, neighbors, y).tanh(), inputs
        )


def test_source_and_query_may_be_the_same_tensor():
    index = torch.tensor([[1, 1], [2, 0], [2, 2]])
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def fn(x):
        neighbors = Neighbors(index, 3)
        return neighbor_sum(x, neighbors, neighbor_dot(x, neighbors, x).softmax(1))

    assert torch.autograd.gradcheck(fn, (x,))
    assert torch.autograd.gradgradcheck(fn, (x,))


def test_gradients_for_one_side_only():
    neighbors, x, weight, query = make('plain')
    for fn, other in ((neighbor_sum, weight), (neighbor_dot, query)):
        expected = torch.autograd.grad(fn(x, neighbors, other).sum(), (x, other))
        (a,) = torch.autograd.grad(fn(x, neighbors, other.detach()).sum(), x)
        (b,) = torch.autograd.grad(fn(x.detach(), neighbors, other).sum(), other)
        assert torch.equal(a, expected[0])
        assert torch.equal(b, expected[1])


@withCUDA
def test_non_contiguous_inputs(device):
    neighbors, x, weight, query = make('plain', device=device)
    for fn, other in ((neighbor_sum, weight), (neighbor_dot, query)):
        expected = fn(x, neighbors, other)
        strided = [y.detach().t().contiguous().t().requires_grad_() for y in (x, other)]
        assert not strided[0].is_contiguous()
        out = fn(strided[0], neighbors, strided[1])
        assert torch.equal(out, expected)
        weight_out = torch.randn(out.shape[::-1], dtype=out.dtype, device=device).t()
        grads = torch.autograd.grad(out, strided, weight_out)
        others = torch.autograd.grad(expected, (x, other), weight_out.contiguous())
        for grad, expected_grad in zip(grads, others):
            assert torch.allclose(grad, expected_grad, atol=1e-12)
    index = torch.stack([neighbors.index, neighbors.index], dim=-1)[..., 0]
    assert not index.is_contiguous()
    strided = Neighbors(index, neighbors.num_sources)
    for a, b in zip(strided.transpose, neighbors.transpose):
        assert torch.equal(a, b)
    expected = neighbor_dot(x, neighbors, query)
    assert torch.equal(neighbor_dot(x, strided, query), expected)


def test_transpose():
    neighbors = Neighbors(torch.tensor([[3, 1], [3, 3], [1, 4]]), 6)
    order, node, offset = neighbors.transpose
    assert order.tolist() == [1, 4, 0, 2, 3, 5]
    assert node.tolist() == [0, 2, 0, 1, 1, 2]
    assert offset.tolist() == [0, 0, 2, 2, 5, 6, 6]
    assert neighbors.transpose is neighbors.transpose  # Sorted once.


def test_without_gradients_nothing_is_sorted():
    neighbors, x, weight, query = make('plain')
    with torch.no_grad():
        a, b = neighbor_sum(x, neighbors, weight), neighbor_dot(x, neighbors, query)
    assert neighbors._transpose is None
    assert torch.equal(a, neighbor_sum(x, neighbors, weight))
    assert torch.equal(b, neighbor_dot(x, neighbors, query))


@pytest.mark.parametrize('name', ['plain', 'no_node'])
def test_custom_operators(name):
    neighbors, x, weight, query = make(name)
    names = torch.ops.torch_geometric_unlearn
    for function, inputs in (
        (names.neighbor_sum, (x, weight)),
        (names.neighbor_dot, (x, query)),
        (names.neighbor_transposed_sum, (query, weight)),
    ):
        args = (*inputs, neighbors.index, neighbors.transpose)
        torch.library.opcheck(function.default, args)


@onlyLinux
def test_compile():
    neighbors, x, weight, query = make('plain')

    def fn(x, weight, query):
        fresh = Neighbors(neighbors.index, neighbors.num_sources)
        score = neighbor_dot(x, fresh, query).softmax(dim=1)
        return neighbor_sum(x, fresh, weight * score)

    torch._dynamo.reset()
    compiled = torch.compile(fn, fullgraph=True, backend='aot_eager')
    out, expected = compiled(x, weight, query), fn(x, weight, query)
    assert torch.allclose(out, expected, atol=1e-12)
    inputs = (x, weight, query)
    for a, b in zip(
        torch.autograd.grad(out.sin().sum(), inputs),
        torch.autograd.grad(expected.sin().sum(), inputs),
    ):
        assert torch.allclose(a, b, atol=1e-12)
