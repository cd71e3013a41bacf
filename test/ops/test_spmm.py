import os
from functools import partial

import pytest
import torch
from torch_geometric.testing import onlyLinux, withCUDA, withPackage

from torch_geometric_unlearn.ops import (
    SparseOperator,
    backend,
    backends,
    spmm,
    use_backend,
)
from torch_geometric_unlearn.ops._reference import dense_spmm
from torch_geometric_unlearn.ops.sparse_operator import self_loop_operator
from torch_geometric_unlearn.ops.spmm import diffuse, layer_mean

# Compiled, as it is where there is a GPU, Triton's kernel takes nothing on the CPU.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
ON_CPU = [kernel for kernel in backends() if kernel != 'triton' or INTERPRETED]


def skip_if_compiled(kernel, device):
    if torch.device(device).type == 'cpu' and kernel not in ON_CPU:
        pytest.skip('a compiled kernel runs on CUDA only')


def make_edges(num_edges, num_source, num_target, seed=0):
    gen = torch.Generator().manual_seed(seed)
    source = torch.randint(num_source, (num_edges,), generator=gen)
    target = torch.randint(num_target, (num_edges,), generator=gen)
    return torch.stack([source, target])


def skewed_edges():
    hub = torch.stack([torch.arange(400), torch.zeros(400, dtype=torch.long)])
    return torch.cat([hub, make_edges(50, 400, 300)], dim=1)


# Edges with repetitions, number of source nodes, number of target nodes.
GRAPHS = {
    'empty': (make_edges(0, 4, 4), 4, 4),
    'no_nodes': (make_edges(0, 1, 1), 0, 0),
    'single': (torch.tensor([[2], [1]]), 4, 4),
    'skewed': (skewed_edges(), 400, 300),
    'isolated': (make_edges(30, 5, 5), 50, 50),
    'wide': (make_edges(200, 60, 7), 60, 7),
    'tall': (make_edges(200, 7, 60), 7, 60),
    'one_target': (make_edges(20, 30, 1), 30, 1),
}


def make_operator(name, dtype=torch.float32):
    edge_index, num_source, num_target = GRAPHS[name]
    gen = torch.Generator().manual_seed(1)
    weight = torch.randn(edge_index.size(1), generator=gen, dtype=torch.float64)
    return SparseOperator(edge_index, weight.to(dtype), (num_source, num_target))


def dense_matrix(name):
    r"""The matrix from the raw edges, one entry after the other."""
    edge_index, num_source, num_target = GRAPHS[name]
    gen = torch.Generator().manual_seed(1)
    weight = torch.randn(edge_index.size(1), generator=gen, dtype=torch.float64)
    matrix = torch.zeros(num_target, num_source, dtype=torch.float64)
    for (source, target), value in zip(edge_index.t().tolist(), weight.tolist()):
        matrix[target, source] += value
    return matrix


@withCUDA
@pytest.mark.parametrize('name', GRAPHS)
@pytest.mark.parametrize('kernel', backends())
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_kernels_against_dense(device, name, kernel, dtype):
    skip_if_compiled(kernel, device)
    atol = 2e-5 if dtype == torch.float32 else 1e-12
    matrix = dense_matrix(name)
    operator = make_operator(name, dtype).to(device)
    gen = torch.Generator().manual_seed(2)
    x64 = torch.randn(operator.size[0], 6, dtype=torch.float64, generator=gen)
    x64.requires_grad_()
    weight = torch.randn(operator.size[1], 6, dtype=torch.float64, generator=gen)
    (matrix @ x64).mul(weight).sum().backward()

    x = x64.detach().to(device, dtype).requires_grad_()
    with use_backend(kernel):
        out = spmm(operator, x)
        (out * weight.to(device, dtype)).sum().backward()
    assert out.dtype == dtype
    assert torch.allclose(out.double().cpu(), matrix @ x64, atol=atol)
    assert torch.allclose(x.grad.double().cpu(), x64.grad, atol=atol)
    reference = dense_spmm(operator, x).cpu()
    assert torch.allclose(reference, matrix @ x64, atol=atol)


