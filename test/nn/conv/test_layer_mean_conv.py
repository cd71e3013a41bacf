import pytest
import torch

from torch_geometric_unlearn.nn.conv import LayerMeanConv
from torch_geometric_unlearn.ops.sparse_operator import bipartite_operators


@pytest.mark.parametrize('num_layers', [0, 1, 3])
def test_fused_equals_message_passing(num_layers):
    torch.manual_seed(0)
    edge_index = torch.tensor([[0, 0, 1, 2, 3], [0, 1, 1, 2, 0]])
    operator, _ = bipartite_operators(edge_index, 5, 4)
    x = torch.randn(9, 3, requires_grad=True)
    conv = LayerMeanConv(num_layers)
    fused = conv(x, operator)
    plain = conv(x, operator.edge_index, operator.edge_weight)
    assert torch.allclose(fused, plain, atol=1e-6)
    weight = torch.randn_like(fused)
    (a,) = torch.autograd.grad(fused, x, weight)
    (b,) = torch.autograd.grad(plain, x, weight)
    assert torch.allclose(a, b, atol=1e-6)
    conv.fuse = False
    assert torch.allclose(conv(x, operator), plain, atol=1e-6)


def test_bad_number_of_layers():
    with pytest.raises(ValueError, match="'num_layers' must be at least 0"):
        LayerMeanConv(-1)
