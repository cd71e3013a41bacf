import pytest
import torch
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import APPNP
from torch_geometric.testing import onlyLinux, withCUDA

from torch_geometric_unlearn.nn.conv import (
    LayerMeanConv,
    LightConv,
    MarkovDiffusionConv,
)
from torch_geometric_unlearn.ops import SparseOperator
from torch_geometric_unlearn.ops.sparse_operator import self_loop_operator


def make_graph():
    gen = torch.Generator().manual_seed(0)
    pairs = torch.stack([
        torch.randint(6, (20,), generator=gen), torch.randint(4, (20,), generator=gen)
    ]).unique(dim=1)  # User 6 and item 4 stay isolated.
    operator = self_loop_operator(pairs, 7, 5)
    x = torch.randn(12, 3, generator=gen, requires_grad=True)
    return x, operator, pairs


def dense(operator):
    source, target = operator.edge_index
    out = torch.zeros(operator.size, dtype=torch.float64)
    return out.index_put_((target, source), operator.edge_weight.double())


def grad_of(out, x):
    return torch.autograd.grad(out.sin().sum(), x, retain_graph=True)[0]


@withCUDA
@pytest.mark.parametrize('num_layers', range(5))
@pytest.mark.parametrize(('alpha', 'beta'), [(0.1, 0.9), (0.4, 0.3), (1.0, 0.0)])
def test_against_dense_formula(device, num_layers, alpha, beta):
    x, operator, _ = make_graph()
    conv = MarkovDiffusionConv(num_layers, alpha, beta, dropout=0.5).eval()
    x64 = x.detach().double().requires_grad_()
    expected, gamma = x64, beta**num_layers
    for i in range(num_layers):
        expected = beta * (dense(operator) @ expected) + alpha * x64
        gamma += alpha * beta**i
    expected = expected / gamma
    assert conv.gamma == pytest.approx(gamma)
    x = x.detach().to(device).requires_grad_()
    out = conv(x, operator.to(device))
    assert torch.allclose(out.double().cpu(), expected, atol=1e-5)
    grad = grad_of(out, x).double().cpu()
    assert torch.allclose(grad, grad_of(expected, x64), atol=1e-5)


def test_constant_input_shows_gamma():
    r"""On a matrix whose rows sum to one, a constant is a fixed point."""
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    operator = SparseOperator(edge_index, torch.ones(3), (3, 3))
    for num_layers in range(4):
        conv = MarkovDiffusionConv(num_layers, alpha=0.4, beta=0.3)
        out = conv(torch.full((3, 1), 7.0), operator)
        assert torch.allclose(out, torch.full((3, 1), 7.0))
    assert MarkovDiffusionConv(3, 0.1, 0.9).gamma == pytest.approx(1)
    assert MarkovDiffusionConv(2, 0.5, 0.5).gamma == pytest.approx(1)
    assert MarkovDiffusionConv(2, 0.4, 0.3).gamma == pytest.approx(0.09 + 0.4 * 1.3)


def test_paths_agree():
    x, operator, _ = make_graph()
    assert isinstance(MarkovDiffusionConv(2), LightConv)
    for num_layers in (0, 1, 3):
        conv = MarkovDiffusionConv(num_layers, 0.2, 0.7)
        fused = conv(x, operator)
        plain = conv(x, operator.edge_index, operator.edge_weight)
        conv.fuse = False
        for out in (plain, conv(x, operator)):
            assert torch.allclose(out, fused, atol=1e-6)
            assert torch.allclose(grad_of(out, x), grad_of(fused, x), atol=1e-6)


def test_paths_agree_with_dropout():
    x, operator, _ = make_graph()
    conv = MarkovDiffusionConv(3, 0.2, 0.7, dropout=0.5)

    def run(*args):
        torch.manual_seed(5)  # Both paths draw one number per edge, in one order.
        out = conv(x, *args)
        return out, grad_of(out, x)

    fused = run(operator)
    conv.fuse = False
    for result in (
        run(operator),
        run(operator.edge_index, operator.edge_weight),
    ):
        for a, b in zip(result, fused):
            assert torch.allclose(a, b, atol=1e-6)
    conv.eval()
    assert not torch.allclose(run(operator)[0], fused[0])


