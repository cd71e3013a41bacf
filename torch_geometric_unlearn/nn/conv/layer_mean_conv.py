from __future__ import annotations

from torch import Tensor
from torch_geometric.typing import Adj, OptTensor, Size

from torch_geometric_unlearn.ops import SparseOperator
from torch_geometric_unlearn.ops.spmm import layer_mean
from torch_geometric_unlearn.utils.check import check_int

from .light_conv import LightConv


class LayerMeanConv(LightConv):
    r"""Propagates several times and returns the mean over all layers, the input
    included, as in the `"LightGCN" <https://arxiv.org/abs/2002.02126>`_ paper

    .. math::
        \frac{1}{L + 1} \sum_{l=0}^{L} \mathbf{A}^l \mathbf{X}.

    Given a :class:`~torch_geometric_unlearn.ops.SparseOperator`, it runs
    :meth:`~torch_geometric_unlearn.ops.layer_mean`, which keeps no layer; given
    :obj:`edge_index`, or while an explainer is at work, it passes messages.

    Args:
        num_layers (int): Number of propagations :math:`L`, at least 0.

    Shapes:
        - **input:** node features :math:`(N, H)`, edge indices :math:`(2, E)`, edge
          weights :math:`(E)` *(optional)*
        - **output:** node features :math:`(N, H)`

    Raises:
        ValueError: If :obj:`num_layers` is negative.

    Example:
        >>> from torch_geometric_unlearn.ops.sparse_operator import bipartite_operators
        >>> operator, _ = bipartite_operators(torch.tensor([[0], [0]]), 1, 1)
        >>> LayerMeanConv(num_layers=1)(torch.tensor([[1.], [3.]]), operator)
        tensor([[2.],
                [2.]])
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.num_layers = check_int(num_layers, 'num_layers', 0)

    def forward(
        self,
        x: Tensor,
        edge_index: Adj | SparseOperator,
        edge_weight: OptTensor = None,
        size: Size = None,
    ) -> Tensor:
        fused = isinstance(edge_index, SparseOperator)
        if fused and self.fuse and not self.explain:
            return layer_mean(edge_index, x, self.num_layers)
        out = x
        for _ in range(self.num_layers):
            x = super().forward(x, edge_index, edge_weight, size)
            out = out + x
        return out / (self.num_layers + 1)
