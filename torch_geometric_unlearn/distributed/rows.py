from __future__ import annotations

from typing import Any

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

    def _from_columns(self, x: Tensor) -> Tensor:
        return self._parts(x).movedim(0, -2).flatten(-2)

    def _to_columns(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.num_processes, -1)).movedim(-2, 0)
        x = x.flatten(0, 1).contiguous()
        out = x.new_empty(self.total, *x.shape[1:])
        self._exchange(out, x, self.sizes, [self.size] * self.num_processes)
        return out
