from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from .blocks import Blocks


class Rows(Blocks):
    r"""Which rows of a matrix a process works on where all columns are needed, and how
    "all rows, some columns" becomes "some rows, all columns" and back.

    What mixes columns, as a dense layer does, treats every row by itself. So each
    process does it for a block of rows, of which it receives all columns, and sends the
    result back by columns. All maps are differentiable; a gradient takes the way back.

    Args:
        num_rows (int): Rows :math:`N` of a whole matrix; with :math:`P` processes, the
            one of rank :math:`r` has :math:`N_r` of them.
        group (ProcessGroup, optional): The processes; all of them if not given.
            (default: :obj:`None`)

    Raises:
        ValueError: If this process is none of :obj:`group`.

    Example:
        >>> rows = Rows(5)
        >>> rows.from_columns(torch.randn(5, 8)).shape
        torch.Size([5, 8])
    """

    def __init__(self, num_rows: int, group: Any = None) -> None:
        super().__init__(num_rows, 0, group)

    def from_columns(self, x: Tensor) -> Tensor:
        r"""Returns all columns of the rows of this process,
        :math:`(N_r, *, H)`, from its columns of all rows, :math:`(N, *, H / P)`.
        """
        return self._map(x, self._from_columns, self._to_columns)

    def to_columns(self, x: Tensor) -> Tensor:
        r"""Returns the columns of this process of all rows, :math:`(N, *, H / P)`,
        from all columns of its rows, :math:`(N_r, *, H)`.
        """
        return self._map(x, self._to_columns, self._from_columns)

    def sum(self, x: Tensor) -> Tensor:
        r"""Returns the rows of this process, :math:`(N_r, *)`, of the sum over the
        processes of their :math:`(N, *)`.
        """
        return self._map(x, self._sum, self._gather)

    def collect(self, x: Tensor) -> Tensor:
        r"""Returns the rows of all processes, :math:`(N, *)`, where each goes on with a
        computation of its own, a part of a sum over the processes; :meth:`gather` is
        for those that all do the same.
        """
        return self._map(x, self._gather, self._sum)

    def _from_columns(self, x: Tensor) -> Tensor:
        return self._parts(x).movedim(0, -2).flatten(-2)

    def _to_columns(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.num_processes, -1)).movedim(-2, 0)
        x = x.flatten(0, 1).contiguous()
        out = x.new_empty(self.total, *x.shape[1:])
        self._exchange(out, x, self.sizes, [self.size] * self.num_processes)
        return out

    def _sum(self, x: Tensor) -> Tensor:
        return self._parts(x).sum(dim=0)

    def _parts(self, x: Tensor) -> Tensor:
        r"""Returns the rows of this process of what each one holds,
        :math:`(P, N_r, *)`.
        """
        out = x.new_empty(self.num_processes, self.size, *x.shape[1:])
        sizes = [self.size] * self.num_processes
        self._exchange(out.flatten(0, 1), x.contiguous(), sizes, self.sizes)
        return out

    def _exchange(
        self, out: Tensor, x: Tensor, received: list[int], sent: list[int]
    ) -> None:
        dist.all_to_all_single(out, x, received, sent, group=self.group)
