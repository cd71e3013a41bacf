import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import LGConv, MessagePassing
from torch_geometric.testing import onlyLinux, withPackage

from torch_geometric_unlearn.nn.conv import LightConv
from torch_geometric_unlearn.ops import SparseOperator


def make_graph(num_source=9, num_target=9):
    gen = torch.Generator().manual_seed(0)
    source = torch.randint(num_source, (25,), generator=gen)
    target = torch.randint(num_target - 1, (25,), generator=gen)  # One stays isolated.
    edge_index = torch.stack([source, target]).unique(dim=1)
    weight = torch.randn(edge_index.size(1), generator=gen)
    return torch.randn(num_source, 4, generator=gen), edge_index, weight


def test_fused_path_equals_message_passing_and_lg_conv():
    x, edge_index, weight = make_graph()
    operator = SparseOperator(edge_index, weight, (9, 9))
    conv = LightConv()
    assert str(conv) == 'LightConv()'
    assert isinstance(conv, MessagePassing)
    assert conv.fuse
    assert len(list(conv.parameters())) == 0
    out = conv(x, operator)
    expected = LGConv(normalize=False)(x, edge_index, weight)
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.allclose(conv(x, edge_index, weight), expected, atol=1e-6)
    sorted_index = EdgeIndex(operator.edge_index, sparse_size=(9, 9), sort_order='col')
    assert torch.allclose(conv(x, sorted_index, operator.edge_weight), out, atol=1e-6)
    conv.fuse = False
    assert torch.allclose(conv(x, operator), expected, atol=1e-6)


def test_without_weights():
    x, edge_index, _ = make_graph()
    expected = LGConv(normalize=False)(x, edge_index)
    assert torch.allclose(LightConv()(x, edge_index), expected)


def test_rectangular():
    x, edge_index, weight = make_graph(num_source=9, num_target=5)
    conv = LightConv()
    out = conv(x, SparseOperator(edge_index, weight, (9, 5)))
    matrix = torch.zeros(5, 9).index_put_((edge_index[1], edge_index[0]), weight)
    assert torch.allclose(out, matrix @ x, atol=1e-6)
    assert torch.allclose(conv(x, edge_index, weight, (9, 5)), out, atol=1e-6)
    assert torch.allclose(conv(x, matrix.to_sparse_csr()), out, atol=1e-6)


def test_gradients_of_both_paths():
    x, edge_index, weight = make_graph()
    x.requires_grad_()
    conv = LightConv()
    out = conv(x, SparseOperator(edge_index, weight, (9, 9)))
    (fused,) = torch.autograd.grad(out.sin().sum(), x)
    out = conv(x, edge_index, weight)
    (plain,) = torch.autograd.grad(out.sin().sum(), x)
    assert torch.allclose(fused, plain, atol=1e-6)


def test_explain_mode():
    x, edge_index, weight = make_graph()
    operator = SparseOperator(edge_index, weight, (9, 9))
    conv = LightConv()
    mask = torch.rand(edge_index.size(1), requires_grad=True)
    set_masks(conv, mask, operator.edge_index, apply_sigmoid=False)
    out = conv(x, operator)
    out.sum().backward()
    assert mask.grad.abs().sum() > 0
    weight = mask.detach() * operator.edge_weight
    masked = SparseOperator(operator.edge_index, weight, (9, 9))
    clear_masks(conv)
    assert torch.allclose(out, conv(x, masked), atol=1e-6)
    assert not torch.allclose(out, conv(x, operator))


@withPackage('torch_sparse')
def test_sparse_tensor():
    from torch_sparse import SparseTensor

    x, edge_index, weight = make_graph(num_source=9, num_target=5)
    adj_t = SparseTensor(
        row=edge_index[1], col=edge_index[0], value=weight, sparse_sizes=(5, 9)
    )
    out = LightConv()(x, SparseOperator(edge_index, weight, (9, 5)))
    assert torch.allclose(LightConv()(x, adj_t), out, atol=1e-6)


@withPackage('torch_scatter')
def test_against_torch_scatter():
    from torch_scatter import scatter

    x, edge_index, weight = make_graph()
    out = LightConv()(x, SparseOperator(edge_index, weight, (9, 9)))
    message = weight.view(-1, 1) * x[edge_index[0]]
    expected = scatter(message, edge_index[1], 0, dim_size=9, reduce='sum')
    assert torch.allclose(out, expected, atol=1e-6)


@onlyLinux
@pytest.mark.parametrize('is_fused', [True, False])
def test_compile(is_fused):
    x, edge_index, weight = make_graph()
    operator = SparseOperator(edge_index, weight, (9, 9))
    conv = LightConv()
    conv.fuse = is_fused
    compiled = torch.compile(conv, fullgraph=True, backend='eager')
    assert torch.allclose(compiled(x, operator), conv(x, operator), atol=1e-6)


@pytest.mark.parametrize('fuse', [True, False])
def test_integers_are_refused(fuse):
    _, edge_index, weight = make_graph()
    conv = LightConv()
    conv.fuse = fuse
    with pytest.raises(TypeError, match="'x' must be a floating point tensor"):
        conv(torch.ones(9, 2).long(), SparseOperator(edge_index, weight, (9, 9)))
