from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from torch_geometric_unlearn.ops import SparseOperator
from torch_geometric_unlearn.ops.sparse_operator import bipartite_operator
from torch_geometric_unlearn.ops.spmm import consume_beta_warning


@dataclass
class InteractionGraph:
    r"""Interactions as pairs and as one homogeneous graph over users and items.

    Attributes:
        edge_index (torch.Tensor): (user, item) pairs, int64 :obj:`[2, E]`.
        num_users (int): Number of users.
        num_items (int): Number of items.
        adj (torch.Tensor): The edges between nodes in both directions, users first,
            then items, int64 :obj:`[2, 2 * E]`.
    """

    edge_index: Tensor
    num_users: int
    num_items: int
    adj: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        user, item = self.edge_index[0], self.edge_index[1] + self.num_users
        self.adj = torch.stack([torch.cat([item, user]), torch.cat([user, item])])
        self._made = self.adj
        self._operators: dict[torch.dtype, SparseOperator] = {}

    @cached_property
    def adj_t(self) -> Tensor:
        r"""The same as a sparse CSR matrix with a row per target."""
        num_nodes = self.num_users + self.num_items
        col, row = self.adj
        code = (row * num_nodes + col).sort()[0]
        first = torch.arange(num_nodes + 1, device=code.device) * num_nodes
        rowptr = torch.searchsorted(code, first)  # To count would wait for the device.
        value = torch.ones(code.numel(), device=code.device)
        size = (num_nodes, num_nodes)
        consume_beta_warning()
        return torch.sparse_csr_tensor(
            rowptr, code % num_nodes, value, size, check_invariants=False
        )

    def is_intact(self, adj: Tensor) -> bool:
        r"""Tells whether :obj:`adj` is the one that was made here and still holds what
        it did, so that :meth:`normalised` stands for it.
        """
        # The writes to what is made in inference mode are not counted.
        return adj is self._made and not adj.is_inference() and adj._version == 0

    def normalised(self, dtype: torch.dtype) -> SparseOperator:
        r"""Returns the symmetrically normalised adjacency :math:`\mathbf{D}^{-1/2}
        \mathbf{A} \mathbf{D}^{-1/2}` of :obj:`adj` as it was made, computed once per
        data type.
        """
        if dtype not in self._operators:
            item, user = self._made[:, : self._made.size(1) // 2]
            pairs = torch.stack([user, item - self.num_users])
            sizes = self.num_users, self.num_items
            self._operators[dtype] = bipartite_operator(pairs, *sizes, dtype)
        return self._operators[dtype]

    def to(self, device: torch.device | str) -> InteractionGraph:
        r"""Returns the graph on another device."""
        edge_index = self.edge_index.to(device)
        return InteractionGraph(edge_index, self.num_users, self.num_items)
