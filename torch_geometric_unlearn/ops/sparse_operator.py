from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import degree

from torch_geometric_unlearn.utils.check import check_bool, check_int
from torch_geometric_unlearn.utils.csr import index_dtype, row_places, row_starts
from torch_geometric_unlearn.utils.plain import plain


class SparseOperator:
    r"""A constant sparse matrix :math:`\mathbf{A}` that a model propagates over.

    Holds the matrix in CSR by target node and its transpose in CSR by source node, so
    that :meth:`~torch_geometric_unlearn.ops.spmm` needs no sorting in either
    direction. A symmetric matrix is stored once. Indices are int32 where they fit.

    Args:
        edge_index (torch.Tensor): Source and target of every entry, int64
            :obj:`[2, E]`.
        edge_weight (torch.Tensor): Value of every entry, floating point :obj:`[E]`.
        size (tuple): Number of source and target nodes.
        is_symmetric (bool, optional): Whether the caller knows that
            :math:`\mathbf{A} = \mathbf{A}^{\top}`. (default: :obj:`False`)

    Raises:
        TypeError: If indices are not int64, values not floating point, or a size is no
            integer.
        ValueError: If shapes or devices disagree, an index is out of range, or a
            non-square matrix is called symmetric.
    """

    def __init__(
        self,
        edge_index: Tensor,
        edge_weight: Tensor,
        size: tuple[int, int],
        is_symmetric: bool = False,
    ) -> None:
        edge_index = plain(edge_index)
        check_entries(edge_index, size)
        check_values(edge_index, edge_weight)
        is_symmetric = check_bool(is_symmetric, 'is_symmetric')
        if is_symmetric and size[0] != size[1]:
            raise ValueError(f'A symmetric operator must be square (got size {size})')
        self.size = size
        self.is_symmetric = is_symmetric
        self._segments: dict[bool, list[Tensor]] = {}
        self._transpose_order: Tensor | None = None
        source, target = edge_index[0], edge_index[1]
        self.rowptr, self.col, self.value = _to_csr(
            target, source, edge_weight, size[1]
        )
        if is_symmetric:
            self.rowptr_t, self.col_t, self.value_t = self.rowptr, self.col, self.value
        else:
            self.rowptr_t, self.col_t, self.value_t = _to_csr(
                source, target, edge_weight, size[0]
            )

    @classmethod
    def _of(
        cls,
        rowptr: Tensor,
        col: Tensor,
        value: Tensor,
        size: tuple[int, int],
        transpose: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> SparseOperator:
        r"""Returns the matrix of what is in order already; symmetric without a
        transpose.
        """
        out = object.__new__(cls)
        out.size, out.is_symmetric = size, transpose is None
        out._segments, out._transpose_order = {}, None
        out.rowptr, out.col, out.value = rowptr, col, value
        out.rowptr_t, out.col_t, out.value_t = transpose or (rowptr, col, value)
        return out

    @property
    def num_entries(self) -> int:
        r"""Number of stored entries :math:`E`."""
        return self.col.numel()

    @property
    def edge_index(self) -> Tensor:
        r"""Source and target of every entry, grouped by target, int64 :obj:`[2, E]`."""
        count = self.rowptr.diff()
        target = torch.arange(self.size[1], device=count.device)
        target = target.repeat_interleave(
            count.long(), output_size=self.num_entries
        )
        return torch.stack([self.col.long(), target])

    @property
    def edge_weight(self) -> Tensor:
        r"""Values in the order of :obj:`edge_index`, :obj:`[E]`."""
        return self.value

    @property
    def transpose_order(self) -> Tensor:
        r"""Place in :obj:`value` of every entry of the transpose, int64 :obj:`[E]`,
        computed once; needs unique entries.
        """
        if self._transpose_order is None:
            source, target = self.edge_index
            by_target = (target * self.size[0] + source).argsort()
            count = self.rowptr_t.diff()
            source_t = torch.arange(self.size[0], device=count.device)
            source_t = source_t.repeat_interleave(
                count.long(), output_size=self.num_entries
            )
            by_target_t = (self.col_t.long() * self.size[0] + source_t).argsort()
            self._transpose_order = torch.empty_like(by_target)
            self._transpose_order[by_target_t] = by_target
        return self._transpose_order

    def row_segments(self, transpose: bool = False) -> list[Tensor]:
        r"""Returns how the Triton kernel splits long rows, computed once."""
        from ._triton import split_rows

        key = transpose and not self.is_symmetric
        if key not in self._segments:
            self._segments[key] = split_rows(self.rowptr_t if key else self.rowptr)
        return self._segments[key]

    def to(self, *args: torch.device | str | torch.dtype) -> SparseOperator:
        r"""Returns a copy on another device, or with values of another data type.

        Raises:
            TypeError: If the data type is not floating point.
        """
        for dtype in args:
            if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
                raise TypeError(
                    f"'dtype' must be a floating point type (got {dtype}), or values "
                    f'would be cut to integers'
                )
        csr_t = None
        if not self.is_symmetric:
            csr_t = _moved(self.rowptr_t, self.col_t, self.value_t, *args)
        csr = _moved(self.rowptr, self.col, self.value, *args)
        return SparseOperator._of(*csr, self.size, csr_t)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(size={self.size}, '
            f'num_entries={self.num_entries}, is_symmetric={self.is_symmetric})'
        )


def check_entries(
    edge_index: Tensor,
    size: tuple[int, int],
    names: tuple[str, str] = ('source', 'target'),
) -> None:
    r"""Checks the places of the entries of a matrix.

    Args:
        edge_index (torch.Tensor): Two indices per entry, int64 :obj:`[2, E]`.
        size (tuple): Number of values that each of them can take.
        names (tuple, optional): What they are. (default: :obj:`('source', 'target')`)

    Raises:
        TypeError: If indices are not int64 or a size is no integer.
        ValueError: If the shape is another one, or an index is out of range.
    """
    if not isinstance(edge_index, Tensor) or edge_index.dtype != torch.int64:
        raise TypeError(
            f"'edge_index' must be an int64 tensor (got {_type_of(edge_index)}). "
            f"Convert it with '.long()'."
        )
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"'edge_index' must have shape [2, E] (got {list(edge_index.shape)})"
        )
    if not isinstance(size, tuple) or len(size) != 2:
        raise TypeError(f"'size' must be a tuple of two integers (got {size!r})")
    for row, num, name in zip(edge_index, size, names):
        check_int(num, f'number of {name} nodes', 0)
        if row.numel() == 0:
            continue
        low, high = (int(value) for value in row.aminmax())
        if low < 0 or high >= num:
            raise ValueError(
                f"'edge_index' must hold {name} nodes in [0, {num - 1}], as there are "
                f'{num} (got {low if low < 0 else high}). Number them from 0, or pass '
                f'the size of the whole graph.'
            )