@pytest.mark.parametrize('is_fused', [True, False])
def test_dropout_in_training_only(is_fused):
    x, operator, _ = make_graph()
    conv = MarkovDiffusionConv(2, dropout=0.5)
    conv.fuse = is_fused
    outs = [conv(x, operator) for _ in range(2)]
    assert not torch.allclose(*outs)
    conv.eval()
    outs = [conv(x, operator) for _ in range(2)]
    assert torch.equal(*outs)
    plain = MarkovDiffusionConv(2)(x, operator)
    assert torch.allclose(outs[0], plain, atol=1e-6)
    # One hop is linear in the mask, so its mean is the result without dropout.
    conv = MarkovDiffusionConv(1, dropout=0.5)
    conv.fuse = is_fused
    mean = sum(conv(x.detach(), operator) for _ in range(500)) / 500
    expected = MarkovDiffusionConv(1)(x, operator)
    assert torch.allclose(mean, expected, atol=0.2)
    assert not torch.allclose(mean, 0.5 * expected, atol=0.2)


def test_dropout_without_weights():
    edge_index = torch.tensor([[0, 1, 2, 3] * 50, [0] * 200])
    conv = MarkovDiffusionConv(1, alpha=0.0, beta=1.0, dropout=0.25)
    torch.manual_seed(0)
    out = conv(torch.ones(4, 1), edge_index)
    kept = float(out[0]) * 0.75
    assert kept == pytest.approx(round(kept), abs=1e-3)
    assert 120 < kept < 180


@pytest.mark.parametrize('num_layers', [1, 3])
@pytest.mark.parametrize('alpha', [0.1, 0.5])
def test_equals_appnp(num_layers, alpha):
    x, operator, pairs = make_graph()
    shifted = pairs + torch.tensor([[0], [7]])
    undirected = torch.cat([shifted, shifted.flip(0)], dim=1)
    expected = APPNP(num_layers, alpha)(x, undirected)
    out = MarkovDiffusionConv(num_layers, alpha, 1 - alpha)(x, operator)
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.allclose(grad_of(out, x), grad_of(expected, x), atol=1e-6)


def test_no_layer_returns_the_input():
    x, operator, _ = make_graph()
    conv = MarkovDiffusionConv(0, 0.1, 0.5, dropout=0.5)
    assert torch.equal(conv(x, operator), x)


@pytest.mark.parametrize('cls', [MarkovDiffusionConv, LayerMeanConv])
def test_explain_mode(cls):
    x, operator, _ = make_graph()
    LightConv()  # The parent class may have been at work before.
    conv = cls(2)
    expected = conv(x, operator)
    mask = torch.ones(operator.num_entries, requires_grad=True)
    set_masks(conv, mask, operator.edge_index, apply_sigmoid=False)
    out = conv(x, operator)
    (grad,) = torch.autograd.grad(out.square().sum(), mask)
    clear_masks(conv)
    assert torch.allclose(out, expected, atol=1e-6)
    assert grad.abs().sum() > 0
    assert torch.allclose(conv(x, operator), expected)


def test_sparse_matrix():
    x, operator, _ = make_graph()
    matrix = dense(operator).float().to_sparse_csr()
    conv = MarkovDiffusionConv(2, dropout=0.5).eval()
    assert torch.allclose(conv(x, matrix), conv(x, operator), atol=1e-6)
    with pytest.raises(ValueError, match=r"'edge_index' must list edges .* \(got Tens"):
        conv.train()(x, matrix)


@onlyLinux
@pytest.mark.parametrize('training', [True, False])
def test_compile(training):
    x, operator, _ = make_graph()
    conv = MarkovDiffusionConv(2, dropout=0.5).train(training)
    torch._dynamo.reset()
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    torch.manual_seed(0)
    out = compiled(x, operator)
    torch.manual_seed(0)
    expected = conv(x, operator)
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.allclose(grad_of(out, x), grad_of(expected, x), atol=1e-6)


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        ((-1,), "'num_layers' must be at least 0"),
        ((1, -0.1), "'alpha' must be a finite number"),
        ((1, 0.1, float('inf')), "'beta' must be a finite number"),
        ((1, 0.1, 0.9, 1.0), "'dropout' must be a finite number"),
        ((2, 0.0, 0.0), "'alpha' and 'beta' must not both be 0"),
    ],
)
def test_bad_arguments(args, match):
    with pytest.raises(ValueError, match=match):
        MarkovDiffusionConv(*args)