@withCUDA
@onlyLinux
@pytest.mark.parametrize('kernel', backends())
@pytest.mark.parametrize('is_symmetric', [True, False])
def test_compiles_without_graph_breaks(device, kernel, is_symmetric):
    skip_if_compiled(kernel, device)
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    weight = torch.tensor([0.5, 0.5, 2.0, 2.0])
    operator = SparseOperator(edge_index, weight, (3, 3), is_symmetric).to(device)
    x = torch.randn(3, 2, device=device, requires_grad=True)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend='aot_eager')
    def fn(x):
        return spmm(operator, x).tanh()

    with use_backend(kernel):
        out = fn(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
        expected = spmm(operator, x).tanh()
        (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(out, expected)
    assert torch.allclose(grad, expected_grad)


def test_custom_operators():
    names = torch.ops.torch_geometric_unlearn
    for name, function in (('wide', names.spmm), ('isolated', names.propagate)):
        operator = make_operator(name, torch.float64)
        size = operator.size[0]
        x = torch.randn(size, 2, dtype=torch.float64, requires_grad=True)
        csr = [operator.rowptr, operator.col, operator.value]
        csr_t = [operator.rowptr_t, operator.col_t, operator.value_t]
        layers = [2, 0.5] if name == 'isolated' else []
        torch.library.opcheck(function.default, (x, *layers, csr, csr_t))


@pytest.mark.parametrize('kernel', ON_CPU)
@pytest.mark.parametrize('num_layers', [0, 1, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_layer_mean_against_dense(kernel, num_layers, dtype):
    operator = make_operator('isolated', dtype)
    matrix = dense_matrix('isolated')
    x64 = torch.randn(operator.size[0], 3, dtype=torch.float64, requires_grad=True)
    x = x64.detach().to(dtype).requires_grad_()
    expected, layer = x64, x64
    for _ in range(num_layers):
        layer = matrix @ layer
        expected = expected + layer
    expected = expected / (num_layers + 1)
    weight = torch.randn_like(x64)
    with use_backend(kernel):
        out = layer_mean(operator, x, num_layers)
        out.backward(weight.to(dtype))
    expected.backward(weight)
    atol = 1e-10 if dtype == torch.float64 else 1e-4
    assert torch.allclose(out.double(), expected, atol=atol)
    assert torch.allclose(x.grad.double(), x64.grad, atol=atol)


def test_layer_mean_is_twice_differentiable():
    operator = SparseOperator(
        torch.tensor([[0, 1, 1], [1, 0, 2]]),
        torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64),
        (3, 3),
    )
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x: layer_mean(operator, x, 2).tanh(), (x,)
    )


def test_layer_mean_errors():
    operator = make_operator('wide')
    with pytest.raises(ValueError, match="'operator' must be square"):
        layer_mean(operator, torch.randn(60, 2), 1)
    with pytest.raises(ValueError, match="'num_layers' must be at least 0"):
        layer_mean(make_operator('isolated'), torch.randn(3, 2), -1)


@pytest.mark.parametrize('kernel', ON_CPU)
def test_derivatives(kernel):
    edge_index = torch.tensor([[0, 0, 1, 2, 2], [1, 2, 0, 1, 1]])
    weight = torch.tensor([0.5, -1.0, 2.0, 0.3, 0.1], dtype=torch.float64)
    operator = SparseOperator(edge_index, weight, (3, 4))
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def fn(x):
        with use_backend(kernel):
            return spmm(operator, x).tanh()

    with use_backend(kernel):
        assert torch.autograd.gradcheck(fn, (x,))
        assert torch.autograd.gradgradcheck(fn, (x,))


@pytest.mark.parametrize('kernel', ON_CPU)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_inputs_accumulate_in_float32(kernel, dtype):
    # A sum of 400 ones: bfloat16 could count no further than 256.
    source = torch.arange(400)
    edge_index = torch.stack([source, torch.zeros_like(source)])
    operator = SparseOperator(edge_index, torch.ones(400), (400, 1))
    x = torch.ones(400, 1, dtype=dtype, requires_grad=True)
    with use_backend(kernel):
        out = spmm(operator, x)
    assert out.dtype == dtype
    assert out.item() == 400
    out.backward(torch.full_like(out, 3))
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, torch.full_like(x, 3))


@pytest.mark.parametrize('kernel', ON_CPU)
def test_non_contiguous_input(kernel):
    operator = make_operator('wide')
    x = torch.randn(3, 60).t().requires_grad_()
    with use_backend(kernel):
        out = spmm(operator, x)
        (grad,) = torch.autograd.grad(out, x, torch.randn(3, 7).t())
    expected = dense_matrix('wide') @ x.double()
    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert grad.shape == x.shape


@pytest.mark.parametrize('shape', [(59, 4), (7, 4), (60,), (1, 60, 4)])
def test_wrong_shapes(shape):
    match = r"'x' must have shape \[60, H\] for SparseOperator\(size=\(60, 7\)"
    with pytest.raises(ValueError, match=match):
        spmm(make_operator('wide'), torch.randn(shape))


@pytest.mark.parametrize('kernel', ON_CPU)
@pytest.mark.parametrize('dtype', [torch.int64, torch.bool, torch.complex64])
def test_wrong_types(kernel, dtype):
    operator = make_operator('isolated')
    x = torch.ones(50, 2, dtype=dtype)
    with use_backend(kernel):
        for function in (spmm, partial(layer_mean, num_layers=1)):
            with pytest.raises(TypeError, match="'x' must be a floating point tensor"):
                function(operator, x)


def test_use_backend():
    assert backend() == 'embedding_bag'
    assert backend('cuda') == 'torch_csr'
    with use_backend('gather_scatter'):
        assert backend() == 'gather_scatter'
        with use_backend('torch_csr'):
            assert backend() == 'torch_csr'
        assert backend('cuda') == 'gather_scatter'
    with pytest.raises(RuntimeError, match='inside'), use_backend('torch_csr'):
        raise RuntimeError('inside')
    assert backend() == 'embedding_bag'


def test_unknown_backend():
    match = r"'name' must be one of \('embedding_bag', .*\) \(got 'cusparse'\)"
    with pytest.raises(ValueError, match=match), use_backend('cusparse'):
        pass


@pytest.mark.usefixtures('without_extensions')
@pytest.mark.parametrize('name', ['torch_sparse', 'torch_scatter'])
def test_missing_package(name):
    assert name not in backends()
    match = 'pip install --no-build-isolation torch-scatter torch-sparse'
    with pytest.raises(ImportError, match=match), use_backend(name):
        pass
    assert backend() == 'embedding_bag'


@pytest.mark.usefixtures('without_extensions')
def test_missing_triton():
    assert backend('cuda') == 'torch_csr'
    with pytest.raises(ImportError, match="'triton' and a CUDA device"), use_backend(
        'triton'
    ):
        pass


@withPackage('torch_sparse')
def test_torch_sparse_is_listed():
    assert 'torch_sparse' in backends()


def test_wider_input_keeps_its_precision():
    operator = make_operator('wide', torch.float32)
    x = torch.randn(operator.size[0], 3, dtype=torch.float64)
    out = spmm(operator, x)
    assert out.dtype == torch.float64
    assert torch.allclose(out, dense_spmm(operator, x), atol=1e-12)


def diffuse_dense(matrix, x, num_layers, alpha, beta):
    out = x
    for _ in range(num_layers):
        out = beta * (matrix @ out) + alpha * x
    return out


def make_square(is_symmetric, dtype=torch.float32):
    r"""An operator with unique entries, self loops among them, and its matrix."""
    if is_symmetric:
        operator = self_loop_operator(make_edges(40, 12, 9).unique(dim=1), 13, 10)
    else:
        edge_index = make_edges(90, 20, 20, seed=5).unique(dim=1)
        gen = torch.Generator().manual_seed(6)
        weight = torch.rand(edge_index.size(1), generator=gen) + 0.1
        operator = SparseOperator(edge_index, weight, (20, 20))
    operator = operator.to(dtype)
    assert operator.is_symmetric == is_symmetric
    matrix = torch.zeros(operator.size[::-1], dtype=torch.float64)
    edges = operator.edge_index.t().tolist()
    for (source, target), value in zip(edges, operator.edge_weight.tolist()):
        matrix[target, source] = value
    return operator, matrix


@withCUDA
@pytest.mark.parametrize('kernel', backends())
@pytest.mark.parametrize('is_symmetric', [True, False])
@pytest.mark.parametrize('num_layers', range(5))
def test_diffuse_against_dense(device, kernel, is_symmetric, num_layers):
    skip_if_compiled(kernel, device)
    alpha, beta = 0.3, 0.8
    for dtype, atol in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        operator, matrix = make_square(is_symmetric, dtype)
        operator = operator.to(device)
        gen = torch.Generator().manual_seed(2)
        x64 = torch.randn(operator.size[0], 4, dtype=torch.float64, generator=gen)
        weight = torch.randn(x64.shape, dtype=torch.float64, generator=gen)
        x64.requires_grad_()
        expected = diffuse_dense(matrix, x64, num_layers, alpha, beta)
        (expected_grad,) = torch.autograd.grad(expected, x64, weight)
        x = x64.detach().to(device, dtype).requires_grad_()
        with use_backend(kernel):
            out = diffuse(operator, x, num_layers, alpha, beta)
            (grad,) = torch.autograd.grad(out, x, weight.to(device, dtype))
        assert out.dtype == grad.dtype == dtype
        scale = float(expected.detach().abs().max())
        error = (out.double().cpu() - expected).abs().max()
        assert error < atol * scale
        assert (grad.double().cpu() - expected_grad).abs().max() < atol * scale


@pytest.mark.parametrize('kernel', ON_CPU)
@pytest.mark.parametrize(('num_layers', 'dropout'), [(0, 0.0), (2, 0.4)])
def test_diffuse_derivatives(kernel, num_layers, dropout):
    edge_index = torch.tensor([[0, 1, 1, 2, 2], [1, 0, 2, 0, 2]])
    weight = torch.tensor([0.5, -1.0, 2.0, 0.3, 0.7], dtype=torch.float64)
    operator = SparseOperator(edge_index, weight, (3, 3))
    x = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)

    def fn(x):
        torch.manual_seed(11)  # One mask for all evaluations.
        with use_backend(kernel):
            return diffuse(operator, x, num_layers, 0.2, 0.9, dropout).tanh()

    with use_backend(kernel):
        assert torch.autograd.gradcheck(fn, (x,))
        assert torch.autograd.gradgradcheck(fn, (x,))