def check_values(edge_index: Tensor, edge_weight: Tensor) -> None:
    r"""Checks the values of the entries of a matrix.

    Raises:
        TypeError: If they are not floating point.
        ValueError: If there is not one per entry, or they are on another device.
    """
    if not isinstance(edge_weight, Tensor) or not edge_weight.is_floating_point():
        raise TypeError(
            f"'edge_weight' must be a floating point tensor (got "
            f"{_type_of(edge_weight)}). Convert it with '.float()'."
        )
    if edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(
            f"'edge_weight' must have shape [{edge_index.size(1)}] "
            f'(got {list(edge_weight.shape)})'
        )
    if edge_weight.device != edge_index.device:
        raise ValueError(
            f"'edge_weight' must be on the device of 'edge_index', "
            f"'{edge_index.device}' (got '{edge_weight.device}'). Move it there."
        )


def bipartite_operator(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    dtype: torch.dtype = torch.float32,
) -> SparseOperator:
    r"""Returns :math:`\mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2}` of the training
    interactions, with :math:`\mathbf{A}` the bipartite adjacency over users and items
    (users first), symmetric and without self loops. Nodes without edges have zero rows.

    Both directions of the edges are written to their places part by part, so that
    little more than the result is held.

    Args:
        edge_index (torch.Tensor): (user, item) pairs, int64 :obj:`[2, E]`.
        num_users (int): Number of users.
        num_items (int): Number of items.
        dtype (torch.dtype, optional): Type of the values.
            (default: :obj:`torch.float32`)

    Raises:
        TypeError, ValueError: If :obj:`edge_index` is not as described, or holds an id
            that is out of range.
    """
    edge_index = plain(edge_index)
    check_entries(edge_index, (num_users, num_items), ('user', 'item'))
    user, item = edge_index[0], edge_index[1]
    count = user.bincount(minlength=num_users), item.bincount(minlength=num_items)
    scale = [_inv_sqrt(num.to(dtype)) for num in count]
    num_nodes, num_pairs = num_users + num_items, edge_index.size(1)
    rowptr = row_starts(torch.cat(count))
    index = index_dtype(num_nodes, 2 * num_pairs)
    col = user.new_empty(2 * num_pairs, dtype=index)
    value = scale[0].new_empty(2 * num_pairs)
    ends = ((user, item, num_users), (item, user, 0))
    starts = rowptr[:-1].split([num_users, num_items])
    for (row, other, shift), start in zip(ends, starts):
        for part, place in row_places(row, start):
            col[place] = (other[part] + shift).to(index)
            value[place] = scale[0][user[part]] * scale[1][item[part]]
    size = (num_nodes, num_nodes)
    return SparseOperator._of(rowptr.to(index), col, value, size)


