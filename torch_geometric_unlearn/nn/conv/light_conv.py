from __future__ import annotations

from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptTensor, Size
from torch_geometric.utils import spmm as pyg_spmm

from torch_geometric_unlearn.ops import SparseOperator, spmm
from torch_geometric_unlearn.ops.spmm import check_floating


class LightConv(MessagePassing):
    r"""The parameter-free weighted sum over neighbours, the propagation step of the
    `"LightGCN" <https://arxiv.org/abs/2002.02126>`_ paper with given weights

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i)} w_{j,i} \, \mathbf{x}_j.

    Given a :class:`~torch_geometric_unlearn.ops.SparseOperator`, it runs the sparse
    kernel of :meth:`~torch_geometric_unlearn.ops.spmm`; given :obj:`edge_index`, or
    while an explainer is at work, it passes messages. Both give the same result.

    Shapes:
        - **input:** node features :math:`(N_{source}, H)`, edge indices
          :math:`(2, E)`, edge weights :math:`(E)` *(optional)*
        - **output:** node features :math:`(N_{target}, H)`

    Example:
        >>> conv = LightConv()
        >>> from torch_geometric_unlearn.ops.sparse_operator import bipartite_operators
        >>> operator, _ = bipartite_operators(torch.tensor([[0], [0]]), 1, 1)
        >>> conv(torch.tensor([[1.], [2.]]), operator)
        tensor([[2.],
                [1.]])
    """

    def __init__(self) -> None:
        super().__init__(aggr='add')
        # What PyG runs for explainers. A subclass would take it from its parent, where
        # it may already be the compiled method, which ignores their masks.
        self.__class__._orig_propagate = MessagePassing.propagate

    def forward(
        self,
        x: Tensor,
        edge_index: Adj | SparseOperator,
        edge_weight: OptTensor = None,
        size: Size = None,
    ) -> Tensor:
        if isinstance(edge_index, SparseOperator):
            if self.fuse and not self.explain:
                return spmm(edge_index, x)
            edge_weight, size = edge_index.edge_weight, edge_index.size
            edge_index = edge_index.edge_index
        check_floating(x)
        return self.propagate(
            edge_index, x=(x, None), edge_weight=edge_weight, size=size
        )

    def message(self, x_j: Tensor, edge_weight: OptTensor) -> Tensor:
        if edge_weight is None:
            return x_j
        return (edge_weight.view(-1, 1) * x_j).to(x_j.dtype)

    def message_and_aggregate(self, adj_t: Adj, x: tuple[Tensor, OptTensor]) -> Tensor:
        return pyg_spmm(adj_t, x[0], reduce='sum')
