from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.typing import Adj, OptTensor, Size
from torch_geometric.utils import is_sparse

from torch_geometric_unlearn.ops import SparseOperator
from torch_geometric_unlearn.ops.spmm import diffuse
from torch_geometric_unlearn.utils.check import check_float, check_int

from .light_conv import LightConv


class MarkovDiffusionConv(LightConv):
    r"""Propagates several times with a restart at the input, from the `"MGDCF: Distance
    Learning via Markov Graph Diffusion for Neural Collaborative Filtering"
    <https://arxiv.org/abs/2204.02338>`_ paper

    .. math::
        \mathbf{X}^{(k)} = \beta \mathbf{A}^{\prime} \mathbf{X}^{(k-1)}
        + \alpha \mathbf{X}^{(0)}, \qquad
        \mathbf{X}^{\prime} = \mathbf{X}^{(K)} / \gamma, \quad
        \gamma = \beta^K + \alpha \sum_{i=0}^{K-1} \beta^i.

    In training, edge weights are dropped out (after normalisation, each direction by
    itself, and the same for all :math:`K` hops). No hop returns the input.

    Given a :class:`~torch_geometric_unlearn.ops.SparseOperator`, it runs
    :meth:`~torch_geometric_unlearn.ops.diffuse`, which keeps no layer; given
    :obj:`edge_index`, or while an explainer is at work, it passes messages.

    Args:
        num_layers (int): Number of propagations :math:`K`, at least 0.
        alpha (float, optional): Weight of the input. (default: :obj:`0.1`)
        beta (float, optional): Weight of the neighbours. (default: :obj:`0.9`)
        dropout (float, optional): Probability of dropping an edge weight in training,
            in :math:`[0, 1)`. (default: :obj:`0.0`)

    Shapes:
        - **input:** node features :math:`(N, H)`, edge indices :math:`(2, E)`, edge
          weights :math:`(E)` *(optional)*
        - **output:** node features :math:`(N, H)`

    Raises:
        ValueError: If an argument is out of range, or edges of a sparse matrix
            are to be dropped.

    Example:
        >>> from torch_geometric_unlearn.ops.sparse_operator import self_loop_operator
        >>> operator = self_loop_operator(torch.tensor([[0], [0]]), 1, 1)
        >>> MarkovDiffusionConv(num_layers=1)(torch.tensor([[1.], [3.]]), operator)
        tensor([[1.9000],
                [2.1000]])
    """

    def __init__(
        self,
        num_layers: int,
        alpha: float = 0.1,
        beta: float = 0.9,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_layers = check_int(num_layers, 'num_layers', 0)
        self.alpha = check_float(alpha, 'alpha', 0.0)
        self.beta = check_float(beta, 'beta', 0.0)
        self.dropout = check_float(dropout, 'dropout', 0.0, 0.999)
        powers = [beta**i for i in range(num_layers + 1)]
        self.gamma = powers[-1] + alpha * sum(powers[:-1])
        if self.gamma == 0:
            raise ValueError("'alpha' and 'beta' must not both be 0")

    def forward(
        self,
        x: Tensor,
        edge_index: Adj | SparseOperator,
        edge_weight: OptTensor = None,
        size: Size = None,
    ) -> Tensor:
        if self.num_layers == 0:
            return x
        p = self.dropout if self.training else 0.0
        if isinstance(edge_index, SparseOperator):
            if self.fuse and not self.explain:
                args = self.num_layers, self.alpha, self.beta, p
                return diffuse(edge_index, x, *args) / self.gamma
            edge_weight, size = edge_index.edge_weight, edge_index.size
            edge_index = edge_index.edge_index
        if p > 0:
            if is_sparse(edge_index):
                raise ValueError(
                    f"'edge_index' must list edges to drop some of them (got "
                    f'{type(edge_index).__name__}). Pass a SparseOperator instead.'
                )
            if edge_weight is None:
                edge_weight = x.new_ones(edge_index.size(1))
            keep = torch.rand_like(edge_weight) >= p
            edge_weight = edge_weight * keep / (1 - p)
        out = x
        for _ in range(self.num_layers):
            out = super().forward(out, edge_index, edge_weight, size)
            out = self.beta * out + self.alpha * x
        return out / self.gamma