def bipartite_operators(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[SparseOperator, SparseOperator]:
    r"""Returns :meth:`bipartite_operator` and its block that aggregates items into
    users, which shares its values.

    Args:
        edge_index (torch.Tensor): (user, item) pairs, int64 :obj:`[2, E]`.
        num_users (int): Number of users.
        num_items (int): Number of items.
        dtype (torch.dtype, optional): Type of the values.
            (default: :obj:`torch.float32`)

    Raises:
        TypeError, ValueError: If :obj:`edge_index` is not as described, or holds an id
            that is out of range.
    """
    both = bipartite_operator(edge_index, num_users, num_items, dtype)
    num_pairs = edge_index.size(1)
    of_users, of_items = both.rowptr[: num_users + 1], both.rowptr[num_users:]
    item_to_user = SparseOperator._of(
        of_users,
        both.col[:num_pairs] - num_users,
        both.value[:num_pairs],
        (num_items, num_users),
        (of_items - num_pairs, both.col[num_pairs:], both.value[num_pairs:]),
    )
    return both, item_to_user


def self_loop_operator(
    edge_index: Tensor, num_users: int, num_items: int
) -> SparseOperator:
    r"""Returns :math:`\mathbf{D}^{-1/2} (\mathbf{A} + \mathbf{I}) \mathbf{D}^{-1/2}`
    of the training interactions over users and items (users first), where degrees count
    the self loop; PyG's :obj:`gcn_norm` in symmetric form.

    Args:
        edge_index (torch.Tensor): (user, item) pairs, int64 :obj:`[2, E]`.
        num_users (int): Number of users.
        num_items (int): Number of items.

    Raises:
        TypeError, ValueError: If :obj:`edge_index` is not as described, or holds an id
            that is out of range.
    """
    check_entries(edge_index, (num_users, num_items), ('user', 'item'))
    num_nodes = num_users + num_items
    user, item = edge_index[0], edge_index[1] + num_users
    loop = torch.arange(num_nodes, device=edge_index.device)
    source, target = torch.cat([user, item, loop]), torch.cat([item, user, loop])
    norm = _inv_sqrt(degree(target, num_nodes))
    return SparseOperator(
        torch.stack([source, target]),
        norm[source] * norm[target],
        (num_nodes, num_nodes),
        is_symmetric=True,
    )


def target_degree_operator(
    edge_index: Tensor, edge_weight: Tensor, num_nodes: int
) -> SparseOperator:
    r"""Returns :math:`\mathbf{D}^{-1/2} \mathbf{S} \mathbf{D}^{-1/2}` for a directed
    graph, where :math:`\mathbf{D}` sums the incoming weights of every node.

    A degree that is not positive gives a zero factor.

    Args:
        edge_index (torch.Tensor): (source, target) pairs, int64 :obj:`[2, E]`.
        edge_weight (torch.Tensor): Weights :obj:`[E]`.
        num_nodes (int): Number of nodes.

    Raises:
        TypeError, ValueError: If an argument is not as described, or an index is out
            of range.
    """
    check_entries(edge_index, (num_nodes, num_nodes))
    check_values(edge_index, edge_weight)
    deg = edge_weight.new_zeros(num_nodes).index_add_(0, edge_index[1], edge_weight)
    norm = _inv_sqrt(deg)
    weight = norm[edge_index[0]] * edge_weight * norm[edge_index[1]]
    return SparseOperator(edge_index, weight, (num_nodes, num_nodes))


def _type_of(value: object) -> object:
    return value.dtype if isinstance(value, Tensor) else type(value).__name__


def _inv_sqrt(deg: Tensor) -> Tensor:
    return torch.where(deg > 0, deg.clamp(min=torch.finfo(deg.dtype).tiny).rsqrt(), 0.0)


def _moved(
    rowptr: Tensor, col: Tensor, value: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    value = value.to(*args)
    return rowptr.to(value.device), col.to(value.device), value


def _to_csr(
    row: Tensor, col: Tensor, value: Tensor, num_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    rowptr = row_starts(row.bincount(minlength=num_rows))
    num_cols = int(col.max()) + 1 if col.numel() else 0
    index = index_dtype(num_rows, num_cols, row.numel())
    out, weight = col.new_empty(col.numel(), dtype=index), torch.empty_like(value)
    for part, place in row_places(row, rowptr[:-1]):
        out[place], weight[place] = col[part].to(index), value[part]
    return rowptr.to(index), out, weight