def drawn_matrix(operator, dropout, seed):
    r"""The matrix after dropout, by a single layer without restart."""
    torch.manual_seed(seed)
    eye = torch.eye(operator.size[0], dtype=torch.float64)
    return diffuse(operator, eye, 1, 0.0, 1.0, dropout)


@pytest.mark.parametrize('kernel', ON_CPU)
@pytest.mark.parametrize('is_symmetric', [True, False])
def test_dropout_is_one_mask_for_all_layers_and_both_passes(kernel, is_symmetric):
    operator, _ = make_square(is_symmetric, torch.float64)
    matrix = drawn_matrix(operator, 0.5, seed=8)
    assert not torch.allclose(matrix, matrix.t())
    x = torch.randn(operator.size[0], 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    expected = diffuse_dense(matrix, x, 3, 0.1, 0.9)
    torch.manual_seed(8)
    with use_backend(kernel):
        out = diffuse(operator, x, 3, 0.1, 0.9, dropout=0.5)
        (grad,) = torch.autograd.grad(out, x, weight)
    (expected_grad,) = torch.autograd.grad(expected, x, weight)
    assert torch.allclose(out, expected, atol=1e-10)
    assert torch.allclose(grad, expected_grad, atol=1e-10)


def test_distribution_of_dropped_entries():
    p, num_draws = 0.3, 400
    operator, matrix = make_square(True, torch.float64)
    stored = matrix != 0
    drawn = torch.stack([drawn_matrix(operator, p, seed) for seed in range(num_draws)])
    kept = drawn != 0
    assert not kept[:, ~stored].any()
    # Survivors are scaled, nothing is normalised again.
    expected = (matrix / (1 - p)).expand_as(drawn)
    assert torch.allclose(drawn[kept], expected[kept], rtol=1e-6)
    num = num_draws * int(stored.sum())
    dropped = num - int(kept.sum())
    assert abs(dropped - num * p) < 5 * (num * p * (1 - p)) ** 0.5
    bound = 5 * (p / (1 - p) / num_draws) ** 0.5
    assert (drawn.mean(dim=0) - matrix).abs().max() < bound * matrix.max()
    # Both directions of an edge are drawn on their own, self loops like all others.
    upper = stored.triu(1)
    forth, back = kept[:, upper], kept.transpose(1, 2)[:, upper]
    num = forth.numel()
    expected = 2 * p * (1 - p) * num
    assert abs(int((forth != back).sum()) - expected) < 5 * expected**0.5
    loops = kept.diagonal(dim1=1, dim2=2).double()
    assert abs(loops.mean() - (1 - p)) < 5 * (p * (1 - p) / loops.numel()) ** 0.5


def test_diffuse_draws_from_the_global_generator():
    operator, _ = make_square(False, torch.float64)
    first, second, other = (drawn_matrix(operator, 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    diffuse(operator, torch.ones(20, 1), 2, 0.1, 0.9)
    assert torch.equal(torch.get_rng_state(), state)
    value = operator.value.clone()
    drawn_matrix(operator, 0.5, 3)
    assert torch.equal(operator.value, value)  # The operator itself stays.


def test_diffuse_result_is_no_view():
    operator, _ = make_square(False)
    x = torch.randn(20, 2)
    out = diffuse(operator, x, 0, 0.1, 0.9)
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


def test_diffuse_keeps_the_type_of_the_input():
    operator, matrix = make_square(False)
    x = torch.randn(20, 3, dtype=torch.float64)
    out = diffuse(operator, x, 2, 0.1, 0.9)
    assert out.dtype == torch.float64
    assert torch.allclose(out, diffuse_dense(matrix, x, 2, 0.1, 0.9), rtol=1e-6)
    assert diffuse(operator, x.bfloat16(), 2, 0.1, 0.9).dtype == torch.bfloat16


@onlyLinux
@pytest.mark.parametrize('kernel', ON_CPU)
@pytest.mark.parametrize('is_symmetric', [True, False])
def test_diffuse_compiles_without_graph_breaks(kernel, is_symmetric):
    operator, _ = make_square(is_symmetric)
    x = torch.randn(operator.size[0], 2, requires_grad=True)

    def fn(x):
        return diffuse(operator, x, 2, 0.1, 0.9, dropout=0.5).tanh()

    torch._dynamo.reset()
    with use_backend(kernel):
        torch.manual_seed(0)
        out = torch.compile(fn, fullgraph=True, backend='aot_eager')(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
        torch.manual_seed(0)
        expected = fn(x)
        (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(out, expected)
    assert torch.allclose(grad, expected_grad)


def test_diffuse_errors():
    with pytest.raises(ValueError, match="'operator' must be square"):
        diffuse(make_operator('wide'), torch.randn(60, 2), 1, 0.1, 0.9)
    operator, _ = make_square(True)
    with pytest.raises(ValueError, match="'num_layers' must be at least 0"):
        diffuse(operator, torch.randn(23, 2), -1, 0.1, 0.9)
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"'dropout' must be a finite number in"):
            diffuse(operator, torch.randn(23, 2), 1, 0.1, 0.9, dropout)
    with pytest.raises(ValueError, match=r"'x' must have shape \[23, H\]"):
        diffuse(operator, torch.randn(22, 2), 1, 0.1, 0.9)
